"""Axial slices with label maps: of pseudo-patients at several protocols, and of labelled volumes in a folder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from suffuse.errors import InvalidArgument

from .folders import VolumeFolder
from .geometry import plain
from .intensity import mri_percentile
from .phantoms import PhantomCohort
from .physics import SpinEcho
from .slices import axial_slices
from .template import COARSE_GRID, TISSUES

__all__ = ["PROTOCOLS", "TISSUE_CLASSES", "LabelledSlices", "labelled_phantoms", "labelled_volumes", "scaled"]

TISSUE_CLASSES = 1 + len(TISSUES)
"""Of the label maps of pseudo-patients: outside, grey matter, white matter, fluid."""

PROTOCOLS = ((500, 15), (700, 20), (3000, 20), (2500, 30), (600, 12), (900, 18), (2000, 15), (3500, 25))
"""(TR, TE) in ms of eight protocols from T1 to proton-density weighting."""


class LabelledSlices(NamedTuple):
    """Slices: images (N, 1, H, W) in network units, labels (N, H, W), and the N names of whose they are."""

    images: Tensor
    labels: Tensor
    patients: tuple[str, ...]


def labelled_phantoms(
    n: int,
    protocols: Sequence[tuple[float, float] | str] = ("T1w",),
    sites: Sequence[str] = ("A",),
    seed: int = 0,
    height: tuple[float, float] = (-20, 50),
) -> LabelledSlices:
    """Slices of ``n`` pseudo-patients at 6 mm, 28 x 32 voxels, with their largest tissue as the label.

    Args:
        protocols: names of sequences or (TR, TE) in ms; pseudo-patient number k has protocol k, over and over.
        sites: names from :data:`SITES`; pseudo-patient number k was scanned at site k, over and over.
        height: lowest and highest slice in mm.
    """
    if not protocols:
        raise InvalidArgument("protocols must name at least one sequence")
    if not sites:
        raise InvalidArgument("sites must name at least one site")
    items = []
    for k in range(n):
        protocol = protocols[k % len(protocols)]
        sequence = protocol if isinstance(protocol, str) else SpinEcho(*protocol)
        items.append(
            PhantomCohort(n, sequences=(sequence,), sites=(sites[k % len(sites)],), seed=seed, geometry=COARSE_GRID)[k]
        )
    found = axial_slices(items, COARSE_GRID)
    found = found[[i for i, z in enumerate(found.z) if height[0] <= z <= height[1]]]
    tissue = torch.cat([1 - found.tissue.sum(1, keepdim=True), found.tissue], dim=1)
    return LabelledSlices(found.image, tissue.argmax(1), found.patient)


def scaled(slices: LabelledSlices) -> LabelledSlices:
    """Each patient by the percentiles of all its slices, see :func:`mri_percentile`: gains are then no difference."""
    images = slices.images.clone()
    for patient in dict.fromkeys(slices.patients):
        rows = torch.tensor([name == patient for name in slices.patients])
        images[rows] = mri_percentile(images[rows])
    return slices._replace(images=images)


def labelled_volumes(
    folder: VolumeFolder,
    rows: Sequence[int],
    size: tuple[int, int],
    *,
    axis: int = 2,
    every: int = 1,
    empty: bool = False,
) -> LabelledSlices:
    """Slices of labelled volumes, cropped or padded around the middle to ``size``, scaled by :func:`mri_percentile`.

    Args:
        folder: volumes with labels.
        rows: which of them.
        axis: across the slices; 0 sagittal, 1 coronal, 2 axial for volumes in RAS.
        every: distance from one slice to the next, in voxels.
        empty: keep slices without a label but 0.
    """
    from monai.transforms import ResizeWithPadOrCrop

    if folder.labels is None:
        raise InvalidArgument("folder has no labels; give VolumeFolder(images, labels)")
    fit_image, fit_label = (ResizeWithPadOrCrop(size, value=value) for value in (-1.0, 0.0))
    images, labels, patients = [], [], []
    for row in rows:
        item = folder[row]
        volume, mask = mri_percentile(plain(item["image"])), plain(item["label"])
        for k in range(0, mask.shape[1 + axis], every):
            image, label = (x.select(1 + axis, k) for x in (volume, mask))
            if empty or label.any():
                images.append(plain(torch.as_tensor(fit_image(image))))
                labels.append(plain(torch.as_tensor(fit_label(label)))[0].long())
                patients.append(item["patient_id"])
    if not images:
        raise InvalidArgument(f"folder has no label but 0 in the {len(rows)} volumes asked for")
    return LabelledSlices(torch.stack(images), torch.stack(labels), tuple(patients))
