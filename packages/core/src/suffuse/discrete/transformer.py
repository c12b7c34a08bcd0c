"""A small transformer over tokens, as the backbone of a ``NetworkTokenDenoiser``: bidirectional, and without a time.

    h = h + Convolution(norm(h)),    h = h + Attention(norm(h)),    h = h + MLP(norm(h))

The convolution is over five neighbours, channel by channel: most of what there is to learn of characters is near, and
attention alone takes long to find that. Queries and keys are normalised and turned by an angle proportional to their
position (Su et al., 2021, "RoFormer", arXiv:2104.09864), so attention knows distances and one network serves every
length.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..condition import Condition
from ..errors import InvalidArgument
from ..hub import serializable
from ..nets import TokenEncoder
from ..nets.conditioning import no_stray

__all__ = ["TokenTransformer"]

#: Neighbours, itself included, that the convolution sees.
NEAR = 5


class Block(nn.Module):
    def __init__(self, dim: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(dim) for _ in range(3))
        self.near = nn.Conv1d(dim, dim, NEAR, groups=dim)
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.norm_q, self.norm_k = nn.RMSNorm(dim // heads), nn.RMSNorm(dim // heads)
        self.wide, self.narrow = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, h: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
        pad = (NEAR - 1, 0) if self.causal else (NEAR // 2, NEAR // 2)
        h = h + self.near(F.pad(self.norm1(h).transpose(1, 2), pad)).transpose(1, 2)
        q, k, v = self.qkv(self.norm2(h)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        q, k = rotate(self.norm_q(q), turn), rotate(self.norm_k(k), turn)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        h = h + self.out(mixed.transpose(1, 2).flatten(2))
        return h + self.narrow(F.gelu(self.wide(self.norm3(h)), approximate="tanh"))


@serializable
class TokenTransformer(nn.Module):
    """Logits (B, L, V) of tokens x (B, L) in 0 .. V, where V is the mask.

    Args:
        vocabulary: V.
        hidden: width; a multiple of ``2 heads``.
        depth: number of blocks.
        heads: attention heads.
        tokens: name -> width of the condition tokens, which are put before the sequence.
        causal: let position i see positions up to i only, for an autoregressive model.
    """

    def __init__(
        self,
        vocabulary: int,
        hidden: int = 128,
        depth: int = 4,
        heads: int = 4,
        tokens: Mapping[str, int] | None = None,
        causal: bool = False,
    ) -> None:
        super().__init__()
        if hidden % (2 * heads):
            raise InvalidArgument(f"hidden={hidden} must be a multiple of 2 heads = {2 * heads}")
        self.width = hidden // heads
        self.embed = nn.Embedding(vocabulary + 1, hidden)
        self.tokens = TokenEncoder(tokens, hidden) if tokens else None
        self.blocks = nn.ModuleList(Block(hidden, heads, causal) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(hidden), nn.Linear(hidden, vocabulary)
        nn.init.normal_(self.embed.weight, std=0.5)

    def forward(self, x: Tensor, cond: Condition | None = None) -> Tensor:
        no_stray(cond, self.tokens.widths if self.tokens is not None else {}, {})
        h = self.embed(x)
        if self.tokens is not None:
            h = torch.cat([self.tokens(cond, len(x)), h], dim=1)
        turn = angles(h.shape[1], self.width, h)
        for block in self.blocks:
            h = block(h, turn)
        return self.head(self.norm(h[:, -x.shape[1] :]))


def angles(length: int, width: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine, (length, width / 2), of position times geometric frequencies."""
    half = width // 2
    frequencies = torch.exp(-math.log(1e4) * torch.arange(half, device=like.device) / half)
    angle = torch.arange(length, device=like.device)[:, None] * frequencies
    return angle.cos().to(like.dtype), angle.sin().to(like.dtype)


def rotate(x: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
    """Turn each pair (x_j, x_{j + width / 2}) of (..., length, width) by its angle."""
    a, b = x.chunk(2, dim=-1)
    cos, sin = turn
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)
