"""What the solvers of taufactor lack: long voxels, and sides of which one wraps. Transport is along axis 1 of a batch.

Imports taufactor (extra ``measure``), so import it where that has been asked for.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from taufactor import AnisotropicSolver, MultiPhaseSolver  # type: ignore[import-untyped]

__all__ = ["Phases", "Sides"]


class Sides(AnisotropicSolver):  # type: ignore[misc]
    """Voxels of any edges, and sides that wrap or not, each for itself."""

    field: torch.Tensor

    def __init__(
        self, images: NDArray[np.uint8], spacing: Sequence[float], wraps: tuple[bool, bool], device: str
    ) -> None:
        self.wraps = wraps
        super().__init__(images, spacing=tuple(float(d) for d in spacing), device=device)

    def init_conductive_neighbours(self, img: torch.Tensor) -> torch.Tensor:
        """Summed weights of the neighbours that conduct: the stencil, on the mask; infinite where none does."""
        field, self.field = self.field, self._pad(img, [2, 2])
        self.apply_boundary_conditions()
        near: torch.Tensor = self.sum_weighted_neighbours()
        self.field = field
        near[(img == 0) | (near == 0)] = torch.inf
        return near

    def apply_boundary_conditions(self) -> None:
        for dim in (d for d, wraps in zip((2, 3), self.wraps, strict=True) if wraps):
            self.field.select(dim, 0).copy_(self.field.select(dim, -2))
            self.field.select(dim, -1).copy_(self.field.select(dim, 1))

    def vertical_flux(self) -> torch.Tensor:
        """taufactor takes weights above 8 for insulators, which those of long voxels may exceed."""
        flux: torch.Tensor = self.field[:, 2:-1, 1:-1, 1:-1] - self.field[:, 1:-2, 1:-1, 1:-1]
        flux[torch.isinf(self.factor[:, :-1]) | torch.isinf(self.factor[:, 1:])] = 0
        return flux


class Phases(MultiPhaseSolver):  # type: ignore[misc]
    """Several phases that conduct, in voxels of any edges."""

    def __init__(self, image: NDArray[np.uint8], cond: dict[int, float], spacing: Sequence[float]) -> None:
        self.weights = [(spacing[0] / d) ** 2 for d in spacing for _ in range(2)]
        super().__init__(image, cond=cond, device="cpu")

    def init_conductive_neighbours(self, img: torch.Tensor) -> list[torch.Tensor]:
        total, *terms = super().init_conductive_neighbours(img)
        terms = [weight * term for weight, term in zip(self.weights, terms, strict=True)]
        near = torch.where(torch.isinf(total), total, self._crop(torch.stack(terms).sum(0), 1))
        return [near, *terms]
