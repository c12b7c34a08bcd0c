"""What the numbers in a mask mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from suffuse.errors import InvalidArgument


@dataclass(frozen=True)
class LabelSchema:
    """The classes of a segmentation, background first.

    Args:
        names: of the classes.
        values: the numbers that stand for them in a file; default 0, 1, 2, ...
    """

    names: tuple[str, ...]
    values: tuple[int, ...] = ()

    def __init__(self, names: Sequence[str], values: Sequence[int] = ()) -> None:
        object.__setattr__(self, "names", tuple(names))
        object.__setattr__(self, "values", tuple(int(v) for v in values) or tuple(range(len(names))))
        if len(self.names) < 2 or len(set(self.names)) < len(self.names):
            raise InvalidArgument(f"names must be at least two different classes, background first, got {self.names}")
        if len(self.values) != len(self.names) or len(set(self.values)) < len(self.values):
            raise InvalidArgument(f"values must be one number for each of {self.names}, got {self.values}")

    def __len__(self) -> int:
        return len(self.names)

    def index(self, mask: Tensor) -> Tensor:
        """Stored numbers to class numbers 0, 1, 2, ..., of any shape.

        Raises:
            InvalidArgument: for a number that is no class, with how often it occurs.
        """
        mask = torch.as_tensor(mask)
        if mask.is_floating_point() and not bool((mask == mask.round()).all()):
            raise InvalidArgument("mask has fractional values; labels are whole numbers (resample with mode='nearest')")
        known = torch.tensor(self.values, device=mask.device)
        found, counts = mask.long().unique(return_counts=True)
        unknown = [(int(v), int(n)) for v, n in zip(found, counts, strict=True) if v not in known]
        if unknown:
            listed = ", ".join(f"{v} ({n} voxels)" for v, n in unknown[:5])
            known_labels = dict(zip(self.names, self.values, strict=True))
            raise InvalidArgument(f"mask has labels {listed} that are none of {known_labels}")
        order = known.argsort()
        return order[torch.searchsorted(known[order], mask.long().contiguous())]

    def one_hot(self, mask: Tensor) -> Tensor:
        """Stored numbers (N, 1, *spatial) to (N, C, *spatial) of 0 and 1."""
        if mask.ndim < 3 or mask.shape[1] != 1:
            raise InvalidArgument(f"mask must be (N, 1, *spatial), got {tuple(mask.shape)}")
        return torch.nn.functional.one_hot(self.index(mask[:, 0]), len(self)).movedim(-1, 1).float()

    def stored(self, scores: Tensor) -> Tensor:
        """The stored number (N, 1, *spatial) of the class with the largest score (N, C, *spatial)."""
        return torch.tensor(self.values, device=scores.device)[scores.argmax(1, keepdim=True)]
