r"""Anomaly maps: what would this slice look like if it were healthy, and where does it differ?

A denoiser that has seen healthy slices only is given a slice with some noise on it, and removes the noise,

    x_l = alpha_l x + sigma_l n,      x_hat ~ p(x_0 | x_l),      map = (x - x_hat)^2.

What the noise has hidden is filled in as it is in health; so the noise must hide lesions and spare the rest. AnoDDPM
takes coarse noise for it (:mod:`suffuse_medical.noise`), in training, at the start, and in the reverse steps.
Wyatt et al. (2022), "AnoDDPM", CVPR workshops.

:func:`counterfactual` needs no noise but labels "healthy" and "diseased" of whole slices: the slice is encoded by the
probability-flow ODE without a label, up to level l, and decoded as healthy, with guidance,

    x_l = ODE_up(x; no label),     x_hat = ODE_down(x_l; healthy, w).

Wolleb et al. (2022), "Diffusion models for medical anomaly detection", arXiv:2203.04306; with classifier-free guidance:
Sanchez et al. (2022), "What is healthy? Generative counterfactual diffusion for lesion localization", arXiv:2207.12268.

A map is evidence of "unusual among the training slices", not a diagnosis.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

import suffuse
from suffuse import Condition, Denoiser
from suffuse.errors import InvalidArgument, unknown
from suffuse.guidance import ClassifierFree
from suffuse.random import Generators
from suffuse.samplers import DDIM, DDPM, invert
from suffuse.samplers.base import Coefficients, Noise

from .data.geometry import Geometry
from .data.nifti import write_nifti
from .noise import CoarseNoise, SimplexNoise
from .prediction import Prediction, check_images, check_samples, device_of, in_batches
from .prior import NOISES, SliceDenoiser, fit_prior

__all__ = [
    "AnomalyPrediction",
    "best_threshold",
    "counterfactual",
    "evaluate",
    "false_positive_volume",
    "fit",
    "fit_counterfactual",
    "predict",
]

HEALTH = "health"
"""Name of the condition token (B, 1, 2): (1, 0) healthy, (0, 1) diseased."""


@dataclass(frozen=True, eq=False)
class AnomalyPrediction(Prediction):
    """Samples (K, N, C, H, W) of the healthy version of ``image`` (N, C, H, W)."""

    image: Tensor | None = None

    def on(self, geometry: Geometry) -> Self:
        assert self.image is not None
        return replace(super().on(geometry), image=self._move(self.image, geometry))

    def write(self, folder: str | Path, *, samples: bool = False, dtype: str = "float32") -> list[Path]:
        """As any prediction (the healthy version), and ``map`` and ``map-std``, which are float32."""
        written = super().write(folder, samples=samples, dtype=dtype)
        assert self.geometry is not None
        stored = self.geometry.stored_as("float32")
        named = {"map": self.map} | ({"map-std": self.map_std} if len(self.samples) > 1 else {})
        for name, slices in named.items():
            written.append(write_nifti(Path(folder) / f"{name}.nii.gz", slices[:, 0].permute(1, 2, 0), stored))
        return written

    @property
    def map(self) -> Tensor:
        """(N, 1, H, W): the squared difference to the healthy version, averaged over samples and channels."""
        return self._maps.mean(0)

    @property
    def map_std(self) -> Tensor:
        """(N, 1, H, W): its spread over samples."""
        return self._maps.std(0, correction=1 if len(self.samples) > 1 else 0)

    @property
    def _maps(self) -> Tensor:
        assert self.image is not None
        return (self.image - self.samples).square().mean(2, keepdim=True)


@dataclass(frozen=True)
class _Ancestral(DDPM):
    """DDPM whose fresh noise is of a family and made by the sampler's own seeds."""

    family: CoarseNoise | SimplexNoise | None = None
    generator: Any = field(default=None, compare=False)  # plans are cached by value, whatever the seeds

    def step(self, x: Tensor, mean: Tensor, state: Any, noise: Noise, c: Coefficients) -> tuple[Tensor, Any]:
        family = self.family
        draw = noise if family is None else lambda: family(x.shape, self.generator, x.device, x.dtype)
        return super().step(x, mean, state, draw, c)


def fit(images: Tensor, *, noise: str = "simplex", **options: Any) -> SliceDenoiser:
    """Train on healthy slices (N, C, H, W) in network units.

    Args:
        noise: ``"simplex"`` (AnoDDPM), ``"coarse"`` (Gaussian of the same kind) or ``"white"``.
        options: of :func:`suffuse_medical.prior.fit_prior`; ``rank`` is 64 here, as what fine detail says of the rest
            is in the directions of the Gaussian, and fine detail is what coarse noise leaves.
    """
    options.setdefault("rank", 64)
    return fit_prior(images, noise=noise, **options)  # type: ignore[arg-type]


@torch.no_grad()
def predict(
    denoiser: Denoiser,
    images: Tensor,
    *,
    noise: str | None = None,
    level: float = 0.5,
    steps: int = 10,
    n: int = 4,
    seed: int = 0,
    geometry: Geometry | None = None,
    batch_size: int = 64,
) -> AnomalyPrediction:
    """Healthy versions of slices, by partial noise.

    Args:
        denoiser: of healthy slices, from :func:`fit`.
        images: (N, C, H, W) in network units.
        noise: the family that the denoiser removes; default what it was trained with.
        level: kappa = sigma / alpha of the noise that is added; 1 is noise as strong as the network's unit. AnoDDPM's
            250 of 1000 steps are kappa = 0.95.
        steps: ancestral steps back; 1 is a single estimate from the noisy slice, as by a denoising autoencoder.
        n: samples for every slice.
        seed: sample k of slice i depends on ``seed``, k and i alone.
        geometry: of the volume whose slices these are, to write files.
    """
    images = check_images(images)
    check_samples(n)
    name = noise or str(getattr(denoiser, "noise", "white"))
    if name not in NOISES:
        raise unknown("noise", name, NOISES)
    family = NOISES[name]
    start = _time(denoiser, level)
    device = device_of(denoiser, images.device)

    def draw(rows: Tensor, seeds: list[int]) -> Tensor:
        generators = suffuse.random.generators(seeds, "cpu")
        x = rows.to(device)
        white: Generators = generators
        added = (family or suffuse.random.randn)(x.shape, white, device, x.dtype)
        noisy = denoiser.schedule.add_noise(x, start, added)
        sampler = _Ancestral(steps, family=family, generator=generators)
        return sampler(denoiser, x=noisy, start=start, generator=generators).to(images.device)

    return AnomalyPrediction(in_batches(draw, images, n, seed, batch_size), geometry, image=images)


def _time(denoiser: Denoiser, level: float) -> float:
    schedule = denoiser.schedule
    low, high = schedule.kappa(schedule.t_min), schedule.kappa(1.0)
    if not low < level < high:
        raise InvalidArgument(f"level must lie between the schedule's ends ({low:.3g}, {high:.3g}), got {level}")
    return schedule.t_of_kappa(float(level))


def health_token(healthy: Tensor) -> Condition:
    """The condition for (N,) of bool: True where a slice is healthy."""
    one_hot = torch.stack([healthy, ~healthy], dim=-1).float()
    return Condition(tokens={HEALTH: one_hot[:, None]})


def fit_counterfactual(images: Tensor, healthy: Tensor, **options: Any) -> SliceDenoiser:
    """Train on slices (N, C, H, W) that are labelled as a whole: ``healthy`` (N,) bool, both kinds present."""
    if healthy.dtype != torch.bool or healthy.shape != images.shape[:1]:
        raise InvalidArgument(f"healthy must be bool ({len(images)},), got {healthy.dtype} {tuple(healthy.shape)}")
    if healthy.all() or not healthy.any():
        raise InvalidArgument("healthy must have both kinds; with healthy slices alone use fit and predict")
    return fit_prior(images, cond=health_token(healthy), **options)


@torch.no_grad()
def counterfactual(
    denoiser: Denoiser,
    images: Tensor,
    *,
    guidance_scale: float = 3.0,
    level: float = 0.5,
    steps: int = 20,
    geometry: Geometry | None = None,
    batch_size: int = 64,
) -> AnomalyPrediction:
    """The healthy counterfactual of slices (N, C, H, W): one sample, as the ODE is deterministic.

    Args:
        denoiser: from :func:`fit_counterfactual`.
        guidance_scale: w, of classifier-free guidance towards healthy.
        level: kappa up to which slices are encoded.
        steps: of the ODE, each way; twice the evaluations on the way down, for guidance.
    """
    images = check_images(images)
    start = _time(denoiser, level)
    device = device_of(denoiser, images.device)
    guided = ClassifierFree(denoiser, guidance_scale)
    parts = []
    for rows in images.split(batch_size):
        x = rows.to(device)
        healthy = health_token(torch.ones(len(x), dtype=torch.bool, device=device))
        latent = invert(denoiser, x, healthy.null(), steps=steps, start=start)
        parts.append(DDIM(steps)(guided, x=latent, cond=healthy, start=start).to(images.device))
    return AnomalyPrediction(torch.cat(parts)[None], geometry, image=images)


# --- how good is a map ------------------------------------------------------------------------------------------


def evaluate(
    maps: Tensor, lesion: Tensor, brain: Tensor, patients: Sequence[str], threshold: float | None = None
) -> dict[str, np.ndarray]:
    """AP, AUROC and, with a threshold, Dice of every patient with a lesion, over the brain voxels of all its slices.

    AP (average precision) is the measure to go by: lesions are rare, and AUROC is flattered by the many easy voxels. A
    random map has the AP of the share of lesion in the brain, returned as ``prevalence``.

    Args:
        maps, lesion, brain: (N, 1, H, W): scores, 0 or 1, bool.
        patients: N names.
        threshold: from :func:`best_threshold` on other patients; never from these.
    """
    from sklearn.metrics import average_precision_score, roc_auc_score

    _check_maps(maps, lesion, brain, patients)
    names = np.array(patients)
    results: dict[str, list[float]] = {"AP": [], "AUROC": [], "prevalence": []}
    if threshold is not None:
        results["Dice"] = []
    for name in sorted(set(patients)):
        rows = torch.from_numpy(names == name)
        inside = brain[rows]
        score, truth = maps[rows][inside].double().cpu().numpy(), lesion[rows][inside].cpu().numpy() > 0.5
        if not truth.any():
            continue
        results["AP"].append(float(average_precision_score(truth, score)))
        results["AUROC"].append(float(roc_auc_score(truth, score)))
        results["prevalence"].append(float(truth.mean()))
        if threshold is not None:
            results["Dice"].append(_dice(score > threshold, truth))
    if not results["AP"]:
        raise InvalidArgument("no patient has a lesion; there is nothing to find, see false_positive_volume")
    return {name: np.array(values) for name, values in results.items()}


def best_threshold(maps: Tensor, lesion: Tensor, brain: Tensor) -> float:
    """The threshold of the largest Dice over all brain voxels together; of validation patients, some healthy."""
    score, truth = maps[brain].double().cpu().numpy(), lesion[brain].cpu().numpy() > 0.5
    if not truth.any():
        raise InvalidArgument("lesion is empty; a threshold needs validation patients with lesions")
    candidates = np.unique(np.quantile(score, 1 - np.geomspace(1e-4, 0.5, 60)))
    return float(max(candidates, key=lambda c: _dice(score > c, truth)))


def _dice(found: np.ndarray, truth: np.ndarray) -> float:
    total = found.sum() + truth.sum()
    return float(2 * (found & truth).sum() / total) if total else 1.0


def false_positive_volume(
    maps: Tensor, brain: Tensor, threshold: float, patients: Sequence[str], voxel: float = 1.0
) -> np.ndarray:
    """What is called a lesion in healthy patients, in ml per patient.

    Args:
        voxel: volume of a voxel in mm^3 (``geometry.voxel_volume``).
    """
    found = ((maps > threshold) & brain).flatten(1).sum(1).cpu().numpy() * voxel / 1000
    names = np.array(patients)
    return np.array([found[names == name].sum() for name in sorted(set(patients))])


def _check_maps(maps: Tensor, lesion: Tensor, brain: Tensor, patients: Sequence[str]) -> None:
    if not maps.shape == lesion.shape == brain.shape or maps.ndim != 4 or len(patients) != len(maps):
        shapes = [tuple(x.shape) for x in (maps, lesion, brain)]
        raise InvalidArgument(f"maps, lesion and brain must share one shape (N, 1, H, W) with N patients, got {shapes}")
    if not bool(((lesion == 0) | (lesion == 1)).all()):
        raise InvalidArgument("lesion must be 0 or 1; threshold soft masks first")
    if not torch.isfinite(maps).all():
        raise InvalidArgument("maps have NaN or infinite voxels")
