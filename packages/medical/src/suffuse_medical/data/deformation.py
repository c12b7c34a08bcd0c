"""Smooth random fields, and the invertible deformations of a volume that they make.

A stationary velocity field v (smoothed white noise) is integrated to the displacement u = exp(v) - id by scaling and
squaring, so that the map x -> x + u(x) is a diffeomorphism: no folding, tissue is stretched and never torn.
Arsigny et al. (2006), "A log-Euclidean framework for statistics on diffeomorphisms", MICCAI. The integration and the
warp are MONAI's ``DVF2DDF`` and ``Warp``.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

from .geometry import Geometry


def smooth_noise(
    shape: Sequence[int], spacing: Sequence[float], generator: torch.Generator, smoothness: float, channels: int = 1
) -> Tensor:
    """White noise smoothed by a Gaussian of ``smoothness`` mm, (channels, *shape), with unit variance.

    Args:
        spacing: of the voxels in mm.
    """
    from monai.networks.layers import GaussianFilter

    # The field is smooth: draw it on a grid of half its smoothness, and interpolate.
    coarse = [max(2, round(n * s * 2 / smoothness) + 1) for n, s in zip(shape, spacing, strict=True)]
    noise = GaussianFilter(3, 2.0)(torch.randn(1, channels, *coarse, generator=generator))
    field = F.interpolate(noise, tuple(shape), mode="trilinear", align_corners=True)[0]
    return field / field.std()


def random_displacement(
    geometry: Geometry, generator: torch.Generator, amplitude: float = 6.0, smoothness: float = 24.0, axes: int = 2
) -> Tensor:
    """A displacement field (3, X, Y, Z) in voxels.

    Args:
        amplitude: largest velocity in mm; the largest displacement is about as large.
        smoothness: standard deviation in mm of the Gaussian that smooths the velocity.
        axes: how many leading array axes may move. 2 keeps every axial slice in its plane, so that a split by slabs
            stays a split after deformation.
    """
    # The displacement is smooth: integrate it on a grid of half the resolution, in its own voxels, and interpolate.
    shape = [max(2, (n + 1) // 2) for n in geometry.shape]
    stride = torch.tensor([(n - 1) / (m - 1) for n, m in zip(geometry.shape, shape, strict=True)]).view(3, 1, 1, 1)
    spacing = stride * torch.tensor(geometry.spacing).view(3, 1, 1, 1)  # mm
    velocity = smooth_noise(shape, spacing.flatten().tolist(), generator, smoothness, channels=3)
    velocity[axes:] = 0
    velocity = velocity * (amplitude / velocity.norm(dim=0).max())
    with quiet(), torch.no_grad():
        from monai.networks.blocks import DVF2DDF

        coarse = DVF2DDF(num_steps=5, padding_mode="border")((velocity / spacing)[None])
        return stride * F.interpolate(coarse, geometry.shape, mode="trilinear", align_corners=True)[0]


@contextmanager
def quiet() -> Iterator[None]:
    """Without MONAI's notice that its compiled extension is absent; PyTorch's own grid sampling does the same."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*Using PyTorch native grid_sample.*")
        yield


def warp(volume: Tensor, displacement: Tensor) -> Tensor:
    """``volume`` (C, X, Y, Z) pulled back by x -> x + u(x); ``displacement`` u (3, X, Y, Z) in voxels."""
    with quiet():
        from monai.networks.blocks import Warp

        return Warp(mode="bilinear", padding_mode="border")(volume[None], displacement[None])[0]


def jacobian_determinant(displacement: Tensor) -> Tensor:
    """det(I + du/dx) at every voxel, (X, Y, Z); 1 keeps the volume, at most 0 is a fold."""
    gradient = torch.stack(torch.gradient(displacement, dim=(1, 2, 3)), dim=1)  # (3 of u, 3 of x, X, Y, Z)
    return torch.linalg.det(gradient.permute(2, 3, 4, 0, 1) + torch.eye(3).to(displacement))
