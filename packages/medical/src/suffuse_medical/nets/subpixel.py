"""A MONAI UNet that works on a coarser grid without losing voxels: space goes to channels and back.

    F(x, c) = shuffle_r( UNet( unshuffle_r(x), unshuffle_r(c) ) ),   unshuffle_r: (B, C, r H, r W) -> (B, r^2 C, H, W)

At equal width it costs r^2 times less and sees r times farther, which a CPU and a slow bias field both ask for.
Shi et al. (2016), "Real-time single image and video super-resolution using an efficient sub-pixel convolutional neural
network", arXiv:1609.05158.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from suffuse import Condition
from suffuse.errors import InvalidArgument
from suffuse.hub import serializable
from suffuse.nets import MonaiUNet
from suffuse.nets.unets import check_size

from .settings import unet_settings


@serializable
class SubpixelUNet(nn.Module):
    """``suffuse.nets.MonaiUNet`` for images (B, C, H, W) behind a pixel unshuffle; a backbone.

    Args:
        in_channels: C, of x and of the result.
        maps: name -> channels of the condition maps.
        factor: r; 1 is the plain UNet.
        kwargs: arguments of ``MonaiUNet``: ``tokens``, and those of MONAI's ``DiffusionModelUNet``.
    """

    def __init__(self, in_channels: int, maps: Mapping[str, int], factor: int = 2, **kwargs: Any) -> None:
        super().__init__()
        if factor < 1:
            raise InvalidArgument(f"factor must be at least 1, got {factor}")
        self.factor = factor
        widths = {name: channels * factor**2 for name, channels in maps.items()}
        self.unet = MonaiUNet(spatial_dims=2, in_channels=in_channels * factor**2, maps=widths, **kwargs)

    def forward(self, x: Tensor, c_noise: Tensor, cond: Condition | None = None) -> Tensor:
        check_size(x.shape[2:], self.factor * self.unet.multiple, f"factor={self.factor} * 2 ^ (levels - 1)")
        if cond is not None:
            maps = {name: F.pixel_unshuffle(value, self.factor) for name, value in cond.maps.items()}
            nulls = {name: F.pixel_unshuffle(v, self.factor) if name in maps else v for name, v in cond.nulls.items()}
            cond = Condition(cond.tokens, maps, cond.masks, nulls)
        output = self.unet(F.pixel_unshuffle(x, self.factor), c_noise, cond)
        return F.pixel_shuffle(output, self.factor)


class _AtTimeZero(nn.Module):
    """A diffusion UNet behind a pixel unshuffle as a plain network: the timestep is always 0."""

    def __init__(self, unet: nn.Module, factor: int, levels: int) -> None:
        super().__init__()
        self.unet, self.factor, self.multiple = unet, factor, factor * 2 ** (levels - 1)

    def forward(self, x: Tensor) -> Tensor:
        check_size(x.shape[2:], self.multiple, f"factor={self.factor} * 2 ^ (levels - 1)")
        output = self.unet(F.pixel_unshuffle(x, self.factor), torch.zeros(len(x), device=x.device))
        return F.pixel_shuffle(output, self.factor)


def direct_unet(in_channels: int, out_channels: int, channels: Sequence[int], factor: int = 2) -> nn.Module:
    """The same UNet as a plain network (B, in_channels, H, W) -> (B, out_channels, H, W): what is left is diffusion."""
    from monai.networks.nets import DiffusionModelUNet

    unet = DiffusionModelUNet(
        spatial_dims=2,
        in_channels=in_channels * factor**2,
        out_channels=out_channels * factor**2,
        **unet_settings(channels),
    )
    return _AtTimeZero(unet, factor, len(channels))
