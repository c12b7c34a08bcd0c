"""What else is known of a window, as channels along time: features of the future, and features of the series.

Each of three kinds may be absent, row by row, and then reads as zeros with its "given" channel at zero as well, so that
a network trained with some of them dropped serves with and without:

    dynamic  (B, F, L)   real features known over the whole window, the horizon too (prices, calendar), a condition map
    static   (B, 1, S)   real features of the series, a condition token, repeated along time
    category (B, 1, K)   integer features of the series, a condition token, embedded and repeated along time
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from gluonts.torch.modules.feature import FeatureEmbedder
from torch import Tensor, nn

from suffuse import Condition

__all__ = ["CovariateEncoder"]


class CovariateEncoder(nn.Module):
    """(B, C, L), cond -> (B, channels, L): the covariates a condition holds, in the layout of the module's table.

    Args:
        dynamic: F, number of known-future real features.
        static: S, number of static real features.
        cardinality: number of categories of each static categorical feature, K numbers; category c takes
            min(50, (c + 1) // 2) channels, GluonTS's rule.
    """

    def __init__(self, dynamic: int = 0, static: int = 0, cardinality: Sequence[int] = ()) -> None:
        super().__init__()
        self.dynamic, self.static, self.cardinality = dynamic, static, list(cardinality)
        embedded = [min(50, (c + 1) // 2) for c in self.cardinality]
        self.embed = FeatureEmbedder(self.cardinality, embedded) if embedded else None
        #: width of each kind that there is
        self.widths = {"dynamic": dynamic, "static": static, "category": sum(embedded)}
        self.widths = {name: width for name, width in self.widths.items() if width}

    @property
    def channels(self) -> int:
        return sum(width + 1 for width in self.widths.values())

    def forward(self, x: Tensor, cond: Condition | None) -> Tensor:
        parts = [part for name, width in self.widths.items() for part in self.read(name, width, x, cond)]
        return torch.cat(parts, dim=1) if parts else x[:, :0]

    def read(self, name: str, width: int, x: Tensor, cond: Condition | None) -> tuple[Tensor, Tensor]:
        """The channels of one kind (B, width, L), and where they are given (B, 1, L)."""
        if cond is None or name not in cond.names:
            return x.new_zeros(len(x), width, x.shape[-1]), x.new_zeros(len(x), 1, x.shape[-1])
        if name == "dynamic":
            cond.expect(len(x), maps={name: width})
            value, given = cond.maps[name], cond.masks[name]
        else:
            cond.expect(len(x), tokens={name: len(self.cardinality) if name == "category" else width})
            value, given = cond.tokens[name][:, 0], cond.masks[name][:, 0]
            if name == "category":
                assert self.embed is not None
                value = self.embed(value.long())
            value = value[..., None].expand(-1, -1, x.shape[-1])
        mask = given.to(x.dtype)[:, None, None].expand(-1, 1, x.shape[-1])
        return value.to(x.dtype) * mask, mask
