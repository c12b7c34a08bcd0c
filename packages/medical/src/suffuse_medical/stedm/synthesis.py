r"""Training STEDM and drawing labelled images: layouts of one place, styles of another.

The model learns from labelled images alone. It is then shown style sets of images that nobody has labelled, of sites it
has never seen, and draws known layouts in their style: labelled training data for a segmenter at that site.
Guidance acts on the style only; the layout is in both branches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import suffuse
from suffuse import Condition, NetworkDenoiser
from suffuse.errors import InvalidArgument
from suffuse.guidance import ClassifierFree
from suffuse.samplers import DPMSolverPP
from suffuse.training import DenoisingObjective

from .. import training
from ..ldm import Autoencoder, LatentDiffusion
from ..nets import SMALL, ResidualDenoiser, gaussian_part, unet_settings
from .data import Source, StyleSets
from .denoiser import LAYOUT, STYLE, StyleBlocks, StyleLayoutUNet
from .style import Aggregation, StyleEncoder

__all__ = ["fit", "leak", "style_sets", "synthesise"]


def fit(
    images: Tensor,
    layout: Tensor,
    patients: Sequence[str],
    *,
    source: Source = "mp",
    aggregation: Aggregation = "mean",
    style_images: int = 4,
    style_dim: int = 64,
    style_dropout: float = 0.25,
    style_blocks: StyleBlocks = "all",
    autoencoder: Autoencoder | None = None,
    channels: Sequence[int] = SMALL,
    rank: int | None = 16,
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
) -> NetworkDenoiser | LatentDiffusion:
    """Train encoder and denoiser together.

    Args:
        images: (N, C, *spatial) in [-1, 1], labelled.
        layout: (N, K, *spatial) of them, see :func:`layout_maps`.
        patients: N group names, within which style sets are drawn.
        source: where style sets come from; ``"none"`` trains the layout-only ablation.
        aggregation: of the images of a style set.
        style_images: n, how many there are.
        style_dropout: how often the style is hidden, for guidance.
        style_blocks: which are told the style, ``"all"`` or, as published, ``"middle"``, see ``stedm.denoiser``.
        autoencoder: diffuse in its latent space, as published; without it, in the space of images.
        channels: of the UNet.
        rank: of the Gaussian that the network starts from, see ``nets.gaussian_part``.
        resume: go on with the run in ``out``, if there is one; False starts afresh.
        precision: ``"bf16-mixed"`` is faster on GPUs and on processors with matrix units for it.
        unet: further arguments of MONAI's ``DiffusionModelUNet``.

    Returns:
        a denoiser, or with an autoencoder a ``LatentDiffusion``, where the autoencoder was.
    """
    images = training.ready(images)
    torch.manual_seed(seed)
    dims = images.ndim - 2
    targets, scale, home = images, 1.0, torch.device("cpu")
    if autoencoder is not None:
        home = next(autoencoder.parameters()).device
        targets = autoencoder.encode_all(images).cpu()
        scale = float(targets.std())
        targets = targets / scale
    sets = StyleSets(images, layout, patients, n=style_images, source=source, targets=targets, seed=seed)
    encoder = None
    if source != "none":
        encoder = StyleEncoder(dims, images.shape[1], style_dim, style_images, aggregation)
    backbone = StyleLayoutUNet(
        dims, targets.shape[1], layout.shape[1], encoder, style_blocks, **unet_settings(channels, **unet)
    )
    gaussian = gaussian_part(targets, rank)
    denoiser = ResidualDenoiser(backbone, training.schedule(gaussian.std), gaussian, gaussian.std)
    wrapped = denoiser if autoencoder is None else LatentDiffusion(autoencoder, denoiser, scale, images.shape[2:])
    described = {"system": "stedm", "source": source, "aggregation": aggregation, **(metadata or {})}
    data: Any = sets
    if autoencoder is not None:
        assert isinstance(wrapped, LatentDiffusion)
        sets.layout = wrapped.latent_condition(Condition(maps={LAYOUT: layout})).maps[LAYOUT]
    trained = training.train(
        denoiser,
        data,
        steps=steps,
        batch_size=batch_size,
        lr=lr,
        objective=DenoisingObjective(
            time=training.levels(gaussian.std),
            cond_dropout=style_dropout if encoder else 0.0,
            drop_names=(STYLE,) if encoder else None,
        ),
        out=None if out is None else Path(out) / ("" if autoencoder is None else "stage2"),
        metadata=described,
        resume=resume,
        seed=seed,
        device=device,
        precision=precision,
        progress=progress,
    )
    if not isinstance(wrapped, LatentDiffusion):
        return trained
    wrapped.denoiser = trained
    if out is not None:
        wrapped.save(out, described)
    return wrapped.to(home).eval()


def style_sets(images: Tensor, count: int, n: int, seed: int = 0, patients: Sequence[str] | None = None) -> Tensor:
    """``count`` style sets of n images each: (count, n, C, *spatial).

    Args:
        images: (N, C, *spatial) of one style, or with ``patients`` of one style for each patient.
        patients: N names; every set is then of one patient, one patient after the other.
    """
    if len(images) < 1 or n < 1:
        raise InvalidArgument(f"need at least one image and n >= 1, got {len(images)} images and n={n}")
    names = [""] * len(images) if patients is None else list(patients)
    if len(names) != len(images):
        raise InvalidArgument(f"patients: expected a name for each of {len(images)} images, got {len(names)}")
    generator = torch.Generator().manual_seed(seed)
    groups = [torch.tensor([i for i, name in enumerate(names) if name == one]) for one in dict.fromkeys(names)]
    chosen = []
    for k in range(count):
        rows = groups[k % len(groups)]
        if len(rows) >= n:
            chosen.append(rows[torch.randperm(len(rows), generator=generator)[:n]])
        else:
            chosen.append(rows[torch.randint(len(rows), (n,), generator=generator)])
    return images[torch.stack(chosen)]


@torch.no_grad()
def synthesise(
    model: NetworkDenoiser | LatentDiffusion,
    layout: Tensor,
    style: Tensor | None = None,
    *,
    guidance_scale: float = 1.5,
    steps: int = 10,
    seed: int = 0,
    batch_size: int = 64,
    progress: bool = False,
) -> Tensor:
    """Draw one image (N, C, *spatial) for each layout (N, K, *spatial), in the style of ``style`` (N, n, C, *any).

    Draw k depends on ``seed + k``, its layout and its style alone. Without ``style``, or for a layout-only model, the
    layout alone is asked for.
    """
    if not len(layout):
        raise InvalidArgument("layout is empty; give at least one")
    if style is not None and len(style) != len(layout):
        raise InvalidArgument(f"style has {len(style)} sets for {len(layout)} layouts; give one each")
    maps = {LAYOUT: layout} if style is None else {LAYOUT: layout, STYLE: style}
    denoiser: suffuse.Denoiser = model.denoiser if isinstance(model, LatentDiffusion) else model
    if style is not None and guidance_scale != 1.0:
        denoiser = ClassifierFree(denoiser, guidance_scale, names=(STYLE,))
    device = next(model.parameters()).device
    sampler, drawn = DPMSolverPP(steps=steps), []
    cond = Condition(maps=maps)
    for first in range(0, len(layout), batch_size):
        rows = list(range(first, min(first + batch_size, len(layout))))
        part = cond[rows].to(device)
        channels: int = _channels(model)
        shape: tuple[int, ...] = (len(rows), channels, *layout.shape[2:])
        if isinstance(model, LatentDiffusion):
            part = model.latent_condition(part)
            shape = (len(rows), channels, *part.maps[LAYOUT].shape[2:])
        noise = suffuse.random.generators([seed + k for k in rows], device)
        z = sampler(denoiser, shape=shape, cond=part, generator=noise, device=device, progress=progress)
        drawn.append((model.decode(z) if isinstance(model, LatentDiffusion) else z).cpu())
    return torch.cat(drawn)


def _channels(model: NetworkDenoiser | LatentDiffusion) -> int:
    if isinstance(model, LatentDiffusion):
        return model.autoencoder.latent_channels
    net: Any = model.backbone
    return int(net.net.unet.out[-1].conv.out_channels)


@torch.no_grad()
def leak(
    encoder: StyleEncoder,
    images: Tensor,
    layout: Tensor,
    patients: Sequence[str],
    *,
    grid: int = 4,
    ridge: float = 0.3,
) -> dict[str, float]:
    """Does the style vector tell the layout? R^2 of a ridge regression from it to the layout, for patients left out.

    The layout is what each class occupies of the cells of a ``grid`` ^ dims, without the mean over images. 0 or below
    is chance. ``own`` reads the vector of the image itself; ``others`` that of the other images of the patient, which
    is what the model is shown.
    """
    device = next(encoder.parameters()).device
    vectors = torch.cat([encoder.encode(part.to(device)).cpu() for part in images.split(64)]).double()
    pool = torch.nn.functional.adaptive_avg_pool2d if images.ndim == 4 else torch.nn.functional.adaptive_avg_pool3d
    target = pool(layout.float().cpu(), grid).flatten(1).double()
    names = sorted(set(patients))
    index = torch.tensor([names.index(name) for name in patients])
    if len(names) < 2:
        raise InvalidArgument(f"patients must name at least two patients to leave one out, got {names}")
    member = torch.nn.functional.one_hot(index, len(names)).double()
    count = member.sum(0)[index][:, None]
    others = (member @ (member.T @ vectors) - vectors) / (count - 1).clamp(min=1)
    return {"own": _r2(vectors, target, index, ridge), "others": _r2(others, target, index, ridge)}


def _r2(x: Tensor, y: Tensor, fold: Tensor, ridge: float) -> float:
    """Of predictions for each fold by a ridge regression on the others."""
    error = total = 0.0
    for k in fold.unique():
        train, test = fold != k, fold == k
        mean, std, level = x[train].mean(0), x[train].std(0).clamp(min=1e-9), y[train].mean(0)
        a, b = (x[train] - mean) / std, (x[test] - mean) / std
        gram = a.T @ a / len(a) + ridge * torch.eye(a.shape[1], dtype=a.dtype)
        fitted = b @ torch.linalg.solve(gram, a.T @ (y[train] - level) / len(a))
        error += float((y[test] - level - fitted).square().sum())
        total += float((y[test] - level).square().sum())
    return 1 - error / max(total, 1e-12)
