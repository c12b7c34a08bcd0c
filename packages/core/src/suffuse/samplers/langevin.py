r"""Predictor-corrector sampling: after each step, some Langevin steps at the level reached.

At level s with score = -(x - alpha D) / sigma^2, a corrector step is

    x <- x + delta score + sqrt(2 delta) z,     delta = 2 (snr sigma)^2,

which leaves the level's distribution unchanged as delta goes to 0 and forgets errors of the predictor. The step size is
Song et al.'s with the norm of the score replaced by its value for pure noise, |z| / sigma, so that it is the same for
every sample and needs no reduction. It also turns sums of scores into samples of products, which an ODE does not.
Song et al. (2021), "Score-Based Generative Modeling through SDEs", arXiv:2011.13456, alg. 4.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..errors import InvalidArgument
from ..schedules import Level, Schedule
from .base import Coefficients, Noise, Sampler, Stage
from .ddim import DDPM

__all__ = ["PredictorCorrector"]


@dataclass(frozen=True)
class PredictorCorrector(Sampler):
    """Langevin corrections around any predictor; (1 + corrections) evaluations a step, except the last.

    Args:
        predictor: the class of the sampler that steps from level to level.
        corrections: Langevin steps after each.
        snr: size of a Langevin step relative to the noise.
    """

    predictor: type[Sampler] = DDPM
    corrections: int = 1
    snr: float = 0.16

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.corrections < 0 or self.snr <= 0:
            raise InvalidArgument(f"need corrections >= 0 and snr > 0, got {self.corrections=}, {self.snr=}")

    @property
    def _inner(self) -> Sampler:
        return self.predictor(self.steps, self.grid)

    def plan(self, levels: Sequence[Level], schedule: Schedule) -> list[Stage]:
        stages = []
        for stage in self._inner.plan(levels, schedule):
            s, n = stage.level, self.corrections
            correct = stage.lands and s.sigma > 0 and n > 0
            lands = stage.lands and not correct
            stages.append(dataclasses.replace(stage, coefficients=(False, stage.coefficients), lands=lands))
            if correct:
                delta = 2 * (self.snr * s.sigma) ** 2
                c = (True, 1 - delta / s.sigma**2, delta * s.alpha / s.sigma**2, math.sqrt(2 * delta))
                stages += [Stage(s.t, c, s, lands=k == n - 1) for k in range(n)]
        return stages

    def coefficients(self, t: Level, s: Level, past: Sequence[Level]) -> Coefficients:
        return self._inner.coefficients(t, s, past)

    def step(self, x: Tensor, mean: Tensor, state: Any, noise: Noise, c: Coefficients) -> tuple[Tensor, Any]:
        if c[0]:
            return c[1] * x + c[2] * mean + c[3] * noise(), state
        return self._inner.step(x, mean, state, noise, c[1])
