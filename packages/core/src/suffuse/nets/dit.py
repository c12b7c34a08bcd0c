"""DiT: a transformer over patches of a sequence, an image or a volume.

Each block is attention and an MLP, both modulated by the noise level (and the mean of the condition tokens) through
adaptive layer norm whose gates start at zero, so the network starts as the identity on its tokens:

    h = h + g1 Attention(s1 norm(h) + b1) + CrossAttention(norm(h), tokens) + g2 MLP(s2 norm(h) + b2).

Positions are sines and cosines computed for whatever grid comes in, so one network serves several sizes.
Peebles, Xie (2022), "Scalable Diffusion Models with Transformers", arXiv:2212.09748; cross-attention as in Chen et al.
(2023), "PixArt-alpha", arXiv:2310.00426.
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
from .conditioning import MapEncoder, NoiseEmbedding, TokenEncoder, no_stray

__all__ = ["DiT"]


class Attention(nn.Module):
    """Multi-head attention with normalised queries and keys; attends to itself, or to a context."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.kv, self.out = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim), nn.Linear(dim, dim)
        self.norm_q, self.norm_k = nn.RMSNorm(dim // heads), nn.RMSNorm(dim // heads)

    def forward(self, h: Tensor, context: Tensor | None = None) -> Tensor:
        source = h if context is None else context
        q = self.q(h).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = self.kv(source).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(self.norm_q(q), self.norm_k(k), v)
        return self.out(mixed.transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self, dim: int, heads: int, cross: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6)
        self.attention = Attention(dim, heads)
        self.cross = Attention(dim, heads) if cross else None
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU("tanh"), nn.Linear(4 * dim, dim))
        self.modulation = nn.Linear(dim, 6 * dim)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)
        if self.cross is not None:
            nn.init.zeros_(self.cross.out.weight)
            nn.init.zeros_(self.cross.out.bias)

    def forward(self, h: Tensor, level: Tensor, tokens: Tensor | None) -> Tensor:
        s1, b1, g1, s2, b2, g2 = self.modulation(level)[:, None].chunk(6, dim=-1)
        h = h + g1 * self.attention((1 + s1) * self.norm(h) + b1)
        if self.cross is not None and tokens is not None:
            h = h + self.cross(self.norm(h), tokens)
        return h + g2 * self.mlp((1 + s2) * self.norm(h) + b2)


@serializable
class DiT(nn.Module):
    """A transformer backbone for x (B, in_channels, *spatial) with 1, 2 or 3 spatial axes.

    Args:
        in_channels: channels of x.
        patch_size: edge of a patch; every spatial size must be a multiple of it.
        ndim: number of spatial axes.
        hidden: width; a multiple of ``heads``, and of ``2 ndim`` for the positions.
        depth: number of blocks.
        heads: attention heads.
        tokens: name -> width of the condition tokens it attends to.
        maps: name -> channels of the condition maps, which are stacked onto the input.
        out_channels: channels of the output; default as x. Twice as many for ``NetworkDenoiser(learn_variance=True)``.
    """

    def __init__(
        self,
        in_channels: int,
        patch_size: int,
        ndim: int = 2,
        hidden: int = 128,
        depth: int = 4,
        heads: int = 4,
        tokens: Mapping[str, int] | None = None,
        maps: Mapping[str, int] | None = None,
        out_channels: int | None = None,
    ) -> None:
        super().__init__()
        if ndim not in (1, 2, 3):
            raise InvalidArgument(f"ndim must be 1, 2 or 3, got {ndim}")
        if hidden % heads or hidden % (2 * ndim):
            raise InvalidArgument(f"hidden={hidden} must be a multiple of heads={heads} and of 2 ndim = {2 * ndim}")
        self.in_channels, self.patch_size, self.ndim, self.hidden = in_channels, patch_size, ndim, hidden
        self.out_channels = out_channels or in_channels
        self.maps = MapEncoder(maps or {})
        self.tokens = TokenEncoder(tokens, hidden) if tokens else None
        self.noise = NoiseEmbedding(hidden)
        self.embed = nn.Linear((in_channels + self.maps.channels) * patch_size**ndim, hidden)
        self.blocks = nn.ModuleList(Block(hidden, heads, cross=bool(tokens)) for _ in range(depth))
        self.norm = nn.LayerNorm(hidden, elementwise_affine=False, eps=1e-6)
        self.modulation = nn.Linear(hidden, 2 * hidden)
        self.head = nn.Linear(hidden, self.out_channels * patch_size**ndim)
        for layer in (self.modulation, self.head):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, c_noise: Tensor, cond: Condition | None = None) -> Tensor:
        self._check(x, cond)
        level = self.noise(c_noise)
        tokens = None
        if self.tokens is not None:
            tokens = self.tokens(cond, len(x))
            level = level + tokens.mean(1)
        level = F.silu(level)
        patches, grid = self._patchify(self.maps(x, cond))
        h = self.embed(patches) + positions(grid, self.hidden, x.device).to(x.dtype)
        for block in self.blocks:
            h = block(h, level, tokens)
        scale, shift = self.modulation(level)[:, None].chunk(2, dim=-1)
        return self._unpatchify(self.head((1 + scale) * self.norm(h) + shift), grid)

    def _check(self, x: Tensor, cond: Condition | None) -> None:
        if x.ndim != 2 + self.ndim or x.shape[1] != self.in_channels:
            raise InvalidArgument(
                f"x must be (B, {self.in_channels}, *spatial) with {self.ndim} spatial axes, got {tuple(x.shape)}"
            )
        if any(n % self.patch_size for n in x.shape[2:]):
            raise InvalidArgument(
                f"spatial shape {tuple(x.shape[2:])} is not a multiple of patch_size={self.patch_size}; pad or crop x"
            )
        no_stray(cond, self.tokens.widths if self.tokens is not None else {}, self.maps.widths)

    def _patchify(self, x: Tensor) -> tuple[Tensor, tuple[int, ...]]:
        """(B, C, *spatial) -> (B, patches, C p^n) and the grid of patches."""
        grid = tuple(n // self.patch_size for n in x.shape[2:])
        shape = [len(x), x.shape[1]]
        for n in grid:
            shape += [n, self.patch_size]
        nd = self.ndim
        order = (0, *range(2, 2 + 2 * nd, 2), 1, *range(3, 3 + 2 * nd, 2))
        return x.reshape(shape).permute(order).flatten(1 + nd).flatten(1, nd), grid

    def _unpatchify(self, h: Tensor, grid: tuple[int, ...]) -> Tensor:
        """The inverse of ``_patchify``."""
        nd = self.ndim
        h = h.reshape(len(h), *grid, self.out_channels, *(self.patch_size,) * nd)
        order = [0, 1 + nd]
        for axis in range(nd):
            order += [1 + axis, 2 + nd + axis]
        return h.permute(order).reshape(len(h), self.out_channels, *(n * self.patch_size for n in grid))


def positions(grid: tuple[int, ...], dim: int, device: torch.device) -> Tensor:
    """(prod grid, dim): sines and cosines of each axis' index at geometric frequencies, axes side by side."""
    half = dim // (2 * len(grid))
    frequencies = torch.exp(-math.log(1e4) * torch.arange(half, device=device) / half)
    axes = torch.meshgrid(*(torch.arange(n, device=device) for n in grid), indexing="ij")
    angles = [axis.reshape(-1, 1) * frequencies for axis in axes]
    return torch.cat([part for a in angles for part in (a.sin(), a.cos())], dim=-1)
