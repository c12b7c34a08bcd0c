"""Volumes on disk: TIFF, NRRD, VTI, HDF5, zarr, NumPy, raw bytes, and the text files of GraSPI.

In memory axes are (X, Y, Z). Each format stores them as its programs expect, with the voxel size where they look for
it; what a format has no place for (periodicity, attributes) goes into its free text, or into a JSON file beside it.
Fields are not written, only labels. A file takes the place of an older one only when it is complete; what is beside it
is written first, and says how many voxels there are, so that a file of another volume is not taken for this one.

    .tif .tiff   stack (Z, Y, X), read by Fiji                     .npy         with a JSON beside it
    .nrrd        read by Slicer                (extra ``io``)      .raw         bytes, x fastest, header in a JSON
    .vti         cell data, read by ParaView   (extra ``io``)      .txt         GraSPI: sizes, then labels, x fastest
    .h5 .hdf5    a dataset at the root, as sets of volumes         .zarr        chunks, for any size (extra ``io``)
"""

from __future__ import annotations

import json
import os
import re
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from suffuse.bench.row import json_value, write_text
from suffuse.errors import InvalidArgument, SuffuseError, require, unknown

from .microstructure import Microstructure

__all__ = ["SUFFIXES", "check_format", "labelled", "open_zarr", "read_volume", "replacing", "write_volume"]

Facts = dict[str, Any]

#: More different values than this are grey values.
GREY = 16
#: What a mask of 8 or of 16 bits holds where it is set.
SET = (255, 65535)
#: Spellings of the micrometre in the files of others.
MICRO = ("micron", "microns", "micrometer", "micrometre", "µm", "\u03bcm")


def write_volume(ms: Microstructure, path: str | Path) -> Path:
    """Write labels with spacing, unit, periodicity and attributes.

    Args:
        ms: the volume.
        path: its ending chooses the format, see this module.

    Raises:
        InvalidArgument: for another ending, or an attribute that JSON has no form for.
    """
    path = Path(path)
    check_format(path)
    _, write = _format(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    facts = {
        "spacing": list(ms.spacing),
        "unit": ms.unit,
        "periodic": list(ms.periodic),
        "attributes": {str(k): json_value(v, f"attributes[{k!r}]") for k, v in ms.attributes.items()},
        "shape": list(ms.shape),
        "labels": list(ms.phases),
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
        InvalidArgument: for a missing file, another ending, a damaged file, one with another number of voxels than is
            written beside it, or a volume that is not labelled.
    """
    path = Path(path)
    read, _ = _format(path)
    if not (path.is_dir() if path.suffix == ".zarr" else path.is_file()):
        raise InvalidArgument(f"path={str(path)!r} is not a file")
    try:
        values, facts = read(path)
        about = _about(facts)
    except SuffuseError:
        raise
    except Exception as error:  # what parsers raise for a damaged file is of their own kinds
        reason = str(error) or "it ends early"
        raise InvalidArgument(f"path={str(path)!r} cannot be read as {path.suffix}: {reason}") from error
    if "shape" in facts and tuple(facts["shape"]) != values.shape:
        raise InvalidArgument(
            f"{path.name} has {values.shape} voxels, but {tuple(facts['shape'])} are written beside it, which is of "
            f"another volume then; write both again with write_volume, or remove the JSON"
        )
    if not _ours(values, facts):
        values, source = labelled(values, path.name)
        about["attributes"] |= source
    given = {"spacing": spacing, "unit": unit, "periodic": periodic}
    about |= {k: tuple(v) if not isinstance(v, str) else v for k, v in given.items() if v is not None}
    return Microstructure(labels=values, **about)


def check_format(path: str | Path) -> None:
    """Refuse the name of a volume that cannot be written here, before there is anything to write.

    Raises:
        InvalidArgument: for an ending that is none of ``SUFFIXES``.
        MissingExtra: for one whose library is not installed.
    """
    _format(Path(path))
    if (module := EXTRAS.get(Path(path).suffix.lower())) is not None:
        require(module, extra="io", package="suffuse-materials3d")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A name beside ``path`` to write a file or folder to, which takes the place of ``path`` if all went well."""
    partial = path.with_name(f".{path.stem}.partial{path.suffix}")
    _remove(partial)  # of a run that was killed
    try:
        yield partial
        if partial.is_dir() and path.is_dir():  # which are not exchanged in one step
            old = path.with_name(f".{path.stem}.old{path.suffix}")
            _remove(old)
            os.replace(path, old)
            os.replace(partial, path)
            _remove(old)
        else:
            os.replace(partial, path)
    finally:
        _remove(partial)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _about(facts: Mapping[str, Any]) -> Facts:
    """What a ``Microstructure`` takes of the facts of a file."""
    return {
        "spacing": tuple(float(d) for d in facts.get("spacing", (1.0, 1.0, 1.0))),
        "unit": str(facts.get("unit", "voxel")),
        "periodic": tuple(bool(p) for p in facts.get("periodic", (False,) * 3)),
        "attributes": dict(facts.get("attributes", {})),
    }


def _ours(values: NDArray[Any], facts: Facts) -> bool:
    """Whether the values are labels as we wrote them, and not what another program has made of them since."""
    return "attributes" in facts and ("labels" not in facts or bool(np.isin(values, facts["labels"]).all()))


def labelled(values: NDArray[Any], name: str) -> tuple[NDArray[Any], Facts]:
    """Labels 0, 1, ... of an image (or several) of a few values, with a warning that says which values these were.

    What is all 255 is a mask that is set everywhere, phase 1.

    Returns:
        the labels, and {"source_values": [...]} where they are not the values.

    Raises:
        InvalidArgument: for grey values.
    """
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
    if len(found) == 1 and found[0] in SET:
        found = np.array([0, found[0]], dtype=values.dtype)
    elif len(found) == 1 or found.tolist() == list(range(len(found))):
        return values, {}
    source = [v.item() for v in found]
    told = ", ".join(f"{v} -> {k}" for k, v in enumerate(source))
    warnings.warn(f"{name}: values are read as labels {told}", UserWarning, stacklevel=3)
    return np.searchsorted(found, values).astype(np.uint8), {"source_values": source}


def _json(text: Any) -> Facts:
    """The facts in a free text, or none when it is somebody else's."""
    try:
        facts = json.loads(text)
    except (TypeError, json.JSONDecodeError):
        return {}
    return facts if isinstance(facts, Mapping) and "spacing" in facts else {}  # type: ignore[return-value]


def _of(values: NDArray[Any], facts: Facts) -> Facts:
    """The facts in a file, or none where another program has cut its volume since and copied them."""
    return facts if tuple(facts.get("shape", values.shape)) == values.shape else {}


def _ascii(unit: str) -> str:
    """A unit for headers that take no other letters: um, A; Fiji shows these as the signs that they stand for."""
    plain = unit.replace("µ", "u").replace("\u03bc", "u").replace("Å", "A").replace("\u212b", "A")
    return plain.encode("ascii", "replace").decode()


def _unit(text: Any) -> str:
    """The unit in a header of another program, where ImageJ writes letters as \\u00B5."""
    unit = re.sub(r"\\u([0-9a-fA-F]{4})", lambda m: chr(int(m[1], 16)), str(text)).strip()
    return "um" if unit in MICRO else unit if unit not in ("", "pixel", "pixels") else "voxel"


# --- TIFF -------------------------------------------------------------------------------------------------------


def _write_tiff(path: Path, labels: NDArray[np.uint8], facts: Facts) -> None:
    import tifffile

    dx, dy, dz = facts["spacing"]
    info = {"spacing": dz, "unit": _ascii(facts["unit"]), "Info": json.dumps(facts)}
    with replacing(path) as partial:
        tifffile.imwrite(
            partial,
            np.ascontiguousarray(labels.transpose(2, 1, 0))[None, :, None, :, :, None],
            imagej=True,
            resolution=(1 / dx, 1 / dy),
            metadata={"axes": "TZCYXS", **info},  # in full, so that no axis of one voxel is taken for another
            compression="zlib",
        )


def _read_tiff(path: Path) -> tuple[NDArray[Any], Facts]:
    """Our facts, where the stack still has that shape; else the voxel size of ImageJ, or of OME."""
    import tifffile

    with tifffile.TiffFile(path) as file:
        axes = file.series[0].axes
        if set(axes) & {"S", "C"}:
            raise InvalidArgument(
                f"{path.name} has colours or channels (axes {axes}) and no one value for a voxel; a stack of slices is "
                f"saved as such by Fiji, and by tifffile with photometric='minisblack'"
            )
        values = file.asarray()
        header = file.imagej_metadata or {}
        facts = _json(header.get("Info"))
        values = values[None] if facts and values.ndim == 2 else values  # a stack of one slice
        if values.ndim == 3:
            if (slices := header.get("images", len(values))) != len(values):
                raise InvalidArgument(f"{path.name} is cut off: {len(values)} of {slices} slices are there")
            values = values.transpose(2, 1, 0)
        tags = file.pages.first.tags
        return values, _of(values, facts) or _imagej(header, tags) or _ome(tifffile, file.ome_metadata)


def _imagej(header: Mapping[str, Any], tags: Any) -> Facts:
    """Pixels per unit in the tags, the distance of slices (where it is not one) and the unit in ImageJ's own text."""
    if not {"spacing", "unit"} & set(header) or "XResolution" not in tags or "YResolution" not in tags:
        return {}
    (x, per_x), (y, per_y) = (tags[name].value for name in ("XResolution", "YResolution"))
    if not x or not y:
        return {}
    return {"spacing": (per_x / x, per_y / y, header.get("spacing", 1.0)), "unit": _unit(header.get("unit", "voxel"))}


def _ome(tifffile: Any, text: str | None) -> Facts:
    """PhysicalSizeX, Y and Z of OME-TIFF, in micrometres unless it says otherwise."""
    if not text:
        return {}
    image = tifffile.xml2dict(text)["OME"]["Image"]
    pixels = (image[0] if isinstance(image, list) else image)["Pixels"]
    units = {_unit(pixels.get(f"PhysicalSize{axis}Unit", "um")) for axis in "XYZ"}
    if len(units) > 1 or any(f"PhysicalSize{axis}" not in pixels for axis in "XYZ"):
        return {}
    return {"spacing": tuple(pixels[f"PhysicalSize{axis}"] for axis in "XYZ"), "unit": units.pop()}


# --- NumPy ------------------------------------------------------------------------------------------------------


def _write_npy(path: Path, labels: NDArray[np.uint8], facts: Facts) -> None:
    _write_beside(path.with_suffix(".json"), facts)
    with replacing(path) as partial:
        np.save(partial, labels)


def _read_npy(path: Path) -> tuple[NDArray[Any], Facts]:
    beside = path.with_suffix(".json")
    return np.load(path, allow_pickle=False), _json(beside.read_text()) if beside.is_file() else {}


def _write_beside(path: Path, facts: Facts) -> None:
    write_text(path, json.dumps(facts, indent=2) + "\n")


# --- NRRD -------------------------------------------------------------------------------------------------------


def _write_nrrd(path: Path, labels: NDArray[np.uint8], facts: Facts) -> None:
    nrrd = require("nrrd", extra="io", package="suffuse-materials3d")
    header = {
        "space directions": np.diag(facts["spacing"]),
        "space units": [_ascii(facts["unit"])] * 3,
        "space dimension": 3,
        "encoding": "gzip",
        "suffuse": json.dumps(facts),
    }
    with replacing(path) as partial:
        nrrd.write(str(partial), labels, header)


def _read_nrrd(path: Path) -> tuple[NDArray[Any], Facts]:
    nrrd = require("nrrd", extra="io", package="suffuse-materials3d")
    values, header = nrrd.read(str(path))
    facts = _of(values, _json(header.get("suffuse")))
    if not facts and "space directions" in header:
        facts["spacing"] = tuple(np.linalg.norm(header["space directions"], axis=1).tolist())
    elif not facts and "spacings" in header:
        facts["spacing"] = tuple(np.asarray(header["spacings"]).tolist())
    units = {_unit(u) for u in header.get("space units", header.get("units", []))}
    if "unit" not in facts and len(units) == 1:
        facts["unit"] = units.pop()
    return values, facts


# --- VTI: VTK image data ----------------------------------------------------------------------------------------


def _write_vti(path: Path, labels: NDArray[np.uint8], facts: Facts) -> None:
    pyvista = require("pyvista", extra="io", package="suffuse-materials3d")
    grid = pyvista.ImageData(dimensions=tuple(n + 1 for n in labels.shape), spacing=tuple(facts["spacing"]))
    grid.cell_data["phase"] = labels.ravel(order="F")
    grid.field_data["suffuse"] = [json.dumps(facts)]
    with replacing(path) as partial:
        grid.save(partial)


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
    """A file of one volume, ours or a part of a set; the facts of such a part are those of its root and its volume."""
    import h5py

    from .data.volumes import FORMAT, without_channel

    with h5py.File(path, "r") as file:
        names = [n for n, d in file.items() if isinstance(d, h5py.Dataset) and d.ndim >= 3]
        if len(names) != 1:
            raise InvalidArgument(f"{path.name} holds {len(names)} volumes; read sets with data.read_volumes")
        values = without_channel(file[names[0]][()], names[0])
        facts = _json(file.attrs.get("suffuse"))
        if not facts:
            facts = {k: file.attrs[k] for k in ("spacing", "unit", "periodic") if k in file.attrs}
        if "attributes" not in facts and file.attrs.get("suffuse_format") == FORMAT:
            known = {k: json_value(v, k) for k, v in file[names[0]].attrs.items()}
            facts |= {"attributes": known, "labels": list(range(min(int(file.attrs["phases"]), GREY)))}
    return values, facts


# --- raw --------------------------------------------------------------------------------------------------------


def _write_raw(path: Path, labels: NDArray[np.uint8], facts: Facts) -> None:
    _write_beside(path.with_name(path.name + ".json"), {"dtype": "uint8", "order": "x fastest", **facts})
    with replacing(path) as partial:
        partial.write_bytes(labels.tobytes(order="F"))


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
    _write_beside(path.with_name(path.name + ".json"), facts)
    with replacing(path) as partial:
        partial.write_text(text)


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
    with replacing(path) as partial:
        array = open_zarr(partial, labels.shape, **{k: facts[k] for k in ABOUT})
        array[...] = labels
        array.attrs.update(complete=True, labels=facts["labels"])


def _read_zarr(path: Path) -> tuple[NDArray[Any], Facts]:
    zarr = require("zarr", extra="io", package="suffuse-materials3d")
    array = zarr.open_array(str(path), mode="r")
    facts = dict(array.attrs)
    if facts.get("complete") is False:
        warnings.warn(f"{path.name} is not complete: its generation was stopped", UserWarning, stacklevel=4)
    return array[...], {k: facts[k] for k in FACTS if k in facts}


ABOUT = ("spacing", "unit", "periodic", "attributes")
FACTS = (*ABOUT, "shape", "labels")

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

#: What the extra ``io`` brings, by ending.
EXTRAS = {".nrrd": "nrrd", ".vti": "pyvista", ".zarr": "zarr"}


def _format(path: Path) -> tuple[Reader, Writer]:
    if path.suffix.lower() not in SUFFIXES:
        raise unknown("volume format", path.suffix or path.name, SUFFIXES)
    return SUFFIXES[path.suffix.lower()]
