r"""One model of images and their masks, with a noise level for each.

    image -> mask      p(m | x): hold the image clean, draw masks; their mean is a probability map
    mask -> image      p(x | m): hold the mask clean, draw images
    joint              p(x, m): draw both; labelled data from nothing
    coarse control     p(x | m_t): hold the mask at noise level t, so that only its large shape binds

The streams lie side by side as channels; a mask of K classes is K channels of -1 and 1. Training draws the two times
apart (``suffuse.joint``), without which only the joint direction works.
Li et al. (2024), "A Simple Approach to Unifying Diffusion-based Conditional Generation" (UniCon), arXiv:2410.11439.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import suffuse
from suffuse.errors import InvalidArgument
from suffuse.joint import IndependentTimes, JointMonaiUNet, JointNetworkDenoiser, Streams, given
from suffuse.samplers import DPMSolverPP, Sampler
from suffuse.schedules import EDM
from suffuse.training import DenoisingObjective

from .. import training
from ..nets import ESTIMATE, SMALL, JointResidualDenoiser, gaussian_part, unet_settings

__all__ = ["draw", "fit", "layout_of", "paint", "segment", "to_stream"]

IMAGE, MASK = "image", "mask"


def to_stream(layout: Tensor) -> Tensor:
    """One-hot maps (N, K, *spatial) in [0, 1] -> the mask stream in [-1, 1]."""
    return 2 * layout - 1


def layout_of(stream: Tensor) -> Tensor:
    """A drawn mask stream -> labels (N, *spatial): the largest channel."""
    return stream.argmax(1)


def fit(
    images: Tensor,
    layout: Tensor,
    *,
    channels: Sequence[int] = SMALL,
    rank: int | None = 16,
    shared_time: bool = False,
    steps: int = 1000,
    batch_size: int = 16,
    lr: float = 2e-3,
    out: Path | None = None,
    metadata: Mapping[str, Any] | None = None,
    resume: bool = True,
    seed: int = 0,
    device: str = "auto",
    precision: str = "32-true",
    progress: bool = True,
    **unet: Any,
) -> JointNetworkDenoiser:
    """Train the joint model.

    Args:
        images: (N, C, *spatial) in [-1, 1].
        layout: (N, K, *spatial) one-hot, see ``stedm.layout_maps``.
        channels: of MONAI's UNet, to which ``unet`` are further arguments.
        rank: of the Gaussian of both that the network starts from, see ``nets.gaussian_part``.
        shared_time: draw one time for both streams: the ablation, whose conditionals are wrong.
        resume: go on with the run in ``out``, if there is one; False starts afresh.
        precision: ``"bf16-mixed"`` is faster on GPUs and on processors with matrix units for it.
    """
    if len(images) != len(layout) or images.shape[2:] != layout.shape[2:]:
        raise InvalidArgument(f"images and layout must go together, got {tuple(images.shape)}, {tuple(layout.shape)}")
    if layout.min() < 0 or layout.max() > 1:
        raise InvalidArgument(f"layout must lie in [0, 1], got [{layout.min():.3g}, {layout.max():.3g}]")
    torch.manual_seed(seed)
    streams = Streams({IMAGE: images.shape[1], MASK: layout.shape[1]})
    both = torch.cat([images, to_stream(layout)], dim=1)
    gaussian = gaussian_part(both, rank)
    variance = streams.split(gaussian.variance[None])
    scales = {name: float(part.mean()) ** 0.5 for name, part in variance.items()}
    low, high = (training.schedule(scale) for scale in (min(scales.values()), max(scales.values())))
    settings = unet_settings(channels, maps={ESTIMATE: streams.total}, **unet)
    denoiser = JointResidualDenoiser(
        JointMonaiUNet(images.ndim - 2, streams.channels, **settings),
        EDM(low.sigma_min, high.sigma_max),
        streams.channels,
        gaussian,
        scales,
    )
    widths = (streams.total,) if shared_time else tuple(streams.channels.values())
    levels = training.levels(math.prod(scales.values()) ** 0.5)
    return training.train(
        denoiser,
        both,
        steps=steps,
        batch_size=batch_size,
        lr=lr,
        objective=DenoisingObjective(
            time=IndependentTimes(widths, levels, clean=0.0 if shared_time else 0.2), cond_dropout=0.0
        ),
        out=out,
        metadata=metadata,
        resume=resume,
        seed=seed,
        device=device,
        precision=precision,
        progress=progress,
    )


@torch.no_grad()
def _sample(
    model: JointNetworkDenoiser,
    known: Mapping[str, Tensor],
    n: int,
    spatial: Sequence[int],
    *,
    t: float = 0.0,
    guidance_scale: float = 1.0,
    sampler: Sampler,
    seed: int,
    batch_size: int,
    progress: bool,
) -> Tensor:
    device = next(model.parameters()).device
    drawn = []
    for first in range(0, n, batch_size):
        rows = range(first, min(first + batch_size, n))
        held = {name: value[first : rows.stop].to(device) for name, value in known.items()}
        noise = suffuse.random.generators([2_000_003 + seed + k for k in rows], device)
        denoiser = given(model, held, t=t, guidance_scale=guidance_scale, generator=noise)
        start = suffuse.random.generators([seed + k for k in rows], device)
        shape = (len(rows), denoiser.free.total, *spatial)
        drawn.append(sampler(denoiser, shape=shape, generator=start, device=device, progress=progress).cpu())
    return torch.cat(drawn)


def segment(
    model: JointNetworkDenoiser,
    images: Tensor,
    *,
    n: int = 5,
    steps: int = 10,
    guidance_scale: float = 1.0,
    seed: int = 0,
    batch_size: int = 64,
    progress: bool = False,
) -> Tensor:
    """``n`` masks for each image: labels (n, N, *spatial).

    Their vote is the segmentation and their disagreement its uncertainty. Draws depend on ``seed``, n and N alone.
    """
    if n < 1:
        raise InvalidArgument(f"n must be at least 1 sample, got {n}")
    if not bool(torch.isfinite(images).all()):
        raise InvalidArgument("images have NaN or infinite voxels; mask or fill them first")
    stream = _sample(
        model, {IMAGE: images.repeat(n, *(1,) * (images.ndim - 1))}, n * len(images), images.shape[2:],
        guidance_scale=guidance_scale, sampler=DPMSolverPP(steps=steps), seed=seed, batch_size=batch_size,
        progress=progress,
    )  # fmt: skip
    return layout_of(stream).unflatten(0, (n, len(images)))


def paint(
    model: JointNetworkDenoiser,
    layout: Tensor,
    *,
    t: float = 0.0,
    steps: int = 10,
    guidance_scale: float = 1.0,
    seed: int = 0,
    batch_size: int = 64,
    progress: bool = False,
) -> Tensor:
    """An image (N, C, *spatial) for each layout (N, K, *spatial), seen through noise of level ``t``."""
    return _sample(
        model, {MASK: to_stream(layout)}, len(layout), layout.shape[2:], t=t, guidance_scale=guidance_scale,
        sampler=DPMSolverPP(steps=steps), seed=seed, batch_size=batch_size, progress=progress,
    )  # fmt: skip


def draw(
    model: JointNetworkDenoiser,
    n: int,
    spatial: Sequence[int],
    *,
    steps: int = 10,
    seed: int = 0,
    batch_size: int = 64,
    progress: bool = False,
) -> tuple[Tensor, Tensor]:
    """n images (n, C, *spatial) with their labels (n, *spatial), both drawn."""
    if n < 1:
        raise InvalidArgument(f"n must be at least 1 sample, got {n}")
    both = _sample(
        model, {}, n, spatial, sampler=DPMSolverPP(steps=steps), seed=seed, batch_size=batch_size, progress=progress
    )
    parts = model.streams.split(both)
    return parts[IMAGE], layout_of(parts[MASK])
