r"""EDM's stochastic sampler: Heun's method in kappa, after raising the noise a little at every step.

In the coordinates y = x / alpha the ODE is dy/dkappa = eps. Before a step from kappa_i, noise is added up to
kappa_hat = kappa_i (1 + gamma), gamma = min(churn / n, sqrt(2) - 1), for kappa_i inside [s_min, s_max]:

    y_hat = y + sqrt(kappa_hat^2 - kappa_i^2) s_noise z,

and Heun's step goes from kappa_hat to kappa_{i+1}. The added noise corrects errors of earlier steps.
Karras et al. (2022), "Elucidating the Design Space of Diffusion-Based Generative Models", arXiv:2206.00364, alg. 2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from torch import Tensor

from ..errors import InvalidArgument
from ..schedules import Level, Schedule
from .base import Coefficients, Noise, Sampler, Stage

__all__ = ["EDMHeun"]


def finite_start(sampler: str, levels: Sequence[Level]) -> None:
    """Raise InvalidArgument where a solver in kappa would start at infinity."""
    if not math.isfinite(levels[0].kappa):
        raise InvalidArgument(
            f"{sampler} cannot start where kappa is infinite (a rectified flow at t=1); pass start=0.999, or use Heun"
        )


@dataclass(frozen=True)
class EDMHeun(Sampler):
    """Heun in kappa with optional churn; 2 n - 1 evaluations.

    Args:
        churn: total amount of noise raised over a run (S_churn); 0 is the deterministic sampler.
        s_min, s_max: range of kappa in which noise is raised.
        s_noise: factor on the raised noise.
    """

    grid: str | Sequence[float] = "karras"
    churn: float = 0.0
    s_min: float = 0.0
    s_max: float = math.inf
    s_noise: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.churn < 0 or self.s_min > self.s_max:
            raise InvalidArgument(
                f"need churn >= 0 and s_min <= s_max, got {self.churn=}, {self.s_min=}, {self.s_max=}"
            )

    def plan(self, levels: Sequence[Level], schedule: Schedule) -> list[Stage]:
        finite_start(type(self).__name__, levels)
        stages = []
        for t, s in pairwise(levels):
            hat = self._raised(t, schedule)
            if hat.kappa > t.kappa:
                std = hat.alpha * math.sqrt(hat.kappa**2 - t.kappa**2) * self.s_noise
                stages.append(Stage(None, (hat.alpha / t.alpha, std), hat, lands=False))
            predict = self.coefficients(hat, s, ())
            stages.append(Stage(hat.t, predict, s, lands=s.sigma == 0))
            if s.sigma > 0:
                stages.append(Stage(s.t, (*predict[:2], 1 / s.sigma, -s.alpha / s.sigma), s))
        return stages

    def _raised(self, t: Level, schedule: Schedule) -> Level:
        """The level to raise the noise to before the step from t; never beyond the schedule's own end."""
        if not (self.churn and self.s_min <= t.kappa <= self.s_max):
            return t
        gamma = min(self.churn / self.steps, math.sqrt(2) - 1)
        return schedule.level(schedule.t_of_kappa(t.kappa * (1 + gamma)))

    def coefficients(self, t: Level, s: Level, past: Sequence[Level]) -> Coefficients:
        """(a, b) of x_s = a x + b eps, and (c, d) of eps = c x + d D."""
        return s.alpha / t.alpha, s.alpha * (s.kappa - t.kappa), 1 / t.sigma, -t.alpha / t.sigma

    def step(self, x: Tensor, mean: Tensor, state: Any, noise: Noise, c: Coefficients) -> tuple[Tensor, Any]:
        if len(c) == 2:
            return c[0] * x + c[1] * noise(), None
        eps = c[2] * x + c[3] * mean
        if state is None:
            return c[0] * x + c[1] * eps, (x, eps)
        origin, first = state
        return c[0] * origin + c[1] / 2 * (first + eps), None
