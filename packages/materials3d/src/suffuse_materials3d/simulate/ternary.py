r"""A true ternary: three immiscible components c_1 + c_2 + c_3 = 1,

    f = W sum_i c_i^2 (1 - c_i)^2,      mu_i = 2 W c_i (1 - c_i) (1 - 2 c_i) - beta - kappa lap c_i,

where beta, the mean over i of the first terms, keeps the sum. Interfaces of each pair are alike, and a third phase does
not have to lie between two others, as it does when one composition is cut at two levels.

Eyre (1993), "Systems of Cahn-Hilliard equations", SIAM J. Appl. Math. 53, 1686; Boyer, Lapuerta (2006), ESAIM: M2AN
40, 653.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from suffuse.errors import InvalidArgument
from suffuse.random import Generators

from .spectral import PhaseField

__all__ = ["Ternary"]


@dataclass(frozen=True)
class Ternary(PhaseField):
    """The equation of fields (B, 3, X, Y, Z); the phase of a voxel is the largest of the three.

    Args:
        barrier: W; the stabiliser by rule is W.
        (the rest): as of ``PhaseField``.
    """

    barrier: float = 1.0

    components: ClassVar[tuple[int, ...]] = (3,)
    bounds: ClassVar[tuple[float, float]] = (-1.0, 2.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.barrier < math.inf:
            raise InvalidArgument(f"barrier must be positive, got {self.barrier}")

    def density(self, u: Tensor, controls: Mapping[str, Tensor]) -> Tensor:
        return self.barrier * (u * (1 - u)).square().sum(1)

    def potential(self, u: Tensor, controls: Mapping[str, Tensor]) -> Tensor:
        local = 2 * self.barrier * u * (1 - u) * (1 - 2 * u)
        return local - local.mean(1, keepdim=True)

    def stability(self, controls: Mapping[str, Tensor]) -> float | Tensor:
        return self.barrier if self.stabiliser is None else self.stabiliser

    def advice(self) -> str:
        return f"take stabiliser >= barrier = {self.barrier:g}, or a smaller dt"

    def start(self, mean: Tensor, shape: Sequence[int], generator: Generators = None, noise: float = 0.02) -> Tensor:
        """Means (B, 3) that sum to one, and noise that sums to zero."""
        if mean.ndim != 2 or mean.shape[1] != 3 or bool(((mean.sum(1) - 1).abs() > 1e-5).any()):
            raise InvalidArgument(f"mean must be (B, 3) with rows that sum to 1, got {tuple(mean.shape)}")
        u = super().start(mean, shape, generator, noise)
        return u - (u.sum(1, keepdim=True) - 1) / 3

    @staticmethod
    def phases(u: Tensor) -> Tensor:
        """(B, ..., 3, X, Y, Z) -> labels, the largest component."""
        return u.argmax(-4).to(torch.uint8)
