r"""The volume autoencoder: K phases as classes, latents of unit variance, tiles that fit exactly.

    encode   labels -> one-hot (B, K, X, Y, Z) -> mu, sigma (B, C, x, y, z),   x = X / factor
    decode   z -> logits (B, K, X, Y, Z),   probabilities by softmax

It is trained as a variational autoencoder, with z = mu + sigma eps,

    L = cross-entropy(labels, decode(z)) + w_KL KL(N(mu, sigma^2) | N(0, 1)) + w_S2 |S2(probabilities) - S2(labels)|,

each a mean over voxels, latents and distances. Phases are classes because a mean of phases 0 and 2 is not phase 1. All
norms see one voxel: with a norm over space, as GroupNorm, a tile would be decoded otherwise than within the whole.
Every convolution wraps on periodic axes.

Kingma, Welling (2013), arXiv:1312.6114; Rombach et al. (2022), "High-Resolution Image Synthesis with Latent Diffusion
Models", arXiv:2112.10752, sec. 3.1.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from suffuse import Condition
from suffuse.errors import InvalidArgument
from suffuse.hub import serializable

from ..descriptors.soft import soft_two_point
from .layers import Block, ChannelNorm, Conv, depth_to_space, space_to_depth

__all__ = ["AutoencoderObjective", "VolumeAutoencoder", "VoxelCodec"]


@serializable
class VolumeAutoencoder(nn.Module):
    """Volumes of K phases to latents and back.

    Args:
        phases: K.
        latent_channels: C.
        widths: channels at each resolution, the first at half that of the volume; the factor is 2^len(widths).
        blocks: residual blocks at each resolution, in the encoder and in the decoder.
        periodic: per axis, whether it wraps; zeros are seen beyond the others.
    """

    shift: Tensor
    scale: Tensor

    def __init__(
        self,
        phases: int = 2,
        latent_channels: int = 4,
        widths: Sequence[int] = (32, 64),
        blocks: int = 1,
        periodic: Sequence[bool] = (True, True, True),
    ) -> None:
        super().__init__()
        if phases < 2 or latent_channels < 1 or not widths or blocks < 1 or len(periodic) != 3:
            raise InvalidArgument(
                f"need phases >= 2, latent_channels >= 1, a width, blocks >= 1 and 3 entries in periodic, got "
                f"{phases}, {latent_channels}, {tuple(widths)}, {blocks}, {tuple(periodic)}"
            )
        self.phases, self.latent_channels = phases, latent_channels
        self.levels, self.blocks = len(widths), blocks
        self.periodic = tuple(bool(p) for p in periodic)

        def stack(width: int) -> nn.ModuleList:
            return nn.ModuleList(Block(width, 0, periodic) for _ in range(blocks))

        pairs, deepest = list(itertools.pairwise(widths)), widths[-1]
        self.stem = Conv(8 * phases, widths[0], periodic)
        self.down = nn.ModuleList(stack(width) for width in widths)
        self.shrink = nn.ModuleList(nn.Conv3d(8 * fine, coarse, 1) for fine, coarse in pairs)
        self.code = nn.Sequential(ChannelNorm(deepest), nn.SiLU(), nn.Conv3d(deepest, 2 * latent_channels, 1))
        self.uncode = Conv(latent_channels, deepest, periodic)
        self.up = nn.ModuleList(stack(width) for width in widths)
        self.grow = nn.ModuleList(nn.Conv3d(coarse, 8 * fine, 1) for fine, coarse in pairs)
        self.norm = ChannelNorm(widths[0])
        self.head = Conv(widths[0], 8 * phases, periodic)
        self.register_buffer("shift", torch.zeros(latent_channels, 1, 1, 1))
        self.register_buffer("scale", torch.ones(latent_channels, 1, 1, 1))

    # --- what it is ---------------------------------------------------------------------------------------------
    @property
    def factor(self) -> int:
        """Voxels per latent cell along an edge."""
        return 2**self.levels

    @property
    def receptive_field(self) -> int:
        """Latent cells on each side that a decoded voxel depends on: the halo of exact tiles."""
        reach = 1.0 + 2 * self.blocks  # the convolutions at the latents' resolution
        reach += sum(2 * self.blocks / 2**level for level in range(1, self.levels))
        return math.ceil(reach + 1 / 2 ** (self.levels - 1))

    # --- the two ways -------------------------------------------------------------------------------------------
    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(mu, sigma) of labels (B, X, Y, Z), whole numbers, or of shares of the phases (B, K, X, Y, Z)."""
        h = self.stem(space_to_depth(self._shares(x)))
        for level, blocks in enumerate(self.down):
            for block in blocks:  # type: ignore[attr-defined]
                h = block(h)
            if level < len(self.shrink):
                h = self.shrink[level](space_to_depth(h))
        mu, log_variance = self.code(h).chunk(2, 1)
        return mu, (0.5 * log_variance.clamp(-20, 10)).exp()

    def decode(self, z: Tensor) -> Tensor:
        """Logits (B, K, X, Y, Z) of latents (B, C, x, y, z)."""
        if z.ndim != 5 or z.shape[1] != self.latent_channels:
            raise InvalidArgument(f"z must be (B, {self.latent_channels}, x, y, z), got shape {tuple(z.shape)}")
        h = self.uncode(z)
        for level in reversed(range(self.levels)):
            for block in self.up[level]:  # type: ignore[attr-defined]
                h = block(h)
            if level:
                h = depth_to_space(self.grow[level - 1](h))
        return depth_to_space(self.head(F.silu(self.norm(h))))

    def encode_stage_2_inputs(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Latents as diffusion sees them: mean zero and variance one per channel; mu, or a draw with a generator."""
        mu, sigma = self.encode(x)
        if generator is not None:
            mu = mu + sigma * torch.randn(mu.shape, generator=generator, device=generator.device).to(mu)
        return (mu - self.shift) / self.scale

    def decode_stage_2_outputs(self, z: Tensor) -> Tensor:
        """Logits of such latents."""
        return self.decode(z * self.scale + self.shift)

    def calibrate(self, latents: Tensor) -> None:
        """Take mean and standard deviation of unscaled latents (N, C, x, y, z), channel by channel."""
        dims = (0, 2, 3, 4)
        self.shift.copy_(latents.mean(dims).view_as(self.shift))
        self.scale.copy_(latents.std(dims).clamp_min(1e-6).view_as(self.scale))

    def _shares(self, x: Tensor) -> Tensor:
        if x.ndim == 5 and x.shape[1] != self.phases:
            raise InvalidArgument(f"x has {x.shape[1]} phases, this autoencoder {self.phases}")
        if any(n % self.factor for n in x.shape[-3:]):
            raise InvalidArgument(f"shape {tuple(x.shape[-3:])} must be multiples of {self.factor} voxels")
        return x if x.ndim == 5 else _one_hot(x, self.phases).to(self.shift.dtype)


def _one_hot(x: Tensor, phases: int) -> Tensor:
    """(B, K, X, Y, Z) of labels (B, X, Y, Z)."""
    if x.ndim != 4 or x.is_floating_point() or x.numel() == 0:
        raise InvalidArgument(f"x must be whole labels (B, X, Y, Z), got {x.dtype} {tuple(x.shape)}")
    low, high = int(x.min()), int(x.max())
    if low < 0 or high >= phases:
        raise InvalidArgument(
            f"x has a label {low if low < 0 else high}, but this autoencoder was made for {phases} phases, 0 to "
            f"{phases - 1}; merge phases first, or train one for more"
        )
    return F.one_hot(x.long(), phases).movedim(-1, 1)


@serializable
class VoxelCodec(nn.Module):
    """The autoencoder that does nothing: voxels are the latents, one channel of +-1 for two phases, else K of them."""

    def __init__(self, phases: int = 2, periodic: Sequence[bool] = (True, True, True)) -> None:
        super().__init__()
        self.phases, self.latent_channels = phases, 1 if phases == 2 else phases
        self.periodic = tuple(bool(p) for p in periodic)
        self.factor, self.receptive_field = 1, 0

    def encode_stage_2_inputs(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        shares = _one_hot(x, self.phases).float()
        return 2 * (shares[:, 1:] if self.phases == 2 else shares) - 1

    def decode_stage_2_outputs(self, z: Tensor) -> Tensor:
        return torch.cat([-z, z], 1) if self.phases == 2 else z


@dataclass(frozen=True)
class AutoencoderObjective:
    """The loss above, for ``suffuse.training.fit``; batches are labels (B, X, Y, Z).

    Args:
        kl_weight: w_KL, of the mean over latents.
        s2_weight: w_S2.
        augment: shift, flip and turn each batch at random along the axes where that gives an equally likely volume.
        film: leave the thickness z as it is.
    """

    kl_weight: float = 1e-4
    s2_weight: float = 0.1
    augment: bool = True
    film: bool = False

    def __call__(
        self,
        model: Any,
        x0: Tensor,
        cond: Condition | None = None,
        generator: torch.Generator | None = None,
        weight: Tensor | None = None,
    ) -> Tensor:
        labels = self._moved(x0, model.periodic, generator) if self.augment else x0
        mu, sigma = model.encode(labels)
        z = mu + sigma * torch.randn(mu.shape, generator=generator, device=mu.device)
        logits = model.decode(z).float()  # also under half precision
        loss = F.cross_entropy(logits, labels.long())
        kl = 0.5 * (mu.square() + sigma.square() - 1) - sigma.log()
        loss = loss + self.kl_weight * kl.mean()
        if self.s2_weight:
            p = logits.softmax(1)[:, 1:].flatten(0, 1)
            truth = F.one_hot(labels.long(), model.phases).movedim(-1, 1)[:, 1:].flatten(0, 1).to(p)
            loss = loss + self.s2_weight * (soft_two_point(p) - soft_two_point(truth)).abs().mean()
        return loss

    def _moved(self, x: Tensor, periodic: Sequence[bool], generator: torch.Generator | None) -> Tensor:
        from ..data.volumes import symmetries

        def below(n: int) -> int:
            return int(torch.randint(n, (), generator=generator, device=x.device))

        shifts = [below(n) if p and not (self.film and axis == 2) else 0
                  for axis, (n, p) in enumerate(zip(x.shape[1:], periodic, strict=True))]  # fmt: skip
        x = x.roll(shifts, (1, 2, 3))
        forms = symmetries(periodic, x.shape[1:], self.film)
        flips, turn = forms[below(len(forms))]
        x = x.flip([axis + 1 for axis in flips])
        return x.transpose(1, 2) if turn else x
