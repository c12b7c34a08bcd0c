r"""UniCon's way to a joint model: a trained UNet, frozen, run on both streams at once and joined in its attention.

The two streams are a doubled batch, each row with its own noise level. Every attention block is given a second one,

    h <- selfattention(h) + Z [ softmax(q k'^T / sqrt d) v',  h' ],      ' the partner stream, Z = 0 at first

whose q, k, v are the frozen ones plus a low-rank term of their own for each direction. As Z starts at zero, nothing the
UNet could do is lost; as only Z and the low-rank terms are trained, a few thousand pairs are enough.
Li et al. (2024), arXiv:2410.11439, sec. 3.2; Hu et al. (2021), "LoRA", arXiv:2106.09685.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from suffuse import Condition
from suffuse.errors import InvalidArgument
from suffuse.hub import serializable
from suffuse.nets import MonaiUNet

__all__ = ["PairedUNet"]


class _JointAttention(nn.Module):
    """A frozen ``SpatialAttentionBlock`` of MONAI with joint attention to the other half of the batch."""

    def __init__(self, block: Any, rank: int) -> None:
        super().__init__()
        self.block = block
        width: int = block.attn.to_q.in_features
        self.down = nn.Parameter(torch.randn(2, 3, width, rank) / width**0.5)  # direction, (q, k, v)
        self.up = nn.Parameter(torch.zeros(2, 3, rank, width))
        self.joint = nn.Linear(2 * width, width)
        nn.init.zeros_(self.joint.weight)
        nn.init.zeros_(self.joint.bias)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        half = len(x) // 2
        tokens = self.block.norm(x).flatten(2).transpose(1, 2)
        partner = tokens.roll(half, dims=0)
        attn = self.block.attn
        q, k, v = (
            linear(source) + self._low_rank(source, part)
            for part, (linear, source) in enumerate(((attn.to_q, tokens), (attn.to_k, partner), (attn.to_v, partner)))
        )
        heads = (z.unflatten(2, (attn.num_heads, -1)).transpose(1, 2) for z in (q, k, v))
        seen = F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
        joined = self.joint(torch.cat([attn.out_proj(seen), partner], dim=2))
        return self.block(x) + joined.transpose(1, 2).reshape(x.shape)

    def _low_rank(self, source: Tensor, part: int) -> Tensor:
        """Each half of the batch by its own direction's factors."""
        halves = source.unflatten(0, (2, -1))
        product = torch.einsum("dbtw,dwr,drv->dbtv", halves, self.down[:, part], self.up[:, part])
        return product.flatten(0, 1)


@serializable
class PairedUNet(nn.Module):
    """A backbone of two streams of as many channels, for ``suffuse.joint.JointNetworkDenoiser``.

    Args:
        base: a trained ``MonaiUNet`` of one stream, with attention on at least one level; it is frozen.
        rank: of the low-rank terms.
    """

    def __init__(self, base: MonaiUNet, rank: int = 8) -> None:
        super().__init__()
        from monai.networks.blocks import SpatialAttentionBlock

        if rank < 1:
            raise InvalidArgument(f"rank must be at least 1, got {rank}")
        self.base = base.requires_grad_(False)
        places = [
            (parent, name, child)
            for parent in base.modules()
            for name, child in parent.named_children()
            if isinstance(child, SpatialAttentionBlock) and not isinstance(parent, _JointAttention)
        ]
        if not places:
            raise InvalidArgument("base has no self-attention to join the streams in; build it with attention_levels")
        for parent, name, child in places:
            setattr(parent, name, _JointAttention(child, rank))

    def forward(self, x: Tensor, c_noise: Tensor, cond: Condition | None = None) -> Tensor:
        if x.shape[1] % 2:
            raise InvalidArgument(f"x must hold two streams of as many channels, got {x.shape[1]} channels")
        both = torch.cat(x.chunk(2, dim=1))
        twice = None if cond is None else Condition.cat([cond, cond])
        return torch.cat(self.base(both, c_noise.T.reshape(-1), twice).chunk(2), dim=1)
