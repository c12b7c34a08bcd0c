"""Intensities of scanners to the units of networks."""

from __future__ import annotations

import torch
from torch import Tensor

from suffuse.errors import InvalidArgument

from .geometry import Geometry


def mri_percentile(volume: Tensor, low: float = 1.0, high: float = 99.0) -> Tensor:
    """An MR volume, whose unit means nothing, with its percentiles ``low`` and ``high`` at -1 and 0.6.

    That is where air and white matter of the pseudo-patients are. What lies above is kept up to 2: a bright lesion
    must stay bright. Scale whole volumes, not slices: a slice-wise scale makes noise of dark slices look like tissue.
    """
    bottom, top = percentiles(volume, low, high)
    return (1.6 * (volume.float() - bottom) / (top - bottom) - 1).clamp(-1, 2)


def undo_percentile(image: Tensor, bottom: float, top: float) -> Tensor:
    """What :func:`mri_percentile` made of a volume with these two :func:`percentiles`, in the volume's own unit."""
    return (image + 1) / 1.6 * (top - bottom) + bottom


def percentiles(volume: Tensor, low: float = 1.0, high: float = 99.0) -> tuple[float, float]:
    """Two percentiles of the voxels of a volume, which must differ."""
    if not 0 <= low < high <= 100:
        raise InvalidArgument(f"need 0 <= low < high <= 100, got {low}, {high}")
    if not torch.isfinite(volume).all():
        raise InvalidArgument("volume has NaN or infinite voxels; mask or fill them first")
    flat = volume.flatten().float()
    flat = flat[:: max(1, len(flat) // 1_000_000)]  # torch.quantile takes no more than 16 million
    bottom, top = torch.quantile(flat, torch.tensor([low / 100, high / 100], device=flat.device))
    if top <= bottom:
        raise InvalidArgument("volume is constant between its percentiles; is it a mask?")
    return float(bottom), float(top)


def ct_window(volume: Tensor, centre: float = 40.0, width: float = 400.0) -> Tensor:
    """A CT volume in Hounsfield units, windowed to [-1, 1]; the defaults show soft tissue."""
    if width <= 0:
        raise InvalidArgument(f"width must be positive, got {width}")
    return (2 * (volume.float() - centre) / width).clamp(-1, 1)


def working_grid(geometry: Geometry, shape: tuple[int, int, int], spacing: float) -> Geometry:
    """An RAS grid of cubic voxels around the middle of ``geometry``, for a network of fixed size."""
    middle = geometry.world((torch.tensor(geometry.shape) - 1).numpy() / 2)
    return Geometry.centred(shape, spacing, (float(middle[0]), float(middle[1]), float(middle[2])))
