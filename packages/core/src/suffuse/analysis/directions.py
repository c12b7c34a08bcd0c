r"""Directions in which a denoiser's answer changes most: the singular vectors of its Jacobian J = dD/dx_t.

At middle noise J has low rank, as it is alpha / sigma^2 times the covariance of the x_0 that x_t may have come from.
Its leading right singular vectors v_i are then what can vary: D(x_t + step v_i) is an edit of D(x_t).

The vectors come from a randomised subspace iteration with products J^T u (a derivative of D . u with respect to x) and
J v (a derivative of J^T u . v with respect to u), all from one evaluation; J itself is never made.

Halko, Martinsson, Tropp (2011), "Finding Structure with Randomness", SIAM Review 53, alg. 4.4; directions of diffusion
models: Wang et al. (2024), arXiv:2409.02426; Chen et al. (2024), arXiv:2409.02374.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..condition import Condition
from ..denoiser import Denoiser
from ..errors import InvalidArgument
from ..random import randn

__all__ = ["edit_directions", "effective_rank"]


def edit_directions(
    denoiser: Denoiser,
    x: Tensor,
    t: float,
    k: int,
    cond: Condition | None = None,
    *,
    oversample: int = 4,
    iterations: int = 3,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """The k largest singular values of dD/dx and their right singular vectors, for each row of x.

    Args:
        denoiser: exact or trained; its operations must be twice differentiable.
        x: the noisy batch at time t, (B, *event).
        t: time in (0, 1]; the middle of the schedule is where edits mean most.
        k: number of directions, at most the size of the event.
        cond: condition of B rows.
        oversample: further vectors that are iterated, for precision.
        iterations: of J^T J, each with k + oversample products of either kind.
        generator: of the start.

    Returns:
        values (B, k), decreasing, and directions (B, k, *event) of length one; use as ``x + step * directions[:, i]``.
    """
    d = x[0].numel()
    if not 1 <= k <= d:
        raise InvalidArgument(f"k must lie between 1 and the size {d} of the event, got {k}")
    if iterations < 1 or oversample < 0:
        raise InvalidArgument(f"need iterations >= 1 and oversample >= 0, got {iterations=}, {oversample=}")
    width = min(k + oversample, d)
    at = x.detach().repeat_interleave(width, 0).requires_grad_()
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):  # the fused kernels have one derivative only
        mean = denoiser(at, t, None if cond is None else cond.repeat(width))
        u = torch.zeros_like(mean, requires_grad=True)
        (pulled,) = torch.autograd.grad(mean, at, u, create_graph=True)

    def product(of: Tensor, by: Tensor, vectors: Tensor) -> Tensor:
        """The derivative of ``of`` . vectors with respect to ``by``, for vectors (B, d, width)."""
        rows = vectors.mT.reshape(at.shape)
        return torch.autograd.grad(of, by, rows, retain_graph=True)[0].reshape(len(x), width, d).mT

    v = torch.linalg.qr(randn((len(x), d, width), generator, x.device, x.dtype)).Q
    for _ in range(iterations):
        v = torch.linalg.qr(product(mean, at, torch.linalg.qr(product(pulled, u, v)).Q)).Q
    _, values, turn = torch.linalg.svd(product(pulled, u, v), full_matrices=False)
    directions = (v @ turn.mT)[..., :k].mT
    return values[:, :k], directions.reshape(len(x), k, *x.shape[1:])


def effective_rank(values: Tensor, share: float = 0.99) -> Tensor:
    """How many of the singular values (..., r), decreasing, hold a share of their sum of squares; (...), int64."""
    if not 0 < share <= 1:
        raise InvalidArgument(f"share must lie in (0, 1], got {share}")
    held = values.square().cumsum(-1)
    return (held < share * held[..., -1:] * (1 - 1e-12)).sum(-1) + 1
