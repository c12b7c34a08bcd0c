r"""Diffusive transport through a phase: tau and D_rel, by the solvers of taufactor or porespy, behind one door.

With D0 the diffusivity inside the phase and D_eff that of the box, from face to face along one axis,

    D_rel = D_eff / D0 in [0, 1],      tau = VF / D_rel >= 1,

the tortuosity *factor* of transport (for the geometry of shortest paths see ``graspi``). Solvers of this kind return
garbage where a phase does not reach from face to face, so that is asked first: then D_rel = 0 and tau is infinite, with
no solver called. What is solved has the floating clusters taken out; they carry no flux. The volume fraction in tau is
that of the whole phase.

Every value comes with how it was got. Condition on D_rel, which is finite, and not on tau.

Cooper et al. (2016), "TauFactor", SoftwareX 5, 203; Kench, Squires, Cooper (2023), "TauFactor 2", JOSS 8, 5358.
"""

from __future__ import annotations

import contextlib
import io
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from suffuse.errors import InvalidArgument, require, unknown

from ..metrics import clusters_through
from ..microstructure import Microstructure

__all__ = ["Transport", "multiphase_transport", "transport"]

#: Voxels that taufactor solves at once: a batch runs until its slowest member has converged.
BATCH = {"cpu": 2**16, "cuda": 2**25}


@dataclass(frozen=True)
class Transport:
    """What was found, and how.

    Args:
        tau: tortuosity factor; infinite where the phase does not percolate.
        drel: D_eff / D0 in [0, 1]; 0 where the phase does not percolate.
        percolates: whether one cluster of the phase touches both faces.
        converged: whether the solver met its tolerance.
        solver: name and version.
        tolerance: relative spread of the flux over the layers at which it stopped.
        iterations: that it took, 0 where nothing was solved.
    """

    tau: float
    drel: float
    percolates: bool
    converged: bool
    solver: str
    tolerance: float
    iterations: int


def transport(
    structures: Microstructure | Sequence[Microstructure],
    phase: int = 1,
    *,
    transport_axis: int = 2,
    solver: Literal["taufactor", "porespy"] = "taufactor",
    tolerance: float = 0.01,
    iterations: int = 10_000,
    device: str | None = None,
) -> list[Transport]:
    """tau and D_rel of each structure, those of one shape together.

    Args:
        structures: one or several.
        phase: that conducts; all others insulate.
        transport_axis: from face to face of which axis. The other two wrap where the structure is periodic, and end in
            walls where it is not.
        solver: "taufactor" (extra ``measure``), or "porespy", a direct solution to check it by, for cubic voxels and
            always with walls at the sides (extra ``crosscheck``: it needs openpnm).
        tolerance: relative spread of the flux over the layers.
        iterations: at most, at least 100; what has not converged by then is marked.
        device: of taufactor; default a GPU where there is one.

    Raises:
        InvalidArgument: for an unknown solver, an axis that is not 0, 1 or 2 or along which there is one layer only, a
            bad tolerance, or too few iterations.

    Warns:
        UserWarning: when structures have not converged.
    """
    if transport_axis not in (0, 1, 2):
        raise InvalidArgument(f"transport_axis must be 0, 1 or 2, got {transport_axis!r}")
    if solver not in ("taufactor", "porespy"):
        raise unknown("solver", solver, ("taufactor", "porespy"))
    if not 0 < tolerance < 1:
        raise InvalidArgument(f"tolerance must lie in (0, 1), got {tolerance}")
    if iterations < 100:
        raise InvalidArgument(f"iterations must be at least 100, when the solver first looks; got {iterations}")
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    some = [structures] if isinstance(structures, Microstructure) else list(structures)
    found: list[Transport | None] = [None] * len(some)
    groups: dict[tuple[Any, ...], list[tuple[int, NDArray[np.uint8]]]] = {}
    name = _version(solver)
    for i, ms in enumerate(some):
        _layers(ms, transport_axis)
        order = (transport_axis, *(a for a in range(3) if a != transport_axis))
        periodic = ms.periodic if solver == "taufactor" else (False, False, False)
        through = clusters_through(replace(ms, periodic=periodic), phase, transport_axis)
        if not through.any():
            found[i] = Transport(math.inf, 0.0, False, True, name, tolerance, 0)
            continue
        spacing = tuple(ms.spacing[a] for a in order)
        wraps = (periodic[order[1]], periodic[order[2]])
        image = np.ascontiguousarray(through.transpose(order), dtype=np.uint8)
        groups.setdefault((image.shape, spacing, wraps), []).append((i, image))
    for (shape, spacing, wraps), members in groups.items():
        members = sorted(members, key=lambda member: float(member[1].mean()))  # alike in share, alike in speed
        voxels = BATCH["cpu" if device == "cpu" else "cuda"]
        size = max(voxels // math.prod(shape), 1) if solver == "taufactor" else 1
        for first in range(0, len(members), size):
            part = members[first : first + size]
            images = np.stack([image for _, image in part])
            solve = _taufactor if solver == "taufactor" else _porespy
            drel, converged, used = solve(images, spacing, wraps, tolerance, iterations, device)
            for (i, _), d in zip(part, drel, strict=True):
                d = float(min(max(d, 0.0), 1.0))
                vf = float(some[i].mask(phase).mean())
                tau = vf / d if d > 0 else math.inf
                found[i] = Transport(tau, d, True, converged, name, tolerance, used)
    if open_ := sum(t is not None and not t.converged for t in found):
        warnings.warn(
            f"{open_} of {len(found)} structures did not converge to {tolerance:g} within {iterations} iterations, so "
            "their tau and D_rel are rough; ask for more iterations",
            UserWarning,
            stacklevel=2,
        )
    return found  # type: ignore[return-value]


def multiphase_transport(
    ms: Microstructure, conductivity: dict[int, float], *, transport_axis: int = 2, tolerance: float = 0.01
) -> float:
    """D_eff of a structure whose phases all conduct, in the unit of ``conductivity`` (label -> value; 0 insulates).

    The sides end in walls, also where the structure is periodic.

    Raises:
        InvalidArgument: when no phase conducts, or there is one layer only along the axis.

    Warns:
        UserWarning: when the solver has not converged.
    """
    _layers(ms, transport_axis)
    if not any(conductivity.get(k, 0) > 0 for k in ms.phases):
        raise InvalidArgument(f"conductivity must be positive for one of the phases {ms.phases}, got {conductivity}")
    require("taufactor", extra="measure", package="suffuse-materials3d")
    from .solvers import Phases

    conducts = np.isin(ms.labels, [label for label, value in conductivity.items() if value > 0]).astype(np.uint8)
    if not clusters_through(Microstructure(conducts), 1, transport_axis).any():
        return 0.0
    order = (transport_axis, *(a for a in range(3) if a != transport_axis))
    labels, spacing = ms.labels.transpose(order), [ms.spacing[a] for a in order]
    image, cond = np.zeros_like(labels), {}
    for i, (label, value) in enumerate(sorted(conductivity.items()), start=1):
        if value > 0:
            image[labels == label] = i
            cond[i] = float(value)
    with _silence():
        solved = Phases(image, cond, spacing)
        solved.solve(verbose=False, conv_crit=tolerance)
    if not solved.converged:
        warnings.warn(f"no convergence to {tolerance:g}, so D_eff is rough", UserWarning, stacklevel=2)
    return float(np.asarray(solved.D_eff).reshape(-1)[0])


def _taufactor(
    images: NDArray[np.uint8],
    spacing: tuple[float, ...],
    wraps: tuple[bool, bool],
    tolerance: float,
    iterations: int,
    device: str,
) -> tuple[NDArray[Any], bool, int]:
    taufactor = require("taufactor", extra="measure", package="suffuse-materials3d")
    from .solvers import Sides

    # sweeps go over a chequerboard, whose colours clash where an odd side wraps, and all diverges: two periods then
    images = np.tile(images, (1, 1, *(2 if w and n % 2 else 1 for w, n in zip(wraps, images.shape[2:], strict=True))))
    with _silence():
        if len(set(spacing)) > 1 or wraps[0] != wraps[1]:
            solver = Sides(images, spacing, wraps, device)
        else:
            solver = (taufactor.PeriodicSolver if wraps[0] else taufactor.Solver)(images, device=device)
        solver.solve(iter_limit=iterations, verbose=False, conv_crit=tolerance)
    return np.asarray(solver.D_rel).reshape(-1), bool(solver.converged), int(solver.iter)


def _porespy(
    images: NDArray[np.uint8],
    spacing: tuple[float, ...],
    wraps: tuple[bool, bool],
    tolerance: float,
    iterations: int,
    device: str,
) -> tuple[NDArray[Any], bool, int]:
    if len(set(spacing)) > 1:
        raise InvalidArgument(f"porespy solves for cubic voxels, these are {spacing}; use solver='taufactor'")
    require("openpnm", extra="crosscheck", package="suffuse-materials3d")
    porespy = require("porespy", extra="measure", package="suffuse-materials3d")
    with _silence():
        result = porespy.simulations.tortuosity_fd(images[0].astype(bool), axis=0)
    return np.array([images[0].mean() / result.tortuosity]), True, 0


def _layers(ms: Microstructure, axis: int) -> None:
    if ms.shape[axis] < 2:
        raise InvalidArgument(
            f"transport along axis {axis} needs two layers or more, the shape is {ms.shape}; choose another axis"
        )


def _version(name: str) -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return f"{name} {version(name)}"
    except PackageNotFoundError:
        return name


@contextlib.contextmanager
def _silence() -> Any:
    """The solvers print their progress and warn of what is handled here."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
