"""The MNI152 template: one averaged head, its T1 intensities and its tissue maps, bundled with nilearn.

Fonov et al. (2011), "Unbiased average age-appropriate atlases for pediatric studies", NeuroImage 54(1); the symmetric
2009a version as nilearn distributes it. It is *one* image averaged over people: call it a template, never a patient.
Its halves mirror each other exactly, and axial slices 5 mm apart correlate 0.95, so the only honest split of it is by
slabs with a gap (:func:`suffuse_medical.data.slab_split`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from .geometry import Geometry, resample

TISSUES = ("grey matter", "white matter", "cerebrospinal fluid")
"""Channel order of every tissue map: fractions in [0, 1] that add up to at most 1."""

WORKING_GRID = Geometry.centred(shape=(56, 64, 48), spacing=3.0, centre=(0.0, -17.0, 12.0))
"""56 x 64 x 48 voxels of 3 mm around the brain: small enough for a CPU, and divisible by 8 for UNets."""

COARSE_GRID = Geometry.centred(shape=(28, 32, 24), spacing=6.0, centre=(0.0, -17.0, 12.0))
"""28 x 32 x 24 voxels of 6 mm: the brain at the size of MedMNIST, where exact posteriors are affordable."""

HELD_OUT_SLAB = (9.0, 24.0)
"""Axial positions in mm, through the basal ganglia and ventricles, that nothing is fitted on."""


@dataclass(frozen=True, eq=False)
class Template:
    """T1 intensity (1, X, Y, Z) in [0, 1], tissue fractions (3, X, Y, Z) in the order of :data:`TISSUES`, their grid.

    ``texture`` (1, X, Y, Z) is T1 minus its best mixture of tissue levels, in units of the grey-white difference,
    without its part that is smooth over 12 mm: that is left-over bias field and belongs to scanners, not to anatomy.
    """

    t1: Tensor
    tissue: Tensor
    texture: Tensor
    geometry: Geometry

    @property
    def brain(self) -> Tensor:
        """(1, X, Y, Z) bool: more than half of the voxel is brain or fluid."""
        return self.tissue.sum(0, keepdim=True) > 0.5


@lru_cache(maxsize=4)
def load_template(geometry: Geometry = WORKING_GRID) -> Template:
    """The template on a grid of your choice. Reads nilearn's own files; nothing is downloaded."""
    from nilearn import datasets

    loaders = (
        datasets.load_mni152_template,
        datasets.load_mni152_gm_template,
        datasets.load_mni152_wm_template,
        datasets.load_mni152_brain_mask,
    )
    images = [load(resolution=1) for load in loaders]
    source = Geometry(images[0].affine, images[0].shape)
    t1, grey, white, mask = (torch.from_numpy(np.asarray(image.dataobj, dtype=np.float32)) for image in images)
    fluid = (mask - grey - white).clamp(min=0)
    volume = resample(torch.stack([t1, grey, white, fluid]), source, geometry)
    t1, tissue = volume[:1].clamp(0, 1), volume[1:].clamp(0, 1)
    return Template(t1, tissue, _texture(t1, tissue, geometry), geometry)


def _texture(t1: Tensor, tissue: Tensor, geometry: Geometry, smooth: float = 12.0) -> Tensor:
    from scipy.ndimage import gaussian_filter

    inside = tissue.sum(0) > 0.5
    levels = torch.linalg.lstsq(tissue[:, inside].T, t1[0, inside][:, None]).solution[:, 0]
    texture = ((t1[0] - torch.einsum("k,kxyz->xyz", levels, tissue)) / (levels[1] - levels[0])).numpy()
    brain, widths = inside.float().numpy(), [smooth / s for s in geometry.spacing]
    local_mean = gaussian_filter(texture * brain, widths) / gaussian_filter(brain, widths).clip(1e-3)
    return torch.from_numpy(texture - local_mean * brain)[None]
