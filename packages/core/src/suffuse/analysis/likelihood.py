r"""Likelihoods by the probability-flow ODE.

In the coordinates y = x / (alpha + sigma), tau = sigma / (alpha + sigma) the ODE is dy/dtau = eps - D = (y - D) / tau,
so along a path from the lowest noise to the highest

    log p(y_low) = log p(y_high) + int (d - tr dD/dy) / tau dtau,

with p(y_high) the Gaussian that the data have become. Both right-hand sides are smooth and bounded here, which they are
not in x and log kappa; equal steps of tau^(1/2) serve data that vary on small scales. The trace is exact, by one
derivative per dimension, or estimated with random signs v as v^T (dD/dy) v (Hutchinson).
Song et al. (2021), arXiv:2011.13456, sec. 4.3; Grathwohl et al. (2019), "FFJORD", arXiv:1810.01367.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from ..condition import Condition
from ..denoiser import Denoiser
from ..errors import InvalidArgument
from ..schedules import RectifiedFlow
from .gaussian import GaussianStatistics
from .geometry import mean_at, probe_vectors
from .variational import noise_range, standard_normal

__all__ = ["log_likelihood"]


def log_likelihood(
    denoiser: Denoiser,
    x: Tensor,
    cond: Condition | None = None,
    *,
    steps: int = 40,
    trace: Literal["exact", "hutchinson"] = "exact",
    probes: int = 1,
    kappa: tuple[float, float] | None = None,
    statistics: GaussianStatistics | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """log p(x) in nats, (B,), of the model's density at the lowest noise level.

    Args:
        denoiser: any denoiser.
        x: clean samples (B, *event).
        cond: condition of B rows.
        steps: Heun steps; two evaluations each.
        trace: ``"exact"`` costs d derivatives an evaluation, ``"hutchinson"`` one for each probe.
        probes: random sign vectors of the estimate, the same along the whole path.
        kappa: (low, high) noise levels to integrate between; default the schedule's, at most 100.
        statistics: of the data, for the Gaussian at the highest noise; default mean 0 and variance 1 for each entry.
        generator: of the probes.
    """
    if steps < 1 or probes < 1:
        raise InvalidArgument(f"steps and probes must be at least 1, got steps={steps}, probes={probes}")
    if trace not in ("exact", "hutchinson"):
        raise InvalidArgument(f"trace must be 'exact' or 'hutchinson', got {trace!r}")
    low, high = (k / (1 + k) for k in noise_range(denoiser.schedule, kappa))
    dim = x[0].numel()
    vectors = probe_vectors(x, None if trace == "exact" else probes, generator)

    def slope(y: Tensor, tau: float) -> tuple[Tensor, Tensor]:
        """dy/dtau and its divergence."""
        with torch.enable_grad():
            at = y.detach().requires_grad_()
            mean = mean_at(denoiser, at / (1 - tau), tau / (1 - tau), cond)
            along = torch.zeros(len(y), dtype=y.dtype, device=y.device)
            for k, v in enumerate(vectors):
                (product,) = torch.autograd.grad(mean, at, v, retain_graph=k + 1 < len(vectors))
                along += (product * v).flatten(1).sum(1)
        return (y - mean.detach()) / tau, (dim - along) / tau

    nodes = torch.linspace(low**0.5, high**0.5, steps + 1, dtype=torch.float64).square().tolist()
    y, gained = (1 - low) * x.detach(), torch.zeros(len(x), dtype=x.dtype, device=x.device)
    for a, b in pairwise(nodes):
        f0, d0 = slope(y, a)
        f1, d1 = slope(y + (b - a) * f0, b)
        y, gained = y + (b - a) / 2 * (f0 + f1), gained + (b - a) / 2 * (d0 + d1)
    # in these coordinates every schedule is the rectified flow, and tau is its time
    gaussian = (statistics or standard_normal(x)).denoiser(RectifiedFlow()).to(x.device)
    return gaussian.log_prob(y, high).to(x.dtype) + gained + dim * math.log(1 - low)
