r"""Stage 2: diffusion in the latent space of an autoencoder.

    z = E(x) / std(E(X)),     D(z_t, t, c) = E[z | z_t, c],     x = decode(std z)

Conditions enter as in the paper: tokens by cross-attention, maps side by side with the noisy latent. The scale, without
which a checkpoint cannot be sampled from, is part of the configuration; samples are never clipped in latent space.
Rombach et al. (2022), "High-Resolution Image Synthesis with Latent Diffusion Models", arXiv:2112.10752, secs. 3.2-3.3;
3-D with a rectified flow: Guo et al. (2024), "MAISI", arXiv:2409.11169.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import suffuse
from suffuse import Condition, NetworkDenoiser
from suffuse.errors import InvalidArgument
from suffuse.hub import serializable
from suffuse.nets import MonaiUNet
from suffuse.nets.unets import check_size
from suffuse.samplers import DPMSolverPP, Sampler
from suffuse.schedules import DiscreteBetas, RectifiedFlow, Schedule
from suffuse.training import DenoisingObjective, UniformTime

from .. import training
from ..data.geometry import plain
from ..nets import ESTIMATE, SMALL, ResidualDenoiser, gaussian_part, unet_settings
from .autoencoder import FACTOR, Autoencoder, make_autoencoder
from .losses import AutoencoderObjective, WithDiscriminator, layers_for

__all__ = ["PUBLISHED", "LatentDiffusion", "fit", "fit_autoencoder", "rectified_flow"]

PUBLISHED = DiscreteBetas.scaled_linear(0.0015, 0.0195)
"""The schedule of the paper and of MONAI's ``scaled_linear_beta``: at t = 1 its alpha is 0.012. (That of Stable
Diffusion, which ends at beta = 0.012, is 0.07, and its samples never get quite dark or bright: Lin et al. (2023),
arXiv:2305.08891.) It is not the default here as it does not know the data: :func:`training.schedule` does, and spends
the network on the levels at which images take shape."""


def rectified_flow(spatial_shape: Sequence[int]) -> RectifiedFlow:
    """MAISI's schedule for a latent of this size: more time at high noise, shift = (voxels / 32^3)^(1/3)."""
    voxels = float(torch.tensor(tuple(spatial_shape), dtype=torch.float64).prod())
    return RectifiedFlow(shift=max(voxels / 32**3, 1e-3) ** (1 / 3))


@serializable
class LatentDiffusion(nn.Module):
    """An autoencoder and a denoiser of its latents. The denoiser is a plain one: any sampler and guidance apply to it.

    Args:
        autoencoder: stage 1, trained and frozen.
        denoiser: of latents divided by ``latent_scale``.
        latent_scale: standard deviation of E(x) over the training data.
        image_shape: spatial shape of the training images; what ``sample`` draws unless told otherwise.
        encoded: names of condition maps that are images themselves and go through the encoder (the masked image of
            inpainting); other maps are averaged over the ``factor`` x ``factor`` voxels of a latent voxel.
    """

    def __init__(
        self,
        autoencoder: Autoencoder,
        denoiser: NetworkDenoiser,
        latent_scale: float,
        image_shape: Sequence[int],
        encoded: Sequence[str] = (),
    ) -> None:
        super().__init__()
        if not latent_scale > 0:
            raise InvalidArgument(f"latent_scale must be positive, got {latent_scale}; are all latents equal?")
        self.autoencoder, self.denoiser = autoencoder, denoiser
        self.latent_scale, self.image_shape, self.encoded = float(latent_scale), tuple(image_shape), tuple(encoded)
        self.autoencoder.requires_grad_(False)

    @torch.no_grad()
    def encode(self, images: Tensor, batch_size: int = 64) -> Tensor:
        """Images (N, C, *spatial) in [-1, 1] -> latents of variance one (N, Z, *spatial / factor)."""
        return self.autoencoder.encode_all(images, batch_size) / self.latent_scale

    @torch.no_grad()
    def decode(self, latents: Tensor, batch_size: int = 64) -> Tensor:
        """The images of latents of variance one."""
        device = next(self.autoencoder.parameters()).device
        parts = (plain(latents) * self.latent_scale).split(batch_size)
        return torch.cat([self.autoencoder.decode(part.to(device)) for part in parts])

    def reconstruct(self, images: Tensor) -> Tensor:
        """decode(encode(images)): what the best denoiser could draw."""
        return self.decode(self.encode(images))

    def latent_condition(self, cond: Condition) -> Condition:
        """The condition with its maps on the latent grid; sets of images (B, n, C, *spatial) stay as they are."""
        maps = {name: self._on_latents(name, value) for name, value in cond.maps.items()}
        nulls = {
            name: self._on_latents(name, value[None])[0] if name in maps else value
            for name, value in cond.nulls.items()
        }
        return Condition(cond.tokens, maps, cond.masks, nulls)

    def _on_latents(self, name: str, value: Tensor) -> Tensor:
        """A condition map (B, C, *spatial) on the latent grid, on its own device."""
        if name in self.encoded:
            return self.encode(value).to(value.device)
        if value.ndim != self.autoencoder.spatial_dims + 2:
            return value  # a set of images, not a map of this one
        size = [n // self.autoencoder.factor for n in value.shape[2:]]
        return F.interpolate(plain(value), size=size, mode="area")

    @torch.no_grad()
    def sample(
        self,
        n: int | None = None,
        *,
        cond: Condition | None = None,
        steps: int = 20,
        sampler: Sampler | None = None,
        guidance_scale: float = 1.0,
        seed: int = 0,
        shape: Sequence[int] | None = None,
        batch_size: int = 64,
        progress: bool = False,
    ) -> Tensor:
        """Draw images (n, C, *spatial); draw k depends on ``seed + k`` alone.

        Args:
            n: number of images; default one per row of ``cond``.
            cond: what is asked for, n rows, with maps at the resolution of images.
            steps: network calls, by DPM-Solver++(2M), unless a ``sampler`` is given.
            guidance_scale: of classifier-free guidance; 1 is none.
            shape: spatial shape of the images, multiples of the autoencoder's factor.
            batch_size: images in memory at a time.
        """
        if n is None:
            n = len(cond) if cond is not None else 1
        if n < 1 or (cond is not None and len(cond) != n):
            rows_given = "none" if cond is None else len(cond)
            raise InvalidArgument(f"n must be at least 1 and the batch size of cond, got n={n}, cond of {rows_given}")
        shape = self.image_shape if shape is None else tuple(shape)
        if len(shape) != self.autoencoder.spatial_dims or any(size % self.autoencoder.factor for size in shape):
            raise InvalidArgument(
                f"shape must be {self.autoencoder.spatial_dims} multiples of {self.autoencoder.factor}, got {shape}"
            )
        device = next(self.denoiser.parameters()).device
        sampler = DPMSolverPP(steps=steps) if sampler is None else sampler
        denoiser: suffuse.Denoiser = self.denoiser
        if guidance_scale != 1.0:
            denoiser = suffuse.guidance.ClassifierFree(denoiser, guidance_scale)
        event = (self.autoencoder.latent_channels, *(size // self.autoencoder.factor for size in shape))
        images = []
        for first in range(0, n, batch_size):
            rows = range(first, min(first + batch_size, n))
            asked = None if cond is None else self.latent_condition(cond[list(rows)].to(device))
            noise = suffuse.random.generators([seed + k for k in rows], device)
            z = sampler(
                denoiser, shape=(len(rows), *event), cond=asked, generator=noise, device=device, progress=progress
            )
            images.append(self.decode(z).cpu())
        return torch.cat(images)

    def save(self, path: str | Path, metadata: Mapping[str, Any] | None = None) -> Path:
        """Write ``config.json`` and ``model.safetensors``, which ``suffuse.hub.load`` reads."""
        return suffuse.hub.save(self, path, metadata)


def fit_autoencoder(
    images: Tensor,
    kind: str = "kl",
    *,
    factor: int = FACTOR,
    latent_channels: int = 3,
    width: int = 32,
    steps: int = 1000,
    batch_size: int = 16,
    lr: float = 1e-3,
    objective: AutoencoderObjective | None = None,
    discriminator_width: int = 16,
    discriminator_layers: int = 2,
    out: Path | None = None,
    resume: bool = True,
    seed: int = 0,
    device: str = "auto",
    precision: str = "32-true",
    progress: bool = True,
    **kwargs: Any,
) -> Autoencoder:
    """Train stage 1 on images (N, C, *spatial) in [-1, 1]; further arguments as of :func:`make_autoencoder`.

    The objective is the paper's for either kind, with the adversary from half of the run on; it has fewer layers than
    ``discriminator_layers`` where images are too small for so many. What was used is in the folder ``out``, with the
    training state, from which a run goes on unless ``resume`` is False.
    """
    images = training.ready(images)
    if objective is None:
        weights = {"kl": (1e-6, 0.5), "vq": (1.0, 0.75)}.get(kind, (1.0, 0.5))
        objective = AutoencoderObjective(
            penalty_weight=weights[0], adversarial_weight=weights[1], adversarial_start=steps // 2
        )
    torch.manual_seed(seed)
    net = make_autoencoder(images, kind, factor=factor, width=width, latent_channels=latent_channels, **kwargs)
    layers = discriminator_layers
    if objective.adversarial_weight:
        layers = layers_for(images.shape[2:], layers)
    trained = training.train(
        WithDiscriminator(net, discriminator_width, layers),
        images,
        steps=steps,
        batch_size=batch_size,
        lr=lr,
        objective=objective,
        out=out,
        metadata={"objective": repr(objective), "adversarial_start": objective.adversarial_start},
        resume=resume,
        seed=seed,
        device=device,
        precision=precision,
        progress=progress,
    )
    return trained.autoencoder.eval()


def fit(
    images: Tensor,
    autoencoder: Autoencoder | None = None,
    *,
    cond: Condition | None = None,
    encoded: Sequence[str] = (),
    schedule: Schedule | None = None,
    prediction_type: str = "v_prediction",
    channels: Sequence[int] = SMALL,
    rank: int | None = 16,
    steps: int = 1000,
    batch_size: int = 32,
    lr: float = 2e-3,
    objective: DenoisingObjective | None = None,
    out: Path | None = None,
    metadata: Mapping[str, Any] | None = None,
    resume: bool = True,
    seed: int = 0,
    device: str = "auto",
    precision: str = "32-true",
    progress: bool = True,
    **unet: Any,
) -> LatentDiffusion:
    """Train a latent diffusion model on images (N, C, H, W) or (N, C, H, W, D) in [-1, 1].

    Args:
        images: training data; both stages see nothing else.
        autoencoder: stage 1; trained here with its defaults and the same number of steps when not given.
        cond: N rows; tokens are attended to, maps (at the images' resolution) are concatenated. A tenth of the rows
            is trained without, for classifier-free guidance.
        encoded: names of maps that are images and go through the encoder.
        schedule: default :func:`training.schedule`, with its levels; ``PUBLISHED`` is the paper's,
            :func:`rectified_flow` is MAISI's (with ``prediction_type="flow_prediction"``), both with uniform times.
        rank: of the Gaussian of latents that the network starts from, see ``nets.gaussian_part``; only with
            ``prediction_type="v_prediction"``.
        channels: of the UNet, one width per level; sizes of images must be multiples of factor * 2 ^ (levels - 1).
        precision: ``"bf16-mixed"`` is faster on GPUs and on processors with matrix units for it.
        out: folder; the finished model goes there, the states of both stages in ``stage1`` and ``stage2`` below it.
        resume: go on with the runs in ``out``, if there are some; False starts afresh.
        unet: further arguments of MONAI's ``DiffusionModelUNet``.

    Returns:
        the model, where the autoencoder was, or on the CPU.
    """
    images = training.ready(images)
    if autoencoder is not None:
        autoencoder.check(images[:1])
    factor = FACTOR if autoencoder is None else autoencoder.factor  # sizes are checked before stage 1 is trained
    check_size(images.shape[2:], factor * 2 ** (len(channels) - 1), f"factor={factor} * 2 ^ (levels - 1)")
    if autoencoder is None:
        autoencoder = fit_autoencoder(
            images, steps=steps, out=None if out is None else Path(out) / "stage1", resume=resume, seed=seed,
            device=device, precision=precision, progress=progress,
        )  # fmt: skip
    home = next(autoencoder.parameters()).device
    autoencoder = autoencoder.eval().to(training.torch_device(device))
    latents = autoencoder.encode_all(images).cpu()
    scale = float(latents.std())
    torch.manual_seed(seed)
    attention = [False] * (len(channels) - 1) + [True]  # where tokens are attended to
    settings = unet_settings(channels, **({"attention_levels": attention} | unet))
    tokens = {} if cond is None else {name: value.shape[2] for name, value in cond.tokens.items()}
    maps = {} if cond is None else {name: value.shape[1] for name, value in cond.maps.items()}
    maps |= dict.fromkeys(encoded, autoencoder.latent_channels)
    gaussian = gaussian_part(latents / scale, rank)
    std = gaussian.std
    if prediction_type == "v_prediction":
        maps[ESTIMATE] = autoencoder.latent_channels
    backbone = MonaiUNet(autoencoder.spatial_dims, autoencoder.latent_channels, tokens=tokens, maps=maps, **settings)
    if prediction_type == "v_prediction":
        denoiser: NetworkDenoiser = ResidualDenoiser(backbone, schedule or training.schedule(std), gaussian, std)
    else:
        denoiser = NetworkDenoiser(backbone, schedule or training.schedule(1.0), prediction_type)
    time = UniformTime() if schedule else training.levels(denoiser.data_std)
    model = LatentDiffusion(autoencoder, denoiser, scale, images.shape[2:], encoded)
    inside = None if cond is None else model.latent_condition(cond).to("cpu")
    autoencoder.to(home)
    model.denoiser = training.train(
        denoiser,
        latents / scale,
        cond=inside,
        steps=steps,
        batch_size=batch_size,
        lr=lr,
        objective=objective or DenoisingObjective(time=time, cond_dropout=0.1 if cond is not None else 0.0),
        out=None if out is None else Path(out) / "stage2",
        resume=resume,
        seed=seed,
        device=device,
        precision=precision,
        progress=progress,
    )
    if out is not None:
        model.save(out, metadata)
    return model.to(home).eval()
