"""How a noise level and a condition enter a network: a noise embedding, tokens of one width, and extra input channels.

Whatever a row does not give (its mask is False) is replaced by a learned null embedding, so that a network always sees
the same shapes and knows what it has not been told.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..condition import Condition
from ..errors import InvalidArgument

__all__ = ["MapEncoder", "NoiseEmbedding", "TokenEncoder"]


class NoiseEmbedding(nn.Module):
    """(B,) noise labels c_noise = log(kappa)/4 -> (B, dim): sines and cosines over two decades, then an MLP."""

    frequencies: Tensor

    def __init__(self, dim: int, features: int = 128) -> None:
        super().__init__()
        octaves = torch.linspace(math.log(0.5), math.log(50.0), features // 2)
        self.register_buffer("frequencies", octaves.exp(), persistent=False)
        self.mlp = nn.Sequential(nn.Linear(features, dim), nn.SiLU(), nn.Linear(dim, dim))

    def forward(self, c_noise: Tensor) -> Tensor:
        angle = c_noise[:, None] * self.frequencies.to(c_noise.dtype)
        return self.mlp(torch.cat([angle.sin(), angle.cos()], dim=-1))


class TokenEncoder(nn.Module):
    """Named tokens of any width -> one sequence (B, L, dim), with a null embedding per name where masked.

    Args:
        tokens: name -> D, the width of each named token.
        dim: the width of the result.
    """

    def __init__(self, tokens: Mapping[str, int], dim: int) -> None:
        super().__init__()
        self.widths = dict(tokens)
        self.project = nn.ModuleDict({name: nn.Linear(width, dim) for name, width in tokens.items()})
        self.null = nn.ParameterDict({name: nn.Parameter(torch.randn(dim) * 0.02) for name in tokens})

    def forward(self, cond: Condition | None, batch: int) -> Tensor:
        """(B, L, dim). Without a condition every name is one null token."""
        if cond is None:
            return torch.stack([self.null[name] for name in self.widths]).expand(batch, -1, -1)
        cond.expect(batch, tokens=self.widths)
        parts = []
        for name in self.widths:
            encoded = self.project[name](cond.tokens[name].to(self.null[name].dtype))
            parts.append(torch.where(cond.masks[name][..., None], encoded, self.null[name]))
        return torch.cat(parts, dim=1)


class MapEncoder(nn.Module):
    """Named maps -> extra input channels (B, sum C, *spatial), with a null value per channel where masked.

    Args:
        maps: name -> C, the channels of each named map.
    """

    def __init__(self, maps: Mapping[str, int]) -> None:
        super().__init__()
        self.widths = dict(maps)
        self.null = nn.ParameterDict({name: nn.Parameter(torch.zeros(width)) for name, width in maps.items()})

    @property
    def channels(self) -> int:
        return sum(self.widths.values())

    def forward(self, x: Tensor, cond: Condition | None) -> Tensor:
        """x (B, C, *spatial) with the maps behind its channels."""
        if cond is not None:
            cond.expect(len(x), maps=self.widths)
        parts = [x]
        for name, width in self.widths.items():
            null = self.null[name].view(1, width, *(1,) * (x.ndim - 2)).to(x.dtype)
            if cond is None:
                parts.append(null.expand(len(x), width, *x.shape[2:]))
                continue
            value = cond.maps[name]
            if value.shape[2:] != x.shape[2:]:
                raise InvalidArgument(
                    f"maps[{name!r}] has spatial shape {tuple(value.shape[2:])}, x has {tuple(x.shape[2:])}; "
                    f"resample the map"
                )
            given = cond.masks[name].view(-1, *(1,) * (x.ndim - 1))
            parts.append(torch.where(given, value.to(x.dtype), null))
        return torch.cat(parts, dim=1)


def no_stray(cond: Condition | None, tokens: Mapping[str, int], maps: Mapping[str, int]) -> None:
    """Raise InvalidArgument for a condition the network has no input for, which it would silently ignore."""
    if cond is not None and (stray := set(cond.names) - set(tokens) - set(maps)):
        raise InvalidArgument(
            f"cond has {sorted(stray)}, which this network was not built for (tokens {sorted(tokens)}, maps "
            f"{sorted(maps)}); select what it knows with cond.select"
        )
