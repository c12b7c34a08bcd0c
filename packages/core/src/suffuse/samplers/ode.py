"""Euler and Heun on the probability-flow ODE, in the coordinates in which its paths are straightest.

With y = x / (alpha + sigma) and tau = sigma / (alpha + sigma) in [0, 1], every schedule is the rectified flow:

    y = (1 - tau) x_0 + tau eps,     dy/dtau = eps - D,

finite at both ends. Euler's step in these coordinates is DDIM's; Heun's averages the slopes at both ends of a step,
with two evaluations, except that the last step to the clean end has one (the slope there is not defined).
Liu et al. (2022), "Flow Straight and Fast", arXiv:2209.03003; Heun's method for diffusion: Karras et al. (2022),
arXiv:2206.00364, alg. 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from torch import Tensor

from ..schedules import Level, Schedule
from .base import Coefficients, Noise, Sampler, Stage

__all__ = ["Euler", "Heun"]


def _slope(t: Level) -> tuple[float, float]:
    """(a, b) with dy/dtau = a x + b D: eps - D = x / sigma - (alpha / sigma + 1) D."""
    return 1 / t.sigma, -(t.alpha / t.sigma + 1)


def _move(t: Level, s: Level) -> tuple[float, float]:
    """(a, b) with x_s = a x_t + b dy/dtau."""
    scale_t, scale_s = t.alpha + t.sigma, s.alpha + s.sigma
    return scale_s / scale_t, scale_s * (s.sigma / scale_s - t.sigma / scale_t)


@dataclass(frozen=True)
class Euler(Sampler):
    """First order, one evaluation a step."""

    def coefficients(self, t: Level, s: Level, past: Sequence[Level]) -> Coefficients:
        return *_move(t, s), *_slope(t)

    def step(self, x: Tensor, mean: Tensor, state: Any, noise: Noise, c: Coefficients) -> tuple[Tensor, Any]:
        return c[0] * x + c[1] * (c[2] * x + c[3] * mean), None


@dataclass(frozen=True)
class Heun(Euler):
    """Second order, two evaluations a step and one for the last: 2 n - 1 for n steps to the clean end."""

    def plan(self, levels: Sequence[Level], schedule: Schedule) -> list[Stage]:
        stages = []
        for t, s in pairwise(levels):
            predict = self.coefficients(t, s, ())
            if s.sigma == 0:
                stages.append(Stage(t.t, predict, s))
            else:
                stages.append(Stage(t.t, predict, s, lands=False))
                stages.append(Stage(s.t, (*_move(t, s), *_slope(s)), s))
        return stages

    def step(self, x: Tensor, mean: Tensor, state: Any, noise: Noise, c: Coefficients) -> tuple[Tensor, Any]:
        slope = c[2] * x + c[3] * mean
        if state is None:
            return c[0] * x + c[1] * slope, (x, slope)
        origin, first = state
        return c[0] * origin + c[1] / 2 * (first + slope), None
