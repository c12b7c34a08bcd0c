"""Volumes on disk: TIFF stacks (as Fiji reads them), NumPy arrays with a JSON beside them, and NRRD.

In memory axes are (X, Y, Z). A TIFF stack is stored (Z, Y, X), as is usual, with the voxel size where Fiji looks for
it; what TIFF has no place for (periodicity, attributes) goes into its free text. Fields are not written, only labels.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from suffuse.errors import InvalidArgument, require, unknown

from .microstructure import Microstructure

__all__ = ["SUFFIXES", "read_volume", "write_volume"]

Facts = dict[str, Any]


def write_volume(ms: Microstructure, path: str | Path) -> Path:
    """Write labels with spacing, unit, periodicity and attributes.

    Args:
        ms: the volume.
        path: ends in .tif, .tiff, .npy or .nrrd (extra ``nrrd``).

    Raises:
        InvalidArgument: for another ending.
    """
    path = Path(path)
    _, write = _format(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    facts = {
        "spacing": list(ms.spacing),
        "unit": ms.unit,
        "periodic": list(ms.periodic),
        "attributes": dict(ms.attributes),
    }
    write(path, ms.labels, facts)
    return path


def read_volume(
    path: str | Path,
    *,
    spacing: Sequence[float] | None = None,
    unit: str | None = None,
    periodic: Sequence[bool] | None = None,
) -> Microstructure:
    """Read a labelled volume.

    An image of two values other than 0 and 1 (a segmented tomogram is often 0 and 255) becomes labels 0 and 1, with a
    warning and the values in ``attributes["source_values"]``.

    Args:
        path: ends in .tif, .tiff, .npy or .nrrd (extra ``nrrd``).
        spacing, unit, periodic: replace what the file says; without either, (1, 1, 1), "voxel", not periodic.

    Raises:
        InvalidArgument: for a missing file, another ending, a damaged file, or a volume that is not labelled.
    """
    path = Path(path)
    read, _ = _format(path)
    if not path.is_file():
        raise InvalidArgument(f"path={str(path)!r} is not a file")
    try:
        values, facts = read(path)
    except (OSError, ValueError, KeyError, EOFError) as error:
        if isinstance(error, InvalidArgument):
            raise
        raise InvalidArgument(f"path={str(path)!r} cannot be read as {path.suffix}: {error}") from error
    attributes = dict(facts.get("attributes", {}))
    found = np.unique(values)
    if len(found) == 2 and found.tolist() != [0, 1] and np.isfinite(found).all():
        low, high = (v.item() for v in found)
        warnings.warn(f"{path.name}: values {low} and {high} are read as labels 0 and 1", UserWarning, stacklevel=2)
        values, attributes["source_values"] = values == found[1], [low, high]
    return Microstructure(
        labels=values,
        spacing=tuple(spacing or facts.get("spacing", (1.0, 1.0, 1.0))),
        unit=unit or facts.get("unit", "voxel"),
        periodic=tuple(facts.get("periodic", (False,) * 3) if periodic is None else periodic),
        attributes=attributes,
    )


# --- TIFF -------------------------------------------------------------------------------------------------------


def _write_tiff(path: Path, labels: NDArray[np.uint8], facts: Facts) -> None:
    import tifffile

    dx, dy, dz = facts["spacing"]
    tifffile.imwrite(
        path,
        np.ascontiguousarray(labels.transpose(2, 1, 0)),
        imagej=True,
        resolution=(1 / dx, 1 / dy),
        metadata={"axes": "ZYX", "spacing": dz, "unit": facts["unit"], "Info": json.dumps(facts)},
        compression="zlib",
    )


def _read_tiff(path: Path) -> tuple[NDArray[Any], Facts]:
    import tifffile

    with tifffile.TiffFile(path) as file:
        values = file.asarray()
        header = file.imagej_metadata or {}
        tags = file.pages.first.tags
        facts = _json(header.get("Info"))
        if not facts and "spacing" in header and "XResolution" in tags:
            dx, dy = (tags[name].value for name in ("XResolution", "YResolution"))
            facts = {"spacing": (dx[1] / dx[0], dy[1] / dy[0], header["spacing"]), "unit": header.get("unit", "voxel")}
    return values.transpose(2, 1, 0) if values.ndim == 3 else values, facts


def _json(text: Any) -> Facts:
    """The facts in a free text, or none when it is somebody else's."""
    try:
        facts = json.loads(text)
    except (TypeError, json.JSONDecodeError):
        return {}
    return facts if isinstance(facts, Mapping) and "spacing" in facts else {}  # type: ignore[return-value]


# --- NumPy ------------------------------------------------------------------------------------------------------


def _write_npy(path: Path, labels: NDArray[np.uint8], facts: Facts) -> None:
    np.save(path, labels)
    path.with_suffix(".json").write_text(json.dumps(facts, indent=2) + "\n")


def _read_npy(path: Path) -> tuple[NDArray[Any], Facts]:
    beside = path.with_suffix(".json")
    return np.load(path, allow_pickle=False), _json(beside.read_text()) if beside.is_file() else {}


# --- NRRD -------------------------------------------------------------------------------------------------------


def _write_nrrd(path: Path, labels: NDArray[np.uint8], facts: Facts) -> None:
    nrrd = require("nrrd", extra="nrrd", package="suffuse-materials3d")
    header = {
        "space directions": np.diag(facts["spacing"]),
        "space units": [facts["unit"]] * 3,
        "space dimension": 3,
        "encoding": "gzip",
        "suffuse": json.dumps(facts),
    }
    nrrd.write(str(path), labels, header)


def _read_nrrd(path: Path) -> tuple[NDArray[Any], Facts]:
    nrrd = require("nrrd", extra="nrrd", package="suffuse-materials3d")
    values, header = nrrd.read(str(path))
    facts = _json(header.get("suffuse"))
    if not facts and "space directions" in header:
        facts["spacing"] = tuple(np.linalg.norm(header["space directions"], axis=1).tolist())
    elif not facts and "spacings" in header:
        facts["spacing"] = tuple(np.asarray(header["spacings"]).tolist())
    return values, facts


Reader = Callable[[Path], tuple[NDArray[Any], Facts]]
Writer = Callable[[Path, NDArray[np.uint8], Facts], None]

SUFFIXES: dict[str, tuple[Reader, Writer]] = {
    ".tif": (_read_tiff, _write_tiff),
    ".tiff": (_read_tiff, _write_tiff),
    ".npy": (_read_npy, _write_npy),
    ".nrrd": (_read_nrrd, _write_nrrd),
}


def _format(path: Path) -> tuple[Reader, Writer]:
    if path.suffix.lower() not in SUFFIXES:
        raise unknown("volume format", path.suffix or path.name, SUFFIXES)
    return SUFFIXES[path.suffix.lower()]
