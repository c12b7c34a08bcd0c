"""Surfaces of a phase, for printing, viewing and finite elements: marching cubes, then STL, GLB, PLY or 3MF.

Vertices are in the structure's unit of length, with the box from (0, 0, 0) to ``ms.size`` and voxel centres half a
voxel inside. Where there is a continuous field its zero level is meshed, which is smoother than the voxels. Phases of a
structure are meshed apart, so that three phases leave small gaps where they meet.
"""

from __future__ import annotations

import io
import json
import warnings
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from suffuse.errors import InvalidArgument, require, unknown

from .microstructure import Microstructure

if TYPE_CHECKING:
    import trimesh

__all__ = ["MESH_SUFFIXES", "to_mesh", "to_scene", "write_mesh"]

MESH_SUFFIXES = (".glb", ".ply", ".stl", ".3mf")
#: The units that 3MF has, of ours.
UNITS_3MF = {"um": "micron", "mm": "millimeter", "cm": "centimeter", "m": "meter"}
#: Colours of phases in a scene, RGBA.
COLOURS = ((203, 213, 225, 255), (217, 119, 6, 255), (15, 118, 110, 255), (124, 58, 237, 255))


def to_mesh(
    ms: Microstructure, phase: int = 1, *, cap: bool = True, smooth: int = 0, decimate: float = 0.0
) -> trimesh.Trimesh:
    """The surface of a phase.

    Args:
        ms: the structure.
        phase: which phase is the inside.
        cap: close the surface where the phase meets the box, on the faces of the box; the mesh is then watertight and
            has the volume of the phase. Without it the surface ends there, and on periodic axes reaches its repetition.
        smooth: iterations of Taubin's filter, which keeps the volume; the steps of labels want about 10, a field none.
            It lowers the area by some percent, so measure areas of the structure and not of the mesh.
        decimate: share of the faces to take out, in [0, 1); the mesh is left as it is where that would tear it.

    Raises:
        InvalidArgument: when the phase is absent, or fills the box and there is no cap, so that it has no surface.
    """
    import skimage.measure
    import trimesh

    inside = ms.mask(phase)
    if not inside.any():
        raise InvalidArgument(f"phase {phase} is absent, so it has no surface; the structure holds phases {ms.phases}")
    values = _signed(ms, phase, inside)
    values, origin = _capped(values) if cap else _wrapped(values, ms.periodic)
    if not (values < 0).any() or min(values.shape) < 2:
        raise InvalidArgument(f"phase {phase} fills the box, so it has no surface; mesh it with cap=True")
    marching_cubes: Any = skimage.measure.marching_cubes
    # Where voxels meet at an edge, Lewiner's table needs unequal values to choose by, which labels do not have;
    # Lorensen's is closed in any case, and with the phase as its lower side joins it there, which keeps more of it.
    # trimesh merges vertices by an absolute distance, so nothing is in the unit of length before the end.
    vertices, faces, _, _ = marching_cubes(
        -values, level=0.0, gradient_direction="descent", allow_degenerate=False, method="lorensen"
    )
    edge = min(ms.spacing)
    mesh = trimesh.Trimesh((vertices + origin) * (np.asarray(ms.spacing) / edge), faces)
    if decimate:
        mesh = _decimated(mesh, decimate)
    if smooth:
        taubin: Any = trimesh.smoothing.filter_taubin
        taubin(mesh, iterations=smooth)
    mesh.apply_scale(edge)
    mesh.units = ms.unit
    mesh.metadata.update(phase=phase, unit=ms.unit, spacing=list(ms.spacing))
    return mesh


def _decimated(mesh: trimesh.Trimesh, share: float) -> trimesh.Trimesh:
    if not 0 <= share < 1:
        raise InvalidArgument(f"decimate must lie in [0, 1), got {share}")
    require("fast_simplification", extra="io", package="suffuse-materials3d")
    fewer: trimesh.Trimesh = mesh.simplify_quadric_decimation(percent=share)
    if mesh.is_watertight and not fewer.is_watertight:
        warnings.warn(
            "decimation would open the mesh, so it was left as it is; ask for less", UserWarning, stacklevel=3
        )
        return mesh
    return fewer


def to_scene(ms: Microstructure, phases: tuple[int, ...] | None = None, *, smooth: int = 0) -> trimesh.Scene:
    """Several phases (all that occur by default) as one scene of coloured meshes, named ``phase-0`` and so on."""
    import trimesh

    scene = trimesh.Scene()
    for phase in ms.phases if phases is None else phases:
        mesh = to_mesh(ms, phase, smooth=smooth)
        mesh.visual = trimesh.visual.ColorVisuals(mesh, face_colors=COLOURS[phase % len(COLOURS)])
        scene.add_geometry(mesh, node_name=f"phase-{phase}", geom_name=f"phase-{phase}")
    scene.metadata.update(unit=ms.unit)
    return scene


def write_mesh(mesh: trimesh.Trimesh | trimesh.Scene, path: str | Path) -> Path:
    """Write a mesh or a scene.

    Coordinates are not rescaled, and formats differ in what they say of their unit: .stl and .ply nothing, .glb is
    metres to its readers, .3mf states the structure's unit where it is micrometres or larger ones of the metre, and
    else millimetres. So unit and size are also written to a JSON file beside it (``part.stl`` -> ``part.stl.json``).
    Readers merge vertices that are nearer than some 1e-8: do not give nanometres in metres.

    Args:
        mesh: what ``to_mesh`` or ``to_scene`` made.
        path: ends in .glb, .stl, .ply or .3mf (the last needs the extra ``io``).

    Raises:
        InvalidArgument: for another ending, or an empty mesh.
    """
    path = Path(path)
    if path.suffix.lower() not in MESH_SUFFIXES:
        raise unknown("mesh format", path.suffix or path.name, MESH_SUFFIXES)
    if mesh.is_empty:
        raise InvalidArgument("mesh is empty; there is nothing to write")
    if path.suffix.lower() == ".3mf":
        require("lxml", extra="io", package="suffuse-materials3d")
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix.lower() == ".3mf":
        path.write_bytes(_stating(mesh.export(file_type="3mf"), mesh.metadata.get("unit", "voxel")))
    else:
        mesh.export(path)
    facts: dict[str, Any] = {"unit": mesh.metadata.get("unit", "voxel"), "extents": mesh.extents.tolist()}
    if hasattr(mesh, "is_watertight"):
        facts |= {"area": float(mesh.area), "watertight": bool(mesh.is_watertight)}
        facts |= {"volume": float(mesh.volume)} if mesh.is_watertight else {}
    path.with_name(path.name + ".json").write_text(json.dumps(facts, indent=2) + "\n")
    return path


def _stating(package: Any, unit: str) -> bytes:
    """A 3MF package with its unit of length, for which trimesh always writes millimetres."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(package)) as old, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            content = old.read(name)
            if name.endswith(".model") and unit in UNITS_3MF:
                content = content.replace(b'unit="millimeter"', f'unit="{UNITS_3MF[unit]}"'.encode(), 1)
            new.writestr(name, content)
    return out.getvalue()


# --- the function whose zero level is the surface ---------------------------------------------------------------


def _signed(ms: Microstructure, phase: int, inside: NDArray[np.bool_]) -> NDArray[np.float32]:
    """(X, Y, Z), positive inside the phase and nowhere zero: the field if there is one, else plus and minus one."""
    if ms.field is None or set(ms.phases) - {0, 1} or phase not in (0, 1):
        return np.where(inside, 1, -1).astype(np.float32)
    values = ms.field if phase == 1 else -ms.field
    tiny = np.float32(1e-3) * np.abs(values).max()
    signed: NDArray[np.float32] = np.where(inside, np.maximum(values, tiny), np.minimum(values, -tiny))
    return signed.astype(np.float32)


def _capped(values: NDArray[np.float32]) -> tuple[NDArray[np.float32], float]:
    """One voxel of outside around the box, mirrored in sign, which puts the caps exactly on its faces."""
    padded = np.pad(values, 1, mode="edge")
    shell = np.ones(padded.shape, dtype=bool)
    shell[1:-1, 1:-1, 1:-1] = False
    padded[shell] = -np.abs(padded[shell])
    return padded, -0.5


def _wrapped(values: NDArray[np.float32], periodic: tuple[bool, bool, bool]) -> tuple[NDArray[np.float32], float]:
    """The first layer once more behind the last, on periodic axes."""
    return np.pad(values, [(0, int(p)) for p in periodic], mode="wrap"), 0.5
