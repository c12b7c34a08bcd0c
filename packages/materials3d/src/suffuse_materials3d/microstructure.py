"""A microstructure: which phase each voxel holds, how large a voxel is, and where the box repeats.

Axes are (X, Y, Z), the thickness of a film along the last. Voxel size is part of the data and is never assumed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from suffuse.errors import InvalidArgument

__all__ = ["Microstructure"]


@dataclass(frozen=True, eq=False)  # arrays have no one truth value to compare by
class Microstructure:
    """A labelled volume. It equals itself alone; compare ``labels`` and the rest by what you mean.

    Args:
        labels: (X, Y, Z), whole numbers 0 ... K-1 (or bool) naming the phase of each voxel; kept as uint8.
        spacing: edge lengths (dx, dy, dz) of a voxel, in ``unit``.
        unit: unit of length, for instance "um"; "voxel" when the size is not known.
        periodic: per axis, whether the box repeats.
        attributes: facts to keep with the volume (how it was made, what was measured); JSON-able.
        field: (X, Y, Z), the continuous field whose sign gave two-phase labels, phase 1 where it is positive. Its zero
            level is a smoother interface than the voxels' faces.

    Raises:
        InvalidArgument: for a wrong number of axes, an empty volume, NaN, labels that are no small whole numbers,
            spacing that is not positive, or a field of another shape.
    """

    labels: NDArray[np.uint8]
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)
    unit: str = "voxel"
    periodic: tuple[bool, bool, bool] = (False, False, False)
    attributes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    field: NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "labels", _labels(self.labels))
        object.__setattr__(self, "spacing", _spacing(self.spacing))
        if len(self.periodic) != 3:
            raise InvalidArgument(f"periodic must say True or False for each of 3 axes, got {self.periodic!r}")
        object.__setattr__(self, "periodic", tuple(bool(p) for p in self.periodic))
        if self.field is not None:
            values = np.asarray(self.field, dtype=np.float32)
            if values.shape != self.labels.shape:
                raise InvalidArgument(
                    f"field has shape {values.shape}, labels have {self.labels.shape}; they must agree"
                )
            if not np.isfinite(values).all():
                raise InvalidArgument("field has NaN or infinite values; did the simulation diverge?")
            object.__setattr__(self, "field", values)

    @classmethod
    def from_field(
        cls,
        values: ArrayLike,
        *,
        threshold: float = 0.0,
        spacing: Sequence[float] = (1.0, 1.0, 1.0),
        unit: str = "voxel",
        periodic: Sequence[bool] = (True, True, True),
        attributes: Mapping[str, Any] | None = None,
    ) -> Microstructure:
        """Two phases from a field (X, Y, Z): phase 1 where it exceeds ``threshold``."""
        shifted = np.asarray(values, dtype=np.float32) - threshold
        if shifted.ndim == 3 and not np.isfinite(shifted).all():
            raise InvalidArgument("values has NaN or infinite entries; did the simulation or the sampler diverge?")
        return cls(
            labels=(shifted > 0).astype(np.uint8),
            spacing=tuple(spacing),  # type: ignore[arg-type]
            unit=unit,
            periodic=tuple(periodic),  # type: ignore[arg-type]
            attributes=dict(attributes or {}),
            field=shifted,
        )

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels along (X, Y, Z)."""
        return self.labels.shape

    @property
    def size(self) -> tuple[float, float, float]:
        """Edge lengths of the box, in ``unit``."""
        return tuple(n * d for n, d in zip(self.shape, self.spacing, strict=True))  # type: ignore[return-value]

    @property
    def phases(self) -> tuple[int, ...]:
        """The labels that occur, ascending."""
        return tuple(int(k) for k in np.unique(self.labels))

    def mask(self, phase: int) -> NDArray[np.bool_]:
        """(X, Y, Z) bool, True where the voxel holds ``phase``."""
        return np.equal(self.labels, phase)

    def plot(self, title: str = "") -> Any:
        """A matplotlib figure: three slices through the middle, and the volume fractions along z."""
        from .plots import sections

        return sections(self, title)

    def render(self, path: str | Path, **arguments: Any) -> Path:
        """A lit 3-D picture as PNG; see ``plots.render``."""
        from .plots import render

        return render(self, path, **arguments)

    def to_html(self, path: str | Path) -> Path:
        """A page, complete in itself, with the phases as meshes that can be turned."""
        from trimesh.viewer.notebook import scene_to_html

        from .mesh import to_scene

        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(scene_to_html(to_scene(self, smooth=0 if self.field is not None else 10)))
        return path

    def with_attributes(self, **attributes: Any) -> Microstructure:
        """A copy with more facts attached."""
        return dataclasses.replace(self, attributes={**self.attributes, **attributes})


def _labels(labels: ArrayLike) -> NDArray[np.uint8]:
    values = np.asarray(labels)
    if values.ndim != 3:
        raise InvalidArgument(f"labels must have 3 axes (X, Y, Z), got shape {values.shape}; give one volume at a time")
    if values.size == 0:
        raise InvalidArgument(f"labels is empty, shape {values.shape}; every axis needs at least one voxel")
    if values.dtype.kind not in "biuf":
        raise InvalidArgument(f"labels must be whole numbers, got {values.dtype}")
    if values.dtype.kind == "f":
        if not np.isfinite(values).all():
            raise InvalidArgument(
                "labels has NaN or infinite values; segment the volume first, or fill what is missing"
            )
        if (values != np.round(values)).any():
            raise InvalidArgument(
                "labels must be whole numbers, got fractions; use Microstructure.from_field for a field"
            )
    if values.dtype.kind != "b" and (values.min() < 0 or values.max() > 255):
        raise InvalidArgument(f"labels must lie in 0 ... 255, got {values.min()} ... {values.max()}")
    return values.astype(np.uint8)


def _spacing(spacing: Sequence[float]) -> tuple[float, float, float]:
    values = tuple(float(d) for d in spacing)
    if len(values) != 3 or not all(0 < d < float("inf") for d in values):
        raise InvalidArgument(f"spacing must be three positive lengths (dx, dy, dz), got {tuple(spacing)!r}")
    return values
