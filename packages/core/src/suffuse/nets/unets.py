"""UNets of diffusers and MONAI as backbones.

Those networks embed a timestep in [0, 1000]. They get 1000 kappa / (1 + kappa), which is monotone in the noise level,
spreads the range that matters over the whole interval, and does not depend on a schedule. Condition maps are stacked
onto the input channels; condition tokens become the cross-attention context.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..condition import Condition
from ..errors import InvalidArgument, require
from ..hub import serializable
from .conditioning import MapEncoder, TokenEncoder, no_stray

__all__ = ["DiffusersUNet", "MonaiUNet"]


def check_size(spatial: Sequence[int], multiple: int, why: str = "2 ^ (levels - 1)") -> None:
    """Raise InvalidArgument unless a UNet, which halves sizes at each level but the last, gets them back."""
    if any(size % multiple for size in spatial):
        raise InvalidArgument(
            f"x has size {tuple(spatial)}, not a multiple of {why} = {multiple} along every axis; pad or crop it, or "
            f"give the UNet fewer levels of channels"
        )


def timestep(c_noise: Tensor) -> Tensor:
    """(B,) in [0, 1000] from c_noise = log(kappa) / 4."""
    return 1000 * torch.sigmoid(4 * c_noise)


@serializable
class MonaiUNet(nn.Module):
    """MONAI's ``DiffusionModelUNet`` (2-D or 3-D) as a backbone; needs the extra ``monai``.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of x; the network's output has as many.
        tokens: name -> width of the condition tokens, for cross-attention.
        maps: name -> channels of the condition maps.
        kwargs: further arguments of ``DiffusionModelUNet`` (channels, num_res_blocks, attention_levels, ...).
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        tokens: Mapping[str, int] | None = None,
        maps: Mapping[str, int] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        networks = require("monai.networks.nets", extra="monai")
        self.maps = MapEncoder(maps or {})
        self.tokens = None
        if tokens:
            width = kwargs.pop("cross_attention_dim", None) or 64
            kwargs.update(with_conditioning=True, cross_attention_dim=width)
            self.tokens = TokenEncoder(tokens, width)
        self.unet = networks.DiffusionModelUNet(
            spatial_dims=spatial_dims,
            in_channels=in_channels + self.maps.channels,
            out_channels=in_channels,
            **kwargs,
        )
        self.multiple = 2 ** (len(self.unet.down_blocks) - 1)

    def forward(self, x: Tensor, c_noise: Tensor, cond: Condition | None = None) -> Tensor:
        no_stray(cond, self.tokens.widths if self.tokens is not None else {}, self.maps.widths)
        check_size(x.shape[2:], self.multiple)
        context = None if self.tokens is None else self.tokens(cond, len(x))
        return self.unet(self.maps(x, cond), timestep(c_noise), context=context)


@serializable
class DiffusersUNet(nn.Module):
    """A UNet of diffusers as a backbone; needs the extra ``diffusers``.

    Args:
        kind: the class: ``"UNet1DModel"``, ``"UNet2DModel"``, ``"UNet2DConditionModel"``, ``"UNet3DConditionModel"``.
        in_channels: channels of x; the network's output has as many.
        tokens: name -> width of the condition tokens (for the classes with cross-attention).
        maps: name -> channels of the condition maps.
        kwargs: further arguments of that class.
    """

    KINDS = ("UNet1DModel", "UNet2DModel", "UNet2DConditionModel", "UNet3DConditionModel")

    def __init__(
        self,
        kind: str,
        in_channels: int,
        tokens: Mapping[str, int] | None = None,
        maps: Mapping[str, int] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        if kind not in self.KINDS:
            raise InvalidArgument(f"kind must be one of {self.KINDS}, got {kind!r}")
        self.cross = "Condition" in kind
        if self.cross != bool(tokens):
            need = "needs tokens to attend to" if self.cross else "has no cross-attention for tokens"
            raise InvalidArgument(f"{kind} {need}; choose UNet2DModel without, UNet2DConditionModel with tokens")
        diffusers = require("diffusers", extra="diffusers")
        self.maps = MapEncoder(maps or {})
        channels = in_channels + self.maps.channels
        self.unet = getattr(diffusers, kind)(in_channels=channels, out_channels=in_channels, **kwargs)
        self.tokens = TokenEncoder(tokens, self.unet.config.cross_attention_dim) if tokens else None

    def forward(self, x: Tensor, c_noise: Tensor, cond: Condition | None = None) -> Tensor:
        no_stray(cond, self.tokens.widths if self.tokens is not None else {}, self.maps.widths)
        context = {} if self.tokens is None else {"encoder_hidden_states": self.tokens(cond, len(x))}
        return self.unet(self.maps(x, cond), timestep(c_noise), **context).sample
