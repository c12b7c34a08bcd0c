"""Where a voxel array lies in the patient: the affine, and everything that follows from it.

    world = affine @ (i, j, k, 1)

in millimetres with axes R, A, S (NIfTI's convention; DICOM and ITK use L, P, S).

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

from suffuse.errors import InvalidArgument

if TYPE_CHECKING:
    from monai.data import MetaTensor


@dataclass(frozen=True, eq=False)
class Geometry:
    """A voxel grid in world space.

    Args:
        affine: (4, 4), voxel index to millimetres in RAS.
        shape: number of voxels along the three axes.
        units: of the world axes, as NIfTI names them; ``"mm"`` unless a file says otherwise.
        dtype: of the stored voxels, restored when a volume is written back.
        frame_of_reference: DICOM's UID of the world space; volumes that share it can be laid over one another.
        source_uids: DICOM's UIDs of the images along the last axis, for a segmentation to refer to.
    """

    affine: np.ndarray
    shape: tuple[int, int, int]
    units: str = "mm"
    dtype: str = "float32"
    frame_of_reference: str | None = None
    source_uids: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        affine = np.array(self.affine, dtype=np.float64)
        if affine.shape != (4, 4) or not np.isfinite(affine).all():
            raise InvalidArgument(f"affine must be a finite 4x4 matrix, got shape {affine.shape}; pass image.affine")
        if not np.allclose(affine[3], (0, 0, 0, 1)) or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
            raise InvalidArgument("affine must be invertible with last row (0, 0, 0, 1); pass image.affine")
        shape = tuple(int(n) for n in self.shape)
        if len(shape) != 3 or min(shape) < 1:
            raise InvalidArgument(f"shape must be three positive sizes, got {shape}; pass the shape of one 3-D volume")
        if self.source_uids and len(self.source_uids) != shape[2]:
            raise InvalidArgument(f"source_uids must name {shape[2]} slices, got {len(self.source_uids)}")
        affine.setflags(write=False)
        object.__setattr__(self, "affine", affine)
        object.__setattr__(self, "shape", shape)

    @classmethod
    def centred(cls, shape: tuple[int, int, int], spacing: float, centre: tuple[float, float, float]) -> Geometry:
        """An RAS grid of cubic voxels (``spacing`` mm) around the world point ``centre`` (mm)."""
        affine = np.diag([spacing, spacing, spacing, 1.0])
        affine[:3, 3] = np.asarray(centre) - spacing * (np.asarray(shape) - 1) / 2
        return cls(affine, shape)

    @classmethod
    def of(cls, volume: MetaTensor) -> Geometry:
        """The geometry that MONAI's transforms keep in a MetaTensor (C, X, Y, Z)."""
        affine = getattr(volume, "affine", None)
        if affine is None:
            raise InvalidArgument(
                "volume has no geometry (a plain tensor); load it with read_nifti or MONAI's LoadImage"
            )
        return cls(np.asarray(affine), spatial_shape(volume))

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel edge lengths in mm along the three array axes."""
        x, y, z = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(x), float(y), float(z)

    @property
    def voxel_volume(self) -> float:
        """mm^3."""
        return float(abs(np.linalg.det(self.affine[:3, :3])))

    @property
    def axcodes(self) -> str:
        """The anatomical direction of each array axis, for instance ``"RAS"`` or ``"LIA"``."""
        from nibabel.orientations import aff2axcodes

        return "".join(str(code) for code in aff2axcodes(self.affine))

    def world(self, index: Any) -> np.ndarray:
        """World coordinates in mm, (..., 3), of voxel indices (..., 3)."""
        return np.asarray(index, dtype=np.float64) @ self.affine[:3, :3].T + self.affine[:3, 3]

    def slab(self, start: int, stop: int, axis: int = 2) -> Geometry:
        """The geometry of ``volume[..., start:stop]`` taken along ``axis``."""
        if not 0 <= start < stop <= self.shape[axis]:
            raise InvalidArgument(f"slab {start}:{stop} lies outside axis {axis} of {self.shape[axis]} voxels")
        origin = np.zeros(3)
        origin[axis] = start
        affine = self.affine.copy()
        affine[:3, 3] = self.world(origin)
        sizes = list(self.shape)
        sizes[axis] = stop - start
        uids = self.source_uids[start:stop] if axis == 2 else self.source_uids
        return replace(self, affine=affine, shape=(sizes[0], sizes[1], sizes[2]), source_uids=uids)

    def stored_as(self, dtype: str) -> Geometry:
        """The same grid, to be written with another voxel type."""
        return replace(self, dtype=dtype)

    def attach(self, volume: Tensor) -> MetaTensor:
        """``volume`` (C, X, Y, Z) as a MONAI MetaTensor that knows where it lies."""
        from monai.data import MetaTensor

        if spatial_shape(volume) != self.shape:
            raise InvalidArgument(
                f"volume of size {spatial_shape(volume)} does not fit a geometry of size {self.shape}"
            )
        return MetaTensor(volume, affine=torch.tensor(self.affine))

    def isclose(self, other: Geometry, tolerance: float = 1e-4) -> bool:
        """Whether two grids coincide: same shape and units, affines within ``tolerance`` mm."""
        same = self.shape == other.shape and self.units == other.units
        return same and bool(np.abs(self.affine - other.affine).max() <= tolerance)


def spatial_shape(volume: Tensor) -> tuple[int, int, int]:
    """The sizes (X, Y, Z) of a channel-first volume (C, X, Y, Z)."""
    if volume.ndim != 4:
        raise InvalidArgument(f"volume must be channel-first (C, X, Y, Z), got shape {tuple(volume.shape)}")
    _, x, y, z = volume.shape
    return x, y, z


def resample(
    volume: Tensor, source: Geometry, target: Geometry, mode: Literal["linear", "nearest"] = "linear"
) -> Tensor:
    """``volume`` (C, X, Y, Z) on grid ``source`` as seen on grid ``target``; zero outside ``source``.

    Linear interpolation is preceded by a Gaussian of the target's resolution where the target is coarser, so that fine
    structure is averaged and not aliased. Use ``"nearest"`` for label maps: values are never mixed.
    """
    from monai.transforms import SpatialResample
    from scipy.ndimage import gaussian_filter

    x = plain(volume).float()
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
    uids = geometry.source_uids
    if uids:  # one file per slice along the last axis, or no longer
        uids = () if order[2] != 2 else (uids[::-1] if 3 in flips else uids)
    return turned, replace(geometry, affine=affine, shape=spatial_shape(turned), source_uids=uids)


def plain(volume: Tensor) -> Tensor:
    """The bare tensor of a MetaTensor: networks and samplers run faster without the metadata."""
    return volume.as_tensor() if hasattr(volume, "as_tensor") else volume
