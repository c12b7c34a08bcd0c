r"""Spinodal decomposition: the Cahn-Hilliard equation of a symmetric mixture u in [-1, 1],

    f(u) = (u^2 - 1)^2 / 4,      f'(u) = u^3 - u,      du/dt = M lap (f'(u) - kappa lap u).

The step and its source are in ``spectral``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from .spectral import PhaseField

__all__ = ["SPINODAL", "CahnHilliard"]

#: |mean| beyond which the mixture is stable against small fluctuations, f''(u) = 3 u^2 - 1 > 0.
SPINODAL = 1 / math.sqrt(3)


@dataclass(frozen=True)
class CahnHilliard(PhaseField):
    """The equation; u > 0 is phase 1. Arguments as of ``PhaseField``; S = 1 by rule, half of max f'' = 2.

    Above dt = 2 the stabiliser visibly slows the decomposition.
    """

    def density(self, u: Tensor, controls: Mapping[str, Tensor]) -> Tensor:
        return (u.square() - 1).square() / 4

    def potential(self, u: Tensor, controls: Mapping[str, Tensor]) -> Tensor:
        return u * (u * u - 1)

    def advice(self) -> str:
        return "take stabiliser >= max f'' / 2 = 1, or a smaller dt"

    def growth_rate(self, k: float, mean: float = 0.0) -> float:
        """Rate at which a small wave of wave number k grows around a mean: M (k^2 (1 - 3 mean^2) - kappa k^4)."""
        return self.mobility * (k**2 * (1 - 3 * mean**2) - self.kappa * k**4)

    def fastest_wavelength(self, mean: float = 0.0) -> float:
        """The wavelength that grows fastest, 2 pi sqrt(2 kappa / (1 - 3 mean^2)), for |mean| below the spinodal."""
        return 2 * math.pi * math.sqrt(2 * self.kappa / (1 - 3 * mean**2))
