"""NIfTI in and NIfTI out, with the geometry and one clear error per kind of bad file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from suffuse.errors import InvalidArgument

from .geometry import Geometry, plain, spatial_shape, voxel_type

ALIGNED = 2  # NIfTI's code for coordinates aligned to another image; 1 would claim a scanner that never was


def open_nifti(path: str | Path) -> Any:
    """A NIfTI file as nibabel has it, its voxels unread."""
    import nibabel
    from nibabel.filebasedimages import ImageFileError

    path = Path(path)
    if not path.is_file():
        raise InvalidArgument(f"path {str(path)!r} is not a file; give a .nii or .nii.gz")
    try:
        image = nibabel.load(path)
    except (ImageFileError, EOFError, OSError, ValueError) as error:
        raise InvalidArgument(f"path {str(path)!r} is not a readable NIfTI file: {error}") from error
    if not isinstance(image, nibabel.Nifti1Pair):
        raise InvalidArgument(
            f"path {str(path)!r} is no NIfTI file but one that nibabel calls {type(image).__name__}; convert it, for "
            f"instance with nibabel.Nifti1Image.from_image"
        )
    return image


def read_nifti(path: str | Path, *, affine: np.ndarray | None = None) -> tuple[Tensor, Geometry]:
    """One 3-D volume and where it lies.

    Args:
        path: the file.
        affine: (4, 4), voxel index to world in RAS, in the file's unit: for a file that does not say where it lies
            (both of NIfTI's codes are 0). It replaces what another file says.

    Returns:
        volume (1, X, Y, Z) float32 in the file's own units and axis order, and its :class:`Geometry`. The geometry's
        ``dtype`` holds the values as they are, rescaled where the file says so.
    """
    image = open_nifti(path)
    stored = image.get_data_dtype()
    if stored.kind not in "iuf":
        kind = "complex" if stored.kind == "c" else "coloured"
        raise InvalidArgument(
            f"path {str(path)!r} holds {kind} voxels ({stored}), need real numbers; save one part of them, such as the "
            f"magnitude or one channel"
        )
    header = image.header
    if affine is None and header["sform_code"] == header["qform_code"] == 0:
        raise InvalidArgument(
            f"path {str(path)!r} does not say where it lies (sform and qform have code 0); pass affine= to read_nifti, "
            f"or store it in the file with nibabel's set_sform(affine, 2)"
        )
    try:
        data = np.asarray(image.dataobj, dtype=np.float32)
    except (EOFError, OSError, ValueError) as error:
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
    units = header.get_xyzt_units()[0]
    geometry = Geometry(
        image.affine if affine is None else affine,
        data.shape,
        units="mm" if units == "unknown" else units,
        dtype=voxel_type(data, stored),
    )
    return torch.from_numpy(data)[None], geometry


def write_nifti(path: str | Path, volume: Tensor, geometry: Geometry, *, description: str = "synthetic") -> Path:
    """Write ``volume`` (1, X, Y, Z) or (X, Y, Z) where ``geometry`` says it lies, to a .nii or .nii.gz.

    There is no default geometry: a voxel array without one cannot be written. The voxel type is ``geometry.dtype``;
    values are rounded to integer types, and refused where the type cannot hold them. Coordinates are marked "aligned"
    (code 2).
    """
    import nibabel

    path = Path(path)
    if not path.name.endswith((".nii", ".nii.gz")):
        raise InvalidArgument(f"path {path.name!r} must end with .nii or .nii.gz")
    if not isinstance(geometry, Geometry):
        raise InvalidArgument(
            f"geometry must be a Geometry, got {type(geometry).__name__}; generated volumes need one too"
        )
    volume = plain(torch.as_tensor(volume)).detach().cpu()
    volume = volume[None] if volume.ndim == 3 else volume
    if spatial_shape(volume) != geometry.shape or len(volume) != 1:
        raise InvalidArgument(f"volume {tuple(volume.shape)} does not fit geometry {(1, *geometry.shape)}")
    if volume.is_complex():
        raise InvalidArgument("volume is complex; write its magnitude, or one part of it")
    if volume.is_floating_point() and volume.dtype != torch.float64:  # NumPy has no bfloat16
        volume = volume.float()
    data = volume[0].numpy()
    if not np.isfinite(data).all():
        raise InvalidArgument("volume has NaN or infinite voxels; refusing to write it")
    dtype = np.dtype(geometry.dtype)
    data, limits = (data, np.finfo(dtype)) if dtype.kind == "f" else (np.rint(data), np.iinfo(dtype))
    if data.min() < limits.min or data.max() > limits.max:
        raise InvalidArgument(f"volume ranges over [{data.min()}, {data.max()}], too wide for dtype {dtype}")
    image = nibabel.Nifti1Image(data.astype(dtype), geometry.affine, dtype=dtype)
    image.header.set_xyzt_units(geometry.units)
    image.header["descrip"] = description.encode()[:79]
    image.set_sform(geometry.affine, ALIGNED)
    image.set_qform(geometry.affine, ALIGNED)
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(image, path)
    return path
