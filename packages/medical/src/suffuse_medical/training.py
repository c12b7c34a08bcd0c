r"""How the denoisers of this package are trained: which noise, which levels, how long an average. One place for all.

With s the standard deviation of what is left of the images around their mean (``nets.centred``):

    schedule   EDM from 0.005 s, less than can be seen, to 100 s, where nothing of an image is left, and at least to 80,
               where nothing is left of the mean of images in [-1, 1]: sampling starts from noise around zero
    levels     log kappa ~ N(log s, 1.5^2): half of them within a factor of three of s, where images take shape

A schedule or levels that do not know s are spent where nothing happens: of the uniform times of a variance-preserving
schedule two thirds lie where slices with s = 0.2 are noise. Karras et al. (2022), arXiv:2206.00364, for s = 0.5.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

import suffuse
from suffuse import Condition
from suffuse.errors import InvalidArgument
from suffuse.schedules import EDM
from suffuse.training import LogNormalKappa
from suffuse.training.objective import Objective

from .data.geometry import plain

__all__ = ["accelerator", "levels", "ready", "schedule", "torch_device", "train", "train_directly"]

M = TypeVar("M", bound=nn.Module)


def schedule(data_std: float) -> EDM:
    """The noise of data with this standard deviation."""
    return EDM(sigma_min=0.005 * data_std, sigma_max=max(100 * data_std, 80.0))


def levels(data_std: float, spread: float = 1.5) -> LogNormalKappa:
    """Which levels of it a network is trained at."""
    return LogNormalKappa(math.log(data_std), spread)


def accelerator(device: str) -> str:
    """Lightning's name of a torch device (``"auto"``, ``"cpu"``, ``"cuda"``, ``"mps"``)."""
    return device if device == "auto" else {"cuda": "gpu"}.get(torch_device(device).type, device)


def torch_device(device: str) -> torch.device:
    """The torch device of such a name; ``"auto"`` is the best there is, as for Lightning."""
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise InvalidArgument(f"device={device!r}: torch sees no GPU; use 'cpu' or 'auto'")
    if device != "auto":
        return torch.device(device)
    return torch.device("cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu")


def ready(images: Tensor, name: str = "images") -> Tensor:
    """Images to train on, (N, C, *spatial), as a plain tensor in float32.

    Raises:
        InvalidArgument: for no images, whole numbers, and voxels that are NaN or infinite.
    """
    if not len(images):
        raise InvalidArgument(f"{name} is empty; give at least one image (N, C, *spatial)")
    if not images.is_floating_point():
        raise InvalidArgument(f"{name} must be floating point, got {images.dtype}; scale to [-1, 1] first")
    if not bool(torch.isfinite(images).all()):
        raise InvalidArgument(f"{name} has NaN or infinite voxels; mask or fill them first")
    return plain(images).float()


def train(
    model: M,
    data: Any,
    *,
    objective: Objective,
    steps: int,
    batch_size: int,
    lr: float,
    cond: Condition | None = None,
    ema_decay: float | None = None,
    out: Path | None = None,
    metadata: Mapping[str, Any] | None = None,
    resume: bool = True,
    seed: int,
    device: str,
    precision: str = "32-true",
    progress: bool,
) -> M:
    """:func:`suffuse.training.fit` on a torch device, weights averaged over about its last twentieth."""
    return suffuse.training.fit(
        model,
        plain(data) if isinstance(data, Tensor) else data,
        cond=cond,
        objective=objective,
        steps=steps,
        batch_size=batch_size,
        lr=lr,
        ema_decay=min(0.999, 1 - 20 / max(steps, 100)) if ema_decay is None else ema_decay,
        out=out,
        metadata=metadata,
        resume=resume,
        seed=seed,
        accelerator=accelerator(device),
        precision=precision,
        progress=progress,
    )


def train_directly(
    network: M,
    batch: Callable[[], tuple[Tensor, Tensor]],
    loss: Callable[[Tensor, Tensor], Tensor],
    steps: int,
    lr: float,
) -> M:
    """A plain network (a baseline, a segmenter) trained on ``steps`` batches (input, target), by AdamW in one cycle."""
    device = next(network.parameters()).device
    optimiser = torch.optim.AdamW(network.parameters(), lr=lr)
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimiser, lr, total_steps=steps)
    network.train()
    for _ in range(steps):
        x, y = (part.to(device) for part in batch())
        optimiser.zero_grad()
        loss(network(x), y).backward()
        optimiser.step()
        cycle.step()
    return network.eval()
