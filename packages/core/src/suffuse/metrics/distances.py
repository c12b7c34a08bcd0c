"""Two distances between distributions, from samples x (N, ...) and y (M, ...).

    energy distance   2 E|X - Y| - E|X - X'| - E|Y - Y'|
    squared MMD       E k(X, X') + E k(Y, Y') - 2 E k(X, Y)

Both are zero exactly when the distributions are equal (the kernel being characteristic), and both are the same
expression: the energy distance is the MMD of the "kernel" -|x - y|. The estimators are U-statistics, which leave the
pairs of a sample with itself out: unbiased, hence centred on zero for equal distributions, and sometimes negative.

Székely, Rizzo (2013), "Energy statistics: A class of statistics based on distances", JSPI 143, eq. 5.
Gretton et al. (2012), "A Kernel Two-Sample Test", JMLR 13, eq. 3.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from suffuse.errors import InvalidArgument

CHUNK = 2048
"""Rows per block of the distance matrix: memory is CHUNK x max(N, M)."""


def energy_distance(x: Tensor, y: Tensor) -> float:
    """Energy distance between two samples, unbiased, in the unit of the data.

    Args:
        x: N >= 2 samples (N, ...), each flattened to a vector.
        y: M >= 2 samples (M, ...) of the same shape.

    Raises:
        InvalidArgument: for fewer than two samples, unequal sample shapes, or values that are not finite.
    """
    x, y = _vectors(x, y)
    return 2 * _mean(x, y, _identity) - _mean(x, x, _identity) - _mean(y, y, _identity)


def mmd(x: Tensor, y: Tensor, bandwidth: float | None = None) -> float:
    """Squared maximum mean discrepancy with the kernel exp(-|x - y|^2 / (2 bandwidth^2)), unbiased.

    Args:
        x: N >= 2 samples (N, ...), each flattened to a vector.
        y: M >= 2 samples (M, ...) of the same shape.
        bandwidth: of the kernel; by default the median distance between (at most a thousand each) samples of the
            two together. Give one where values for different x are compared.

    Raises:
        InvalidArgument: as `energy_distance`, and for a bandwidth that is not positive.
    """
    x, y = _vectors(x, y)
    if bandwidth is None:
        both = torch.cat([x[:1000], y[:1000]])
        bandwidth = float(torch.pdist(both).median()) or 1.0
    if not bandwidth > 0:
        raise InvalidArgument(f"bandwidth: must be positive, got {bandwidth}")

    def kernel(distance: Tensor) -> Tensor:
        return torch.exp(-0.5 * (distance / bandwidth) ** 2)

    return _mean(x, x, kernel) + _mean(y, y, kernel) - 2 * _mean(x, y, kernel)


def _identity(distance: Tensor) -> Tensor:
    return distance


def _mean(x: Tensor, y: Tensor, of: Callable[[Tensor], Tensor]) -> float:
    """Mean of a function of the distance over all pairs; without the pairs i = j where x is y."""
    same = x is y
    total = 0.0
    for start in range(0, len(x), CHUNK):
        block = x[start : start + CHUNK]
        values = of(torch.cdist(block, y, compute_mode="donot_use_mm_for_euclid_dist"))
        if same:
            values[torch.arange(len(block)), torch.arange(start, start + len(block))] = 0
        total += float(values.sum())
    return total / (len(x) * (len(y) - same))


def _vectors(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    for name, sample in (("x", x), ("y", y)):
        if sample.ndim < 1 or len(sample) < 2:
            raise InvalidArgument(f"{name}: needs at least two samples (N, ...), got shape {tuple(sample.shape)}")
        if not torch.isfinite(sample).all():
            raise InvalidArgument(f"{name}: has values that are NaN or infinite")
    if x.shape[1:] != y.shape[1:]:
        raise InvalidArgument(f"y: samples of shape {tuple(y.shape[1:])} cannot be compared with {tuple(x.shape[1:])}")
    return x.detach().reshape(len(x), -1).double(), y.detach().reshape(len(y), -1).double()
