"""The prior of images: an unconditional (or conditional) denoiser of slices, for every task that starts from one.

A task asks a prior different questions: what fits this measurement (reconstruction), what would this look like healthy
(anomaly). So one small network serves all, and its checkpoint remembers the family of noise that it removes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

import suffuse
from suffuse import Condition, Denoiser, NetworkDenoiser
from suffuse.errors import unknown
from suffuse.exact import GaussianDenoiser
from suffuse.hub import serializable
from suffuse.schedules import EDM, Schedule
from suffuse.training import DenoisingObjective, LogNormalKappa
from suffuse.training.times import TimeSampler

from .nets import SubpixelUNet, unet_settings
from .noise import CoarseNoise, SimplexNoise, Whitened
from .prediction import check_images
from .tissue_to_t1 import SMALL, accelerator

__all__ = ["NOISES", "SliceDenoiser", "fit_prior", "gaussian_prior", "slice_denoiser"]

NoiseName = Literal["white", "coarse", "simplex"]
#: The families of noise by name; white is what every other denoiser here removes.
NOISES: dict[str, CoarseNoise | SimplexNoise | None] = {
    "white": None,
    "coarse": CoarseNoise(),
    "simplex": SimplexNoise(),
}


@serializable
class SliceDenoiser(NetworkDenoiser):
    """A denoiser of slices that knows which noise it removes.

    Args:
        backbone, schedule, data_std: as of ``NetworkDenoiser``.
        noise: a name in :data:`NOISES`.
    """

    def __init__(self, backbone: nn.Module, schedule: Schedule, data_std: float, noise: NoiseName = "white") -> None:
        super().__init__(backbone, schedule, "v_prediction", data_std=data_std)
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
) -> SliceDenoiser:
    """An untrained denoiser for images (N, C, H, W); H and W must be multiples of ``factor * 2 ** (levels - 1)``."""
    check_images(images)
    std = float(images.std())
    arguments = unet_settings(channels)
    if tokens:
        attention = [False] * (len(channels) - 1) + [True]  # where tokens are attended to
        arguments |= {"attention_levels": attention, "tokens": dict(tokens)}
    backbone = SubpixelUNet(images.shape[1], dict(maps or {}), factor, **arguments)
    schedule = EDM(sigma_min=0.005 * std, sigma_max=100 * std)
    return SliceDenoiser(backbone, schedule, std, noise)


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
    time: TimeSampler | None = None,
    cond_dropout: float = 0.1,
    steps: int = 600,
    batch_size: int = 8,
    lr: float = 3e-3,
    ema_decay: float | None = None,
    out: Path | None = None,
    metadata: Mapping[str, Any] | None = None,
    seed: int = 0,
    device: str = "auto",
    progress: bool = True,
) -> SliceDenoiser:
    """Train a denoiser on slices (N, C, H, W) in network units; other arguments as in :func:`suffuse.training.fit`.

    Args:
        noise: the family that is added, a name in :data:`NOISES`.
        cond: conditions of the rows, tokens or maps.
        time: which noise levels; default around the data's own standard deviation, with tails to both sides.
    """
    check_images(images)
    torch.manual_seed(seed)
    widths = {} if cond is None else {name: value.shape[1] for name, value in cond.maps.items()}
    tokens = {} if cond is None else {name: value.shape[2] for name, value in cond.tokens.items()}
    denoiser = slice_denoiser(images, channels, noise=noise, maps=widths, tokens=tokens, factor=factor)
    objective = DenoisingObjective(
        time=time or LogNormalKappa(math.log(denoiser.data_std), 1.5), cond_dropout=cond_dropout, noise=NOISES[noise]
    )
    return suffuse.training.fit(
        denoiser,
        images,
        cond=cond,
        steps=steps,
        batch_size=batch_size,
        lr=lr,
        objective=objective,
        ema_decay=min(0.999, 1 - 20 / max(steps, 100)) if ema_decay is None else ema_decay,
        out=out,
        metadata=metadata,
        seed=seed,
        accelerator=accelerator(device),
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
    check_images(images)
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
