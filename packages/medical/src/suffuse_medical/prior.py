"""The prior of images: an unconditional (or conditional) denoiser of slices, for every task that starts from one.

A task asks a prior different questions: what fits this measurement (reconstruction), what would this look like healthy
(anomaly). So one small network serves all, and its checkpoint remembers the family of noise that it removes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from suffuse import Condition, Denoiser
from suffuse.errors import unknown
from suffuse.exact import GaussianDenoiser
from suffuse.hub import serializable
from suffuse.schedules import EDM, Schedule
from suffuse.training import DenoisingObjective
from suffuse.training.times import TimeSampler

from . import training
from .nets import ESTIMATE, SMALL, GaussianPart, ResidualDenoiser, SubpixelUNet, gaussian_part, unet_settings
from .noise import CoarseNoise, SimplexNoise, Whitened
from .prediction import check_images

__all__ = ["NOISES", "SliceDenoiser", "fit_prior", "gaussian_prior", "slice_denoiser"]

NoiseName = Literal["white", "coarse", "simplex"]
#: The families of noise by name; white is what every other denoiser here removes.
NOISES: dict[str, CoarseNoise | SimplexNoise | None] = {
    "white": None,
    "coarse": CoarseNoise(),
    "simplex": SimplexNoise(),
}


@serializable
class SliceDenoiser(ResidualDenoiser):
    """A denoiser of slices that knows which noise it removes.

    Args:
        backbone, schedule, gaussian, data_std: as of ``ResidualDenoiser``.
        noise: a name in :data:`NOISES`.
    """

    def __init__(
        self,
        backbone: nn.Module,
        schedule: Schedule,
        gaussian: GaussianPart,
        data_std: float,
        noise: NoiseName = "white",
    ) -> None:
        super().__init__(backbone, schedule, gaussian, data_std)
        if noise not in NOISES:
            raise unknown("noise", noise, NOISES)
        self.noise = noise


def slice_denoiser(
    images: Tensor,
    channels: Sequence[int] = SMALL,
    *,
    noise: NoiseName = "white",
    maps: Mapping[str, int] | None = None,
    tokens: Mapping[str, int] | None = None,
    factor: int = 2,
    rank: int | None = 16,
) -> SliceDenoiser:
    """An untrained denoiser for images (N, C, H, W); H and W must be multiples of ``factor * 2 ** (levels - 1)``."""
    images = training.ready(check_images(images))
    family = NOISES.get(noise)  # none for white noise; an unknown one is refused by SliceDenoiser
    gaussian = gaussian_part(images, rank, None if family is None else family.spectrum(images.shape[2:]))
    arguments = unet_settings(channels)
    if tokens:
        attention = [False] * (len(channels) - 1) + [True]  # where tokens are attended to
        arguments |= {"attention_levels": attention, "tokens": dict(tokens)}
    inputs = dict(maps or {}) | {ESTIMATE: images.shape[1]}
    backbone = SubpixelUNet(images.shape[1], inputs, factor, **arguments)
    return SliceDenoiser(backbone, training.schedule(gaussian.std), gaussian, gaussian.std, noise)


@dataclass(frozen=True)
class OneLevel(TimeSampler):
    """Always the same noise level kappa: what a denoising autoencoder is trained at."""

    kappa: float

    def quantile(self, u: Tensor, schedule: Schedule) -> Tensor:
        return torch.full_like(u, schedule.t_of_kappa(self.kappa))


def fit_prior(
    images: Tensor,
    *,
    cond: Condition | None = None,
    noise: NoiseName = "white",
    channels: Sequence[int] = SMALL,
    factor: int = 2,
    rank: int | None = 16,
    time: TimeSampler | None = None,
    cond_dropout: float = 0.1,
    steps: int = 600,
    batch_size: int = 8,
    lr: float = 3e-3,
    ema_decay: float | None = None,
    out: Path | None = None,
    metadata: Mapping[str, Any] | None = None,
    resume: bool = True,
    seed: int = 0,
    device: str = "auto",
    precision: str = "32-true",
    progress: bool = True,
) -> SliceDenoiser:
    """Train a denoiser on slices (N, C, H, W) in network units; other arguments as in :func:`training.train`.

    Args:
        noise: the family that is added, a name in :data:`NOISES`.
        cond: conditions of the rows, tokens or maps.
        factor: the UNet works on a grid this much coarser, see ``nets.SubpixelUNet``.
        rank: of the Gaussian that the network starts from, see ``nets.gaussian_part``.
        time: which noise levels; default :func:`training.levels`.
        resume: go on with the run in ``out``, if there is one; False starts afresh.
        precision: ``"bf16-mixed"`` is faster on GPUs and on processors with matrix units for it.
    """
    images = training.ready(check_images(images))
    torch.manual_seed(seed)
    widths = {} if cond is None else {name: value.shape[1] for name, value in cond.maps.items()}
    tokens = {} if cond is None else {name: value.shape[2] for name, value in cond.tokens.items()}
    denoiser = slice_denoiser(images, channels, noise=noise, maps=widths, tokens=tokens, factor=factor, rank=rank)
    objective = DenoisingObjective(
        time=time or training.levels(denoiser.data_std), cond_dropout=cond_dropout, noise=NOISES[noise]
    )
    return training.train(
        denoiser,
        images,
        cond=cond,
        steps=steps,
        batch_size=batch_size,
        lr=lr,
        objective=objective,
        ema_decay=ema_decay,
        out=out,
        metadata=metadata,
        resume=resume,
        seed=seed,
        device=device,
        precision=precision,
        progress=progress,
    )


def gaussian_prior(images: Tensor, *, noise: CoarseNoise | None = None, ridge: float = 1e-4) -> Denoiser:
    """The exact denoiser of the Gaussian with the mean and covariance of images (N, C, H, W) of about 1000 voxels.

    Nothing is trained, and whatever is computed from it has a known answer. That makes it a test bed, and a baseline
    that a network has to beat.

    Args:
        noise: the family of noise that is removed; None is white.
        ridge: variance added in every direction, relative to the mean variance of a voxel.
    """
    images = check_images(images)
    x = images.double() if noise is None else noise.colour(images.double(), inverse=True)
    mean, cov = moments(x, ridge)
    gaussian = GaussianDenoiser(mean, cov, EDM(0.002, 80.0))
    return gaussian if noise is None else Whitened(gaussian, noise)


def moments(x: Tensor, ridge: float = 1e-4) -> tuple[Tensor, Tensor]:
    """Mean (C, H, W) and covariance (d, d) of x (N, C, H, W)."""
    mean = x.mean(0)
    centred = (x - mean).flatten(1)
    cov = centred.T @ centred / len(x)
    return mean, cov + ridge * cov.diagonal().mean() * torch.eye(len(cov), dtype=x.dtype)
