r"""Likelihoods by the probability-flow ODE.

In the coordinates y = x / alpha and tau = log kappa the ODE is dy/dtau = y - D, so along a path

    log p(y_0) = log p(y_1) + int (d - tr dD/dy) dtau,

with p(y_1) the Gaussian that the data have become at the highest noise. The trace is exact, by one derivative per
dimension, or estimated with random signs v as v^T (dD/dy) v (Hutchinson).
Song et al. (2021), arXiv:2011.13456, sec. 4.3; Grathwohl et al. (2019), "FFJORD", arXiv:1810.01367.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from ..condition import Condition
from ..denoiser import Denoiser
from ..errors import InvalidArgument
from .variational import noise_range

__all__ = ["log_likelihood"]


def log_likelihood(
    denoiser: Denoiser,
    x: Tensor,
    cond: Condition | None = None,
    *,
    steps: int = 100,
    trace: Literal["exact", "hutchinson"] = "exact",
    probes: int = 1,
    data_std: float = 1.0,
    kappa: tuple[float, float] | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """log p(x) in nats, (B,), of the model's density at the lowest noise level.

    Args:
        denoiser: any denoiser.
        x: clean samples (B, *event).
        cond: condition of B rows.
        steps: Heun steps in log kappa; two evaluations each.
        trace: ``"exact"`` costs d derivatives an evaluation, ``"hutchinson"`` one for each probe.
        probes: random sign vectors of the estimate, the same along the whole path.
        data_std: of the data, for the Gaussian at the highest noise.
        kappa: (low, high) noise levels to integrate between; default the schedule's, at most 100.
        generator: of the probes.
    """
    if steps < 1 or probes < 1:
        raise InvalidArgument(f"steps and probes must be at least 1, got steps={steps}, probes={probes}")
    if trace not in ("exact", "hutchinson"):
        raise InvalidArgument(f"trace must be 'exact' or 'hutchinson', got {trace!r}")
    schedule, dim = denoiser.schedule, x[0].numel()
    low, high = noise_range(schedule, kappa)
    if trace == "exact":
        vectors = torch.eye(dim, dtype=x.dtype, device=x.device)[:, None].expand(-1, len(x), -1)
    else:
        signs = torch.randint(0, 2, (probes, len(x), dim), generator=generator, device=x.device)
        vectors = (2 * signs - 1).to(x.dtype)
    vectors = vectors.reshape(-1, *x.shape)

    def slope(y: Tensor, tau: float) -> tuple[Tensor, Tensor]:
        """dy/dtau and its divergence."""
        t = schedule.t_of_log_kappa(tau)
        alpha = schedule.alpha(t)

        def mean(at: Tensor) -> Tensor:
            return denoiser(alpha * at, t, cond)

        d, along = _mean_and_traces(mean, y, vectors)
        return y - d, dim - (along.sum(0) if trace == "exact" else along.mean(0))

    taus = torch.linspace(math.log(low), math.log(high), steps + 1, dtype=torch.float64).tolist()
    y, gained = x.detach(), torch.zeros(len(x), dtype=x.dtype, device=x.device)
    for a, b in pairwise(taus):
        f0, d0 = slope(y, a)
        f1, d1 = slope(y + (b - a) * f0, b)
        y, gained = y + (b - a) / 2 * (f0 + f1), gained + (b - a) / 2 * (d0 + d1)
    variance = high**2 + data_std**2
    prior = -0.5 * (y.reshape(len(y), -1).square().sum(-1) / variance + dim * math.log(2 * math.pi * variance))
    return prior + gained


def _mean_and_traces(mean: Callable[[Tensor], Tensor], y: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
    """mean(y), and v . (d mean / d y) v for each v: (B, *event) and (V, B)."""
    with torch.enable_grad():
        at = y.detach().requires_grad_()
        value = mean(at)
        rows = []
        for k, v in enumerate(vectors):
            (product,) = torch.autograd.grad(value, at, v, retain_graph=k + 1 < len(vectors))
            rows.append((product * v).reshape(len(y), -1).sum(-1))
    return value.detach(), torch.stack(rows)
