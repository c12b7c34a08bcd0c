"""A convolutional U-Net for periodic volumes.

Every convolution wraps around the periodic axes and every normalisation looks at one voxel's channels only. So the
network commutes with shifts (by multiples of ``factor``), has no border, and one set of weights serves any box: trained
on small boxes, it is sampled on large ones.

Resolution changes by space-to-depth, (C, 2n) -> (8C, n), which loses nothing. The noise level and the condition tokens
scale and shift the channels of each block (FiLM; Perez et al., 2018, arXiv:1709.07871). Channel RMSNorm: Zhang,
Sennrich (2019), arXiv:1910.07467.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from suffuse import Condition
from suffuse.errors import InvalidArgument
from suffuse.hub import serializable
from suffuse.nets import NoiseEmbedding, TokenEncoder

from .beyond import Beyond
from .layers import Block, ChannelNorm, Conv, depth_to_space, space_to_depth

__all__ = ["PeriodicUNet"]


@serializable
class PeriodicUNet(nn.Module):
    """A backbone for x (B, in_channels, X, Y, Z).

    Args:
        in_channels: channels of x.
        widths: channels at each resolution, the first at 1 / ``patch`` of that of x.
        blocks: residual blocks at each resolution, on the way down and on the way up.
        tokens: name -> width of the condition tokens.
        ranges: name -> (low, high), the values of a token in the training data, which are scaled to [-1, 1].
        periodic: per axis, whether it wraps; zeros are seen beyond the others.
        patch: 2 turns blocks of 2 x 2 x 2 voxels into channels first; 1 works at the resolution of x.
        correlation: of the first features of the tokens in the data, where they are scores: see ``Beyond``.
    """

    def __init__(
        self,
        in_channels: int = 1,
        widths: Sequence[int] = (24, 64),
        blocks: int = 1,
        tokens: Mapping[str, int] | None = None,
        ranges: Mapping[str, Sequence[float]] | None = None,
        periodic: Sequence[bool] = (True, True, True),
        patch: int = 2,
        correlation: Sequence[Sequence[float]] | None = None,
    ) -> None:
        super().__init__()
        if patch not in (1, 2):
            raise InvalidArgument(f"patch must be 1 or 2, got {patch}")
        if len(periodic) != 3 or not widths:
            raise InvalidArgument(f"need 3 entries in periodic and at least one width, got {periodic!r} and {widths!r}")
        if stray := set(ranges or {}) - set(tokens or {}):
            raise InvalidArgument(f"ranges has {sorted(stray)}, which is not in tokens {sorted(tokens or {})}")
        for name, (low, high) in (ranges or {}).items():
            if not low < high:
                raise InvalidArgument(f"ranges[{name!r}] must be (low, high) with low < high, got {(low, high)}")
        self.in_channels, self.factor, self.patch = in_channels, patch * 2 ** (len(widths) - 1), patch
        self.periodic = tuple(bool(p) for p in periodic)
        self.ranges = {name: (float(low), float(high)) for name, (low, high) in (ranges or {}).items()}
        embedding = 4 * widths[0]
        self.noise = NoiseEmbedding(embedding)
        self.tokens = TokenEncoder(tokens, embedding) if tokens else None
        self.beyond = Beyond(list(tokens or {}), correlation, embedding) if correlation is not None else None
        self.embed = nn.Sequential(nn.SiLU(), nn.Linear(embedding, embedding), nn.SiLU())

        def stack(width: int) -> nn.ModuleList:
            return nn.ModuleList(Block(width, embedding, periodic) for _ in range(blocks))

        pairs = list(itertools.pairwise(widths))
        self.stem = Conv(patch**3 * in_channels, widths[0], periodic)
        self.down = nn.ModuleList(stack(width) for width in widths)
        self.shrink = nn.ModuleList(nn.Conv3d(8 * fine, coarse, 1) for fine, coarse in pairs)
        self.grow = nn.ModuleList(nn.Conv3d(coarse, 8 * fine, 1) for fine, coarse in pairs)
        self.join = nn.ModuleList(nn.Conv3d(2 * fine, fine, 1) for fine, _ in pairs)
        self.up = nn.ModuleList(stack(fine) for fine, _ in pairs)
        self.norm = ChannelNorm(widths[0])
        self.head = Conv(widths[0], patch**3 * in_channels, periodic)
        nn.init.zeros_(self.head.conv.weight)
        nn.init.zeros_(self.head.conv.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor, c_noise: Tensor, cond: Condition | None = None) -> Tensor:
        self._check(x, cond)
        e = self.noise(c_noise)
        if self.tokens is not None:
            e = e + self.tokens(self._scaled(cond), len(x)).mean(1)
        if self.beyond is not None and cond is not None:
            e = e + self.beyond(cond)
        e, h, skips = self.embed(e), self.stem(space_to_depth(x) if self.patch == 2 else x), []
        for level, blocks in enumerate(self.down):
            for block in blocks:  # type: ignore[attr-defined]
                h = block(h, e)
            if level < len(self.shrink):
                skips.append(h)
                h = self.shrink[level](space_to_depth(h))
        for level in reversed(range(len(self.up))):
            h = self.join[level](torch.cat([depth_to_space(self.grow[level](h)), skips[level]], 1))
            for block in self.up[level]:  # type: ignore[attr-defined]
                h = block(h, e)
        h = self.head(F.silu(self.norm(h)))
        return depth_to_space(h) if self.patch == 2 else h

    def _scaled(self, cond: Condition | None) -> Condition | None:
        """Tokens with their ranges scaled to [-1, 1]."""
        if cond is None or not self.ranges:
            return cond
        tokens = dict(cond.tokens)
        for name, (low, high) in self.ranges.items():
            if name in tokens:
                tokens[name] = (2 * tokens[name] - (low + high)) / (high - low)
        return Condition(tokens, cond.maps, cond.masks, cond.nulls)

    def _check(self, x: Tensor, cond: Condition | None) -> None:
        if x.ndim != 5 or x.shape[1] != self.in_channels:
            raise InvalidArgument(f"x must be (B, {self.in_channels}, X, Y, Z), got shape {tuple(x.shape)}")
        if any(n % self.factor for n in x.shape[2:]):
            raise InvalidArgument(
                f"shape {tuple(x.shape[2:])} must be multiples of {self.factor} voxels; choose another"
            )
        known = set(self.tokens.widths) if self.tokens is not None else set()
        if cond is not None and (stray := set(cond.names) - known):
            raise InvalidArgument(
                f"cond has {sorted(stray)}, which this network was not built for; it has {sorted(known)}"
            )
