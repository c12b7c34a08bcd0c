r"""The network of STEDM: the layout beside the noisy image, the style as one vector for all of it.

    F(x, c_noise, layout, style) = UNet( [x, layout], c_noise )        with the style vector s told to
        "all"       every residual block, added to the embedding of the noise level
        "middle"    one block at the bottleneck,  h <- h + block(h, s),  whose embedding it is

The style thus acts on all of the image at once and has no place where it could say what lies where. Without a style the
blocks see a learned vector. The middle is what the authors chose; what happens there reaches the image through every
layer above, and networks trained for about a thousand steps, not the authors' hundreds of thousands, do not learn to
listen: they draw the average style, whatever they are shown (benchmark ``medical/stedm``).
Öttl et al. (2024), arXiv:2403.14429, sec. 3.2 and the authors' configuration.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from suffuse import Condition
from suffuse.errors import InvalidArgument, unknown
from suffuse.hub import serializable
from suffuse.nets import MonaiUNet
from suffuse.nets.unets import check_size, timestep

from ..nets import ESTIMATE
from .style import StyleEncoder

__all__ = ["LAYOUT", "STYLE", "StyleLayoutUNet"]

LAYOUT, STYLE = "layout", "style"
StyleBlocks = Literal["middle", "all"]


class _StyledMiddle(nn.Module):
    """MONAI's middle block, then a residual block that is told the style, which arrives as the UNet's context."""

    def __init__(self, block: nn.Module, spatial_dims: int, channels: int, dim: int, groups: int) -> None:
        super().__init__()
        from monai.networks.nets.diffusion_model_unet import DiffusionUNetResnetBlock

        self.block = block
        self.styled = DiffusionUNetResnetBlock(spatial_dims, channels, dim, norm_num_groups=groups)

    def forward(self, hidden_states: Tensor, temb: Tensor, context: Tensor) -> Tensor:
        return self.styled(self.block(hidden_states, temb), context[:, 0])


@serializable
class StyleLayoutUNet(nn.Module):
    """A backbone with two conditions: ``layout``, a map (B, K, *spatial), and ``style``, images (B, n, C, *any).

    Args:
        spatial_dims: 2 or 3.
        in_channels: of what is denoised (images, or latents).
        layout: K, channels of the layout; 0 for none.
        style: the encoder, trained jointly; None for a layout-only model, the ablation.
        style_blocks: which are told the style, see the module.
        kwargs: of MONAI's ``DiffusionModelUNet``.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        layout: int,
        style: StyleEncoder | None = None,
        style_blocks: StyleBlocks = "middle",
        **kwargs: Any,
    ) -> None:
        super().__init__()
        channels, groups = kwargs["channels"][-1], kwargs.get("norm_num_groups", 32)
        if style is not None and channels < 2 * groups:
            raise InvalidArgument(
                f"norm_num_groups={groups} leaves one of {channels} channels to a group, and a normalisation that "
                f"takes the style out again; use at most {channels // 2}"
            )
        maps = {ESTIMATE: in_channels} | ({LAYOUT: layout} if layout else {})
        self.net = MonaiUNet(spatial_dims, in_channels, maps=maps, **kwargs)
        if style_blocks not in get_args(StyleBlocks):
            raise unknown("style_blocks", style_blocks, get_args(StyleBlocks))
        self.style, self.style_blocks = style, style_blocks
        if style is None:
            return
        self.no_style = nn.Parameter(0.02 * torch.randn(style.dim))
        inner: Any = self.net.unet
        if style_blocks == "all":
            inner.num_class_embeds = 1  # lets class "labels" through, here style vectors, to be embedded and added
            inner.class_embedding = nn.Linear(style.dim, inner.time_embed[-1].out_features)
        else:
            inner.middle_block = _StyledMiddle(inner.middle_block, spatial_dims, channels, style.dim, groups)
            inner.with_conditioning = (
                True  # lets a context through to the middle block; no other block has a use for it
            )

    def forward(self, x: Tensor, c_noise: Tensor, cond: Condition | None = None) -> Tensor:
        check_size(x.shape[2:], self.net.multiple)
        rest = None if cond is None else cond.select([name for name in cond.names if name != STYLE])
        if self.style is None:
            return self.net(x, c_noise, rest)
        style = self.no_style.to(x.dtype).expand(len(x), -1)
        if cond is not None and STYLE in cond.maps:
            given = cond.masks[STYLE][:, None]
            style = torch.where(given, self.style(cond.maps[STYLE].to(x.dtype)), style)
        if rest is not None and not rest.names:
            rest = None
        stray = set() if rest is None else set(rest.names) - set(self.net.maps.widths)
        if stray:
            raise InvalidArgument(f"cond has {sorted(stray)}, which this network was not built for")
        told = {"class_labels": style} if self.style_blocks == "all" else {"context": style[:, None]}
        return self.net.unet(self.net.maps(x, rest), timestep(c_noise), **told)
