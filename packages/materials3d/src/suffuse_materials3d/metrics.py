r"""Measures of structures, and of how far two sets of them are apart. By name, and with more: ``descriptors``.

Each takes a `Microstructure` and a phase and respects its voxel size and periodic axes. Correlations follow Torquato
(2002), "Random Heterogeneous Materials". Names of length-valued results are in the structure's own unit.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from suffuse.errors import InvalidArgument

from .microstructure import Microstructure
from .simulate import wave_numbers

__all__ = [
    "Curve",
    "characteristic_length",
    "clusters_through",
    "components",
    "connected_fraction",
    "curve_distance",
    "euler_density",
    "interface_area",
    "lineal_path",
    "mae",
    "overlap",
    "percolates",
    "r2",
    "two_point_correlation",
    "volume_fraction",
]


class Curve(NamedTuple):
    """A function of distance: ``r`` (n,) in the structure's unit, ``values`` (n,)."""

    r: NDArray[np.float64]
    values: NDArray[np.float64]


def volume_fraction(ms: Microstructure, phase: int = 1) -> float:
    """Share of the voxels that hold the phase, in [0, 1]."""
    return float(ms.mask(phase).mean())


# --- two points and lines ---------------------------------------------------------------------------------------


def two_point_correlation(ms: Microstructure, phase: int = 1) -> Curve:
    r"""S2(r) = P(x in phase and x + d in phase, |d| = r), averaged over directions; S2(0) is the volume fraction.

    The autocorrelation of the phase, by FFT, divided by the number of pairs (an axis that is not periodic is padded
    with zeros), then averaged over shells of the width of the smallest voxel edge, up to half the smallest box edge;
    ``r`` is the mean distance in a shell.
    """
    mask = torch.from_numpy(ms.mask(phase)).double()
    return over_shells(_autocorrelation(mask, lag_shape(ms)), ms)


def lag_shape(ms: Microstructure) -> list[int]:
    """How many lags there are on each axis: an axis that is not periodic has them of both signs."""
    return [n if p else 2 * n for n, p in zip(ms.shape, ms.periodic, strict=True)]


def over_shells(hits: Tensor, ms: Microstructure) -> Curve:
    """Counts of pairs by their lag, of ``lag_shape``, as a probability by distance: see ``two_point_correlation``."""
    padded = lag_shape(ms)
    pairs = _autocorrelation(torch.ones(ms.shape, dtype=torch.float64), padded)
    lags = [torch.fft.fftfreq(n, 1 / n).double() * d for n, d in zip(padded, ms.spacing, strict=True)]
    distance = torch.stack(torch.meshgrid(*lags, indexing="ij")).square().sum(0).sqrt()
    width = min(ms.spacing)
    shell = (distance / width).round().long()
    count = int(min(ms.size) / 2 / width + 1e-9) + 1
    inside = (shell < count) & (pairs > 0.5)
    shell = shell[inside]
    total = torch.zeros(count, dtype=torch.float64).index_add(0, shell, torch.ones(len(shell), dtype=torch.float64))
    r = torch.zeros(count, dtype=torch.float64).index_add(0, shell, distance[inside])
    s2 = torch.zeros(count, dtype=torch.float64).index_add(0, shell, (hits / pairs)[inside])
    there = total > 0  # a shell can be empty when voxels are far from cubic
    return Curve((r / total)[there].numpy(), (s2 / total)[there].numpy())


def _autocorrelation(values: Tensor, shape: Sequence[int]) -> Tensor:
    """Sum over x of v(x) v(x + d), for every lag d of a box of that shape, v being zero outside its own."""
    product: Tensor = torch.fft.irfftn(torch.fft.rfftn(values, s=shape).abs().square(), s=shape)
    return product


def lineal_path(ms: Microstructure, phase: int = 1, axis: int = 0) -> Curve:
    """L(r): the probability that a whole segment of length r along an axis lies in the phase; L(0) is the fraction."""
    mask, n = ms.mask(phase), ms.shape[axis]
    inside, values = mask.copy(), [mask.mean()]
    for lag in range(1, n // 2 + 1):
        inside &= np.roll(mask, -lag, axis)
        whole = inside if ms.periodic[axis] else inside.take(range(n - lag), axis)
        values.append(whole.mean())
    return Curve(np.arange(len(values), dtype=np.float64) * ms.spacing[axis], np.asarray(values, dtype=np.float64))


def characteristic_length(ms: Microstructure) -> float:
    """2 pi / <k>, the mean wavelength: <k> is the mean wave number, weighted by the power of the field (or of phase 1).

    The box is taken as periodic.
    """
    source = ms.mask(1) if ms.field is None else ms.field
    u = torch.from_numpy(np.asarray(source, dtype=np.float64))
    power = torch.fft.fftn(u - u.mean()).abs().square()
    if float(power.sum()) < 1e-20:
        raise InvalidArgument("the structure is uniform, so it has no characteristic length")
    k = wave_numbers(ms.shape, ms.spacing, u, half=False).square().sum(0).sqrt()
    return float(2 * np.pi * power.sum() / (k * power).sum())


# --- the interface ----------------------------------------------------------------------------------------------


def interface_area(ms: Microstructure, phase: int = 1) -> float:
    """Area of the phase's boundary per volume of the box, in 1 / unit, from the labels alone.

    Cauchy and Crofton: S_V = 2 <N_L>, where N_L is the number of crossings per length of a straight line and the mean
    is over directions; here over the 13 lines to the neighbours of a voxel, each weighted by the solid angle that is
    nearest to it. Unlike a count of faces, which stays 1.5 times too large, it converges as voxels shrink; flat layers
    along the axes come out a few percent off. An axis that is not periodic counts the pairs inside the box.
    Legland, Kiêu, Devaux (2007), Image Anal. Stereol. 26, 83.
    """
    from scipy.spatial import SphericalVoronoi

    mask = ms.mask(phase)
    steps = np.array([s for s in itertools.product((-1, 0, 1), repeat=3) if any(s)])
    lengths = np.linalg.norm(steps * ms.spacing, axis=1)
    share = SphericalVoronoi(steps * ms.spacing / lengths[:, None]).calculate_areas() / (4 * np.pi)
    crossings = 0.0
    for step, length, weight in zip(steps, lengths, share, strict=True):
        crossings += weight * _crossing_rate(mask, step, ms.periodic) / length
    return float(2 * crossings)


def _crossing_rate(mask: NDArray[np.bool_], step: NDArray[np.int_], periodic: Sequence[bool]) -> float:
    """Share of the pairs (x, x + step) of which one is in the phase and one is not."""
    here = there = mask
    for axis, move in enumerate(step):
        if periodic[axis]:
            there = np.roll(there, -move, axis)
        elif move:
            front, back = range(mask.shape[axis] - 1), range(1, mask.shape[axis])
            here, there = here.take(front if move > 0 else back, axis), there.take(back if move > 0 else front, axis)
    return float((here ^ there).mean()) if here.size else 0.0


# --- topology ---------------------------------------------------------------------------------------------------


def components(ms: Microstructure, phase: int = 1) -> tuple[NDArray[np.int32], int]:
    """Connected clusters of the phase: labels (X, Y, Z), 0 outside and 1 ... n inside, and n.

    Voxels that share a face are connected, also across the periodic axes.
    """
    return _components(ms.mask(phase), ms.periodic)


def _components(
    mask: NDArray[np.bool_], periodic: Sequence[bool], connectivity: int = 6
) -> tuple[NDArray[np.int32], int]:
    import cc3d
    from scipy import sparse

    label: Any = cc3d.connected_components
    found = label(mask.astype(np.uint8), connectivity=connectivity, return_N=True)
    labels: NDArray[Any] = found[0]
    n = int(found[1])
    first, last = [], []
    for axis in (axis for axis in range(3) if periodic[axis]):
        a, b = labels.take(0, axis), labels.take(-1, axis)
        both = (a > 0) & (b > 0)
        first.append(a[both])
        last.append(b[both])
    if n and first:
        i, j = np.concatenate(first), np.concatenate(last)
        touching = sparse.coo_array((np.ones(len(i), dtype=bool), (i, j)), shape=(n + 1, n + 1))
        merged, root = sparse.csgraph.connected_components(touching, directed=False)
        labels, n = root.astype(np.int32)[labels], merged - 1
    return labels.astype(np.int32), n


def percolates(ms: Microstructure, phase: int = 1, axis: int = 2) -> bool:
    """Whether one cluster of the phase touches both faces of the box across an axis; the other axes may wrap."""
    return bool(clusters_through(ms, phase, axis).any())


def clusters_through(ms: Microstructure, phase: int = 1, axis: int = 2) -> NDArray[np.bool_]:
    """(X, Y, Z) voxels of the clusters that reach from face to face of an axis; the other axes may wrap."""
    periodic = tuple(p and i != axis for i, p in enumerate(ms.periodic))
    labels, _ = _components(ms.mask(phase), periodic)
    both = np.intersect1d(labels.take(0, axis), labels.take(-1, axis))
    through: NDArray[np.bool_] = np.isin(labels, both[both > 0])
    return through


def connected_fraction(ms: Microstructure, phase: int = 1) -> float:
    """Share of the phase's voxels that are in its largest cluster, in [0, 1]; 0 when the phase is absent."""
    labels, n = components(ms, phase)
    sizes = np.bincount(labels.ravel(), minlength=2)[1:]
    return float(sizes.max() / sizes.sum()) if n else 0.0


def euler_density(ms: Microstructure, phase: int = 1) -> float:
    """Euler number per volume, in 1 / unit^3: (clusters + closed cavities - tunnels) / volume, faces connecting.

    Strongly negative for a bicontinuous network, positive for a dispersion. Periodic axes are closed up: the Euler
    number is additive, so that of the torus is that of the box, wrapped by one voxel, less that of each wrapped face.
    """
    import skimage.measure

    euler_number: Any = skimage.measure.euler_number
    mask = ms.mask(phase)
    total = 0
    axes = [axis for axis in range(3) if ms.periodic[axis]]
    for chosen in itertools.product((False, True), repeat=len(axes)):
        part = mask
        for axis, face in zip(axes, chosen, strict=True):
            part = part.take([0], axis) if face else np.concatenate([part, part.take([0], axis)], axis)
        total += (-1) ** sum(chosen) * int(euler_number(part, connectivity=1))
    return total / float(np.prod(ms.size))


# --- comparing --------------------------------------------------------------------------------------------------


def curve_distance(a: Sequence[Curve], b: Sequence[Curve]) -> float:
    """Mean over r of |<a>(r) - <b>(r)|, the distance of two groups of curves on the same distances."""
    if not a or not b:
        raise InvalidArgument(f"curve_distance needs curves on both sides, got {len(a)} and {len(b)}")
    if any(curve.r.shape != a[0].r.shape or not np.allclose(curve.r, a[0].r) for curve in (*a, *b)):
        raise InvalidArgument("the curves have different distances r; measure volumes of one shape and spacing")
    mean_a, mean_b = (np.mean([curve.values for curve in group], axis=0) for group in (a, b))
    return float(np.abs(mean_a - mean_b).mean())


def overlap(fields: Tensor, others: Tensor) -> Tensor:
    """(A,): for each field its largest correlation with any of the others, over all periodic shifts; 1 is a copy.

    Args:
        fields: (A, X, Y, Z).
        others: (B, X, Y, Z).
    """

    def standard(u: Tensor) -> Tensor:
        u = u - u.mean((1, 2, 3), keepdim=True)
        u = u / u.square().sum((1, 2, 3), keepdim=True).sqrt().clamp_min(1e-12)
        u_hat: Tensor = torch.fft.rfftn(u, dim=(1, 2, 3))
        return u_hat

    against = standard(others).conj()
    rows = [torch.fft.irfftn(f * against, s=fields.shape[1:], dim=(1, 2, 3)).amax() for f in standard(fields)]
    return torch.stack(rows)


def r2(requested: ArrayLike, obtained: ArrayLike) -> float:
    """1 - sum (obtained - requested)^2 / sum (requested - mean)^2: at most 1, and 0 for always giving the mean."""
    from torchmetrics.functional.regression import r2_score

    return float(r2_score(*_pair(obtained, requested)))


def mae(requested: ArrayLike, obtained: ArrayLike) -> float:
    """Mean |obtained - requested|."""
    from torchmetrics.functional.regression import mean_absolute_error

    return float(mean_absolute_error(*_pair(obtained, requested)))


def _pair(obtained: ArrayLike, requested: ArrayLike) -> tuple[Tensor, Tensor]:
    a, b = (torch.as_tensor(np.asarray(v, dtype=np.float64)) for v in (obtained, requested))
    if a.shape != b.shape or a.ndim != 1 or len(a) < 2:
        raise InvalidArgument(f"need two lists of one length >= 2, got shapes {tuple(a.shape)} and {tuple(b.shape)}")
    return a, b
