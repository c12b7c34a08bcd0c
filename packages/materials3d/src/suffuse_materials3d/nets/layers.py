"""Parts of networks for volumes: convolutions that wrap, a norm that sees one voxel, changes of resolution.

Channel RMSNorm: Zhang, Sennrich (2019), arXiv:1910.07467. It has no statistics over space, so a part of a volume is
treated as in the whole, and tiles fit together exactly.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Block", "ChannelNorm", "Conv", "depth_to_space", "space_to_depth"]


class Conv(nn.Module):
    """A 3 x 3 x 3 convolution of (B, C, X, Y, Z) that wraps around periodic axes and sees zeros beyond the others."""

    def __init__(self, inputs: int, outputs: int, periodic: Sequence[bool]) -> None:
        super().__init__()
        self.conv = nn.Conv3d(
            inputs, outputs, 3, padding=(int(not periodic[0]), int(not periodic[1]), int(not periodic[2]))
        )
        self.pad = [side for p in reversed(periodic) for side in (int(p), int(p))]

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(F.pad(x, self.pad, mode="circular"))
        return y


class ChannelNorm(nn.Module):
    """x / rms over channels, voxel by voxel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(channels, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.gain * x * torch.rsqrt(x.square().mean(1, keepdim=True) + 1e-6)


class Block(nn.Module):
    """x + conv(silu((1 + scale) norm(conv(silu(norm(x)))) + shift)), scale and shift from the embedding (B, E).

    With ``embedding=0`` there is none, and scale and shift are zero.
    """

    def __init__(self, channels: int, embedding: int, periodic: Sequence[bool]) -> None:
        super().__init__()
        self.norm_in, self.norm_out = ChannelNorm(channels), ChannelNorm(channels)
        self.conv_in, self.conv_out = Conv(channels, channels, periodic), Conv(channels, channels, periodic)
        self.film = nn.Linear(embedding, 2 * channels) if embedding else None
        for layer in (self.film, self.conv_out.conv):
            if layer is not None:
                nn.init.zeros_(layer.weight)
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor, embedding: Tensor | None = None) -> Tensor:
        h = self.norm_out(self.conv_in(F.silu(self.norm_in(x))))
        if self.film is not None:
            scale, shift = self.film(embedding)[:, :, None, None, None].chunk(2, dim=1)
            h = (1 + scale) * h + shift
        return x + self.conv_out(F.silu(h))


def space_to_depth(x: Tensor) -> Tensor:
    """(B, C, 2X, 2Y, 2Z) -> (B, 8C, X, Y, Z)."""
    b, c, *shape = x.shape
    i, j, k = (n // 2 for n in shape)
    return x.reshape(b, c, i, 2, j, 2, k, 2).permute(0, 1, 3, 5, 7, 2, 4, 6).reshape(b, 8 * c, i, j, k)


def depth_to_space(x: Tensor) -> Tensor:
    """(B, 8C, X, Y, Z) -> (B, C, 2X, 2Y, 2Z)."""
    b, c, i, j, k = x.shape
    x = x.reshape(b, c // 8, 2, 2, 2, i, j, k).permute(0, 1, 5, 2, 6, 3, 7, 4)
    return x.reshape(b, c // 8, 2 * i, 2 * j, 2 * k)
