r"""Stage 1: autoencoders whose latent space a diffusion model is trained in.

    KL   z = mu(x) + s(x) eps,            a Gaussian code that is held near N(0, I) by a very small KL term
    VQ   z = nearest code vector to e(x),  learned by moving averages; diffusion runs on e(x), decoding quantises

Both are MONAI's networks, in 2-D and 3-D, behind one small interface: ``encode``, ``decode``, ``latent_channels`` and
``factor`` (the edge of the image voxels under one latent voxel).
Rombach et al. (2022), "High-Resolution Image Synthesis with Latent Diffusion Models", arXiv:2112.10752, sec. 3.1.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from suffuse.errors import InvalidArgument
from suffuse.hub import serializable

from ..data.geometry import plain

__all__ = ["Autoencoder", "Coded", "KLAutoencoder", "VQAutoencoder", "make_autoencoder"]

#: How much each edge shrinks, unless told otherwise.
FACTOR = 4


class Coded(NamedTuple):
    """What training sees: the reconstruction, like x, and the regulariser of the code, per entry of x."""

    reconstruction: Tensor
    penalty: Tensor


class Autoencoder(nn.Module, ABC):
    """Images (B, C, *spatial) to latents (B, Z, *spatial / factor) and back."""

    spatial_dims: int
    in_channels: int
    latent_channels: int
    factor: int

    @abstractmethod
    def encode(self, x: Tensor) -> Tensor:
        """Latents, without randomness: what diffusion is trained on."""

    @abstractmethod
    def decode(self, z: Tensor) -> Tensor:
        """Images of latents."""

    @abstractmethod
    def code(self, x: Tensor, generator: torch.Generator | None = None) -> Coded:
        """One pass for training, with the randomness and the penalty that belong to it."""

    @property
    @abstractmethod
    def last_weight(self) -> nn.Parameter:
        """The weight of the decoder's last layer, which the adaptive adversarial weight measures gradients at."""

    def forward(self, x: Tensor) -> Tensor:
        """The reconstruction: the ceiling of everything a latent model can draw."""
        return self.decode(self.encode(x))

    @torch.no_grad()
    def encode_all(self, images: Tensor, batch_size: int = 64) -> Tensor:
        """Latents of a whole data set, a batch at a time; they stay on the device of the network."""
        device = next(self.parameters()).device
        return torch.cat([self.encode(part.to(device)) for part in plain(images).split(batch_size)])

    def check(self, x: Tensor) -> Tensor:
        """x as a plain tensor; InvalidArgument unless it is a batch of images that can be halved often enough."""
        if x.ndim != self.spatial_dims + 2 or x.shape[1] != self.in_channels:
            axes = ", ".join("HWD"[: self.spatial_dims])
            raise InvalidArgument(f"images must be (B, {self.in_channels}, {axes}), got {tuple(x.shape)}")
        if any(size % self.factor for size in x.shape[2:]):
            raise InvalidArgument(
                f"images of size {tuple(x.shape[2:])} cannot be divided by factor={self.factor}; pad or crop them"
            )
        return plain(x)


@serializable
class KLAutoencoder(Autoencoder):
    """MONAI's ``AutoencoderKL``.

    Args:
        spatial_dims: 2 or 3.
        in_channels: of images.
        latent_channels: Z.
        channels: width of each level; factor = 2 ^ (levels - 1).
        kwargs: further arguments of ``AutoencoderKL`` (num_res_blocks, attention_levels, norm_num_groups, ...).
    """

    def __init__(
        self, spatial_dims: int, in_channels: int, latent_channels: int, channels: Sequence[int], **kwargs: Any
    ) -> None:
        super().__init__()
        from monai.networks.nets import AutoencoderKL

        settings: dict[str, Any] = {
            "num_res_blocks": 1,
            "attention_levels": [False] * len(channels),
            "norm_num_groups": 8,
            "with_encoder_nonlocal_attn": False,
            "with_decoder_nonlocal_attn": False,
        } | kwargs
        if any(width % settings["norm_num_groups"] for width in channels):
            raise InvalidArgument(
                f"channels={list(channels)} must be multiples of norm_num_groups={settings['norm_num_groups']}"
            )
        self.net = AutoencoderKL(
            spatial_dims=spatial_dims, in_channels=in_channels, out_channels=in_channels, channels=tuple(channels),
            latent_channels=latent_channels, **settings,
        )  # fmt: skip
        self.spatial_dims, self.in_channels, self.latent_channels = spatial_dims, in_channels, latent_channels
        self.factor = 2 ** (len(channels) - 1)

    def encode(self, x: Tensor) -> Tensor:
        return self.net.encode(self.check(x))[0]

    def decode(self, z: Tensor) -> Tensor:
        return self.net.decode(z)

    def code(self, x: Tensor, generator: torch.Generator | None = None) -> Coded:
        """The penalty is KL(N(mu, s^2) || N(0, 1)), summed over the latent and divided by the entries of x."""
        x = self.check(x)
        mean, std = self.net.encode(x)
        noise = torch.randn(mean.shape, generator=generator, device=mean.device, dtype=mean.dtype)
        kl = 0.5 * (mean.square() + std.square() - 1 - 2 * std.log()).sum()
        return Coded(self.net.decode(mean + std * noise), kl / x.numel())

    @property
    def last_weight(self) -> nn.Parameter:
        return _last_convolution(self.net.decoder).weight  # type: ignore[return-value]


@serializable
class VQAutoencoder(Autoencoder):
    """MONAI's ``VQVAE``: codes learned by moving averages, with a commitment penalty.

    MONAI's own defaults (32 codes, decay 0.5) forget a code that a few batches do not use; these are wider.

    Args:
        spatial_dims: 2 or 3.
        in_channels: of images.
        latent_channels: Z, the size of a code vector.
        channels: width of each level; factor = 2 ^ levels.
        codes: number of code vectors.
        kwargs: further arguments of ``VQVAE`` (num_res_layers, num_res_channels, commitment_cost, decay, ...).
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        latent_channels: int,
        channels: Sequence[int],
        codes: int = 512,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        from monai.networks.nets import VQVAE

        levels = len(channels)
        settings: dict[str, Any] = {
            "num_res_layers": 1,
            "num_res_channels": list(channels),
            "downsample_parameters": ((2, 4, 1, 1),) * levels,
            "upsample_parameters": ((2, 4, 1, 1, 0),) * levels,
            "decay": 0.99,
        }
        self.net = VQVAE(
            spatial_dims=spatial_dims, in_channels=in_channels, out_channels=in_channels, channels=tuple(channels),
            num_embeddings=codes, embedding_dim=latent_channels, **(settings | kwargs),
        )  # fmt: skip
        self.spatial_dims, self.in_channels, self.latent_channels = spatial_dims, in_channels, latent_channels
        self.factor = 2**levels

    def encode(self, x: Tensor) -> Tensor:
        """e(x), before quantisation: its values are continuous, and diffusion needs that."""
        return self.net.encode(self.check(x))

    def decode(self, z: Tensor) -> Tensor:
        return self.net.decode_stage_2_outputs(z)

    def code(self, x: Tensor, generator: torch.Generator | None = None) -> Coded:
        return Coded(*self.net(self.check(x)))

    @property
    def last_weight(self) -> nn.Parameter:
        return _last_convolution(self.net.decoder).weight  # type: ignore[return-value]


def _last_convolution(decoder: nn.Module) -> nn.Module:
    kinds = (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)
    return [module for module in decoder.modules() if isinstance(module, kinds)][-1]


def make_autoencoder(
    images: Tensor, kind: str = "kl", *, factor: int = FACTOR, width: int = 32, latent_channels: int = 3, **kwargs: Any
) -> Autoencoder:
    """An untrained autoencoder for images (N, C, H, W) or (N, C, H, W, D).

    Args:
        images: the training data; gives dimensions and channels.
        kind: ``"kl"`` or ``"vq"``.
        factor: 2, 4, 8, ...; how much each edge shrinks.
        width: channels at full resolution, twice that below.
        latent_channels: Z.
        kwargs: of ``KLAutoencoder`` or ``VQAutoencoder``.
    """
    if kind not in ("kl", "vq"):
        raise InvalidArgument(f"kind must be 'kl' or 'vq', got {kind!r}")
    halvings = factor.bit_length() - 1
    if factor < 2 or factor != 2**halvings:
        raise InvalidArgument(f"factor must be 2, 4, 8, ..., got {factor}")
    dims, channels = images.ndim - 2, images.shape[1]
    if dims not in (2, 3):
        raise InvalidArgument(f"images must be (N, C, H, W) or (N, C, H, W, D), got {tuple(images.shape)}")
    widths = [width, *[2 * width] * (halvings if kind == "kl" else halvings - 1)]
    cls = KLAutoencoder if kind == "kl" else VQAutoencoder
    made = cls(dims, channels, latent_channels, widths, **kwargs)
    made.check(images[:1])
    return made
