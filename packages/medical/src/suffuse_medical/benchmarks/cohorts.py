"""Pseudo-patients at 6 mm: slices of 28 x 32, on which a CPU trains a small network in a minute."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

CLASSES = 4
"""Of the label maps: outside, grey matter, white matter, fluid."""


PROTOCOLS = ((500, 15), (700, 20), (3000, 20), (2500, 30), (600, 12), (900, 18), (2000, 15), (3500, 25))
"""(TR, TE) in ms of eight protocols from T1 to proton-density weighting."""


class Labelled(NamedTuple):
    """Axial slices: images (N, 1, 28, 32) in network units, labels (N, 28, 32), and whose they are."""

    images: Tensor
    labels: Tensor
    patients: tuple[str, ...]


def cohort(
    n: int,
    protocols: Sequence[tuple[float, float] | str] = ("T1w",),
    site: str = "A",
    seed: int = 0,
    height: tuple[float, float] = (-20, 50),
) -> Labelled:
    """Slices of ``n`` pseudo-patients between two heights in mm; number k has protocol k, a name or (TR, TE) in ms."""
    import torch

    from suffuse_medical.data import COARSE_GRID, PhantomCohort, SpinEcho, axial_slices

    items = []
    for k in range(n):
        protocol = protocols[k % len(protocols)]
        sequence = protocol if isinstance(protocol, str) else SpinEcho(*protocol)
        items.append(PhantomCohort(n, sequences=(sequence,), sites=(site,), seed=seed, geometry=COARSE_GRID)[k])
    found = axial_slices(items, COARSE_GRID)
    found = found[[i for i, z in enumerate(found.z) if height[0] <= z <= height[1]]]
    tissue = torch.cat([1 - found.tissue.sum(1, keepdim=True), found.tissue], dim=1)
    return Labelled(found.image, tissue.argmax(1), found.patient)


def hippocampus(root: Path, n: int, first: int = 0, size: tuple[int, int] = (40, 56)) -> Labelled:
    """Slices of ``n`` labelled MR volumes of the Decathlon's Task04 (labels: outside, anterior, posterior).

    Every slice with some hippocampus in it, cropped or padded around the middle to ``size``; intensities from the 1st
    to the 99th percentile of the volume are put into [-1, 1].
    """
    import torch
    from monai.transforms import ResizeWithPadOrCrop

    from suffuse_medical.data import VolumeFolder, plain

    folder = VolumeFolder(root / "medical/Task04_Hippocampus/imagesTr", root / "medical/Task04_Hippocampus/labelsTr")
    fit, images, labels, patients = ResizeWithPadOrCrop(size), [], [], []
    for index in range(first, min(first + n, len(folder))):
        item = folder[index]
        image, label = plain(item["image"]).float(), plain(item["label"])
        low, high = torch.quantile(image, 0.01), torch.quantile(image, 0.99)
        image = (2 * (image - low) / (high - low).clamp(min=1e-6) - 1).clamp(-1.5, 1.5)
        for k in (label[0].amax((0, 1)) > 0).nonzero().flatten().tolist():
            images.append(plain(torch.as_tensor(fit(image[..., k]))))
            labels.append(plain(torch.as_tensor(fit(label[..., k])))[0].long())
            patients.append(item["patient_id"])
    return Labelled(torch.stack(images), torch.stack(labels), tuple(patients))
