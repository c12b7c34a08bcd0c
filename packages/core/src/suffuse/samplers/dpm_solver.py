r"""DPM-Solver++: exponential integrators with the last few posterior means, deterministic or stochastic.

With lam = log(alpha / sigma), h = lam_s - lam_t > 0 and fresh noise of strength eta, the exact step is

    x_s = (sigma_s / sigma_t) e^{-eta^2 h} x_t
        + alpha_s (1 + eta^2) int_{lam_t}^{lam_s} e^{(1 + eta^2)(lam - lam_s)} D dlam
        + sigma_s sqrt(1 - e^{-2 eta^2 h}) z.

Order 1 holds D constant (DDIM for eta = 0, DDPM for eta = 1); order n puts the polynomial through the last n means in
its place and integrates it exactly. The second order of the paper, "2M", replaces that integral by its midpoint value,
D_t + (D_t - D_before) / (2 r) with r = (lam_t - lam_before) / h, and is the default here.

Lu et al. (2022), "DPM-Solver++", arXiv:2211.01095, alg. 2 (eta = 0) and app. (eta = 1); the exact polynomial form for
eta = 1 is that of Gonzalez et al. (2023), "SEEDS", arXiv:2305.14267.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

from torch import Tensor

from ..errors import InvalidArgument
from ..schedules import Level, Schedule
from .base import Coefficients, Noise, Sampler, Stage, combine
from .weights import exponential_weights

__all__ = ["DPMSolverPP"]


@dataclass(frozen=True)
class DPMSolverPP(Sampler):
    """DPM-Solver++ of order 1 to 3; one evaluation a step. The first steps and the last two are of lower order.

    Args:
        order: 1, 2 or 3.
        eta: strength of fresh noise; 0 is the ODE solver, 1 SDE-DPM-Solver++.
        rule: ``"midpoint"`` for the paper's second order, ``"exact"`` for the integrated polynomial; order 3 is exact.
    """

    order: int = 2
    eta: float = 0.0
    rule: Literal["midpoint", "exact"] = "midpoint"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.order not in (1, 2, 3):
            raise InvalidArgument(f"order must be 1, 2 or 3, got {self.order}")
        if not self.eta >= 0:
            raise InvalidArgument(f"eta must not be negative, got {self.eta}")
        if self.rule not in ("midpoint", "exact"):
            raise InvalidArgument(f"rule must be 'midpoint' or 'exact', got {self.rule!r}")

    def plan(self, levels: Sequence[Level], schedule: Schedule) -> list[Stage]:
        """The order falls to the first towards the clean end, as published for few steps."""
        n, clean = len(levels) - 1, levels[-1].sigma == 0
        return [
            Stage(t.t, self.coefficients(t, s, levels[:i][::-1][: n - i - 1 if clean else i]), s)
            for i, (t, s) in enumerate(pairwise(levels))
        ]

    def coefficients(self, t: Level, s: Level, past: Sequence[Level]) -> Coefficients:
        h = t.log_kappa - s.log_kappa
        rate = (1 + self.eta**2) * h
        fresh = self.eta**2 * h if self.eta else 0.0  # h is infinite at the clean end
        carry = s.sigma / t.sigma * math.exp(-fresh)
        noise = s.sigma * math.sqrt(-math.expm1(-2 * fresh))
        total = -s.alpha * math.expm1(-rate)
        known = [p for p in past[: self.order - 1] if math.isfinite(p.log_kappa)]
        if s.sigma == 0 or not known:
            return carry, noise, total
        nodes = [(t.log_kappa - p.log_kappa) / h for p in known]  # negative: in units of this step
        if len(known) == 1 and self.rule == "midpoint":
            share = 1 / (-2 * nodes[0])
            return carry, noise, total * (1 + share), -total * share
        return carry, noise, *(s.alpha * rate * w for w in exponential_weights([0.0, *nodes], rate))

    def step(self, x: Tensor, mean: Tensor, state: Any, noise: Noise, c: Coefficients) -> tuple[Tensor, Any]:
        means = (mean, *(state or ()))[: self.order]
        x = combine(x, c[0], c[2:], means)
        return (x.add(noise(), alpha=c[1]) if c[1] else x), means[: self.order - 1]
