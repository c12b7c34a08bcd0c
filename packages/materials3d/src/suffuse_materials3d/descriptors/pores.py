"""Sizes of a phase, by porespy (extra ``measure``): chords, pore sizes, local thickness; and two-point clusters.

Lengths are in the structure's unit, and voxels must be cubes for sizes. The sides do not wrap. Torquato (2002), "Random
Heterogeneous Materials".
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from suffuse.errors import InvalidArgument, require

from ..metrics import Curve, components, two_point_correlation
from ..microstructure import Microstructure

__all__ = ["chord_lengths", "local_thickness", "pore_sizes", "two_point_cluster"]


def two_point_cluster(ms: Microstructure, phase: int = 1) -> Curve:
    """C2(r): the probability that two points at distance r lie in the same cluster of the phase; C2 <= S2.

    Clusters are few and large or many and small: S2 of each of the 64 largest, the rest being far below their S2.
    """
    labels, n = components(ms, phase)
    if n == 0:
        curve = two_point_correlation(ms, phase)
        return Curve(curve.r, np.zeros_like(curve.values))
    sizes = np.bincount(labels.ravel())[1:]
    largest = np.argsort(sizes)[::-1][:64] + 1
    curves = [two_point_correlation(_as_structure(ms, labels == k)) for k in largest]
    return Curve(curves[0].r, np.sum([c.values for c in curves], axis=0))


def chord_lengths(ms: Microstructure, phase: int = 1, axis: int = 2) -> Curve:
    """The distribution of chords along an axis: probability (it sums to one) of each length.

    Whole chords only: those cut by the box do not count where the axis is open, and are joined where it repeats.
    """
    mask = np.moveaxis(ms.mask(phase), axis, -1)
    n, wraps = mask.shape[-1], ms.periodic[axis]
    lines = np.concatenate([mask, mask], -1).reshape(-1, 2 * n) if wraps else mask.reshape(-1, n)
    change = np.diff(np.pad(lines, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    start, end = np.nonzero(change == 1)[1], np.nonzero(change == -1)[1]
    # of two periods, what begins behind the first voxel and before the second of the next
    whole = (start > 0) & (start <= n) & (end < 2 * n) if wraps else (start > 0) & (end < n)
    counts = np.bincount((end - start)[whole], minlength=n + 1)[1:].astype(np.float64)
    r = np.arange(1, n + 1) * ms.spacing[axis]
    return Curve(r, counts / counts.sum() if counts.sum() else counts)


def local_thickness(ms: Microstructure, phase: int = 1) -> NDArray[np.float32]:
    """(X, Y, Z) diameter of the largest ball inside the phase that covers each voxel, 0 outside of it."""
    edge = _cubic(ms)
    porespy = require("porespy", extra="measure", package="suffuse-materials3d")
    mask = ms.mask(phase)
    if not mask.any() or mask.all():
        raise InvalidArgument(f"phase {phase} is absent or fills the box, so it has no thickness")
    with _quiet():
        radius: NDArray[Any] = porespy.filters.local_thickness(mask, sizes=25)
    return (2 * edge * radius).astype(np.float32)


def pore_sizes(ms: Microstructure, phase: int = 1, bins: int = 16) -> Curve:
    """The share of the phase's volume in each class of local thickness."""
    values = local_thickness(ms, phase)[ms.mask(phase)]
    counts, edges = np.histogram(values[values > 0], bins=bins)
    return Curve((edges[1:] + edges[:-1]) / 2, counts / max(counts.sum(), 1))


def _as_structure(ms: Microstructure, mask: NDArray[np.bool_]) -> Microstructure:
    return Microstructure(mask.astype(np.uint8), ms.spacing, ms.unit, ms.periodic)


def _cubic(ms: Microstructure) -> float:
    if max(ms.spacing) > min(ms.spacing) * (1 + 1e-6):
        raise InvalidArgument(f"voxels must be cubes, spacing is {ms.spacing}; resample the volume first")
    return ms.spacing[0]


def _quiet() -> Any:
    from .transport import _silence

    return _silence()
