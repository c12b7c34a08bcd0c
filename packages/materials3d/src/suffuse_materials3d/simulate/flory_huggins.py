r"""A polymer blend: Cahn-Hilliard with the Flory-Huggins free energy of the donor's volume fraction p in (0, 1),

    f(p) = p ln p + (1 - p) ln(1 - p) + chi p (1 - p),      f'(p) = ln p - ln(1 - p) + chi (1 - 2 p).

Below p = eps the logarithm is continued by its tangent, so that an overshoot is pulled back and not undefined. The
blend decomposes by itself for chi > 1 / (2 phi (1 - phi)), into the compositions p_c and 1 - p_c with f'(p_c) = 0.

f'' = 1/p + 1/(1-p) - 2 chi grows steeply towards p_c, so the stabiliser must follow chi: by rule S = 0.55 f''(p_c),
and at least 2.

Flory (1942), J. Chem. Phys. 10, 51; Huggins (1942), J. Phys. Chem. 46, 151; Wodo, Ganapathysubramanian (2012),
"Modeling morphology evolution during solvent-based fabrication of organic solar cells", Comput. Mater. Sci. 55, 113.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from suffuse.errors import InvalidArgument

from .spectral import PhaseField

__all__ = ["FloryHuggins", "coexistence", "double_threshold"]

EPS = 0.01


@dataclass(frozen=True)
class FloryHuggins(PhaseField):
    """The equation; p is the share of the donor, so p > 1/2 is phase 0 and p < 1/2 phase 1, the acceptor.

    Args:
        dt: time step; with the stabiliser by rule 0.5 is stable for chi in [2.4, 4].
        chi: interaction parameter, where no history gives one per volume.
        (the rest): as of ``PhaseField``.
    """

    dt: float = 0.5
    chi: float = 3.0

    bounds: ClassVar[tuple[float, float]] = (-0.25, 1.25)
    controls: ClassVar[tuple[str, ...]] = ("mobility", "chi")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.chi < 8:
            raise InvalidArgument(f"chi must lie in (0, 8), got {self.chi}")

    def density(self, u: Tensor, controls: Mapping[str, Tensor]) -> Tensor:
        chi = controls.get("chi", self.chi)
        return _xlogx(u) + _xlogx(1 - u) + chi * u * (1 - u)

    def potential(self, u: Tensor, controls: Mapping[str, Tensor]) -> Tensor:
        chi = controls.get("chi", self.chi)
        return _log(u) - _log(1 - u) + chi * (1 - 2 * u)

    def stability(self, controls: Mapping[str, Tensor]) -> float | Tensor:
        if self.stabiliser is not None:
            return self.stabiliser
        if "chi" not in controls:
            return _rule(self.chi)
        chi = controls["chi"]
        values = [_rule(float(c)) for c in chi.flatten().tolist()]
        return torch.tensor(values, dtype=chi.dtype, device=chi.device).view(chi.shape)

    def advice(self) -> str:
        return "S must follow chi: leave stabiliser=None, which is 0.55 f'' at the coexisting composition, or lower dt"


def coexistence(chi: float) -> float:
    """p_c in (0, 1/2), the root of ln(p / (1 - p)) + chi (1 - 2 p); 1/2 for chi <= 2, where nothing separates."""
    low, high = 1e-12, 0.5 - 1e-9
    if chi <= 2:
        return 0.5
    for _ in range(80):
        p = (low + high) / 2
        low, high = (p, high) if math.log(p / (1 - p)) + chi * (1 - 2 * p) < 0 else (low, p)
    return (low + high) / 2


def double_threshold(p: Tensor, low: float = 0.2, high: float = 0.8) -> Tensor:
    """Three phases from one composition: donor (0) above ``high``, acceptor (1) below ``low``, mixed (2) between."""
    if not 0 < low < high < 1:
        raise InvalidArgument(f"need 0 < low < high < 1, got low={low}, high={high}")
    return torch.where(p > high, 0, torch.where(p < low, 1, 2)).to(torch.uint8)


def _rule(chi: float) -> float:
    p = max(coexistence(chi), EPS)
    return max(0.55 * (1 / p + 1 / (1 - p) - 2 * chi), 2.0)


def _log(p: Tensor) -> Tensor:
    """ln p, continued by its tangent below eps."""
    return torch.where(p > EPS, p.clamp(min=EPS).log(), math.log(EPS) + (p - EPS) / EPS)


def _xlogx(p: Tensor) -> Tensor:
    """The integral of ln p + 1 with the same continuation: p ln p above eps."""
    below = EPS * math.log(EPS) + (math.log(EPS) + 1) * (p - EPS) + (p - EPS).square() / (2 * EPS)
    return torch.where(p > EPS, p * p.clamp(min=EPS).log(), below)
