r"""Did a model draw, or did it copy? Memorisation and membership.

    s(x)      = max_i cos( e(x), e(train_i) )             how near a drawn image comes to a training image
    threshold = the q-quantile of s over held-out images   how near real images of other patients come by themselves
    copied    = { x : s(x) > threshold }

e is an embedding trained for exactly this: two views of an image (mirrored, shifted, brighter, noisier) should be
near, other images far. Raw pixels would miss a copy that is only mirrored. Two controls say whether a check is worth
anything: the exact denoiser of the training set (``suffuse.exact.EmpiricalDenoiser``) draws copies only, and fresh
images of new patients are none.
Dar et al. (2024), "Unconditional Latent Diffusion Models Memorize Patient Imaging Data", arXiv:2402.01054; the loss is
that of Chen et al. (2020), "SimCLR", arXiv:2002.05709, eq. 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import suffuse
from suffuse import Condition
from suffuse.errors import InvalidArgument

from .prediction import device_of

__all__ = ["CopyEmbedding", "Membership", "Memorisation", "membership", "memorisation"]


class CopyEmbedding(nn.Module):
    """A small convolutional embedding of images (N, C, H, W), trained to recognise copies.

    Args:
        in_channels: C.
        width: channels of the first layer.
        dim: of the embedding.
    """

    def __init__(self, in_channels: int, width: int = 16, dim: int = 64) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = in_channels
        for out, stride in ((width, 2), (2 * width, 2), (4 * width, 1)):
            layers += [nn.Conv2d(channels, out, 3, stride, 1), nn.GroupNorm(4, out), nn.SiLU()]
            channels = out
        # a coarse grid is kept: where things lie is what makes an image this patient's
        self.features = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(4), nn.Flatten())
        self.head = nn.Linear(16 * channels, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(N, dim) of length one."""
        return F.normalize(self.head(self.features(x)), dim=1)

    def fit(
        self,
        images: Tensor,
        *,
        steps: int = 400,
        batch_size: int = 64,
        temperature: float = 0.05,
        lr: float = 4e-3,
        seed: int = 0,
    ) -> CopyEmbedding:
        """Train by contrast of two views of each image."""
        if len(images) < 4:
            raise InvalidArgument(f"need at least 4 images to tell copies from others, got {len(images)}")
        generator = torch.Generator().manual_seed(seed)
        optimiser = torch.optim.AdamW(self.parameters(), lr=lr)
        size, device = min(batch_size, len(images)), self.head.weight.device
        self.train()
        for _ in range(steps):
            rows = torch.randperm(len(images), generator=generator)[:size]
            one, two = (self(views(images[rows].to(device), generator)) for _ in range(2))
            both = torch.cat([one, two])
            logits = (both @ both.T / temperature).fill_diagonal_(-torch.inf)
            partner = torch.arange(2 * size, device=both.device).roll(size)
            optimiser.zero_grad()
            F.cross_entropy(logits, partner).backward()
            optimiser.step()
        return self.eval()

    @torch.no_grad()
    def embed(self, images: Tensor, batch_size: int = 256) -> Tensor:
        device = self.head.weight.device
        return torch.cat([self(part.to(device)) for part in images.split(batch_size)])


def views(images: Tensor, generator: torch.Generator) -> Tensor:
    """Images mirrored, shifted by up to an eighth, in other contrast and with noise: each as a copyist might."""
    n, device = len(images), images.device

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(n, 1, 1, 1, generator=generator).to(device)

    for axis in (2, 3):
        images = torch.where(uniform(0, 1) < 0.5, images.flip(axis), images)
    shift = torch.cat([uniform(-0.25, 0.25), uniform(-0.25, 0.25)], dim=3)[:, 0, 0]
    eye = torch.eye(2, device=device).expand(n, 2, 2)
    grid = F.affine_grid(torch.cat([eye, shift[:, :, None]], dim=2), list(images.shape), align_corners=False)
    images = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    noise = torch.randn(images.shape, generator=generator).to(device)
    return images * uniform(0.8, 1.2) + uniform(-0.1, 0.1) + 0.05 * noise


@dataclass(frozen=True, eq=False)
class Memorisation:
    """The answer of :func:`memorisation`.

    Attributes:
        similarity: s of each drawn image, (M,).
        nearest: the training image it is nearest to, (M,).
        copied: whether it is flagged, (M,) bool.
        threshold: above which it is.
        copies: N_copies, the number of drawn images that are flagged.
        memorised: N_mem, the number of training images that were copied.
        training: the number of training images.
    """

    similarity: Tensor
    nearest: Tensor
    copied: Tensor
    threshold: float
    copies: int
    memorised: int
    training: int

    @property
    def share(self) -> float:
        """Of drawn images that are copies."""
        return self.copies / len(self.similarity)

    def check(self, limit: float) -> None:
        """The release gate: raise InvalidArgument when more than ``limit`` of the drawn images are copies."""
        if self.share > limit:
            raise InvalidArgument(
                f"{self.copies} of {len(self.similarity)} drawn images are copies of {self.memorised} training images, "
                f"more than the limit of {limit:.1%}; train on more data, with augmentation, or for fewer steps"
            )

    def __str__(self) -> str:
        return (
            f"{self.copies} of {len(self.similarity)} drawn images ({self.share:.1%}) are nearer to a training image "
            f"than all but a few of the held-out images are; {self.memorised} of {self.training} training images are "
            f"concerned."
        )


def memorisation(
    drawn: Tensor,
    train: Tensor,
    held_out: Tensor,
    *,
    embedding: CopyEmbedding | None = None,
    quantile: float = 0.98,
    train_patients: Sequence[str] | None = None,
    held_out_patients: Sequence[str] | None = None,
    steps: int = 400,
    seed: int = 0,
) -> Memorisation:
    """Which drawn images are copies of training images.

    Args:
        drawn: (M, C, H, W).
        train: (N, C, H, W), what the model was trained on.
        held_out: real images of other patients, which the model has not seen.
        embedding: trained; by default one is trained here on both real sets.
        quantile: of the held-out similarities, above which an image is called a copy.
        train_patients, held_out_patients: names, checked to be apart.

    Raises:
        InvalidArgument: for patients on both sides, shapes that differ, no images or such as are not finite, or too few
            held-out images for the quantile.
    """
    if not drawn.shape[1:] == train.shape[1:] == held_out.shape[1:] or train.ndim != 4:
        shapes = [tuple(x.shape) for x in (drawn, train, held_out)]
        raise InvalidArgument(f"drawn, train and held_out must be (N, C, H, W) of one shape, got {shapes}")
    for name, images in (("drawn", drawn), ("train", train), ("held_out", held_out)):
        _check(images, name)  # NaN is nearer to nothing than anything: such images would pass for new ones
    if both := set(train_patients or ()) & set(held_out_patients or ()):
        raise InvalidArgument(f"patients {sorted(both)[:5]} are in train and held_out; split by patient")
    if not 0 < quantile < 1 or len(held_out) < 1 / (1 - quantile):
        least = int(np.ceil(1 / (1 - quantile)))
        raise InvalidArgument(f"quantile={quantile} needs at least {least} held-out images, got {len(held_out)}")
    if embedding is None:
        torch.manual_seed(seed)
        embedding = CopyEmbedding(train.shape[1]).to(train.device)
        embedding.fit(torch.cat([train, held_out.to(train.device)]), steps=steps, seed=seed)
    known = embedding.embed(train)
    usual = (embedding.embed(held_out) @ known.T).amax(1)
    threshold = float(torch.quantile(usual, quantile))
    similarity, nearest = (embedding.embed(drawn) @ known.T).max(1)
    copied = similarity > threshold
    return Memorisation(
        similarity, nearest, copied, threshold, int(copied.sum()), len(nearest[copied].unique()), len(train)
    )


def _check(images: Tensor, name: str) -> None:
    if not len(images) or not bool(torch.isfinite(images).all()):
        raise InvalidArgument(f"{name} is empty or has NaN or infinite voxels; nothing can be said of such images")


@dataclass(frozen=True)
class Membership:
    """How well the loss tells training images from others: 0.5 and the false-positive rate are chance."""

    auc: float
    tpr_at_1_percent: float


@torch.no_grad()
def denoising_errors(
    denoiser: suffuse.Denoiser,
    images: Tensor,
    *,
    cond: Condition | None = None,
    times: Sequence[float] = (0.2, 0.35, 0.5),
    draws: int = 2,
    seed: int = 0,
    batch_size: int = 64,
) -> Tensor:
    """|eps - eps_theta|^2 per entry, averaged over times and draws of the noise, (N,), where the denoiser is."""
    total = torch.zeros(len(images), dtype=torch.float64)
    device = device_of(denoiser, images.device)
    schedule = denoiser.schedule
    for k, t in enumerate(list(times) * draws):
        for first in range(0, len(images), batch_size):
            x0 = images[first : first + batch_size].to(device)
            generators = suffuse.random.generators([seed + 7919 * k + first + j for j in range(len(x0))])
            noise = suffuse.random.randn(x0.shape, generators, x0.device, x0.dtype)
            asked = None if cond is None else cond[first : first + batch_size].to(device)
            eps = denoiser.eps(schedule.add_noise(x0, t, noise), t, asked)
            total[first : first + len(x0)] += (eps - noise).square().flatten(1).mean(1).double().cpu()
    return total / (len(times) * draws)


def membership(
    denoiser: suffuse.Denoiser,
    train: Tensor,
    held_out: Tensor,
    *,
    cond: tuple[Condition, Condition] | None = None,
    **kwargs: Any,
) -> Membership:
    """The loss-based membership attack: training images are denoised better.

    Args:
        train, held_out: (N, C, *spatial), (M, C, *spatial).
        cond: of both, for a conditional model.
        kwargs: of :func:`denoising_errors`: times, draws, seed.
    """
    if len(train) < 2 or len(held_out) < 2:
        raise InvalidArgument(f"need at least two images on either side, got {len(train)} and {len(held_out)}")
    _check(train, "train")
    _check(held_out, "held_out")
    one, two = (None, None) if cond is None else cond
    inside = -denoising_errors(denoiser, train, cond=one, **kwargs)
    outside = -denoising_errors(denoiser, held_out, cond=two, **kwargs)
    greater = (inside[:, None] > outside[None, :]).double() + 0.5 * (inside[:, None] == outside[None, :]).double()
    limit = torch.quantile(outside, 0.99)
    return Membership(float(greater.mean()), float((inside > limit).double().mean()))
