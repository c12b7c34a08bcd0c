"""All descriptors by name: what ``measure`` can be asked for, and what a model can be asked to make.

Names end in the phase, a label or GraSPI's letter (D donor 0, A acceptor 1, M mixed 2): ``drel_1`` is ``drel_A``.

    vf            share of the voxels                    sv              interface area per volume (Crofton)
    drel, tau     diffusive transport along z            sv_faces, sv_gradient, sv_cubes   other definitions of it
    percolates    one cluster from face to face of z     interface_01    area between two phases, per volume
    connected     share of the largest cluster           tpb             share of inner edges at three phases
    conn_frac     share connected to its electrode       length          characteristic wavelength
    straight      share with a straight way to it        iface_conn      live share of donor-acceptor edges
    tau_geo       shortest way through / thickness       norm_STAT_e     donor-acceptor edges per voxel
    clusters      their number                           abs_wf, diss_wf10, diss_f10   light and excitons
    euler         Euler number per volume                S2, C2, L, chord, pore_size   curves of r
    thickness     mean local thickness

``tau`` is a transport factor, ``tau_geo`` and ``straight`` are of shortest paths: three different things.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from torch import Tensor

from suffuse.errors import InvalidArgument, require, unknown

from .. import metrics
from ..metrics import Curve
from ..microstructure import Microstructure
from . import graspi, pores, soft
from .transport import Transport, transport

__all__ = ["DESCRIPTORS", "Descriptor", "canonical", "measure", "measure_all"]

LETTERS = {"D": 0, "A": 1, "M": 2}
PHASES = (0, 1, 2)


@dataclass(frozen=True)
class Descriptor:
    """A named measurement. Calling it measures one structure.

    Args:
        name: as in ``DESCRIPTORS``.
        fn: Microstructure -> number, or ``Curve``.
        curve: whether it gives a curve.
        soft: shares of the phase (B, X, Y, Z) -> (B, ...), with a gradient; None where there is none.
        solved: (phase, ``Transport`` of it -> number) where it is one of those, which are solved once for many.
        low, high: the values that it can take.
        doc: what it is, in a line.
    """

    name: str
    fn: Callable[[Microstructure], float | Curve]
    curve: bool = False
    soft: Callable[[Tensor], Tensor] | None = None
    solved: tuple[int, Callable[[Transport], float]] | None = None
    low: float = 0.0
    high: float = float("inf")
    doc: str = ""

    @property
    def differentiable(self) -> bool:
        return self.soft is not None

    def __call__(self, ms: Microstructure) -> Any:
        return self.fn(ms)


def _of_phase(k: int) -> list[Descriptor]:
    """The descriptors of one phase."""
    inf = float("inf")
    return [
        Descriptor(
            f"vf_{k}", lambda ms: metrics.volume_fraction(ms, k), soft=soft.soft_volume_fraction, high=1, doc="share"
        ),
        Descriptor(
            f"drel_{k}",
            lambda ms: transport(ms, k)[0].drel,
            solved=(k, lambda t: t.drel),
            high=1,
            doc="D_eff / D0 along z, 0 where it does not percolate",
        ),
        Descriptor(
            f"tau_{k}",
            lambda ms: transport(ms, k)[0].tau,
            solved=(k, lambda t: t.tau),
            low=1,
            doc="tortuosity factor VF / D_rel along z, infinite where it does not percolate",
        ),
        Descriptor(
            f"percolates_{k}", lambda ms: float(metrics.percolates(ms, k)), high=1, doc="1 if from face to face of z"
        ),
        Descriptor(f"connected_{k}", lambda ms: metrics.connected_fraction(ms, k), high=1, doc="largest cluster"),
        Descriptor(f"clusters_{k}", lambda ms: float(metrics.components(ms, k)[1]), doc="their number"),
        Descriptor(f"euler_{k}", lambda ms: metrics.euler_density(ms, k), low=-inf, doc="Euler number per volume"),
        Descriptor(f"conn_frac_{k}", lambda ms: graspi.connected_to_electrode(ms, k), high=1, doc="to its electrode"),
        Descriptor(f"straight_{k}", lambda ms: graspi.straight(ms, k), high=1, doc="share with a straight way"),
        Descriptor(f"tau_geo_{k}", lambda ms: graspi.geometric_tortuosity(ms, k), low=1, doc="shortest ways"),
        Descriptor(f"abs_wf_{k}", lambda ms: graspi.absorption(ms, k), soft=soft.soft_absorption, high=1),
        Descriptor(f"diss_wf10_{k}", lambda ms: graspi.dissociation(ms, k)),
        Descriptor(f"diss_f10_{k}", lambda ms: graspi.dissociation(ms, k, weighted=False), high=1),
        Descriptor(f"sv_{k}", lambda ms: metrics.interface_area(ms, k), soft=soft.soft_interface, doc="area / volume"),
        Descriptor(f"thickness_{k}", lambda ms: float(pores.local_thickness(ms, k)[ms.mask(k)].mean())),
        Descriptor(
            f"S2_{k}", lambda ms: metrics.two_point_correlation(ms, k), curve=True, soft=soft.soft_two_point, high=1
        ),
        Descriptor(f"C2_{k}", lambda ms: pores.two_point_cluster(ms, k), curve=True, high=1),
        Descriptor(f"L_{k}", lambda ms: metrics.lineal_path(ms, k, 2), curve=True, soft=soft.soft_lineal_path, high=1),
        Descriptor(f"chord_{k}", lambda ms: pores.chord_lengths(ms, k), curve=True, high=1),
        Descriptor(f"pore_size_{k}", lambda ms: pores.pore_sizes(ms, k), curve=True, high=1),
    ]


def _total_area(ms: Microstructure) -> float:
    """All interfaces once: half the sum over the phases."""
    return sum(metrics.interface_area(ms, k) for k in ms.phases) / 2 if len(ms.phases) > 1 else 0.0


def _pair_area(ms: Microstructure, i: int, j: int) -> float:
    """Area between phases i and j: (S_i + S_j - S of the others) / 2."""
    others = [k for k in ms.phases if k not in (i, j)]
    rest = 0.0
    if others:
        joined = Microstructure(np.isin(ms.labels, others).astype(np.uint8), ms.spacing, ms.unit, ms.periodic)
        rest = metrics.interface_area(joined, 1)
    return (metrics.interface_area(ms, i) + metrics.interface_area(ms, j) - rest) / 2


def _taufactor_area(method: str) -> Callable[[Microstructure], float]:
    def area(ms: Microstructure) -> float:
        from .transport import _silence

        found = require("taufactor.metrics", extra="measure", package="suffuse-materials3d")
        if method == "marching_cubes":
            pores.cubic(ms)
        if len(ms.phases) < 2:
            return 0.0
        try:
            with _silence():
                values = found.specific_surface_area(
                    ms.labels, ms.spacing, phases={"one": ms.phases[0]}, method=method, periodic=list(ms.periodic),
                    device="cpu",
                )  # fmt: skip
        except (RuntimeError, ValueError) as error:  # of its smoothing, for a layer
            raise InvalidArgument(
                f"taufactor's {method} needs more layers of phase {ms.phases[0]} in {ms.shape}; measure sv"
            ) from error
        return float(values["one"])

    return area


def _tpb(ms: Microstructure) -> float:
    from .transport import _silence

    if len(ms.phases) != 3:
        raise InvalidArgument(f"tpb is where three phases meet; the structure holds {ms.phases}")
    found = require("taufactor.metrics", extra="measure", package="suffuse-materials3d")
    with _silence():
        return float(found.triple_phase_boundary(ms.labels.astype(np.int32)))


_ALL = [
    *(d for k in PHASES for d in _of_phase(k)),
    Descriptor("sv", _total_area, doc="area of all interfaces per volume, by Crofton's lines"),
    Descriptor("sv_faces", _taufactor_area("face_counting"), doc="by faces of voxels: about 1.5 times too large"),
    Descriptor("sv_gradient", _taufactor_area("gradient"), doc="taufactor's smoothed gradient"),
    Descriptor("sv_cubes", _taufactor_area("marching_cubes"), doc="taufactor's marching cubes"),
    Descriptor("interface_01", lambda ms: _pair_area(ms, 0, 1), doc="area between two phases, per volume"),
    Descriptor("interface_02", lambda ms: _pair_area(ms, 0, 2)),
    Descriptor("interface_12", lambda ms: _pair_area(ms, 1, 2)),
    Descriptor("tpb", _tpb, high=1, doc="taufactor's share of inner edges at three phases"),
    Descriptor("length", metrics.characteristic_length, doc="2 pi / <k>"),
    Descriptor("iface_conn", graspi.interface_connected, high=1),
    Descriptor("norm_STAT_e", graspi.interface_edges),
]


class _ByName(dict[str, Descriptor]):
    """Also by the letters of phases."""

    def __missing__(self, name: str) -> Descriptor:
        return self[canonical(name)]


#: Every descriptor by name.
DESCRIPTORS: dict[str, Descriptor] = _ByName({d.name: d for d in _ALL})

#: What is measured unless asked otherwise: quick, and with nothing beyond the base installation.
DEFAULT = ("vf", "percolates", "connected", "clusters", "euler")


def canonical(name: str) -> str:
    """The name as in ``DESCRIPTORS``: letters of phases become labels.

    Raises:
        InvalidArgument: for an unknown name, with the nearest known ones.
    """
    if name in DESCRIPTORS:
        return name
    match = re.fullmatch(r"(.+)_([DAM])", name)
    if match and f"{match[1]}_{LETTERS[match[2]]}" in DESCRIPTORS:
        return f"{match[1]}_{LETTERS[match[2]]}"
    raise unknown("descriptor", name, DESCRIPTORS)


def measure(
    ms: Microstructure, names: Iterable[str] | None = None, phase: int | None = None, *, device: str | None = None
) -> dict[str, Any]:
    """Descriptors of a structure by name.

    Args:
        ms: the structure.
        names: see this module; by default the quick ones of each phase, and the interface area.
        phase: with the default names, of this phase alone.
        device: on which transport is solved; default a GPU where there is one.

    Returns:
        name as asked -> number, or ``Curve``.

    Raises:
        InvalidArgument: for an unknown name, or without names for a structure with phases that have none.
    """
    if names is None:
        phases = ms.phases if phase is None else (phase,)
        if nameless := [k for k in phases if k not in PHASES]:
            raise InvalidArgument(
                f"there are names for phases {PHASES} and none for {nameless}; choose a phase that has, or merge some"
            )
        names = [f"{d}_{k}" for k in phases for d in DEFAULT] + ["sv"]
    return {name: values[0] for name, values in _columns([ms], list(names), device).items()}


def measure_all(
    structures: Sequence[Microstructure], names: Sequence[str], *, device: str | None = None
) -> dict[str, np.ndarray]:
    """Numbers of many structures: name -> (N,); what can be computed at once is.

    Args:
        structures: of any shapes.
        names: see this module.
        device: on which transport is solved; default a GPU where there is one.

    Raises:
        InvalidArgument: for an unknown name, or one that gives a curve.
    """
    if curves := [name for name in names if DESCRIPTORS[name].curve]:
        raise InvalidArgument(f"{curves} are curves; measure each structure with measure")
    columns = _columns(structures, names, device)
    return {name: np.asarray(values, dtype=np.float64) for name, values in columns.items()}


def _columns(structures: Sequence[Microstructure], names: Sequence[str], device: str | None) -> dict[str, list[Any]]:
    """What each name is of each structure; the transport of a phase is solved once."""
    solve = cache(lambda phase: transport(structures, phase, device=device))
    columns: dict[str, list[Any]] = {}
    for name, descriptor in {name: DESCRIPTORS[name] for name in names}.items():
        if descriptor.solved:
            phase, value = descriptor.solved
            columns[name] = [value(found) for found in solve(phase)]
        else:
            columns[name] = [descriptor(ms) for ms in structures]
    return columns
