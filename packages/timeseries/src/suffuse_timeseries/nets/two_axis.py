r"""The two-axis block: a multivariate window is mixed along time by S4D and across its variates by attention.

A window is x (B, C, D, L): D variates, each with its C channels, over L steps. In front of each S4D block, which sees
every variate alone, stands one transformer layer across the variates of one step,

    u_d <- u_d + Attention_d(norm(u) + e),      u_d <- u_d + MLP(norm(u_d)),

with a learned embedding e_d of each variate. Both branches end in zeros at the start, so that training begins with D
univariate models that share their weights.
Two axes: Tashiro, Song, Song, Ermon (2021), "CSDI", arXiv:2107.03502, section 4.3, with a transformer along time where
S4D stands here. Kollovieh et al. (2023), arXiv:2307.11494, name multivariate targets as future work; this is ours.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from suffuse import Condition, hub
from suffuse.errors import InvalidArgument

from .s4d import S4DBackbone

__all__ = ["TwoAxisBackbone", "VariateMixer", "fold", "unfold"]


def fold(x: Tensor) -> Tensor:
    """(B, C, D, L) -> (B D, C, L): every variate a window of its own."""
    return x.transpose(1, 2).flatten(0, 1)


def unfold(x: Tensor, variates: int) -> Tensor:
    """(B D, C, L) -> (B, C, D, L), the inverse of ``fold``."""
    return x.unflatten(0, (-1, variates)).transpose(1, 2)


class VariateMixer(nn.Module):
    """One transformer layer over the D variates at each step, (B D, W, L) -> (B D, W, L)."""

    def __init__(self, width: int, variates: int, heads: int) -> None:
        super().__init__()
        if width % heads:
            raise InvalidArgument(f"width={width} must be a multiple of heads={heads}")
        self.variates, self.heads = variates, heads
        self.variate = nn.Parameter(0.02 * torch.randn(variates, width))
        self.norm_attention, self.norm_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        for last in (self.out, self.mlp[-1]):
            nn.init.zeros_(last.weight)  # type: ignore[arg-type]
            nn.init.zeros_(last.bias)  # type: ignore[arg-type]

    def forward(self, u: Tensor) -> Tensor:
        h = u.unflatten(0, (-1, self.variates)).permute(0, 3, 1, 2)  # (B, L, D, W)
        # steps and heads share an axis: GPU kernels count the batch in 16 bits, and B L would not fit
        qkv = self.qkv(self.norm_attention(h) + self.variate).unflatten(-1, (3, self.heads, -1))  # (B, L, D, 3, h, W/h)
        q, k, v = qkv.permute(3, 0, 1, 4, 2, 5).flatten(2, 3)  # 3 of (B, L h, D, W / h)
        mixed = F.scaled_dot_product_attention(q, k, v).unflatten(1, (-1, self.heads))
        h = h + self.out(mixed.transpose(2, 3).flatten(3))
        h = h + self.mlp(self.norm_mlp(h))
        return h.permute(0, 2, 3, 1).flatten(0, 1)


class TwoAxisBlock(nn.Module):
    """A mixer and the block of one window behind it."""

    def __init__(self, block: nn.Module, mixer: VariateMixer) -> None:
        super().__init__()
        self.mixer, self.block = mixer, block

    def forward(self, u: Tensor, *given: Any) -> Any:
        return self.block(self.mixer(u), *given)


@hub.serializable
class TwoAxisBackbone(S4DBackbone):
    """``S4DBackbone`` for windows of D variates, (B, C, D, L) -> (B, C, D, L); see the module.

    The condition maps ``values`` and ``observed`` are (B, C, D, L); covariates are those of the window and are shown to
    all variates.

    Args:
        channels: C = 1 + number of lags.
        variates: D.
        heads: of the attention across variates; divides the width.
        settings: of ``S4DBackbone``.
    """

    def __init__(self, channels: int, variates: int, *, heads: int = 4, **settings: Any) -> None:
        super().__init__(channels, **settings)
        self.variates = variates
        width = self.input.out_channels
        self.blocks = nn.ModuleList(TwoAxisBlock(b, VariateMixer(width, variates, heads)) for b in self.blocks)

    def forward(self, x: Tensor, c_noise: Tensor, cond: Condition | None = None) -> Tensor:
        if x.ndim != 4 or x.shape[1:3] != (self.channels, self.variates):
            raise InvalidArgument(
                f"x must be (B, {self.channels}, {self.variates}, L) with {self.variates} variates, got {[*x.shape]}"
            )
        out = super().forward(fold(x), c_noise.repeat_interleave(self.variates), self.per_variate(cond))
        return unfold(out, self.variates)

    def per_variate(self, cond: Condition | None) -> Condition | None:
        """The condition of B windows as one of B D."""
        if cond is None or not len(cond):
            return None
        own = [name for name in ("values", "observed") if name in cond.maps]
        maps = {name: fold(cond.maps[name]) for name in own}
        masks = {name: cond.masks[name].repeat_interleave(self.variates) for name in own}
        shared = cond.select(name for name in cond.names if name not in own).repeat(self.variates)
        return shared.merge(Condition(maps=maps, masks=masks))
