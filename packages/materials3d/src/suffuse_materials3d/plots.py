"""Pictures of structures: slices, sections, lit surfaces, requested against obtained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from suffuse.errors import InvalidArgument

from .mesh import COLOURS, to_mesh
from .microstructure import Microstructure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["parity", "render", "sections", "slice_grid", "surface"]


def slice_grid(rows: Mapping[str, Sequence[Microstructure]], titles: Sequence[str] | None = None) -> Figure:
    """The middle slice across z of each structure; a row of pictures per name.

    Args:
        rows: name -> structures, as many in each row.
        titles: of the columns.
    """
    from matplotlib.figure import Figure

    if not rows or len({len(row) for row in rows.values()}) != 1:
        raise InvalidArgument(f"rows must be equally long, got {[len(row) for row in rows.values()]}")
    columns = len(next(iter(rows.values())))
    figure = Figure(figsize=(1.6 * columns + 0.6, 1.75 * len(rows)), layout="constrained")
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for line, (name, structures) in zip(axes, rows.items(), strict=True):
        for axis, ms in zip(line, structures, strict=True):
            _slice(axis, ms, 2, ms.shape[2] // 2)
            axis.set(xticks=[], yticks=[])
        line[0].set_ylabel(name, fontsize=9)
    for axis, title in zip(axes[0], titles or [], strict=False):
        axis.set_title(title, fontsize=9)
    return figure


def _slice(axis: Any, ms: Microstructure, normal: int, index: int) -> None:
    """One slice: the field of two phases where there is one, else a colour per phase."""
    from matplotlib.colors import ListedColormap

    one, two = (k for k in range(3) if k != normal)
    extent = (0, ms.size[one], 0, ms.size[two])
    if ms.field is not None:
        values = ms.field.take(index, normal)
        bound = min(float(np.abs(values).max()), 4 * float(np.abs(values).mean())) or 1.0
        axis.imshow(values.T, cmap="RdBu_r", vmin=-bound, vmax=bound, origin="lower", extent=extent)
        return
    colours = _colours(ms)
    phases = len(colours)
    axis.imshow(
        ms.labels.take(index, normal).T, cmap=ListedColormap(colours), vmin=-0.5, vmax=phases - 0.5, origin="lower",
        extent=extent, interpolation="nearest",
    )  # fmt: skip


def _colours(ms: Microstructure) -> list[Any]:
    """A colour per phase: those of the field's two signs, or those of meshes."""
    phases = max(int(ms.labels.max()) + 1, 2)
    return ["#2166ac", "#b2182b"] if phases == 2 else [tuple(c / 255 for c in COLOURS[k % 4]) for k in range(phases)]


def sections(ms: Microstructure, title: str = "") -> Figure:
    """Three slices through the middle, and the volume fraction of each phase along z."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 3.6), layout="constrained")
    axes = figure.subplots(1, 4)
    for axis, normal in zip(axes, (2, 1, 0), strict=False):
        _slice(axis, ms, normal, ms.shape[normal] // 2)
        one, two = ("xyz"[k] for k in range(3) if k != normal)
        axis.set(xlabel=f"{one} [{ms.unit}]", ylabel=f"{two} [{ms.unit}]")
    z = (np.arange(ms.shape[2]) + 0.5) * ms.spacing[2]
    for phase in ms.phases:
        axes[3].plot(ms.mask(phase).mean((0, 1)), z, label=f"phase {phase}", color=_colours(ms)[phase])
    axes[3].set(xlabel="volume fraction", ylabel=f"z [{ms.unit}]", xlim=(0, 1))
    axes[3].legend(frameon=False, fontsize=8)
    if title:
        figure.suptitle(title)
    return figure


def render(ms: Microstructure, path: str | Path, phases: Sequence[int] | None = None, smooth: int = 10) -> Path:
    """A lit 3-D picture of phases (by default all but the first), as PNG.

    By pyvista, off-screen, where it is installed and can draw (extra ``io``); else by matplotlib.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    chosen = list(phases if phases is not None else ms.phases[1:] or ms.phases)
    meshes = {k: to_mesh(ms, k, smooth=0 if ms.field is not None else smooth) for k in chosen}
    try:
        import pyvista

        plotter = pyvista.Plotter(off_screen=True, window_size=[900, 900])
        for k, mesh in meshes.items():
            plotter.add_mesh(pyvista.wrap(mesh), color=[c / 255 for c in COLOURS[k % 4][:3]], smooth_shading=True,
                             split_sharp_edges=True, specular=0.2)  # fmt: skip
        box = pyvista.Box((0, ms.size[0], 0, ms.size[1], 0, ms.size[2]))
        plotter.add_mesh(box, style="wireframe", color="#64748b", line_width=2)
        plotter.camera_position = "iso"
        plotter.screenshot(str(path), return_img=False)
        plotter.close()
    except (ImportError, RuntimeError, AttributeError):
        surface([ms], phase=chosen[0]).savefig(path, dpi=130, bbox_inches="tight", facecolor="white")
    return path


def surface(structures: Sequence[Microstructure], titles: Sequence[str] | None = None, phase: int = 1) -> Figure:
    """The surface of a phase of each structure, capped by the box, lit from one side.

    Cap faces, on the sides of the box, are drawn paler than the interface.
    """
    from matplotlib.figure import Figure
    from mpl_toolkits.mplot3d.art3d import Poly3DCollection

    if not structures:
        raise InvalidArgument("structures is empty; give at least one to draw")
    figure = Figure(figsize=(3.6 * len(structures), 3.8), layout="constrained")
    light = np.array([0.35, -0.65, 0.68])
    for i, ms in enumerate(structures):
        axis: Any = figure.add_subplot(1, len(structures), i + 1, projection="3d")
        mesh = to_mesh(ms, phase)
        bright = 0.55 + 0.45 * np.clip(mesh.face_normals @ light, -1, 1)
        depth = np.minimum(mesh.triangles_center, ms.size - mesh.triangles_center) / ms.spacing
        cap = (depth < 1e-4).any(1) | ((depth < 0.5).sum(1) > 1)  # on a face, or the bevel of an edge
        colour = np.where(cap[:, None], [0.93, 0.80, 0.55], [0.15, 0.45, 0.70]) * bright[:, None]
        axis.add_collection3d(
            Poly3DCollection(mesh.triangles, facecolors=colour, edgecolors=colour, linewidths=0.3, antialiased=False)
        )
        axis.set(xlim=(0, ms.size[0]), ylim=(0, ms.size[1]), zlim=(0, ms.size[2]))
        axis.set_box_aspect(ms.size)
        axis.view_init(elev=24, azim=-58)
        axis.set_axis_off()
        if titles:
            axis.set_title(titles[i], fontsize=10)
    return figure


def parity(requested: Sequence[float], obtained: Mapping[str, Sequence[float]], quantity: str) -> Figure:
    """Obtained against requested, one set of points per method, with the diagonal."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.4, 4.2), layout="constrained")
    axis = figure.subplots()
    low, high = min(requested), max(requested)
    margin = 0.08 * (high - low)
    axis.plot([low - margin, high + margin], [low - margin, high + margin], color="0.6", linewidth=1, zorder=0)
    for (name, values), marker in zip(obtained.items(), "os^vDP*", strict=False):
        axis.scatter(requested, values, label=name, s=20, alpha=0.8, marker=marker)
    axis.set(xlabel=f"requested {quantity}", ylabel=f"obtained {quantity}", aspect="equal")
    axis.legend(frameon=False, fontsize=8)
    return figure
