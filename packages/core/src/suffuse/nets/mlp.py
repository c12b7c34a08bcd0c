r"""A residual MLP: a backbone for vectors x (B, D), or for small samples that are flattened on the way.

Each block adds what it makes of the last one, of the noise level and of the mean of the condition tokens:

    h = h + W_2 silu(W_1 silu(norm(h) + e)).

A few sines and cosines of x itself let a small network resolve what lies close together: Tancik et al. (2020), "Fourier
Features Let Networks Learn High Frequency Functions in Low Dimensional Domains", arXiv:2006.10739.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..condition import Condition
from ..errors import InvalidArgument
from ..hub import serializable
from .conditioning import NoiseEmbedding, TokenEncoder, no_stray

__all__ = ["MLP"]


@serializable
class MLP(nn.Module):
    """A backbone for x (B, *event) of ``dim`` entries.

    Args:
        dim: entries of a sample.
        hidden: width.
        depth: number of blocks.
        octaves: sines and cosines of x, 2 x, 4 x, ... that are added to the input.
        tokens: name -> width of the condition tokens.
        out_dim: entries of the output; default as the input, whose shape it then has. Otherwise (B, out_dim).
    """

    def __init__(
        self,
        dim: int,
        hidden: int = 128,
        depth: int = 3,
        octaves: int = 0,
        tokens: Mapping[str, int] | None = None,
        out_dim: int | None = None,
    ) -> None:
        super().__init__()
        if min(dim, hidden, depth) < 1 or octaves < 0:
            raise InvalidArgument(
                f"dim, hidden and depth must be at least 1, octaves at least 0; got {dim}, {hidden}, {depth}, {octaves}"
            )
        self.dim, self.octaves, self.out_dim = dim, octaves, out_dim
        self.noise = NoiseEmbedding(hidden)
        self.tokens = TokenEncoder(tokens, hidden) if tokens else None
        self.embed = nn.Linear(dim * (1 + 2 * octaves), hidden)
        self.norms = nn.ModuleList(nn.LayerNorm(hidden) for _ in range(depth))
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, hidden))
            for _ in range(depth)
        )
        self.head = nn.Linear(hidden, out_dim or dim)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor, c_noise: Tensor, cond: Condition | None = None) -> Tensor:
        if x[0].numel() != self.dim:
            raise InvalidArgument(f"x must have {self.dim} entries a sample, got shape {tuple(x.shape)}")
        no_stray(cond, self.tokens.widths if self.tokens is not None else {}, {})
        level = self.noise(c_noise)
        if self.tokens is not None:
            level = level + self.tokens(cond, len(x)).mean(1)
        flat = x.flatten(1)
        parts = [flat]
        for k in range(self.octaves):
            parts += [(2**k * flat).sin(), (2**k * flat).cos()]
        h = self.embed(torch.cat(parts, -1))
        for norm, block in zip(self.norms, self.blocks, strict=True):
            h = h + block(norm(h) + level)
        output = self.head(h)
        return output if self.out_dim else output.reshape(x.shape)
