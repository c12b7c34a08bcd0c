"""DPM-Solver++(2M): the exponential integrator of the probability-flow ODE, with the last two posterior means.

With lam = log(alpha / sigma), h = lam_s - lam_t and r = (lam_t - lam_before) / h,

    x_s = (sigma_s / sigma_t) x_t - alpha_s (e^-h - 1) (D_t + (D_t - D_before) / (2 r)).

Second order with one evaluation a step; the first step, and the last to the clean end, are DDIM's.
Lu et al. (2022), "DPM-Solver++", arXiv:2211.01095, alg. 2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..schedules import Level
from .base import Coefficients, Noise, Sampler

__all__ = ["DPMSolverPP"]


@dataclass(frozen=True)
class DPMSolverPP(Sampler):
    """DPM-Solver++(2M), deterministic."""

    def coefficients(self, t: Level, s: Level, before: Level | None) -> Coefficients:
        h = t.log_kappa - s.log_kappa
        move = -s.alpha * math.expm1(-h)
        if before is None or s.sigma == 0 or math.isinf(before.log_kappa):
            return s.sigma / t.sigma, move, 0.0
        r = (before.log_kappa - t.log_kappa) / h
        return s.sigma / t.sigma, move * (1 + 1 / (2 * r)), -move / (2 * r)

    def step(self, x: Tensor, mean: Tensor, state: Any, noise: Noise, c: Coefficients) -> tuple[Tensor, Any]:
        x = c[0] * x + c[1] * mean
        return (x + c[2] * state if c[2] else x), mean
