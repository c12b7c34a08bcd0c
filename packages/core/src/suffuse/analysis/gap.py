r"""The gap between the two ways to sample a learned score.

The probability-flow ODE and the reverse SDE have the same marginals if the score is exact. A learned one violates the
Fokker-Planck equation, and then they part: W2(ODE, SDE) is bounded by the norm of the residual
(``fokker_planck_residual``). W2 is the 2-Wasserstein distance, the cost of the best matching of two sets of samples,

    W2(p, q)^2 = min over couplings of E |x - y|^2.

Deveney et al. (2023), "Closing the ODE-SDE gap in score-based diffusion models through the Fokker-Planck equation",
arXiv:2311.15996, thm. 3.2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..condition import Condition
from ..denoiser import Denoiser
from ..errors import InvalidArgument, require
from ..samplers import DPMSolverPP

__all__ = ["Gap", "ode_sde_gap", "wasserstein"]

#: The matching of more points than this takes minutes and gigabytes.
LIMIT = 8000


def wasserstein(x: Tensor, y: Tensor, cell: float | None = None) -> float:
    """W2 between two sets of samples, in the unit of the data. Two samples of one distribution are not at distance 0.

    Args:
        x: (N, *event).
        y: (M, *event).
        cell: merge the samples of each cubic cell of this width into their mean, so that a million samples in two or
            three dimensions can be compared; it changes the distance by a small part of the width.

    Raises:
        InvalidArgument: for shapes that differ, values that are not finite, or too many points (use ``cell``).
        MissingExtra: without POT.
    """
    if x.shape[1:] != y.shape[1:] or not len(x) or not len(y):
        raise InvalidArgument(f"x and y must be samples of one shape, got {tuple(x.shape)} and {tuple(y.shape)}")
    if not bool(torch.isfinite(x).all() and torch.isfinite(y).all()):
        raise InvalidArgument("x or y has NaN or infinite values")
    if cell is not None and not cell > 0:
        raise InvalidArgument(f"cell must be positive, got {cell}")
    ot = require("ot", extra="bench")
    (a, p), (b, q) = _points(x, cell), _points(y, cell)
    if max(len(a), len(b)) > LIMIT:
        raise InvalidArgument(f"{max(len(a), len(b))} points are too many to match (at most {LIMIT}); give cell")
    cost = ot.dist(a.numpy(), b.numpy())
    return math.sqrt(max(float(ot.emd2(p.numpy(), q.numpy(), cost, numItermax=10_000_000)), 0.0))


def _points(x: Tensor, cell: float | None) -> tuple[Tensor, Tensor]:
    """Points (n, d) and their weights (n,), on the CPU."""
    flat = x.detach().cpu().double().reshape(len(x), -1)
    if cell is None:
        return flat, torch.full((len(x),), 1 / len(x), dtype=torch.float64)
    _, member, count = torch.unique((flat / cell).floor(), dim=0, return_inverse=True, return_counts=True)
    total = torch.zeros(len(count), flat.shape[1], dtype=torch.float64).index_add_(0, member, flat)
    return total / count[:, None], count.double() / len(x)


@dataclass(frozen=True)
class Gap:
    """W2 distances, in the unit of the data.

    Attributes:
        ode_sde: between samples of the ODE and of the SDE.
        floor: between two sets of samples of the ODE: what the finite number of samples alone gives.
        ode_truth, sde_truth: to true samples, if they were given.
    """

    ode_sde: float
    floor: float
    ode_truth: float | None = None
    sde_truth: float | None = None


def ode_sde_gap(
    denoiser: Denoiser,
    shape: Sequence[int],
    *,
    truth: Tensor | None = None,
    steps: int = 100,
    cell: float | None = None,
    cond: Condition | None = None,
    generator: torch.Generator | None = None,
) -> Gap:
    """Sample a model by its ODE and by its SDE, with the second-order solver of DPM-Solver++ for each, and compare.

    Args:
        denoiser: exact or trained.
        shape: (B, *event) of each set of samples.
        truth: samples of the true distribution, (N, *event); of about B, as the floor depends on the number.
        steps: of both samplers, on the same grid; enough to have converged, so that the gap is the model's.
        cell: see ``wasserstein``.
        cond: condition of B rows.
        generator: of the noise.
    """
    ode, again, sde = (
        DPMSolverPP(steps, eta=eta)(denoiser, shape, cond=cond, generator=generator) for eta in (0.0, 0.0, 1.0)
    )
    return Gap(
        ode_sde=wasserstein(ode, sde, cell),
        floor=wasserstein(ode, again, cell),
        ode_truth=None if truth is None else wasserstein(ode, truth, cell),
        sde_truth=None if truth is None else wasserstein(sde, truth, cell),
    )
