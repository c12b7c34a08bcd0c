r"""DEIS and velocity Adams-Bashforth: the probability-flow ODE with the last few slopes.

Both write the ODE as dy/du = f with a slope f that is a combination of x and the posterior mean, put the polynomial
through the last n slopes in the place of f, and integrate it exactly over the step; they differ in y, u and f:

    DEIS          y = x / alpha,            d y / d log kappa = kappa eps      (exponential weights in log kappa)
    velocity AB   y = x / (alpha + sigma),  d y / d tau = eps - D,             tau = sigma / (alpha + sigma).

The second is finite at both ends of every schedule and has the straightest paths, which pays at five to ten steps.
Zhang, Chen (2022), "Fast Sampling of Diffusion Models with Exponential Integrator", arXiv:2204.13902, eq. 15.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..errors import InvalidArgument
from ..schedules import Level
from .base import Coefficients, Noise, Sampler, combine
from .weights import exponential_weights

__all__ = ["DEIS", "VelocityAB"]


@dataclass(frozen=True)
class _Adams(Sampler):
    """Coefficients are (a, b) of the slope f = a x + b D, the factor of x, and the weights of the slopes, now first."""

    order: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.order not in (1, 2, 3, 4):
            raise InvalidArgument(f"order must be 1, 2, 3 or 4, got {self.order}")

    def step(self, x: Tensor, mean: Tensor, state: Any, noise: Noise, c: Coefficients) -> tuple[Tensor, Any]:
        slopes = ((c[0] * x).add(mean, alpha=c[1]), *(state or ()))[: self.order]
        return combine(x, c[2], c[3:], slopes), slopes[: self.order - 1]


@dataclass(frozen=True)
class DEIS(_Adams):
    """DEIS of order 1 to 4 with exact exponential weights; the slope is eps."""

    def coefficients(self, t: Level, s: Level, past: Sequence[Level]) -> Coefficients:
        slope = (1 / t.sigma, -t.alpha / t.sigma)
        if t.alpha == 0:  # x is all noise and says nothing of D: take D itself as the slope of this first step
            return 0.0, 1.0, s.sigma / t.sigma, s.alpha
        if s.sigma == 0:
            return *slope, s.alpha / t.alpha, -s.alpha * t.sigma / t.alpha
        h = s.log_kappa - t.log_kappa  # negative
        known = [p for p in past[: self.order - 1] if p.alpha > 0]
        nodes = [0.0, *((p.log_kappa - t.log_kappa) / h for p in known)]
        weights = exponential_weights(nodes, h)
        return *slope, s.alpha / t.alpha, *(s.sigma * h * w for w in weights)


@dataclass(frozen=True)
class VelocityAB(_Adams):
    """Adams-Bashforth of order 1 to 4 on the velocity eps - D in flow coordinates."""

    def coefficients(self, t: Level, s: Level, past: Sequence[Level]) -> Coefficients:
        slope = (1 / t.sigma, -t.alpha / t.sigma - 1)

        def tau(level: Level) -> float:
            return float(level.sigma / (level.alpha + level.sigma))

        scale, h = s.alpha + s.sigma, tau(s) - tau(t)
        known = [] if s.sigma == 0 else past[: self.order - 1]
        nodes = [0.0, *((tau(p) - tau(t)) / h for p in known)]
        weights = exponential_weights(nodes, 0.0)
        return *slope, scale / (t.alpha + t.sigma), *(scale * h * w for w in weights)
