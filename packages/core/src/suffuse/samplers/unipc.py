r"""UniPC: a predictor and a corrector of one order more from the same evaluation.

With h = lam_s - lam_t, r_k = (lam_k - lam_t) / h for past levels k, D1_k = (D_k - D_t) / r_k and B = e^-h - 1 ("bh2")
or -h ("bh1"), a step is

    x_s = (sigma_s / sigma_t) x_t - alpha_s (e^-h - 1) D_t - alpha_s B sum_k rho_k D1_k,

where rho solves sum_k r_k^{j-1} rho_k = b_j, the moments of the exponential. The predictor uses past levels; the
corrector, once D at the predicted x_s is known, also the level s itself (r = 1). Their difference is a combination of
posterior means alone, so correcting is adding it to x: whatever a constraint did to x in between is kept.

Zhao et al. (2023), "UniPC", arXiv:2302.04867, algs. 5-6 and eq. 9.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise, zip_longest
from typing import Any, Literal

import numpy as np
from torch import Tensor

from ..errors import InvalidArgument
from ..schedules import Level, Schedule
from .base import Coefficients, Noise, Sampler, Stage, combine

__all__ = ["UniPC"]


@dataclass(frozen=True)
class UniPC(Sampler):
    """UniPC of order 1 to 3, in data prediction; one evaluation a step.

    Args:
        order: of the predictor; with the corrector the order of accuracy is one more.
        variant: ``"bh1"`` or ``"bh2"``, the function B.
        corrector: whether to correct; without it, order 1 is DDIM.
    """

    order: int = 2
    variant: Literal["bh1", "bh2"] = "bh2"
    corrector: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.order not in (1, 2, 3):
            raise InvalidArgument(f"order must be 1, 2 or 3, got {self.order}")
        if self.variant not in ("bh1", "bh2"):
            raise InvalidArgument(f"variant must be 'bh1' or 'bh2', got {self.variant!r}")

    def plan(self, levels: Sequence[Level], schedule: Schedule) -> list[Stage]:
        """The order falls to the first towards the clean end, as published."""
        n, clean = len(levels) - 1, levels[-1].sigma == 0
        return [
            Stage(t.t, self._coefficients(t, s, levels[:i][::-1], n - i if clean else self.order), s)
            for i, (t, s) in enumerate(pairwise(levels))
        ]

    def coefficients(self, t: Level, s: Level, past: Sequence[Level]) -> Coefficients:
        return self._coefficients(t, s, past, self.order)

    def _coefficients(self, t: Level, s: Level, past: Sequence[Level], left: int) -> Coefficients:
        """The factor of x and the weights of (D_t, D_past...): the last correction, carried on, and the prediction.

        ``left`` is the number of steps left, this one included, which bounds the order; one step ago it was one more.
        """
        correct: list[float] = []
        if past and self.corrector and math.isfinite(past[0].log_kappa):
            known = self._known(past[1:], left + 1)
            predicted, corrected = (self._weights(past[0], t, known, extra) for extra in (False, True))
            correct = [c - p for c, p in zip(corrected, [0.0, *predicted], strict=True)]
        carry, predict = s.sigma / t.sigma, self._weights(t, s, self._known(past, left), False)
        return carry, *(carry * c + p for c, p in zip_longest(correct, predict, fillvalue=0.0))

    def _known(self, past: Sequence[Level], left: int) -> list[Level]:
        return [p for p in past[: min(self.order, left) - 1] if math.isfinite(p.log_kappa)]

    def _weights(self, t: Level, s: Level, past: Sequence[Level], corrector: bool) -> list[float]:
        """Weights of (D_s if corrector, D_t, D_past...) in x_s."""
        h = t.log_kappa - s.log_kappa
        first = -s.alpha * math.expm1(-h)
        if s.sigma == 0 or math.isinf(h) or not (past or corrector):
            return [*([0.0] * corrector), first, *([0.0] * len(past))]
        r = [(t.log_kappa - p.log_kappa) / h for p in past] + [1.0] * corrector
        big_b = -h if self.variant == "bh1" else math.expm1(-h)
        scale = [-s.alpha * big_b * rho / node for rho, node in zip(self._rho(r, -h, big_b), r, strict=True)]
        weights = [first - sum(scale), *scale[: len(past)]]
        return [scale[-1], *weights] if corrector else weights

    @staticmethod
    def _rho(r: list[float], hh: float, big_b: float) -> list[float]:
        """Solve sum_k r_k^{j-1} rho_k = b_j; a single node takes 1/2, which is of the same order."""
        if len(r) == 1:
            return [0.5]
        b, factorial, phi = [], 1.0, math.expm1(hh) / hh - 1
        for j in range(1, len(r) + 1):
            b.append(phi * factorial / big_b)
            factorial *= j + 1
            phi = phi / hh - 1 / factorial
        return list(np.linalg.solve(np.vander(r, increasing=True).T, b))

    def step(self, x: Tensor, mean: Tensor, state: Any, noise: Noise, c: Coefficients) -> tuple[Tensor, Any]:
        means = (mean, *(state or ()))[: self.order + 1]
        return combine(x, c[0], c[1:], means), means[: self.order]
