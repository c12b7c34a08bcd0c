"""The use of it all: a segmenter trained on a few real labelled images and many drawn ones, scored by patient.

The loss and the mixture are the authors': 0.1 cross entropy + 0.9 Dice, and four drawn images for each real one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from suffuse.errors import InvalidArgument
from suffuse.nets.unets import check_size

from ..training import ready, train_directly
from .data import layout_maps

__all__ = ["PatientScores", "fit_segmenter", "patient_scores", "segment"]


def fit_segmenter(
    images: Tensor,
    labels: Tensor,
    classes: int,
    *,
    drawn: tuple[Tensor, Tensor] | None = None,
    drawn_share: float = 0.8,
    channels: Sequence[int] = (16, 32, 64),
    steps: int = 300,
    batch_size: int = 16,
    lr: float = 3e-3,
    seed: int = 0,
    device: str = "cpu",
) -> nn.Module:
    """A MONAI ``UNet`` trained on real images (N, C, *spatial) with labels (N, *spatial), and on drawn pairs.

    Args:
        drawn: (images, labels) made by a model; None for real data only.
        drawn_share: how much of each batch is drawn.
    """
    from monai.losses import DiceCELoss
    from monai.networks.nets import UNet

    layout_maps(labels, classes)
    images = ready(images)
    check_size(images.shape[2:], 2 ** (len(channels) - 1))
    if not 0 <= drawn_share <= 1:
        raise InvalidArgument(f"drawn_share must lie in [0, 1], got {drawn_share}")
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    net = UNet(
        spatial_dims=images.ndim - 2, in_channels=images.shape[1], out_channels=classes, channels=tuple(channels),
        strides=(2,) * (len(channels) - 1), num_res_units=1, norm="INSTANCE",
    ).to(device)  # fmt: skip
    loss = DiceCELoss(softmax=True, to_onehot_y=True, lambda_dice=0.9, lambda_ce=0.1)
    pools = [(images, labels)] if drawn is None else [(images, labels), drawn]
    share = (
        [batch_size]
        if drawn is None
        else [batch_size - round(batch_size * drawn_share), round(batch_size * drawn_share)]
    )

    def batch() -> tuple[Tensor, Tensor]:
        rows = [torch.randint(len(x), (k,), generator=generator) for (x, _), k in zip(pools, share, strict=True)]
        x = torch.cat([pool[0][r] for pool, r in zip(pools, rows, strict=True)])
        y = torch.cat([pool[1][r] for pool, r in zip(pools, rows, strict=True)])
        return x, y[:, None]

    return train_directly(net, batch, loss, steps, lr)


@torch.no_grad()
def segment(segmenter: nn.Module, images: Tensor, batch_size: int = 64) -> Tensor:
    """Labels (N, *spatial) of images."""
    device = next(segmenter.parameters()).device
    return torch.cat([segmenter(part.to(device)).argmax(1).cpu() for part in images.split(batch_size)])


class PatientScores(NamedTuple):
    """Mean over foreground classes, (patients,), in the order of ``patients``; a class absent from both counts as 1."""

    patients: tuple[str, ...]
    dice: np.ndarray[Any, Any]
    iou: np.ndarray[Any, Any]


def patient_scores(predicted: Tensor, labels: Tensor, patients: Sequence[str], classes: int) -> PatientScores:
    """Dice and IoU of each patient over all of its voxels: a patient counts once, however many slices it has."""
    if predicted.shape != labels.shape or len(labels) != len(patients):
        raise InvalidArgument(
            f"predicted, labels and patients must go together, got {tuple(predicted.shape)}, {tuple(labels.shape)} and "
            f"{len(patients)} names"
        )
    one, two = (layout_maps(x.cpu(), classes)[:, 1:].flatten(2) for x in (predicted, labels))
    both, each = (one * two).sum(2), (one + two).sum(2)
    names = sorted(set(patients))
    index = torch.tensor([names.index(name) for name in patients])
    overlap, size = (torch.zeros(len(names), classes - 1).index_add(0, index, v) for v in (both, each))
    dice = torch.where(size > 0, 2 * overlap / size.clamp(min=1), 1.0)
    iou = torch.where(size > 0, overlap / (size - overlap).clamp(min=1), 1.0)
    return PatientScores(tuple(names), dice.mean(1).numpy(), iou.mean(1).numpy())
