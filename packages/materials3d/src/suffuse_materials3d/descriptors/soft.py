r"""Descriptors of probabilities, which have gradients: for losses and for guidance.

Volumes are shares p (B, X, Y, Z) in [0, 1] of one phase, of cubic voxels in a periodic box. On labels (0 or 1) each
agrees with its hard namesake, but for ``soft_interface``: it is for smooth shares, and on labels some percent larger.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

__all__ = ["soft_absorption", "soft_interface", "soft_lineal_path", "soft_two_point", "soft_volume_fraction"]


def soft_volume_fraction(p: Tensor) -> Tensor:
    """(B,) mean of p."""
    return p.mean((1, 2, 3))


def soft_two_point(p: Tensor, max_r: int | None = None) -> Tensor:
    """S2(r), (B, max_r + 1), at r = 0 ... max_r voxels: the periodic autocorrelation by FFT, averaged over shells.

    Args:
        p: (B, X, Y, Z).
        max_r: default half the smallest edge.
    """
    shape = p.shape[1:]
    max_r = min(shape) // 2 if max_r is None else max_r
    correlation = torch.fft.irfftn(torch.fft.rfftn(p, dim=(1, 2, 3)).abs().square(), s=shape, dim=(1, 2, 3))
    shell = _shells(tuple(shape)).to(p.device)
    inside = shell <= max_r
    total = torch.zeros(max_r + 1, dtype=p.dtype, device=p.device)
    total = total.index_add(0, shell[inside], torch.ones_like(shell[inside], dtype=p.dtype))
    sums = torch.zeros(len(p), max_r + 1, dtype=p.dtype, device=p.device)
    sums = sums.index_add(1, shell[inside], correlation.flatten(1)[:, inside])
    return sums / total / shell.numel()


@lru_cache(maxsize=16)
def _shells(shape: tuple[int, ...]) -> Tensor:
    """(X Y Z,) distance of each lag of a periodic box, rounded to whole voxels."""
    lags = [torch.fft.fftfreq(n, 1 / n).double() for n in shape]
    return torch.stack(torch.meshgrid(*lags, indexing="ij")).square().sum(0).sqrt().round().long().flatten()


def soft_lineal_path(p: Tensor, axis: int = 2, max_r: int | None = None, periodic: bool = True) -> Tensor:
    """L(r), (B, max_r + 1): the mean product of p along segments of r voxels on an axis (0, 1 or 2)."""
    dim = axis + 1
    n = p.shape[dim]
    max_r = n // 2 if max_r is None else max_r
    inside, values = p, [p.mean((1, 2, 3))]
    for lag in range(1, max_r + 1):
        inside = inside * p.roll(-lag, dim)
        values.append((inside if periodic else inside.narrow(dim, 0, n - lag)).mean((1, 2, 3)))
    return torch.stack(values, 1)


def soft_interface(p: Tensor, spacing: Sequence[float] = (1.0, 1.0, 1.0)) -> Tensor:
    """(B,) mean |grad p|, the area of the interface per volume where it is smooth over a few voxels (periodic box)."""
    slopes = [(p.roll(-1, d + 1) - p.roll(1, d + 1)) / (2 * spacing[d]) for d in range(3)]
    return (torch.stack(slopes).square().sum(0) + 1e-12).sqrt().mean((1, 2, 3))


def soft_absorption(p: Tensor, dz: float = 1.0, length: float = 100.0) -> Tensor:
    """(B,) mean of p exp(-depth / length), depth from the top layer: ``graspi.absorption``."""
    depth = (p.shape[3] - torch.arange(p.shape[3], dtype=p.dtype, device=p.device)) * dz
    return (p * torch.exp(-depth / length)).mean((1, 2, 3))
