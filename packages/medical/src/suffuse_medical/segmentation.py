r"""Segmentation by diffusing the mask: several plausible masks instead of one, and a map of where they disagree.

    D(m_t, t, image) = E[mask | m_t, image],    mask one-hot in {-1, 1},    the image beside the noisy mask as channels

Sampling it n times gives an ensemble without training n networks; its mean is a probability, its variance an
uncertainty, and every member is a whole mask, as one annotator would draw it.
Wolleb, Sandkühler, Bieder, Valmaggia, Cattin (2022), "Diffusion models for implicit image segmentation ensembles",
arXiv:2112.03145.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import suffuse
from suffuse import Condition, Denoiser
from suffuse.errors import InvalidArgument
from suffuse.samplers import DDPM
from suffuse.training import LogNormalKappa

from .data.geometry import Geometry
from .data.labels import LabelSchema
from .data.nifti import write_nifti
from .prediction import Prediction, check_images, check_samples, device_of, in_batches
from .prior import SliceDenoiser, fit_prior

__all__ = ["SegmentationPrediction", "dice", "evaluate", "expected_calibration_error", "fit", "ged", "predict"]


@dataclass(frozen=True, eq=False)
class SegmentationPrediction(Prediction):
    """Samples (K, N, C, H, W), each a mask of one-hot classes; ``mean`` is the probability of each class."""

    schema: LabelSchema | None = None
    mode = "nearest"

    @property
    def labels(self) -> Tensor:
        """(N, 1, H, W): the likeliest class of every voxel, as the schema stores it."""
        assert self.schema is not None
        return self.schema.stored(self.mean)

    @property
    def entropy(self) -> Tensor:
        """(N, 1, H, W): of the class probabilities, in bits: 0 where all samples agree."""
        p = self.mean.clamp(min=1e-12)
        return -(p * p.log2()).sum(1, keepdim=True)

    def _outside(self, channels: int) -> Tensor:
        return torch.eye(channels)[0]  # the first class, background

    def write_labels(self, path: str | Path) -> Path:
        """The label map as NIfTI of unsigned bytes, on the geometry of the input."""
        if self.geometry is None:
            raise InvalidArgument("this prediction has no geometry; pass geometry= to predict, files need a place")
        return write_nifti(path, self.labels[:, 0].permute(1, 2, 0), self.geometry.stored_as("uint8"))


def fit(images: Tensor, masks: Tensor, schema: LabelSchema, **options: Any) -> SliceDenoiser:
    """Train on slices (N, C, H, W) in network units with masks (N, 1, H, W) of the schema's numbers.

    Where several annotators drew masks, give each as a row of its own: the ensemble then spreads as they do.

    Args:
        options: of :func:`suffuse_medical.prior.fit_prior`.
    """
    images = check_images(images)
    if masks.shape != (len(images), 1, *images.shape[2:]):
        raise InvalidArgument(f"masks must be (N, 1, H, W) like the images, got {tuple(masks.shape)}")
    target = 2 * schema.one_hot(masks) - 1
    # a mask is legible through much noise, its voxels say the same; what it takes from the image is learned beyond that
    options.setdefault("time", LogNormalKappa(math.log(4.0), 1.6))
    options.setdefault("cond_dropout", 0.0)
    options.setdefault("rank", None)  # a mask's Gaussian, whatever the image, would only mislead
    return fit_prior(target, cond=Condition(maps={"image": images}), **options)


@torch.no_grad()
def predict(
    denoiser: Denoiser,
    images: Tensor,
    schema: LabelSchema,
    *,
    n: int = 5,
    steps: int = 10,
    seed: int = 0,
    geometry: Geometry | None = None,
    batch_size: int = 64,
) -> SegmentationPrediction:
    """An ensemble of masks for slices (N, C, H, W).

    Args:
        denoiser: from :func:`fit`.
        n: members; five in the paper.
        steps: ancestral steps, one network call each.
        seed: member k of slice i depends on ``seed``, k and i alone.
        geometry: of the volume whose slices these are, to write files.
    """
    images = check_images(images)
    check_samples(n)
    device = device_of(denoiser, images.device)

    def draw(rows: Tensor, seeds: list[int]) -> Tensor:
        generators = suffuse.random.generators(seeds, "cpu")
        cond = Condition(maps={"image": rows.to(device)})
        scores = DDPM(steps)(denoiser, (len(rows), len(schema), *rows.shape[2:]), cond=cond, generator=generators)
        hard = torch.nn.functional.one_hot(scores.argmax(1), len(schema)).movedim(-1, 1)
        return hard.float().to(images.device)

    return SegmentationPrediction(in_batches(draw, images, n, seed, batch_size), geometry, schema=schema)


# --- how good is a mask -----------------------------------------------------------------------------------------


def dice(found: Tensor, truth: Tensor, patients: Sequence[str]) -> np.ndarray:
    """Dice of every patient and foreground class, (patients, C - 1), over all slices of the patient together.

    Args:
        found, truth: one-hot (N, C, H, W). Where both are empty Dice is 1.
    """
    if found.shape != truth.shape or len(patients) != len(found):
        raise InvalidArgument(
            f"found and truth must share one shape (N, C, H, W) with N patients, got {tuple(found.shape)}, "
            f"{tuple(truth.shape)}, {len(patients)}"
        )
    names = np.array(patients)
    both, total = (x.flatten(2).sum(-1)[:, 1:].double().cpu().numpy() for x in (found * truth, found + truth))
    rows = []
    for name in sorted(set(patients)):
        overlap, size = both[names == name].sum(0), total[names == name].sum(0)
        rows.append(np.where(size > 0, 2 * overlap / np.maximum(size, 1), 1.0))
    return np.stack(rows)


def ged(samples: Tensor, annotators: Tensor) -> Tensor:
    """The squared generalised energy distance between masks that a model and that annotators draw, (N,); 0 is equality.

        2 E d(s, y) - E d(s, s') - E d(y, y'),     d = 1 - IoU of the foreground (0 where both are empty)

    Kohl et al. (2018), "A probabilistic U-Net", arXiv:1806.05034, eq. 4.

    Args:
        samples: (K, N, H, W) of 0 and 1. annotators: (M, N, H, W).
    """

    def distance(a: Tensor, b: Tensor) -> Tensor:
        a, b = a.flatten(2).permute(1, 0, 2), b.flatten(2).permute(1, 0, 2)  # (N, K, voxels)
        both = a @ b.mT
        union = a.sum(-1)[..., None] + b.sum(-1)[:, None] - both
        return torch.where(union > 0, 1 - both / union.clamp(min=1), 0.0).mean((1, 2))

    s, y = samples.float(), annotators.float()
    return 2 * distance(s, y) - distance(s, s) - distance(y, y)


def expected_calibration_error(probability: Tensor, truth: Tensor, bins: int = 10) -> float:
    """How far the probability of a class (N, H, W) is from how often it is there: mean over bins, by their voxels.

    Voxels below 1% and of another class are left out: the easy background would hide everything.
    """
    keep = (probability > 0.01) | (truth > 0.5)
    p, y = probability[keep].double(), truth[keep].double()
    if not len(p):
        return 0.0
    at = (p * bins).long().clamp(max=bins - 1)
    gap = torch.zeros(bins, dtype=torch.float64).index_add_(0, at, p - y)
    return float(gap.abs().sum() / len(p))


def evaluate(
    prediction: SegmentationPrediction,
    masks: Tensor,
    patients: Sequence[str],
    *,
    annotators: Tensor | None = None,
) -> dict[str, np.ndarray]:
    """Dice of the label map, mean over foreground classes, of every patient; ECE, over all annotators; and GED^2
    of every slice.

    Args:
        masks: (N, 1, H, W) of the schema's numbers.
        annotators: (M, N, H, W) masks of the foreground by M annotators; default the one in ``masks``.
    """
    schema = prediction.schema
    assert schema is not None
    truth = schema.one_hot(masks)
    found = schema.one_hot(prediction.labels)
    foreground = 1 - prediction.samples[:, :, 0]
    drawn = (1 - truth[:, 0])[None] if annotators is None else annotators
    probability = 1 - prediction.mean[:, 0]
    return {
        "Dice": dice(found, truth, patients).mean(1),
        "ECE": np.array([expected_calibration_error(probability.repeat(len(drawn), 1, 1), drawn.flatten(0, 1))]),
        "GED2": ged(foreground, drawn).cpu().numpy(),
    }
