r"""Data on a few linear subspaces: what a diffusion model of them learns, and from how many samples.

A mixture of low-rank Gaussians p = sum_k pi_k N(0, U_k U_k^T), U_k (d, r) orthonormal, has the denoiser

    D = alpha / (alpha^2 + sigma^2) sum_k w_k U_k U_k^T x,
    w = softmax_k(log pi_k + alpha^2 |U_k^T x|^2 / (2 sigma^2 (alpha^2 + sigma^2))).

With these D as the model, the diffusion loss is least where sum_k sum_{i in C_k} |U_k^T x_i|^2 is largest: for one
subspace that is principal component analysis, for several the clustering of samples by subspace. So the subspaces are
found from about as many samples as they have dimensions, N_k >= r, however large d is.

Wang, Zhang, Zhang, Chen, Ma, Qu (2024), "Diffusion Models Learn Low-Dimensional Distributions via Subspace Clustering",
arXiv:2409.02426.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import InvalidArgument, require
from ..exact import Covariance, MixtureDenoiser
from ..random import randn
from ..schedules import Schedule
from .geometry import mean_at

__all__ = ["alignment_error", "k_subspaces", "subspace_mixture", "train_subspaces"]


def subspace_mixture(
    bases: Tensor, schedule: Schedule, weights: Tensor | Sequence[float] | None = None, noise_std: float = 0.0
) -> MixtureDenoiser:
    """The exact denoiser of sum_k pi_k N(0, U_k U_k^T + s0^2 I). Gradients reach the bases.

    Args:
        bases: U, (K, d, r), orthonormal columns.
        schedule: of the denoiser.
        weights: pi, (K,); default equal.
        noise_std: s0, the standard deviation off the subspaces.
    """
    if bases.ndim != 3 or bases.shape[1] < bases.shape[2]:
        raise InvalidArgument(f"bases must be (K, d, r) with r at most d, got {tuple(bases.shape)}")
    k, d, r = bases.shape
    cov = Covariance.low_rank(bases, torch.ones(k, r, device=bases.device), noise_std**2)
    means = torch.zeros(k, d, device=bases.device)
    return MixtureDenoiser(torch.ones(k) if weights is None else weights, means, cov, schedule)


def k_subspaces(
    x: Tensor,
    k: int,
    rank: int,
    restarts: int = 10,
    iterations: int = 100,
    generator: torch.Generator | None = None,
) -> Tensor:
    """U maximising sum_i max_k |U_k^T x_i|^2: samples go to their nearest subspace, subspaces to the leading singular
    vectors of their samples, and so on. (K, d, rank) float64, the best of some starts.

    Args:
        x: (N, d), as it is: the subspaces go through the origin.
        k: number of subspaces; 1 is principal component analysis without centring.
        rank: dimension of each.
        restarts: starts, each from k random samples and the nearest to each in angle; one is enough for k = 1.
        iterations: at most so many rounds a start.
        generator: of the starts.
    """
    if x.ndim != 2 or not 1 <= rank <= x.shape[1] or k < 1 or len(x) < k:
        raise InvalidArgument(f"need x (N, d) with N >= k and 1 <= rank <= d, got {tuple(x.shape)}, {k=}, {rank=}")
    x = x.double()
    best, found = -1.0, x.new_zeros(k, x.shape[1], rank)
    for _ in range(restarts if k > 1 else 1):
        bases, labels = _start(x, k, rank, generator), None
        for _ in range(iterations):
            new = _projections(x, bases).argmax(1)
            if labels is not None and torch.equal(new, labels):
                break
            labels = new
            bases = torch.stack([_leading(x[labels == j], bases[j]) for j in range(k)])
        if (total := _captured(x, bases)) > best:
            best, found = total, bases
    return found


def _start(x: Tensor, k: int, rank: int, generator: torch.Generator | None) -> Tensor:
    """Subspaces through k random samples and those nearest to each in angle, which tend to lie on the same one."""
    seeds = x[torch.randperm(len(x), generator=generator, device=x.device)[:k]]
    near = ((seeds @ x.T).abs() / x.norm(dim=1)).topk(min(rank, len(x)), dim=1).indices
    spare = torch.linalg.qr(randn((k, x.shape[1], rank), generator, x.device, x.dtype)).Q
    return torch.stack([_leading(x[near[j]], spare[j]) for j in range(k)])


def _captured(x: Tensor, bases: Tensor) -> float:
    """sum_i max_k |U_k^T x_i|^2."""
    return float(_projections(x, bases).max(1).values.sum())


def _projections(x: Tensor, bases: Tensor) -> Tensor:
    """|U_k^T x_i|^2, (N, K)."""
    return torch.einsum("nd,kdr->nkr", x, bases).square().sum(-1)


def _leading(x: Tensor, before: Tensor) -> Tensor:
    """The leading right singular vectors of x (n, d), (d, r), filled up from ``before`` where n < r."""
    r = before.shape[1]
    vectors = torch.linalg.svd(x, full_matrices=False).Vh[:r].T
    if vectors.shape[1] < r:
        vectors = torch.linalg.qr(torch.cat([vectors, before], 1)).Q[:, :r]
    return vectors


def train_subspaces(
    x: Tensor,
    k: int,
    rank: int,
    schedule: Schedule,
    *,
    noise_std: float = 0.05,
    restarts: int = 4,
    steps: int = 300,
    batch_size: int = 256,
    lr: float = 0.03,
    generator: torch.Generator | None = None,
) -> Tensor:
    """U by stochastic gradient descent on the diffusion loss of ``subspace_mixture``; (K, d, rank) float64.

    Args:
        x: (N, d).
        k, rank: number and dimension of the subspaces.
        schedule: of the denoiser.
        noise_std: assumed off the subspaces.
        restarts: starts, as in ``k_subspaces``; the one that captures most of x is returned.
        steps, batch_size, lr: of Adam; the rate falls to zero along a cosine.
        generator: of starts, batches, times and noise.
    """
    x = x.double()
    runs = []
    for _ in range(restarts if k > 1 else 1):
        free = _start(x, k, rank, generator).requires_grad_()
        adam = torch.optim.Adam([free], lr=lr)
        cosine = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps)
        for _ in range(steps):
            rows = torch.randint(0, len(x), (batch_size,), generator=generator, device=x.device)
            denoiser = subspace_mixture(torch.linalg.qr(free).Q, schedule, noise_std=noise_std)
            adam.zero_grad()
            torch.autograd.backward(_loss(denoiser, x[rows], generator))
            adam.step()
            cosine.step()
        runs.append(torch.linalg.qr(free.detach()).Q)
    return max(runs, key=lambda bases: _captured(x, bases))


def _loss(denoiser: MixtureDenoiser, x: Tensor, generator: torch.Generator | None) -> Tensor:
    """E min(1 / kappa^2, 5) |D(x + kappa eps) - x|^2, with noise of about the size of the data."""
    options: dict[str, Any] = {"generator": generator, "device": x.device, "dtype": x.dtype}
    kappa = (torch.randn(len(x), **options) - 0.5).exp()
    y = x + kappa[:, None] * torch.randn(x.shape, **options)
    error = (mean_at(denoiser, y, kappa) - x).square().mean(1)
    return (kappa**-2).clamp(max=5).mul(error).mean()


def alignment_error(found: Tensor, truth: Tensor) -> float:
    """The mean over k of |U_k U_k^T - V_k V_k^T|_F under the best pairing; 0 for the same subspaces, at most (2 r)^0.5.

    Args:
        found, truth: (K, d, r), orthonormal columns, in any order and any rotation.
    """
    if found.shape != truth.shape or found.ndim != 3:
        raise InvalidArgument(
            f"found and truth must both be (K, d, r), got {tuple(found.shape)} and {tuple(truth.shape)}"
        )
    overlap = torch.einsum("kdr,jds->kjrs", found.double(), truth.double()).square().sum((-1, -2))
    distance = (2 * (found.shape[2] - overlap).clamp(min=0)).sqrt().cpu()
    rows, columns = require("scipy.optimize", extra="bench").linear_sum_assignment(distance.numpy())
    return float(distance[rows, columns].mean())
