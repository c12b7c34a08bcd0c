"""Measures: fidelity inside the brain, distance between distributions, and whether the spread of samples is right.

Everything is computed on intensities (air 0, white matter 0.8), so a data range of 1 is meant throughout. SSIM, PSNR,
MAE and MMD are MONAI's; what is added here is the brain mask, the averaging over patients, and a kernel for the MMD
(MONAI's is linear in the features it is given, and a linear kernel sees means only).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from suffuse.errors import InvalidArgument

FIDELITY: dict[str, Literal["higher", "lower"]] = {"SSIM": "higher", "PSNR": "higher", "MAE": "lower"}
"""Names of :func:`fidelity` and which direction is better."""


def fidelity(prediction: Tensor, truth: Tensor, brain: Tensor) -> dict[str, Tensor]:
    """SSIM, PSNR (dB) and MAE over brain voxels, each (N,), of slices (N, 1, H, W) as intensities.

    SSIM uses a Gaussian window of 7 voxels (sigma 1.5), as slices of 64 voxels are too small for the usual 11.
    """
    from monai.metrics import MAEMetric, PSNRMetric
    from monai.metrics.regression import compute_ssim_and_cs

    _same_shape(prediction, truth, brain)
    window = 7
    padded, reference = (F.pad(x, (window // 2,) * 4, mode="replicate") for x in (prediction, truth))
    ssim, _ = compute_ssim_and_cs(padded, reference, 2, kernel_size=(window,) * 2, kernel_sigma=(1.5,) * 2)
    voxels = [(p[m][None, None], x[m][None, None]) for p, x, m in zip(prediction, truth, brain, strict=True)]
    psnr, mae = PSNRMetric(max_val=1.0), MAEMetric()
    return {
        "SSIM": torch.stack([s[m].mean() for s, m in zip(ssim, brain, strict=True)]),
        "PSNR": torch.cat([torch.as_tensor(psnr(p, x)).flatten() for p, x in voxels]),
        "MAE": torch.cat([torch.as_tensor(mae(p, x)).flatten() for p, x in voxels]),
    }


def _same_shape(prediction: Tensor, truth: Tensor, brain: Tensor) -> None:
    if not prediction.shape == truth.shape == brain.shape:
        shapes = [tuple(x.shape) for x in (prediction, truth, brain)]
        raise InvalidArgument(f"prediction, truth and brain must have one shape (N, 1, H, W), got {shapes}")
    if not brain.flatten(1).any(1).all():
        raise InvalidArgument("brain is empty in at least one slice; leave slices without brain out")


@dataclass(frozen=True)
class Summary:
    """Mean and standard deviation over patients, and how many there were."""

    mean: float
    std: float
    n: int


def per_patient(values: Tensor, patients: Sequence[str]) -> np.ndarray:
    """(N,) values of slices -> (patients,) means, patients in sorted order: a patient counts once, not once a slice."""
    names = np.array(patients)
    return np.array([values.double().cpu().numpy()[names == name].mean() for name in sorted(set(patients))])


def summarise(values: Tensor, patients: Sequence[str]) -> Summary:
    """Mean over patients of the patient means, with their spread."""
    means = per_patient(values, patients)
    return Summary(float(means.mean()), float(means.std(ddof=1)) if len(means) > 1 else 0.0, len(means))


def paired_difference(
    a: Tensor, b: Tensor, patients: Sequence[str], *, seed: int = 0, level: float = 0.95
) -> tuple[float, float, float]:
    """Mean of a - b over patients with its bootstrap interval: (mean, low, high).

    Patients are resampled, not slices. A difference is worth a claim only if the interval leaves out zero.
    """
    difference = per_patient(a - b, patients)
    rng = np.random.default_rng(seed)
    means = rng.choice(difference, (2000, len(difference))).mean(1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(difference.mean()), float(low), float(high)


# --- distance between distributions -----------------------------------------------------------------------------


def texture_features(images: Tensor, seed: int = 0) -> Tensor:
    """A fixed description (N, 384) of images (N, 1, H, W): rectified responses to random filters at three scales.

    64 zero-mean 5 x 5 filters, drawn once from ``seed`` and never trained, so the description is the same everywhere
    and needs no download. Mean and standard deviation over the slice: texture and contrast count, position does not.
    Numbers made with it compare with each other, never with an Inception or RadImageNet distance.

    Raises:
        InvalidArgument: for images of less than 20 pixels along an axis, which the coarsest scale cannot see.
    """
    if images.ndim != 4 or images.shape[1] != 1 or min(images.shape[2:]) < 20:
        raise InvalidArgument(f"images must be (N, 1, H, W) of at least 20 x 20 pixels, got {tuple(images.shape)}")
    generator = torch.Generator().manual_seed(seed)
    filters = torch.randn(64, 1, 5, 5, generator=generator).to(images)
    filters = filters - filters.mean((2, 3), keepdim=True)
    filters = filters / filters.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    parts = []
    for scale in (1, 2, 4):
        response = F.conv2d(F.avg_pool2d(images, scale), filters).relu()
        parts += [response.mean((2, 3)), response.std((2, 3))]
    return torch.cat(parts, dim=1)


def rbf_mmd(real: Tensor, generated: Tensor, *, waves: int = 2048, seed: int = 0) -> float:
    """Unbiased squared maximum mean discrepancy with a Gaussian kernel between two sets of images (N, 1, H, W).

    Images are described by :func:`texture_features`; the kernel's width is the median distance of the real ones; the
    kernel enters MONAI's ``MMDMetric`` as random Fourier features, cos(w x + b). 0 is equality; it can fall below.
    Gretton et al. (2012), JMLR 13; Rahimi, Recht (2007), NIPS.
    """
    from monai.metrics import MMDMetric

    if real.shape != generated.shape or len(real) < 4:
        raise InvalidArgument(
            f"need two equal sets of at least 4 images, got {tuple(real.shape)}, {tuple(generated.shape)}"
        )
    _finite(real, generated)
    features = texture_features(real)
    distances = torch.pdist(features)
    width = float(distances.median())
    if width == 0:
        raise InvalidArgument("real holds one image many times over; an MMD needs a sample of different images")
    generator = torch.Generator().manual_seed(seed)
    w = torch.randn(features.shape[1], waves, generator=generator, dtype=torch.float64).to(real.device) / width
    b = 2 * torch.pi * torch.rand(waves, generator=generator, dtype=torch.float64).to(real.device)

    def waves_of(images: Tensor) -> Tensor:
        return (texture_features(images).double() @ w + b).cos() * (2 / waves) ** 0.5

    return float(MMDMetric(y_mapping=waves_of)(real, generated))


def _finite(real: Tensor, generated: Tensor) -> None:
    for name, images in (("real", real), ("generated", generated)):
        if not bool(torch.isfinite(images).all()):
            raise InvalidArgument(f"{name} has NaN or infinite voxels; a distance to them says nothing")


class FID(NamedTuple):
    """A Fréchet distance, and what it is between two halves of the real images: less than that says nothing."""

    value: float
    real_halves: float


def fid(real: Tensor, generated: Tensor, features: Callable[[Tensor], Tensor] = texture_features) -> FID:
    """Fréchet distance between two sets of images (N, 1, H, W) by MONAI's ``FIDMetric`` on Gaussians of features.

    With fewer images than twice the features it measures how few there are (MONAI's 20 against 20 standard normal
    vectors of 64 entries give 74), so that is refused. Heusel et al. (2017), arXiv:1706.08500.

    Args:
        features: images -> (N, d); the default has d = 384. Distances compare only between equal features.

    Raises:
        InvalidArgument: for fewer than 2 d images in either set.
    """
    from monai.metrics import FIDMetric

    _finite(real, generated)
    a, b = features(real).double(), features(generated).double()
    if a.shape[1] != b.shape[1]:
        raise InvalidArgument(f"features must be as many of either set, got {a.shape[1]} and {b.shape[1]}")
    least = 2 * a.shape[1]
    if min(len(a), len(b)) < least:
        raise InvalidArgument(
            f"FID of {a.shape[1]} features needs at least {least} images in each set, got {len(a)} real and {len(b)} "
            f"generated; use rbf_mmd, or fewer features"
        )
    order = torch.randperm(len(a), generator=torch.Generator().manual_seed(0)).to(a.device)
    one, two = a[order[: len(a) // 2]], a[order[len(a) // 2 :]]
    return FID(float(FIDMetric()(b, a)), float(FIDMetric()(one, two)))


# --- calibration ------------------------------------------------------------------------------------------------


def range_coverage(samples: Tensor, truth: Tensor, brain: Tensor) -> tuple[Tensor, float]:
    """How often the truth lies between the smallest and the largest of K samples, and how often it should.

    Args:
        samples: (K, N, 1, H, W). truth, brain: (N, 1, H, W).

    Returns:
        the fraction of brain voxels covered in each slice, (N,), and the nominal (K - 1) / (K + 1): if truth and
        samples are draws of one distribution, the truth is an extreme of all K + 1 with chance 2 / (K + 1).
    """
    inside = (truth >= samples.amin(0)) & (truth <= samples.amax(0))
    covered = torch.stack([c[m].float().mean() for c, m in zip(inside, brain, strict=True)])
    return covered, (len(samples) - 1) / (len(samples) + 1)


def sample_penalty(samples: Tensor, truth: Tensor, brain: Tensor) -> tuple[float, float]:
    """How many dB a single sample lies below the mean of all K in PSNR over the brain, measured and nominal.

    For draws of the true posterior, E|sample - truth|^2 = 2 V and E|mean - truth|^2 = (1 + 1/K) V, V the posterior
    variance, so the penalty is 10 log10(2K / (K + 1)): 3.01 dB in the limit. Less means samples that vary too little.
    """
    k = len(samples)
    single = ((samples - truth) ** 2 * brain).sum() / k
    mean = ((samples.mean(0) - truth) ** 2 * brain).sum()
    return 10 * float(torch.log10(single / mean)), 10 * float(np.log10(2 * k / (k + 1)))


def error_spread_correlation(samples: Tensor, truth: Tensor, brain: Tensor) -> float:
    """Spearman's rank correlation over brain voxels between |mean - truth| and the standard deviation of samples."""
    from scipy.stats import spearmanr

    error = (samples.mean(0) - truth).abs()[brain]
    return float(spearmanr(error.cpu().numpy(), samples.std(0)[brain].cpu().numpy()).statistic)
