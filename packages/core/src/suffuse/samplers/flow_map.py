r"""Sampling with a flow map: a few long jumps along the probability-flow ODE, with or without fresh noise.

From level t to level s < t: jump to the level m with kappa_m = (1 - gamma^2)^(1/2) kappa_s, then raise the noise to s,

    x_s = (alpha_s / alpha_m) X_{t->m}(x_t) + gamma sigma_s z.

gamma = 0 follows the ODE, X_{t->s}. gamma = 1 jumps to the clean end and back: multistep consistency sampling. One step
is X_{1->0} in any case.
Kim et al. (2023), "Consistency Trajectory Models", arXiv:2310.02279, alg. 3; Song et al. (2023), "Consistency Models",
arXiv:2303.01469, alg. 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..condition import Condition
from ..errors import InvalidArgument
from ..schedules import CLEAN, Level, Schedule
from .base import Coefficients, Noise, Sampler, Stage

__all__ = ["FlowMapSampler"]


@dataclass(frozen=True)
class FlowMapSampler(Sampler):
    """Called with a ``FlowMap`` in the place of a denoiser; one evaluation a step.

    The ``mean`` of its states is ``FlowMap.mean``: the end of the straight line that a jump follows.

    Args:
        steps, grid: as of every sampler; a uniform grid of few steps suits a map that was trained on all pairs.
        gamma: in [0, 1], the share of noise that is fresh after each jump.
    """

    steps: int = 2
    grid: str | Sequence[float] = "time"
    gamma: float = 0.0

    if TYPE_CHECKING:

        def __call__(self, denoiser: Any, shape: Sequence[int] | None = None, **options: Any) -> Any: ...

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.gamma <= 1:
            raise InvalidArgument(f"gamma must lie in [0, 1], got {self.gamma}")

    def plan(self, levels: Sequence[Level], schedule: Schedule) -> list[Stage]:
        stages = []
        for t, s in pairwise(levels):
            kappa = math.sqrt(1 - self.gamma**2) * s.kappa
            landing = schedule.level(schedule.t_of_kappa(kappa)) if kappa > 0 else CLEAN
            stages.append(Stage(t.t, (landing.t, *self.coefficients(t, s, (landing,))), s))
        return stages

    def coefficients(self, t: Level, s: Level, past: Sequence[Level]) -> Coefficients:
        (m,) = past
        carry, scale = m.sigma / t.sigma, s.alpha / m.alpha
        return scale * (m.alpha - carry * t.alpha), scale * carry, self.gamma * s.sigma

    def evaluate(
        self, denoiser: Any, x: Tensor, stage: Stage, cond: Condition | None, state: Any
    ) -> tuple[Tensor, Any]:
        from ..distillation import FlowMap

        if not isinstance(denoiser, FlowMap):
            raise InvalidArgument(f"FlowMapSampler needs a FlowMap, got {type(denoiser).__name__}; use another sampler")
        return denoiser.mean(x, stage.t, stage.coefficients[0], cond), state  # type: ignore[arg-type]

    def step(self, x: Tensor, mean: Tensor, state: Any, noise: Noise, c: Coefficients) -> tuple[Tensor, Any]:
        x = c[1] * mean + c[2] * x
        return (x + c[3] * noise() if c[3] else x), None
