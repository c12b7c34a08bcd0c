"""One big volume as a data set: patches that overlap for training, whole slabs held out, and is a patch large enough?

A tomogram is one sample of a material. Patches that share voxels must not be on both sides of a split, so the far end
along one axis is held out as a slab, and no training patch reaches into it.

A patch is representative for a quantity when the quantity varies little from patch to patch. ``Tomogram.rev`` gives the
relative spread by edge length; a patch whose spread is above the tolerance is below the representative elementary
volume (REV), and ``cut_tomogram`` warns.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from suffuse.errors import InvalidArgument

from ..microstructure import Microstructure
from .volumes import Volumes

__all__ = ["Tomogram", "cut_tomogram", "rev"]


@dataclass(frozen=True)
class Tomogram:
    """Patches of one volume.

    Args:
        train: patches of the front part.
        held_out: patches of the slab.
        rev: edge in voxels -> relative spread of the volume fraction over cubes of that edge, of the phase that varies
            most.
        representative: the smallest of these edges below the tolerance; None when none is.
    """

    train: Volumes
    held_out: Volumes
    rev: dict[int, float]
    representative: int | None


def cut_tomogram(
    ms: Microstructure,
    patch: Sequence[int] = (32, 32, 32),
    *,
    stride: Sequence[int] | None = None,
    held_out: float = 0.25,
    axis: int = 0,
    tolerance: float = 0.1,
    descriptors: Sequence[str] = (),
) -> Tomogram:
    """Cut a volume into patches.

    Args:
        ms: the volume.
        patch: voxels of a patch (X, Y, Z).
        stride: from one patch to the next; default half a patch.
        held_out: share of the length along ``axis`` that is kept as a slab; at least one patch thick.
        axis: along which the slab is the far end.
        tolerance: largest relative spread (std / mean) of the volume fraction of phase 1 from patch to patch.
        descriptors: to measure of each patch.

    Raises:
        InvalidArgument: when the patch does not fit twice along ``axis``, or the volume has one phase only.

    Warns:
        UserWarning: when the patch is smaller than the representative elementary volume.
    """
    size = tuple(int(n) for n in patch)
    steps = tuple(int(n) for n in (stride or [max(n // 2, 1) for n in size]))
    if len(size) != 3 or min(size) < 4 or min(steps) < 1 or axis not in (0, 1, 2) or not 0 < held_out < 1:
        raise InvalidArgument(
            f"need patch and stride of three sizes, an axis and held_out in (0, 1), got {size}, {steps}"
        )
    if len(ms.phases) < 2:
        raise InvalidArgument(f"the volume holds phase {ms.phases[0]} alone, so there is nothing to learn")
    if any(p > n for p, n in zip(size, ms.shape, strict=True)) or 2 * size[axis] > ms.shape[axis]:
        raise InvalidArgument(
            f"patch {size} must fit into {ms.shape}, and twice along axis {axis} (once to train, once held out)"
        )
    slab = max(round(held_out * ms.shape[axis]), size[axis])
    border = ms.shape[axis] - slab
    if border < size[axis]:
        raise InvalidArgument(f"held_out={held_out} leaves {border} voxels to train on, less than a patch; lower it")
    spread = rev(ms)
    fine = [edge for edge, value in spread.items() if value <= tolerance]
    edge = round(float(np.prod(size)) ** (1 / 3))
    if not fine or edge < min(fine):
        need = f"{min(fine)} voxels an edge would do" if fine else "no patch of this volume is large enough"
        warnings.warn(
            f"a patch of {size} is below the representative elementary volume: the volume fraction varies by more "
            f"than {tolerance:.0%} from patch to patch; {need}",
            UserWarning,
            stacklevel=2,
        )
    front, back = [slice(None)] * 3, [slice(None)] * 3
    front[axis], back[axis] = slice(0, border), slice(border, None)
    parts = []
    for name, part in ((0, tuple(front)), (1, tuple(back))):
        labels = ms.labels[part]
        corners = itertools.product(
            *(range(0, n - p + 1, s) for n, p, s in zip(labels.shape, size, steps, strict=True))
        )
        cut = np.stack(
            [labels[tuple(slice(c, c + p) for c, p in zip(corner, size, strict=True))] for corner in corners]
        )
        volumes = Volumes(
            torch.from_numpy(np.ascontiguousarray(cut)),
            {},
            torch.full((len(cut),), name),
            int(ms.labels.max()) + 1,
            ms.spacing,
            ms.unit,
            (False, False, False),
        )
        parts.append(volumes.measured(descriptors) if descriptors else volumes)
    return Tomogram(parts[0], parts[1], spread, min(fine) if fine else None)


def rev(ms: Microstructure, edges: Sequence[int] | None = None, phase: int | None = None) -> dict[int, float]:
    """Edge in voxels -> std / mean of a phase's share over disjoint cubes of that edge (at least 8 of them).

    Args:
        phase: which; None is the phase that varies most at each edge.
    """
    if phase is None:
        each = [rev(ms, edges, p) for p in ms.phases]
        return {edge: max(spread[edge] for spread in each) for edge in each[0]}
    mask = ms.mask(phase).astype(np.float64)
    found: dict[int, float] = {}
    for edge in edges or [2**k for k in range(2, 9)]:
        counts = [n // edge for n in ms.shape]
        if min(counts) < 1 or np.prod(counts) < 8:
            continue
        whole = mask[tuple(slice(0, c * edge) for c in counts)]
        a, b, c = counts
        share = whole.reshape(a, edge, b, edge, c, edge).mean((1, 3, 5)).ravel()
        found[edge] = float(share.std(ddof=1) / max(share.mean(), 1e-12))
    return found
