"""Volumes on disk: TIFF, NRRD, VTI, HDF5, zarr, NumPy, raw bytes, and the text files of GraSPI.

In memory axes are (X, Y, Z). Each format stores them as its programs expect, with the voxel size where they look for
it; what a format has no place for (periodicity, attributes) goes into its free text, or into a JSON file beside it.
Fields are not written, only labels.

    .tif .tiff   stack (Z, Y, X), read by Fiji                     .npy         with a JSON beside it
    .nrrd        read by Slicer                (extra ``io``)      .raw         bytes, x fastest, header in a JSON
    .vti         cell data, read by ParaView   (extra ``io``)      .txt         GraSPI: sizes, then labels, x fastest
    .h5 .hdf5    a dataset at the root, as sets of volumes         .zarr        chunks, for any size (extra ``io``)
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

__all__ = ["SUFFIXES", "open_zarr", "read_volume", "write_volume"]

Facts = dict[str, Any]

#: More different values than this are grey values.
GREY = 16


def write_volume(ms: Microstructure, path: str | Path) -> Path:
    """Write labels with spacing, unit, periodicity and attributes.

    Args:
        ms: the volume.
        path: its ending chooses the format, see this module.

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

    An image of a few values other than 0, 1, ... (a segmented tomogram is often 0 and 255) becomes labels in their
    order, with a warning and the values in ``attributes["source_values"]``. One of many values is grey, and refused.

    Args:
        path: its ending chooses the format, see this module.
        spacing, unit, periodic: replace what the file says; without either, (1, 1, 1), "voxel", not periodic.

    Raises:
        InvalidArgument: for a missing file, another ending, a damaged file, or a volume that is not labelled.
    """
    path = Path(path)
    read, _ = _format(path)
    if not (path.is_dir() if path.suffix == ".zarr" else path.is_file()):
        raise InvalidArgument(f"path={str(path)!r} is not a file")
    try:
        values, facts = read(path)
    except (OSError, ValueError, KeyError, EOFError) as error:
        if isinstance(error, InvalidArgument):
            raise
        raise InvalidArgument(f"path={str(path)!r} cannot be read as {path.suffix}: {error}") from error
    attributes = dict(facts.get("attributes", {}))
    if "attributes" not in facts:  # not written by us, so labels may be coded in any way
        values, attributes = _labelled(values, path.name)
    return Microstructure(
        labels=values,
        spacing=tuple(spacing or facts.get("spacing", (1.0, 1.0, 1.0))),
        unit=unit or facts.get("unit", "voxel"),
        periodic=tuple(facts.get("periodic", (False,) * 3) if periodic is None else periodic),
        attributes=attributes,
    )


def _labelled(values: NDArray[Any], name: str) -> tuple[NDArray[Any], Facts]:
    """Labels 0, 1, ... of an image of a few values, and which values these were."""
    if values.dtype.kind not in "biuf" or values.size == 0:
        return values, {}  # refused by Microstructure, with the reason
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        return values, {}
    found = np.unique(values)
    if len(found) > GREY:
        raise InvalidArgument(
            f"{name} holds {len(found)} different values, {found[0]} to {found[-1]}: these are grey values and no "
            f"phases. Segment it first (values > threshold), or take Microstructure.from_field(values, threshold=...)"
        )
    if found.tolist() == list(range(len(found))) or len(found) == 1:
        return values, {}
    source = [v.item() for v in found]
    told = ", ".join(f"{v} -> {k}" for k, v in enumerate(source))
    warnings.warn(f"{name}: values are read as labels {told}", UserWarning, stacklevel=4)
    return np.searchsorted(found, values).astype(np.uint8), {"source_values": source}


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
    nrrd = require("nrrd", extra="io", package="suffuse-materials3d")
    header = {
        "space directions": np.diag(facts["spacing"]),
        "space units": [facts["unit"]] * 3,
        "space dimension": 3,
        "encoding": "gzip",
        "suffuse": json.dumps(facts),
    }
    nrrd.write(str(path), labels, header)


def _read_nrrd(path: Path) -> tuple[NDArray[Any], Facts]:
    nrrd = require("nrrd", extra="io", package="suffuse-materials3d")
    values, header = nrrd.read(str(path))
    facts = _json(header.get("suffuse"))
    if not facts and "space directions" in header:
        facts["spacing"] = tuple(np.linalg.norm(header["space directions"], axis=1).tolist())
    elif not facts and "spacings" in header:
        facts["spacing"] = tuple(np.asarray(header["spacings"]).tolist())
    return values, facts


# --- VTI: VTK image data ----------------------------------------------------------------------------------------


def _write_vti(path: Path, labels: NDArray[np.uint8], facts: Facts) -> None:
    pyvista = require("pyvista", extra="io", package="suffuse-materials3d")
    grid = pyvista.ImageData(dimensions=tuple(n + 1 for n in labels.shape), spacing=tuple(facts["spacing"]))
    grid.cell_data["phase"] = labels.ravel(order="F")
    grid.field_data["suffuse"] = [json.dumps(facts)]
    grid.save(path)


def _read_vti(path: Path) -> tuple[NDArray[Any], Facts]:
    """Cell data, or point data as MicroGen3D writes them; fields are cut at one half."""
    pyvista = require("pyvista", extra="io", package="suffuse-materials3d")
    grid = pyvista.read(path)
    cells = len(grid.cell_data) > 0
    data = grid.cell_data if cells else grid.point_data
    if not len(data):
        raise InvalidArgument(f"{path.name} has neither cell nor point data")
    name = next((n for n in ("phase", "phi") if n in data), data.keys()[0])
    shape = tuple(n - 1 if cells else n for n in grid.dimensions)
    values = np.asarray(data[name]).reshape(shape, order="F")
    if values.dtype.kind == "f" and (values != np.round(values)).any() and len(np.unique(values)) > GREY:
        warnings.warn(f"{path.name}: the field {name!r} is cut at 0.5", UserWarning, stacklevel=4)
        values = values > 0.5
    facts = _json(str(grid.field_data["suffuse"][0])) if "suffuse" in grid.field_data else {}
    return values, facts or {"spacing": tuple(float(d) for d in grid.spacing)}


# --- HDF5 -------------------------------------------------------------------------------------------------------


def _write_hdf5(path: Path, labels: NDArray[np.uint8], facts: Facts) -> None:
    from .data.volumes import write_part

    flat = {k: v for k, v in facts["attributes"].items() if isinstance(v, int | float | str)}
    write_part(
        path, labels[None], [flat], spacing=facts["spacing"], unit=facts["unit"], periodic=facts["periodic"],
        phases=int(labels.max()) + 1, facts={"suffuse": json.dumps(facts)},
    )  # fmt: skip


def _read_hdf5(path: Path) -> tuple[NDArray[Any], Facts]:
    import h5py

    with h5py.File(path, "r") as file:
        names = [n for n, d in file.items() if isinstance(d, h5py.Dataset) and d.ndim >= 3]
        if len(names) != 1:
            raise InvalidArgument(f"{path.name} holds {len(names)} volumes; read sets with data.read_volumes")
        values = file[names[0]][()].squeeze()
        facts = _json(file.attrs.get("suffuse"))
        if not facts and "spacing" in file.attrs:
            facts = {"spacing": tuple(float(d) for d in file.attrs["spacing"])}
    return values, facts


# --- raw --------------------------------------------------------------------------------------------------------


def _write_raw(path: Path, labels: NDArray[np.uint8], facts: Facts) -> None:
    path.write_bytes(labels.tobytes(order="F"))
    header = {"shape": list(labels.shape), "dtype": "uint8", "order": "x fastest", **facts}
    path.with_name(path.name + ".json").write_text(json.dumps(header, indent=2) + "\n")


def _read_raw(path: Path) -> tuple[NDArray[Any], Facts]:
    beside = path.with_name(path.name + ".json")
    if not beside.is_file():
        raise InvalidArgument(
            f'{path.name} has no header {beside.name}; write one: {{"shape": [X, Y, Z], "dtype": "uint8"}}'
        )
    header = json.loads(beside.read_text())
    shape = tuple(int(n) for n in header["shape"])
    values = np.fromfile(path, dtype=np.dtype(header.get("dtype", "uint8")))
    if values.size != int(np.prod(shape)):
        raise InvalidArgument(f"{path.name} has {values.size} values, its header says {shape}")
    order: Any = "F" if header.get("order", "x fastest") == "x fastest" else "C"
    return values.reshape(shape, order=order), {k: header[k] for k in FACTS if k in header}


# --- GraSPI -----------------------------------------------------------------------------------------------------


def _write_graspi(path: Path, labels: NDArray[np.uint8], facts: Facts) -> None:
    """Donor 0, acceptor 1, and mixed, here 2, as 3."""
    values = np.where(labels == 2, 3, labels).ravel(order="F")
    x, y, z = labels.shape
    lines = values.reshape(-1, x)
    text = f"{x} {y} {z}\n" + "\n".join(" ".join(map(str, line)) for line in lines.tolist()) + "\n"
    path.write_text(text)
    path.with_name(path.name + ".json").write_text(json.dumps(facts, indent=2) + "\n")


def _read_graspi(path: Path) -> tuple[NDArray[Any], Facts]:
    numbers = np.array(path.read_text().split(), dtype=np.int64)
    if len(numbers) < 4 or len(numbers) != 3 + int(np.prod(numbers[:3])):
        raise InvalidArgument(f"{path.name} must hold the sizes X Y Z and then X Y Z labels")
    values = numbers[3:].reshape(tuple(numbers[:3]), order="F")
    electrodes = np.isin(values, (10, 20)).all((0, 1))
    if electrodes.any():
        warnings.warn(
            f"{path.name}: {int(electrodes.sum())} layers of electrodes are left out", UserWarning, stacklevel=4
        )
        values = values[:, :, ~electrodes]
    beside = path.with_name(path.name + ".json")
    facts = _json(beside.read_text()) if beside.is_file() else {}
    return np.where(values == 3, 2, values), facts or {"spacing": (1.0, 1.0, 1.0), "attributes": {}}


# --- zarr -------------------------------------------------------------------------------------------------------


def open_zarr(
    path: str | Path,
    shape: Sequence[int],
    chunk: int = 64,
    *,
    spacing: Sequence[float] = (1.0, 1.0, 1.0),
    unit: str = "voxel",
    periodic: Sequence[bool] = (False, False, False),
    attributes: Mapping[str, Any] | None = None,
) -> Any:
    """A new zarr array of labels (X, Y, Z), to be filled part by part; its attribute ``complete`` is False.

    Raises:
        InvalidArgument: when the path does not end in .zarr.
    """
    zarr = require("zarr", extra="io", package="suffuse-materials3d")
    path = Path(path)
    if path.suffix != ".zarr":
        raise InvalidArgument(f"path must end in .zarr, got {path.name!r}")
    path.parent.mkdir(parents=True, exist_ok=True)
    facts = {"spacing": list(spacing), "unit": unit, "periodic": list(periodic), "attributes": dict(attributes or {})}
    return zarr.create_array(
        store=str(path), shape=tuple(shape), chunks=tuple(min(chunk, n) for n in shape), dtype="uint8",
        attributes={**facts, "complete": False}, overwrite=True,
    )  # fmt: skip


def _write_zarr(path: Path, labels: NDArray[np.uint8], facts: Facts) -> None:
    array = open_zarr(path, labels.shape, **facts)
    array[...] = labels
    array.attrs["complete"] = True


def _read_zarr(path: Path) -> tuple[NDArray[Any], Facts]:
    zarr = require("zarr", extra="io", package="suffuse-materials3d")
    array = zarr.open_array(str(path), mode="r")
    facts = dict(array.attrs)
    if facts.get("complete") is False:
        warnings.warn(f"{path.name} is not complete: its generation was stopped", UserWarning, stacklevel=4)
    return array[...], {k: facts[k] for k in FACTS if k in facts}


FACTS = ("spacing", "unit", "periodic", "attributes")

Reader = Callable[[Path], tuple[NDArray[Any], Facts]]
Writer = Callable[[Path, NDArray[np.uint8], Facts], None]

SUFFIXES: dict[str, tuple[Reader, Writer]] = {
    ".tif": (_read_tiff, _write_tiff),
    ".tiff": (_read_tiff, _write_tiff),
    ".npy": (_read_npy, _write_npy),
    ".nrrd": (_read_nrrd, _write_nrrd),
    ".vti": (_read_vti, _write_vti),
    ".h5": (_read_hdf5, _write_hdf5),
    ".hdf5": (_read_hdf5, _write_hdf5),
    ".raw": (_read_raw, _write_raw),
    ".txt": (_read_graspi, _write_graspi),
    ".zarr": (_read_zarr, _write_zarr),
}


def _format(path: Path) -> tuple[Reader, Writer]:
    if path.suffix.lower() not in SUFFIXES:
        raise unknown("volume format", path.suffix or path.name, SUFFIXES)
    return SUFFIXES[path.suffix.lower()]
