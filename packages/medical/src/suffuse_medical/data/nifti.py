"""NIfTI in and NIfTI out, with the geometry and one clear error per kind of bad file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from suffuse.errors import InvalidArgument

from .geometry import Geometry, spatial_shape

ALIGNED = 2  # NIfTI's code for coordinates aligned to another image; 1 would claim a scanner that never was


def read_nifti(path: str | Path) -> tuple[Tensor, Geometry]:
    """One 3-D volume and where it lies.

    Returns:
        volume (1, X, Y, Z) float32 in the file's own units and axis order, and its :class:`Geometry`.
    """
    import nibabel
    from nibabel.filebasedimages import ImageFileError

    path = Path(path)
    if not path.is_file():
        raise InvalidArgument(f"path {str(path)!r} is not a file; give a .nii or .nii.gz")
    try:
        image = nibabel.load(path)
        data = np.asarray(image.dataobj, dtype=np.float32)  # type: ignore[attr-defined]
    except (ImageFileError, EOFError, OSError, ValueError) as error:
        raise InvalidArgument(f"path {str(path)!r} is not a readable NIfTI file: {error}") from error
    if data.size == 0:
        raise InvalidArgument(f"path {str(path)!r} holds no voxels (shape {data.shape}); export the image again")
    if data.ndim > 3 and all(n == 1 for n in data.shape[3:]):
        data = data.reshape(data.shape[:3])
    if data.ndim != 3:
        raise InvalidArgument(f"path {str(path)!r} is {data.ndim}-D {data.shape}, need 3-D; pick one volume or channel")
    if not np.isfinite(data).all():
        bad = int((~np.isfinite(data)).sum())
        raise InvalidArgument(f"path {str(path)!r} has {bad} NaN or infinite voxels; mask or fill them first")
    units = image.header.get_xyzt_units()[0]  # type: ignore[attr-defined]
    geometry = Geometry(
        image.affine,  # type: ignore[attr-defined]
        data.shape,
        units="mm" if units == "unknown" else units,
        dtype=str(image.get_data_dtype()),  # type: ignore[attr-defined]
    )
    return torch.from_numpy(data)[None], geometry


def write_nifti(path: str | Path, volume: Tensor, geometry: Geometry, *, description: str = "synthetic") -> Path:
    """Write ``volume`` (1, X, Y, Z) or (X, Y, Z) where ``geometry`` says it lies.

    There is no default geometry: a voxel array without one cannot be written. The voxel type is ``geometry.dtype``;
    integer types are rounded, and refuse values that they cannot hold. Coordinates are marked "aligned" (code 2).
    """
    import nibabel

    if not isinstance(geometry, Geometry):
        raise InvalidArgument(
            f"geometry must be a Geometry, got {type(geometry).__name__}; generated volumes need one too"
        )
    volume = volume[None] if volume.ndim == 3 else volume
    if spatial_shape(volume) != geometry.shape or len(volume) != 1:
        raise InvalidArgument(f"volume {tuple(volume.shape)} does not fit geometry {(1, *geometry.shape)}")
    data = torch.as_tensor(volume[0]).detach().cpu().numpy()
    if not np.isfinite(data).all():
        raise InvalidArgument("volume has NaN or infinite voxels; refusing to write it")
    dtype = np.dtype(geometry.dtype)
    if dtype.kind in "iu":
        data, limits = np.rint(data), np.iinfo(dtype)
        if data.min() < limits.min or data.max() > limits.max:
            raise InvalidArgument(f"volume ranges over [{data.min()}, {data.max()}], too wide for dtype {dtype}")
    image = nibabel.Nifti1Image(data.astype(dtype), geometry.affine)
    image.header.set_xyzt_units(geometry.units)
    image.header["descrip"] = description.encode()[:79]
    image.set_sform(geometry.affine, ALIGNED)
    image.set_qform(geometry.affine, ALIGNED)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(image, path)
    return path
