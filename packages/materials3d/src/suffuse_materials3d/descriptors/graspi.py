r"""The graph descriptors of GraSPI, by which organic electronics describes a morphology.

Voxels are vertices, the 26 neighbours of each its edges. Phase 0 is the donor, whose electrode (the anode) is at the
top, z = nz - 1; phase 1 the acceptor, whose electrode (the cathode) is at the bottom, z = 0; phase 2 is mixed. Names in
parentheses are GraSPI's own. The sides x and y do not wrap, as there.

``straight`` is a share of voxels with a straight way to their electrode, and no tortuosity factor: never compare it
with ``transport``.

Wodo, Tirthapura, Chaudhary, Ganapathysubramanian (2012), "A graph-based formulation for computational characterization
of bulk heterojunction morphology", Org. Electron. 13, 1105; the names and formulas as in the program GraSPI.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from suffuse.errors import InvalidArgument

from ..microstructure import Microstructure

__all__ = [
    "absorption",
    "connected_to_electrode",
    "dissociation",
    "geometric_tortuosity",
    "interface_connected",
    "interface_edges",
    "straight",
]


def electrode(phase: int, thickness: int) -> int:
    """The layer z at which the electrode of a phase lies: the top for the donor, else the bottom."""
    return thickness - 1 if phase == 0 else 0


def _paths(ms: Microstructure, phase: int) -> NDArray[np.float64]:
    """(X, Y, Z) length in ``ms.unit`` of the shortest way inside the phase from a voxel to the electrode's layer."""
    from skimage.graph import MCP_Geometric

    mask = ms.mask(phase)
    at = electrode(phase, ms.shape[2])
    starts = [(int(x), int(y), at) for x, y in np.argwhere(mask[:, :, at])]
    if not starts:
        return np.full(ms.shape, np.inf)
    search: Any = MCP_Geometric(np.where(mask, 1.0, -1.0), fully_connected=True, sampling=ms.spacing)
    lengths, _ = search.find_costs(starts)
    return np.where(mask, lengths, np.inf)


def _heights(ms: Microstructure, phase: int) -> NDArray[np.float64]:
    """(Z,) distance of a layer from the electrode's, in ``ms.unit``."""
    return np.abs(np.arange(ms.shape[2]) - electrode(phase, ms.shape[2])) * ms.spacing[2]


def straight(ms: Microstructure, phase: int = 1) -> float:
    """Share of the phase's voxels with a way to their electrode whose way is straight (CT_f_D_tort1, CT_f_A_tort1).

    Straight: length / height is within 1 / nz of 1; the electrode's own layer is. 0 where nothing reaches it.
    """
    lengths, heights = _paths(ms, phase), _heights(ms, phase)
    reached = np.isfinite(lengths)
    if not reached.any():
        return 0.0
    ratio = np.ones_like(lengths)
    np.divide(lengths, heights, out=ratio, where=np.broadcast_to(heights > 0, lengths.shape) & reached)
    return float((np.abs(ratio[reached] - 1) < 1 / ms.shape[2]).mean())


def geometric_tortuosity(ms: Microstructure, phase: int = 1) -> float:
    """Mean over the far layer of (shortest way from the electrode) / (straight distance); infinite without any."""
    if ms.shape[2] < 2:
        raise InvalidArgument(f"tau_geo needs two layers or more along z, the shape is {ms.shape}")
    far, height = (a[..., 0 if phase == 0 else -1] for a in (_paths(ms, phase), _heights(ms, phase)))
    reached = np.isfinite(far)
    return float(far[reached].mean() / height) if reached.any() else float("inf")


def connected_to_electrode(ms: Microstructure, phase: int = 1) -> float:
    """Share of the phase that is connected to its electrode (CT_f_conn_D_An, CT_f_conn_A_Ca); 0 without the phase."""
    mask = ms.mask(phase)
    return float(_connected(ms, phase).sum() / mask.sum()) if mask.any() else 0.0


def _connected(ms: Microstructure, phase: int) -> NDArray[np.bool_]:
    """(X, Y, Z) voxels of the phase that are connected to its electrode by 26 neighbours."""
    import cc3d

    labels: NDArray[Any] = cc3d.connected_components(ms.mask(phase).astype(np.uint8), connectivity=26)
    at = np.unique(labels[:, :, electrode(phase, ms.shape[2])])
    return np.isin(labels, at[at > 0])


def absorption(ms: Microstructure, phase: int = 0, length: float = 100.0) -> float:
    """Light absorbed in the donor when it comes from the top (ABS_wf_D): mean over ALL voxels of exp(-depth / length).

    Depth is counted from the top layer, which has one voxel's; in ``ms.unit`` (GraSPI: nm). It is no share.
    """
    depth = (ms.shape[2] - np.arange(ms.shape[2])) * ms.spacing[2]
    return float((ms.mask(phase) * np.exp(-depth / length)).mean())


def dissociation(ms: Microstructure, phase: int = 0, reach: float = 10.0, weighted: bool = True) -> float:
    """Excitons of the donor that find the interface (DISS_f10_D, weighted DISS_wf10_D): donor voxels within ``reach``
    of another phase, each weighted by 6.265 exp(-((d + 23) / 17.17)^2), over all donor voxels. d in ``ms.unit`` (nm).
    """
    from scipy.ndimage import distance_transform_edt

    mask = ms.mask(phase)
    if not mask.any() or mask.all():
        return 0.0
    d = np.asarray(distance_transform_edt(mask, sampling=ms.spacing))[mask]
    weight = 6.265 * np.exp(-(((d + 23) / 17.17) ** 2)) if weighted else np.ones_like(d)
    return float(weight[d < reach].sum() / mask.sum())


def _edges(ms: Microstructure) -> list[tuple[tuple[slice, ...], tuple[slice, ...]]]:
    """The two ends of the 13 kinds of edges to the 26 neighbours."""
    ends = []
    for step in itertools.product((-1, 0, 1), repeat=3):
        if step > (0, 0, 0):
            a = tuple(slice(max(-s, 0), n - max(s, 0)) for s, n in zip(step, ms.shape, strict=True))
            b = tuple(slice(max(s, 0), n + min(s, 0)) for s, n in zip(step, ms.shape, strict=True))
            ends.append((a, b))
    return ends


def interface_edges(ms: Microstructure) -> float:
    """Edges between donor and acceptor per voxel (STAT_e over the number of voxels; the norm is ours)."""
    donor, acceptor = ms.mask(0), ms.mask(1)
    count = sum(int((donor[a] & acceptor[b]).sum() + (acceptor[a] & donor[b]).sum()) for a, b in _edges(ms))
    return count / float(np.prod(ms.shape))


def interface_connected(ms: Microstructure) -> float:
    """Share of the edges between donor and acceptor both of whose ends reach their electrode (CT_f_e_conn)."""
    donor, acceptor = ms.mask(0), ms.mask(1)
    live_donor, live_acceptor = _connected(ms, 0), _connected(ms, 1)
    total = live = 0
    for a, b in _edges(ms):
        for one, other in ((a, b), (b, a)):
            total += int((donor[one] & acceptor[other]).sum())
            live += int((live_donor[one] & live_acceptor[other]).sum())
    return live / total if total else 0.0
