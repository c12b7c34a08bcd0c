"""Handwritten digits, small and real: a class-conditional DiT on the 1797 8 x 8 images that scikit-learn carries.

The data are the test part of the UCI set "Optical Recognition of Handwritten Digits" (Alpaydin, Kaynak 1998): 43
writers, grey levels 0..16, scaled here to [-1, 1].
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import suffuse
from suffuse.errors import InvalidArgument, require
from suffuse.recipes import recipe

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from suffuse.condition import Condition

CLASSES = 10
SIZE = 8


class Digits(NamedTuple):
    """Images (N, 1, 8, 8) float32 in [-1, 1] and labels (N,) int64: 1197 to learn from and 600 held out."""

    images: Tensor
    labels: Tensor
    test_images: Tensor
    test_labels: Tensor


def load_digits() -> Digits:
    """The digits with a fixed, class-balanced split.

    Raises:
        MissingExtra: without scikit-learn.
    """
    import torch

    datasets = require("sklearn.datasets", extra="bench")
    selection = require("sklearn.model_selection", extra="bench")
    pixels, labels = datasets.load_digits(return_X_y=True)
    parts = selection.train_test_split(pixels, labels, test_size=600, stratify=labels, random_state=0)
    images, test_images = (torch.tensor(x, dtype=torch.float32).reshape(-1, 1, SIZE, SIZE) / 8 - 1 for x in parts[:2])
    return Digits(images, torch.tensor(parts[2]), test_images, torch.tensor(parts[3]))


def condition(labels: Tensor) -> Condition:
    """Labels (B,) as one token of width 10, one-hot."""
    import torch

    one_hot = torch.nn.functional.one_hot(labels, CLASSES).float()
    return suffuse.Condition(tokens={"class": one_hot[:, None]})


def sample(
    checkpoint: Path,
    *,
    out: Path,
    digits: Sequence[int] = tuple(range(CLASSES)),
    n: int = 10,
    steps: int = 10,
    guidance_scale: float = 1.5,
    seed: int = 0,
    device: str = "auto",
) -> list[Path]:
    """Draw digits and write them as one PNG, a row per requested digit.

    Args:
        checkpoint: folder that `train` wrote.
        out: folder of the picture.
        digits: which digits, 0 to 9.
        n: how many of each.
        steps: evaluations of the network per digit, by DPM-Solver++.
        guidance_scale: 1 follows the data; more makes typical digits.
        seed: of the noise.
        device: cpu, cuda, or auto.
    """
    import torch

    from suffuse.bench.runner import resolve_device

    if not digits or not set(digits) <= set(range(CLASSES)):
        raise InvalidArgument(f"digits: expected numbers from 0 to 9, got {list(digits)}")
    if n < 1:
        raise InvalidArgument(f"n: must be at least 1, got {n}")
    denoiser = suffuse.hub.load(checkpoint, device=resolve_device(device))
    labels = torch.tensor(digits).repeat_interleave(n)
    images = draw(denoiser, labels, steps=steps, guidance_scale=guidance_scale, seed=seed)
    return [write_grid(images, n, Path(out) / "digits.png")]


def draw(
    denoiser: suffuse.Denoiser,
    labels: Tensor,
    *,
    steps: int = 10,
    guidance_scale: float = 1.0,
    seed: int = 0,
    sampler: str = "dpmpp-2m",
) -> Tensor:
    """Images (B, 1, 8, 8) in [-1, 1] of the requested labels (B,), on the CPU; image i depends on seed + i alone."""
    if guidance_scale != 1:
        denoiser = suffuse.guidance.ClassifierFree(denoiser, guidance_scale=guidance_scale)
    device = next(denoiser.parameters()).device
    images: Tensor = suffuse.samplers.by_name(sampler, steps=steps)(
        denoiser,
        shape=(len(labels), 1, SIZE, SIZE),
        cond=condition(labels).to(device),
        generator=suffuse.random.generators(range(seed, seed + len(labels))),
    )
    return images.clamp(-1, 1).cpu()


def write_grid(images: Tensor, columns: int, path: Path, scale: int = 6) -> Path:
    """Write images (B, 1, 8, 8) in [-1, 1] as a PNG with so many columns, dark on light, each pixel magnified."""
    import torch
    from PIL import Image

    padded = torch.nn.functional.pad(images[:, 0], (1, 1, 1, 1), value=-1)
    rows = padded.reshape(-1, columns, SIZE + 2, SIZE + 2).permute(0, 2, 1, 3).flatten(2).flatten(0, 1)
    pixels = (127.5 * (1 - rows)).round().to(torch.uint8).repeat_interleave(scale, 0).repeat_interleave(scale, 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.numpy()).save(path)
    return path


@recipe("core/digits", sample=sample)
def train(
    *,
    out: Path = Path("runs/digits"),
    steps: int = 1000,
    batch_size: int = 64,
    lr: float = 2e-3,
    hidden: int = 64,
    depth: int = 3,
    seed: int = 0,
    device: str = "auto",
    progress: bool = True,
) -> Path:
    """A class-conditional transformer of handwritten digits; half a minute on two CPU cores.

    Args:
        out: folder of the checkpoint and logs.
        steps: optimiser steps.
        batch_size: images per step.
        lr: learning rate.
        hidden: width of the network.
        depth: number of transformer blocks.
        seed: of weights, data order and noise.
        device: cpu, cuda, or auto.
        progress: show a progress bar.
    """
    import torch

    data = load_digits()
    torch.manual_seed(seed)
    backbone = suffuse.nets.DiT(1, 2, ndim=2, hidden=hidden, depth=depth, heads=4, tokens={"class": CLASSES})
    denoiser = suffuse.NetworkDenoiser(
        backbone, suffuse.schedules.VPCosine(), prediction_type="v_prediction", data_std=float(data.images.std())
    )
    suffuse.training.fit(
        denoiser,
        data.images,
        cond=condition(data.labels),
        steps=steps,
        batch_size=batch_size,
        lr=lr,
        ema_decay=0.99,
        out=out,
        metadata={"recipe": "core/digits", "classes": CLASSES, "shape": [1, SIZE, SIZE]},
        seed=seed,
        accelerator=device,
        progress=progress,
    )
    return out
