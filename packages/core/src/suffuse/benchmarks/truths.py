"""Distributions whose posterior mean is known: what samplers are tried on when their own error is to be seen.

    gaussian()              N(1, S) in 32 dimensions, spectrum 4 / k^2
    ring2d()                eight modes on the unit circle, long along it and thin across
    lr64()                  ten modes of rank 6 in 4 x 4 x 4 dimensions
    image_mixture(side)     twenty modes of rank 40 on 3 x side x side pictures with the spectrum of natural images

Each is a mixture of Gaussians, p = sum_k w_k N(mu_k, U_k diag(lam_k) U_k^T + s0^2 I), on the schedule of Karras et al.
(2022), arXiv:2206.00364: kappa = sigma from 80 to 0.002. They are drawn from fixed seeds, so they are always the same.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from suffuse.exact import Covariance, GaussianDenoiser, MixtureDenoiser
from suffuse.schedules import EDM, Schedule

__all__ = ["gaussian", "image_mixture", "lr64", "ring2d"]


def gaussian(dim: int = 32, schedule: Schedule | None = None) -> GaussianDenoiser:
    """N(1, S) with eigenvalues 4 / k^2 along random directions: most coordinates are strongly correlated."""
    spectrum = 4 / torch.arange(1, dim + 1, dtype=torch.float64) ** 2
    basis = _orthonormal(torch.Generator().manual_seed(0), dim, dim)
    return GaussianDenoiser(torch.ones(dim), Covariance(spectrum[None], basis[None]), schedule or EDM())


def ring2d(schedule: Schedule | None = None) -> MixtureDenoiser:
    """Eight modes of unequal weight on the unit circle; standard deviation 0.1 along it and 0.03 across."""
    angle = torch.arange(8, dtype=torch.float64) * math.pi / 4
    means = torch.stack([angle.cos(), angle.sin()], -1)
    tangents = torch.stack([-angle.sin(), angle.cos()], -1)
    along, across = 0.1**2, 0.03**2
    cov = Covariance(torch.full((8, 1), along), tangents[:, :, None], across)
    return MixtureDenoiser([1, 2, 1, 3, 1, 2, 1, 1], means, cov, schedule or EDM())


def lr64(schedule: Schedule | None = None) -> MixtureDenoiser:
    """Ten modes near the origin, each on a subspace of six dimensions of its own; events (4, 4, 4)."""
    generator = torch.Generator().manual_seed(1)
    means = 0.3 * _randn(generator, 10, 4, 4, 4)
    variances = 1.5 * torch.logspace(0, -1.5, 6, dtype=torch.float64).expand(10, -1)
    cov = Covariance.low_rank(_orthonormal(generator, 10, 64, 6), variances, 0.05**2)
    return MixtureDenoiser(torch.ones(10), means, cov, schedule or EDM())


def image_mixture(side: int = 16, schedule: Schedule | None = None, modes: int = 20, rank: int = 40) -> MixtureDenoiser:
    """Pictures (3, side, side) made of cosines, with amplitudes (1 + frequency)^-1.2 and little colour.

    The cosines (a discrete cosine transform in each of three colour directions) are the principal components of the
    whole; each mode varies along ``rank`` of the stronger ones and has a mean with components along all. The standard
    deviation of a pixel is 0.46, half of the variance between the modes and half within them.
    """
    generator = torch.Generator().manual_seed(2)
    basis, amplitude = _cosines(side)
    means = _randn(generator, modes, len(amplitude)) * amplitude
    means = means - means.mean(0)
    strong = amplitude.argsort(descending=True)[: 3 * rank]
    chosen = torch.stack([strong[torch.randperm(3 * rank, generator=generator)[:rank]] for _ in range(modes)])
    variances = amplitude[chosen] ** 2
    total = 0.46**2 * len(amplitude)
    means = means * (0.5 * total / means.square().sum(-1).mean()).sqrt()
    variances = variances * (0.5 * total / variances.sum(-1).mean())
    cov = Covariance.low_rank(basis.T[:, chosen].permute(1, 0, 2).contiguous(), variances, 0.02**2)
    return MixtureDenoiser(torch.ones(modes), (means @ basis).reshape(modes, 3, side, side), cov, schedule or EDM())


def _cosines(side: int) -> tuple[Tensor, Tensor]:
    """Orthonormal pictures (3 side^2, 3 side^2), one a row, and their amplitudes."""
    k = torch.arange(side, dtype=torch.float64)
    waves = torch.cos(math.pi * (k[None] + 0.5) * k[:, None] / side) * math.sqrt(2 / side)  # DCT-II
    waves[0] /= math.sqrt(2)
    root = math.sqrt
    colours = torch.tensor(
        [[1 / root(3)] * 3, [1 / root(2), 0, -1 / root(2)], [1 / root(6), -2 / root(6), 1 / root(6)]],
        dtype=torch.float64,
    )
    strength = torch.tensor([1.0, 0.25, 0.1], dtype=torch.float64)
    frequency = torch.hypot(k[:, None], k[None])
    amplitude = strength[:, None, None] * (1 + frequency) ** -1.2
    basis = torch.einsum("ic,uy,vx->iuvcyx", colours, waves, waves)
    return basis.reshape(3 * side**2, -1), amplitude.flatten()


def _randn(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def _orthonormal(generator: torch.Generator, *shape: int) -> Tensor:
    """(..., d, r) with orthonormal columns."""
    return torch.linalg.qr(_randn(generator, *shape)).Q
