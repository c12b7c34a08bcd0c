"""Where a voxel array lies in the patient: the affine, and everything that follows from it.

    world = affine @ (i, j, k, 1)

with axes R, A, S (NIfTI's convention; DICOM and ITK use L, P, S), in millimetres unless a file has another unit.

A :class:`Geometry` travels beside every volume from the file that was read to the file that is written. Two volumes of
any orientation or spacing are compared by resampling one onto the geometry of the other (:func:`resample`); going back
is the same call with the two exchanged, so no flip or transpose has to be remembered.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from suffuse.errors import InvalidArgument, unknown

if TYPE_CHECKING:
    from monai.data import MetaTensor

UNITS = {"meter": 1000.0, "mm": 1.0, "micron": 0.001}
"""Units of world axes, as NIfTI names them, in mm."""

INTEGERS = ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64")
"""Integer voxel types, narrow ones first."""


@dataclass(frozen=True, eq=False)
class Geometry:
    """A voxel grid in world space.

    Args:
        affine: (4, 4), voxel index to world in RAS, in ``units``.
        shape: number of voxels along the three axes.
        units: of the affine, one of :data:`UNITS`; whatever else this class tells is in mm.
        dtype: of the stored voxels, restored when a volume is written back.
        frame_of_reference: DICOM's UID of the world space; volumes that share it can be laid over one another.
    """

    affine: np.ndarray
    shape: tuple[int, int, int]
    units: str = "mm"
    dtype: str = "float32"
    frame_of_reference: str | None = None

    def __post_init__(self) -> None:
        affine = np.array(self.affine, dtype=np.float64)
        if affine.shape != (4, 4) or not np.isfinite(affine).all():
            raise InvalidArgument(f"affine must be a finite 4x4 matrix, got shape {affine.shape}; pass image.affine")
        edges = np.linalg.norm(affine[:3, :3], axis=0).prod()  # voxels may be tiny numbers, in metres
        if not np.allclose(affine[3], (0, 0, 0, 1)) or abs(np.linalg.det(affine[:3, :3])) <= 1e-9 * edges:
            raise InvalidArgument("affine must be invertible with last row (0, 0, 0, 1); pass image.affine")
        shape = tuple(int(n) for n in self.shape)
        if len(shape) != 3 or min(shape) < 1:
            raise InvalidArgument(f"shape must be three positive sizes, got {shape}; pass the shape of one 3-D volume")
        if self.units not in UNITS:
            raise unknown("units", self.units, UNITS)
        try:
            dtype = np.dtype(self.dtype).name
        except TypeError:
            dtype = str(self.dtype)
        if dtype not in (*INTEGERS, "float32", "float64"):
            raise unknown("dtype", dtype, (*INTEGERS, "float32", "float64"))
        affine.setflags(write=False)
        object.__setattr__(self, "affine", affine)
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "dtype", dtype)

    @classmethod
    def centred(cls, shape: tuple[int, int, int], spacing: float, centre: tuple[float, float, float]) -> Geometry:
        """An RAS grid of cubic voxels (``spacing`` mm) around the world point ``centre`` (mm)."""
        affine = np.diag([spacing, spacing, spacing, 1.0])
        affine[:3, 3] = np.asarray(centre) - spacing * (np.asarray(shape) - 1) / 2
        return cls(affine, shape)

    @classmethod
    def of(cls, volume: MetaTensor) -> Geometry:
        """The geometry that MONAI's transforms keep in a MetaTensor (C, X, Y, Z), with all that :meth:`attach` put."""
        affine = getattr(volume, "affine", None)
        if affine is None:
            raise InvalidArgument(
                "volume has no geometry (a plain tensor); load it with read_nifti or MONAI's LoadImage"
            )
        carried = {key: volume.meta[key] for key in ("units", "dtype", "frame_of_reference") if key in volume.meta}
        return cls(np.asarray(affine), spatial_shape(volume), **carried)

    def in_mm(self) -> Geometry:
        """The same grid with an affine in mm, as DICOM has it."""
        if self.units == "mm":
            return self
        return replace(self, affine=np.diag([*[UNITS[self.units]] * 3, 1.0]) @ self.affine, units="mm")

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel edge lengths in mm along the three array axes."""
        x, y, z = np.linalg.norm(self.in_mm().affine[:3, :3], axis=0)
        return float(x), float(y), float(z)

    @property
    def voxel_volume(self) -> float:
        """mm^3."""
        return float(abs(np.linalg.det(self.in_mm().affine[:3, :3])))

    @property
    def axcodes(self) -> str:
        """The anatomical direction of each array axis, for instance ``"RAS"`` or ``"LIA"``."""
        from nibabel.orientations import aff2axcodes

        return "".join(str(code) for code in aff2axcodes(self.affine))

    def world(self, index: Any) -> np.ndarray:
        """World coordinates in mm, (..., 3), of voxel indices (..., 3)."""
        affine = self.in_mm().affine
        return np.asarray(index, dtype=np.float64) @ affine[:3, :3].T + affine[:3, 3]

    def slab(self, start: int, stop: int, axis: int = 2) -> Geometry:
        """The geometry of ``volume[..., start:stop]`` taken along ``axis``."""
        if not 0 <= start < stop <= self.shape[axis]:
            raise InvalidArgument(f"slab {start}:{stop} lies outside axis {axis} of {self.shape[axis]} voxels")
        affine = self.affine.copy()
        affine[:3, 3] += start * affine[:3, axis]
        sizes = list(self.shape)
        sizes[axis] = stop - start
        return replace(self, affine=affine, shape=(sizes[0], sizes[1], sizes[2]))

    def stored_as(self, dtype: str) -> Geometry:
        """The same grid, to be written with another voxel type."""
        return replace(self, dtype=dtype)

    def attach(self, volume: Tensor) -> MetaTensor:
        """``volume`` (C, X, Y, Z) as a MONAI MetaTensor that knows where it lies, and :meth:`of` is the way back.

        Units, voxel type and frame of reference are entries of its ``meta``, which MONAI's transforms hand on.
        """
        from monai.data import MetaTensor

        if spatial_shape(volume) != self.shape:
            raise InvalidArgument(
                f"volume of size {spatial_shape(volume)} does not fit a geometry of size {self.shape}"
            )
        meta = {"units": self.units, "dtype": self.dtype}
        if self.frame_of_reference is not None:  # loaders of batches cannot stack None
            meta["frame_of_reference"] = self.frame_of_reference
        return MetaTensor(volume, affine=torch.tensor(self.affine), meta=meta)

    def isclose(self, other: Geometry, tolerance: float = 1e-4) -> bool:
        """Whether two grids coincide: same shape, affines within ``tolerance`` mm."""
        apart = np.abs(self.in_mm().affine - other.in_mm().affine).max()
        return self.shape == other.shape and bool(apart <= tolerance)


def spatial_shape(volume: Tensor) -> tuple[int, int, int]:
    """The sizes (X, Y, Z) of a channel-first volume (C, X, Y, Z)."""
    if volume.ndim != 4:
        raise InvalidArgument(f"volume must be channel-first (C, X, Y, Z), got shape {tuple(volume.shape)}")
    _, x, y, z = volume.shape
    return x, y, z


def voxel_type(data: np.ndarray, stored: np.dtype[Any]) -> str:
    """What ``data``, the rescaled voxels of a file of type ``stored``, can be written as without loss.

    That is ``stored`` where it holds them, else the narrowest integer type that does and is no narrower; float32 for
    fractions.
    """
    if stored.kind == "f":
        return stored.name
    if np.equal(data, np.rint(data)).all():
        for name in (stored.name, *INTEGERS):
            limits = np.iinfo(name)
            wide = np.dtype(name).itemsize >= stored.itemsize
            if wide and limits.min <= data.min() and data.max() <= limits.max:
                return name
    return "float32"


def resample(
    volume: Tensor, source: Geometry, target: Geometry, mode: Literal["linear", "nearest"] = "linear"
) -> Tensor:
    """``volume`` (C, X, Y, Z) on grid ``source`` as seen on grid ``target``; zero outside ``source``.

    Linear interpolation is preceded by a Gaussian of the target's resolution where the target is coarser, so that fine
    structure is averaged and not aliased. Use ``"nearest"`` for label maps: values are never mixed.
    """
    from monai.transforms import SpatialResample
    from scipy.ndimage import gaussian_filter

    x = plain(volume).float().cpu()  # where the filter is
    source, target = source.in_mm(), target.in_mm()
    if mode == "linear":
        # Width of a box of the target's size minus that of the source's own voxel, as standard deviations in voxels.
        steps = np.linalg.norm(np.linalg.inv(source.affine[:3, :3]) @ target.affine[:3, :3], axis=1)
        widths = np.sqrt(np.clip(steps**2 - 1, 0, None) / 12)
        if widths.max() > 0:
            x = torch.from_numpy(gaussian_filter(x.numpy(), (0, *widths), mode="nearest"))
    move = SpatialResample(mode="bilinear" if mode == "linear" else "nearest", padding_mode="zeros")
    return plain(move(source.attach(x), dst_affine=torch.tensor(target.affine), spatial_size=target.shape)).float()


def reorient(volume: Tensor, geometry: Geometry, axcodes: str = "RAS") -> tuple[Tensor, Geometry]:
    """``volume`` (C, X, Y, Z) with its axes flipped and transposed towards ``axcodes``, exactly, and its new geometry.

    Nothing is interpolated: an oblique volume stays oblique. Turning back is the same call with the old codes.
    """
    from nibabel import orientations

    spatial_shape(volume)
    if len(axcodes) != 3 or sorted({"L": "R", "P": "A", "I": "S"}.get(c, c) for c in axcodes) != ["A", "R", "S"]:
        raise InvalidArgument(f"axcodes must name three axes such as 'RAS' or 'LIA', got {axcodes!r}")
    turn = orientations.ornt_transform(
        orientations.io_orientation(geometry.affine), orientations.axcodes2ornt(tuple(axcodes))
    )
    affine = geometry.affine @ orientations.inv_ornt_aff(turn, geometry.shape)
    # row i of `turn` says where input axis i goes, and whether it is flipped
    flips = [i + 1 for i, (_, sign) in enumerate(turn) if sign < 0]
    order = [int(np.flatnonzero(turn[:, 0] == axis)[0]) for axis in range(3)]
    turned = plain(volume).flip(flips).permute(0, *(i + 1 for i in order)).contiguous()
    return turned, replace(geometry, affine=affine, shape=spatial_shape(turned))


def plain(volume: Tensor) -> Tensor:
    """The bare tensor of a MetaTensor: networks and samplers run faster without the metadata."""
    return volume.as_tensor() if hasattr(volume, "as_tensor") else volume
