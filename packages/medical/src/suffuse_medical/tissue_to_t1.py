"""From a tissue map to a T1-weighted slice: diffusion conditioned by stacking the map onto the noisy image.

    D(x_t, t, c) = E[image | x_t, tissue map c],   network input (x_t, c) side by side as channels

Dorjsembe, Pao, Odonchimed, Xiao (2023), "Conditional Diffusion Models for Semantic 3D Brain MRI Synthesis" (Med-DDPM),
arXiv:2305.18453. Theirs is 3-D, with a hard segmentation and a weighted L1 loss on the noise; here slices are 2-D,
the map holds tissue fractions, the loss is the posterior mean's squared error, and a regression is subtracted first.

A tissue map does not determine an image: scanner, protocol, bias field and fine texture are open. So the answer is a
distribution, and :func:`predict` returns its mean, its spread and its samples.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import suffuse
from suffuse import Condition, NetworkDenoiser
from suffuse.errors import InvalidArgument
from suffuse.hub import serializable
from suffuse.schedules import EDM, Scalar
from suffuse.training import DenoisingObjective, LogNormalKappa

from . import training
from .baselines import PatchRegression
from .data.geometry import Geometry, plain, resample
from .data.slices import Slices, to_intensity
from .data.template import TISSUES
from .nets import SMALL, SubpixelUNet, direct_unet, unet_settings
from .prediction import Prediction


@serializable
class TissueDenoiser(NetworkDenoiser):
    """D(x, t, c) = m(c) + R(x - alpha m(c), t, c): a regression m says what is sure, the network R draws the rest.

    If R is the denoiser of ``image - m(c)``, D is that of ``image``, for any m: nothing is approximated. A good m
    leaves the network a residual of small variance, and a hundred steps on a CPU do what else takes thousands.
    Mardani et al. (2023), "Residual corrective diffusion modeling for km-scale atmospheric downscaling" (CorrDiff),
    arXiv:2309.15214.

    There is no unconditional model inside, so classifier-free guidance does not apply.

    Args:
        mean: m, a fitted regression; its weights are part of the checkpoint and are not trained further.
        backbone: R's network, told the condition map ``tissue`` (B, 3, H, W).
        data_std: standard deviation of the residual over the brain, in network units; EDM's schedule is scaled to it.
    """

    def __init__(self, mean: PatchRegression, backbone: nn.Module, data_std: float) -> None:
        schedule = EDM(sigma_min=0.01 * data_std, sigma_max=150 * data_std)
        super().__init__(backbone, schedule, "v_prediction", data_std=data_std)
        self.mean = mean

    def forward(self, x: Tensor, t: Scalar, cond: Condition | None = None) -> Tensor:
        if cond is None or not bool(cond.masks["tissue"].all()):
            raise InvalidArgument(
                "cond must give the map 'tissue' for every sample: this model has no unconditional part"
            )
        mean = self.mean(cond.maps["tissue"].to(x.dtype))
        return mean + super().forward(x - self.schedule.level(t, like=x).alpha * mean, t, cond)


def tissue_denoiser(slices: Slices, channels: Sequence[int] = SMALL) -> TissueDenoiser:
    """A denoiser of slices (B, 1, H, W) in [-1, 1] whose regression is fitted and whose network is untrained.

    H and W must be multiples of ``2 ** len(channels)``.
    """
    mean = PatchRegression().fit(slices)
    residual = (slices.image - mean(slices.tissue))[slices.brain]
    maps = {"tissue": len(TISSUES)}
    backbone = SubpixelUNet(in_channels=1, maps=maps, **unet_settings(channels))
    return TissueDenoiser(mean, backbone, data_std=float(residual.std()))


def fit(
    slices: Slices,
    *,
    steps: int = 600,
    channels: Sequence[int] = SMALL,
    batch_size: int = 8,
    lr: float = 3e-3,
    ema_decay: float | None = None,
    out: Path | None = None,
    metadata: Mapping[str, Any] | None = None,
    resume: bool = True,
    seed: int = 0,
    device: str = "auto",
    progress: bool = True,
) -> TissueDenoiser:
    """Train a denoiser on slices; arguments as in :func:`training.train`.

    Noise levels are drawn around the residual's own size, with a tail upwards: whole-slice changes of contrast add up
    over thousands of voxels and are decided at noise far above the size of the residual in one voxel.
    """
    torch.manual_seed(seed)
    denoiser = tissue_denoiser(slices, channels)
    trained = training.train(
        denoiser,
        slices.image,
        cond=slices.condition,
        steps=steps,
        batch_size=batch_size,
        lr=lr,
        objective=DenoisingObjective(time=LogNormalKappa(math.log(denoiser.data_std) + 0.3, 1.7), cond_dropout=0.0),
        ema_decay=ema_decay,
        out=out,
        metadata=metadata,
        resume=resume,
        seed=seed,
        device=device,
        progress=progress,
    )
    assert isinstance(trained, TissueDenoiser)
    return trained


def regression_network(channels: Sequence[int] = SMALL) -> nn.Module:
    """The same UNet from the tissue map alone, for the baseline."""
    return direct_unet(len(TISSUES), 1, channels)


def predict(
    denoiser: suffuse.Denoiser,
    tissue: Tensor,
    *,
    n: int = 8,
    steps: int = 10,
    seed: int = 0,
    together: bool = False,
    batch_size: int = 64,
    progress: bool = False,
) -> Prediction:
    """Draw ``n`` images for every tissue map (N, 3, H, W).

    Every draw has its own seed, a function of ``seed``, its number k and its slice: it does not depend on the batch
    size or on what else is drawn.

    Args:
        denoiser: a trained :func:`tissue_denoiser`.
        tissue: fractions in the order of ``TISSUES``.
        n: samples per slice.
        steps: network calls per sample, by DPM-Solver++(2M).
        seed: of all noise.
        together: start sample k of every slice from the same noise, as slices of one volume should, so that they vary
            alike where they look alike.
    """
    if tissue.ndim != 4 or tissue.shape[1] != len(TISSUES):
        raise InvalidArgument(
            f"tissue must be (N, {len(TISSUES)}, H, W) fractions of {TISSUES}, got {tuple(tissue.shape)}"
        )
    if not torch.isfinite(tissue).all():
        raise InvalidArgument("tissue has NaN or infinite voxels; mask or fill them first")
    if n < 1:
        raise InvalidArgument(f"n must be at least 1 sample, got {n}")
    device = next(denoiser.parameters()).device
    sampler = suffuse.samplers.DPMSolverPP(steps=steps, grid="logsnr")
    maps = tissue.repeat(n, 1, 1, 1)  # sample by sample: (n N, 3, H, W)
    seeds = [seed + k + (0 if together else 1_000_003 * row) for k in range(n) for row in range(len(tissue))]
    images = []
    for part, part_seeds in zip(maps.split(batch_size), _chunks(seeds, batch_size), strict=True):
        images.append(
            sampler(
                denoiser,
                shape=(len(part), 1, *part.shape[2:]),
                cond=Condition(maps={"tissue": part.to(device)}),
                generator=suffuse.random.generators(part_seeds, device),
                device=device,
                progress=progress,
            ).cpu()
        )
    return Prediction(to_intensity(torch.cat(images)).unflatten(0, (n, len(tissue))))  # air 0, white matter 0.8


def _chunks(values: list[int], size: int) -> list[list[int]]:
    return [values[i : i + size] for i in range(0, len(values), size)]


def predict_volume(
    denoiser: suffuse.Denoiser,
    tissue: Tensor,
    geometry: Geometry,
    working: Geometry,
    *,
    n: int = 4,
    steps: int = 10,
    seed: int = 0,
    progress: bool = False,
) -> Tensor:
    """Images (n, X, Y, Z) on the grid of ``tissue`` (3, X, Y, Z), drawn slice by slice on the ``working`` grid.

    Any orientation and spacing will do: the map is resampled to the grid the model was trained on, and the images back.
    """
    maps = resample(plain(tissue), geometry, working).permute(3, 0, 1, 2)
    drawn = predict(denoiser, maps, n=n, steps=steps, seed=seed, together=True, progress=progress).samples[:, :, 0]
    return resample(drawn.permute(0, 2, 3, 1), working, geometry)
