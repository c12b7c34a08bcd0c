r"""The style encoder: what several images have in common, as one vector.

    s = aggregate( e(y_1), ..., e(y_n) )       y_1 .. y_n images of one style, e trained jointly with the denoiser

e ends in an average over space, so that what it tells is appearance and not layout; whether that holds is measured
(``leak``). Several images are given because one of them shows what is in it as much as how it looks.
Öttl et al. (2024), "Style-Extracting Diffusion Models for Semi-Supervised Histopathology Segmentation" (STEDM),
arXiv:2403.14429, sec. 3.2. The encoder there is a Swin transformer; here it is a small convolutional one.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from suffuse.errors import InvalidArgument, unknown
from suffuse.hub import serializable

__all__ = ["Aggregation", "StyleAggregator", "StyleEncoder"]

Aggregation = Literal["mean", "max", "linear", "set"]


class StyleAggregator(nn.Module):
    """(B, n, D) vectors of the images of one style -> (B, D).

    Args:
        kind: ``"mean"`` and ``"max"`` over images; ``"linear"``, an MLP on all n side by side, for that n only;
            ``"set"``, a transformer over the images without positions, read at a token of its own. All but
            ``"linear"`` take any number of images, in any order.
        dim: D.
        images: n, which only ``"linear"`` needs.
    """

    def __init__(self, kind: Aggregation, dim: int, images: int) -> None:
        super().__init__()
        if kind not in get_args(Aggregation):
            raise unknown("aggregation", kind, get_args(Aggregation))
        self.kind, self.images = kind, images
        if kind == "linear":
            self.mlp = nn.Sequential(nn.Linear(images * dim, dim), nn.SiLU(), nn.Linear(dim, dim))
        if kind == "set":
            self.token = nn.Parameter(0.02 * torch.randn(dim))
            layer = nn.TransformerEncoderLayer(dim, 4, 2 * dim, dropout=0.0, batch_first=True, norm_first=True)
            self.transformer = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, styles: Tensor) -> Tensor:
        match self.kind:
            case "mean":
                return styles.mean(1)
            case "max":
                return styles.amax(1)
            case "linear":
                if styles.shape[1] != self.images:
                    raise InvalidArgument(
                        f"the 'linear' aggregation was built for {self.images} style images, got {styles.shape[1]}"
                    )
                return self.mlp(styles.flatten(1))
        token = self.token.expand(len(styles), 1, -1)
        return self.transformer(torch.cat([token, styles], dim=1))[:, 0]


@serializable
class StyleEncoder(nn.Module):
    """Images of one style (B, n, C, *spatial) -> a vector (B, dim).

    Args:
        spatial_dims: 2 or 3.
        in_channels: C.
        dim: of the style vector.
        images: n, how many images of a style are shown in training.
        aggregation: see :class:`StyleAggregator`.
        width: channels of the first convolution; doubled at each of three halvings of the image.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        dim: int = 64,
        images: int = 4,
        aggregation: Aggregation = "mean",
        width: int = 16,
    ) -> None:
        super().__init__()
        if images < 1:
            raise InvalidArgument(f"images must be at least 1, got {images}")
        convolution = nn.Conv2d if spatial_dims == 2 else nn.Conv3d
        layers: list[nn.Module] = []
        channels = in_channels
        for out in (width, 2 * width, 4 * width):
            layers += [convolution(channels, out, 3, 2, 1), nn.SiLU()]
            channels = out
        # no normalisation of activations: the level and the contrast of an image are its style
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(2 * channels, dim)
        self.aggregate = StyleAggregator(aggregation, dim, images)
        self.spatial_dims, self.in_channels, self.dim, self.images = spatial_dims, in_channels, dim, images

    def encode(self, x: Tensor) -> Tensor:
        """Each image apart, (N, C, *spatial) -> (N, dim): mean and spread of the features over space."""
        features = self.features(x).flatten(2)
        return self.head(torch.cat([features.mean(2), features.std(2, correction=0)], dim=1))

    def forward(self, images: Tensor) -> Tensor:
        if images.ndim != self.spatial_dims + 3 or images.shape[2] != self.in_channels:
            raise InvalidArgument(
                f"style must be (B, n, {self.in_channels}, {self.spatial_dims} axes), got {tuple(images.shape)}"
            )
        return self.aggregate(self.encode(images.flatten(0, 1)).unflatten(0, images.shape[:2]))
