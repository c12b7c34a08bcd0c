"""From raw strengths to [0, 1], as the whole dataset has them: the scale on which an attribute is requested.

    minmax    v = (z - min) / (max - min)            one outlier stretches it
    quantile  v = share of the dataset below z       0.8 means the 80th percentile

Both are linear between knots: two of them, or one per percent. Requests, plans and judgements must use the same knots,
so they are kept with every checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from suffuse.errors import InvalidArgument, unknown

KINDS = ("minmax", "quantile")


@dataclass(frozen=True)
class AttributeScale:
    """Strengths to [0, 1] and back.

    Args:
        kind: one of ``KINDS``.
        knots: (k, Q), increasing; knot q of attribute i is the strength that becomes q / (Q - 1).
    """

    kind: str
    knots: Tensor

    @classmethod
    def fit(cls, strengths: Tensor, kind: str = "minmax") -> AttributeScale:
        """From the strengths (N, k) of all windows of a dataset."""
        if kind not in KINDS:
            raise unknown("scale", kind, KINDS)
        if not bool(strengths.isfinite().all()):
            raise InvalidArgument("strengths hold NaN or infinity; did the attribute model diverge?")
        levels = torch.linspace(0, 1, 2 if kind == "minmax" else 101, dtype=torch.float64)
        knots = torch.quantile(strengths.double(), levels, dim=0).T.contiguous()
        if bool((knots[:, -1] <= knots[:, 0]).any()):
            raise InvalidArgument("an attribute has the same strength everywhere: nothing can be requested of it")
        return cls(kind, knots)

    def __call__(self, strengths: Tensor) -> Tensor:
        """z (..., k) -> v (..., k) in [0, 1]."""
        z = strengths.movedim(-1, 0).flatten(1).contiguous()
        knots = self.knots.to(z)
        i = torch.searchsorted(knots, z).clamp(1, knots.shape[1] - 1)
        low, high = knots.gather(1, i - 1), knots.gather(1, i)
        share = ((z - low) / (high - low).clamp(min=1e-9)).clamp(0, 1)
        v = (i - 1 + share) / (knots.shape[1] - 1)
        return v.unflatten(1, strengths.shape[:-1]).movedim(0, -1) if strengths.ndim > 1 else v[:, 0]

    def to_config(self) -> dict[str, Any]:
        return {"kind": self.kind, "knots": self.knots.tolist()}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> AttributeScale:
        return cls(config["kind"], torch.tensor(config["knots"], dtype=torch.float64))
