r"""Volume fractions met to a voxel: the shifts of the logits with which each phase gets its share.

    phase(x) = argmax_k l_k(x) + b_k,      b minimises   mean_x max_k (l_k(x) + b_k) - sum_k s_k b_k,

whose derivative in b_k is the share of phase k less the wanted s_k. It is convex (the dual of moving the voxels to the
phases at the least loss of logits), and along one b_k its minimum is a quantile of what phase k has more than the best
other one; so one is taken after the other. For two phases that moves the one threshold there is.

Sinkhorn's iteration at temperature zero; Peyre, Cuturi (2019), "Computational Optimal Transport", sec. 5.2 and 3.4.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from suffuse.errors import InvalidArgument

__all__ = ["matching_shifts", "requested_shares"]


def matching_shifts(logits: NDArray[np.floating[Any]], shares: Sequence[float], sweeps: int = 100) -> NDArray[Any]:
    """The shifts b (K,), of mean zero, of logits (K, X, Y, Z) for the shares (K,), which sum to one."""
    flat = np.asarray(logits, dtype=np.float64).reshape(len(shares), -1)
    b = np.zeros(len(shares))
    for _ in range(sweeps):
        for k, share in enumerate(shares):
            others = np.delete(flat + b[:, None], k, axis=0).max(0)
            b[k] = -np.quantile(flat[k] - others, 1 - share)
        got = np.bincount((flat + b[:, None]).argmax(0), minlength=len(shares)) / flat.shape[1]
        if np.abs(got - shares).max() <= 1 / flat.shape[1]:
            break
    return b - b.mean()


def requested_shares(about: Mapping[str, Any], phases: int) -> list[float]:
    """The shares of all phases from the attributes ``requested_vf_0`` and so on, of which one may be left open.

    Raises:
        InvalidArgument: where more are open, or they are more than the whole.
    """
    known = {k: about[f"requested_vf_{k}"] for k in range(phases) if f"requested_vf_{k}" in about}
    if phases == 2 and "requested_volume_fraction" in about:
        known = {1: about["requested_volume_fraction"]}
    rest = 1 - sum(known.values())
    if len(known) < phases - 1:
        raise InvalidArgument(f"match_fraction needs a requested vf of all phases but one, got {sorted(known)}")
    if rest < 0 or (len(known) == phases and rest > 1e-3):
        raise InvalidArgument(f"the requested fractions {known} must sum to one with those left open")
    return [known.get(k, rest) for k in range(phases)]
