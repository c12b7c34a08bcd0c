"""Sizes of a phase, by porespy (extra ``measure``): chords, pore sizes, local thickness; and two-point clusters.

Lengths are in the structure's unit, and voxels must be cubes for sizes. The sides do not wrap. Torquato (2002), "Random
Heterogeneous Materials".
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import find_objects

from suffuse.errors import InvalidArgument, require

from ..metrics import Curve, components, lag_shape, over_shells
from ..microstructure import Microstructure

__all__ = ["chord_lengths", "local_thickness", "pore_sizes", "two_point_cluster"]

#: Voxels of a cluster up to which its pairs are counted one by one.
SMALL = 64


def two_point_cluster(ms: Microstructure, phase: int = 1) -> Curve:
    """C2(r): the probability that two points at distance r lie in the same cluster of the phase; C2 <= S2, C2(0) = VF.

    Pairs in large clusters are counted by FFT in the cluster's bounding box, those in small ones directly.
    """
    labels, n = components(ms, phase)
    hits = np.zeros(lag_shape(ms))
    sizes = np.bincount(labels.ravel(), minlength=n + 1)
    small = (sizes <= SMALL)[labels] & (labels > 0)
    _count_directly(hits, np.argwhere(small), labels[small])
    for k, box in enumerate(find_objects(labels), start=1):
        if sizes[k] > SMALL:
            _count_by_fft(hits, labels[box] == k)
    return over_shells(torch.from_numpy(hits), ms)


def _count_directly(hits: NDArray[np.float64], at: NDArray[np.int64], of: NDArray[np.int32]) -> None:
    """Add the pairs of voxels ``at`` (n, 3) that have the same label ``of`` (n,) at their lags, both ways."""
    order = np.argsort(of, kind="stable")
    at, of = at[order], of[order]
    hits[0, 0, 0] += len(of)
    for step in range(1, SMALL):  # with its cluster's voxels in a row, each meets the one so many places ahead
        same = of[step:] == of[:-step]
        lag = (at[step:] - at[:-step])[same]
        for d in (lag, -lag):
            np.add.at(hits, tuple((d % hits.shape).T), 1)


def _count_by_fft(hits: NDArray[np.float64], inside: NDArray[np.bool_]) -> None:
    """Add the pairs of voxels of one cluster at their lags. Lags that exceed the box of all lags have wrapped."""
    shape = [min(2 * n - 1, lags) for n, lags in zip(inside.shape, hits.shape, strict=True)]
    pairs = np.fft.irfftn(np.abs(np.fft.rfftn(inside, shape, (0, 1, 2))) ** 2, shape, (0, 1, 2))
    lags = [np.fft.fftfreq(n, 1 / n).astype(int) % of for n, of in zip(shape, hits.shape, strict=True)]
    hits[np.ix_(*lags)] += np.round(pairs)


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
    edge = cubic(ms)
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


def cubic(ms: Microstructure) -> float:
    """The edge of a voxel.

    Raises:
        InvalidArgument: when it has several.
    """
    if max(ms.spacing) > min(ms.spacing) * (1 + 1e-6):
        raise InvalidArgument(f"voxels must be cubes, spacing is {ms.spacing}; resample the volume first")
    return ms.spacing[0]


def _quiet() -> Any:
    from .transport import _silence

    return _silence()
