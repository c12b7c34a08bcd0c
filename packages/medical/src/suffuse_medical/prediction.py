"""What a task answers: not an image but a distribution of images, and where they lie in the patient."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from suffuse.errors import InvalidArgument

from .data.geometry import INTEGERS, Geometry, plain, resample
from .data.nifti import write_nifti

__all__ = ["Prediction", "check_images", "check_samples", "device_of", "in_batches", "sample_seeds"]


@dataclass(frozen=True, eq=False)
class Prediction:
    """K samples (K, N, C, H, W) for N slices.

    Args:
        samples: in the unit of the input.
        geometry: of the volume whose axial slices these are, bottom up; None where the slices are no volume.
    """

    samples: Tensor
    geometry: Geometry | None = None

    def __post_init__(self) -> None:
        if self.geometry is not None:
            size = (*self.samples.shape[3:], self.samples.shape[1])
            if size != self.geometry.shape:
                raise InvalidArgument(f"geometry has {self.geometry.shape} voxels, the slices make a volume of {size}")

    @property
    def mean(self) -> Tensor:
        """(N, C, H, W): the estimate with the smallest squared error."""
        return self.samples.mean(0)

    @property
    def std(self) -> Tensor:
        """(N, C, H, W): how much the input leaves open, if the model is calibrated."""
        return self.samples.std(0, correction=1 if len(self.samples) > 1 else 0)

    def interval(self, level: float = 0.9) -> tuple[Tensor, Tensor]:
        """The central interval of the samples, (low, high), each (N, C, H, W).

        Its ends are the order statistics p (K + 1), between which one more draw lies with chance ``level``,
        interpolated where that is no whole number. K samples reach (K - 1) / (K + 1) at most, see :meth:`nominal`.
        """
        if not 0 < level < 1:
            raise InvalidArgument(f"level must lie in (0, 1), got {level}")
        ordered, k = self.samples.sort(0).values, len(self.samples)
        ends = []
        for p in ((1 - level) / 2, (1 + level) / 2):
            place = min(max(p * (k + 1) - 1, 0.0), k - 1.0)
            below = min(int(place), max(k - 2, 0))
            ends.append(torch.lerp(ordered[below], ordered[min(below + 1, k - 1)], place - below))
        return ends[0], ends[1]

    def nominal(self, level: float = 0.9) -> float:
        """How often the interval should hold the truth: ``level``, or what so many samples can reach."""
        k = len(self.samples)
        return min(level, (k - 1) / (k + 1))

    def on(self, geometry: Geometry) -> Self:
        """The same prediction on another grid: that of the file the input came from, say."""
        if self.geometry is None:
            raise InvalidArgument("this prediction has no geometry; pass geometry= to predict")
        moved = torch.stack([self._move(sample, geometry) for sample in self.samples])
        return replace(self, samples=moved, geometry=geometry)

    #: How samples are interpolated.
    mode: ClassVar[Literal["linear", "nearest"]] = "linear"

    def _move(self, slices: Tensor, geometry: Geometry) -> Tensor:
        """Slices (N, C, H, W) on another grid."""
        assert self.geometry is not None
        outside = self._outside(slices.shape[1])[:, None, None, None]
        volume = resample(slices.cpu().permute(1, 2, 3, 0) - outside, self.geometry, geometry, self.mode) + outside
        return volume.permute(3, 0, 1, 2)

    def _outside(self, channels: int) -> Tensor:
        """(C,): what is beyond the grid: air, which is -1 in network units."""
        return torch.full((channels,), -1.0)

    def write(self, folder: str | Path, *, samples: bool = True, dtype: str = "float32") -> list[Path]:
        """NIfTI files on the geometry of the input: ``mean``, ``std`` and, if wanted, every ``sample-k``.

        Images of several channels get a file per channel.

        Args:
            dtype: voxel type of all but ``std``, which is float32; values beyond those of an integer type are clipped.
        """
        if self.geometry is None:
            raise InvalidArgument("this prediction has no geometry; pass geometry= to predict, files need a place")
        limits = torch.iinfo(getattr(torch, dtype)) if dtype in INTEGERS else None
        named = {"mean": self.mean}
        if len(self.samples) > 1:
            named["std"] = self.std
        if samples:
            named |= {f"sample-{k}": image for k, image in enumerate(self.samples)}
        written = []
        for name, slices in named.items():
            stored = self.geometry.stored_as("float32" if name == "std" else dtype)
            if limits is not None and name != "std":
                slices = slices.clamp(limits.min, limits.max)
            for c, channel in enumerate(slices.movedim(0, -1)):  # (C, H, W, N)
                suffix = f"-{c}" if slices.shape[1] > 1 else ""
                written.append(write_nifti(Path(folder) / f"{name}{suffix}.nii.gz", channel, stored))
        return written


def device_of(module: nn.Module, otherwise: torch.device) -> torch.device:
    """Where a module computes; ``otherwise`` for one without numbers of its own."""
    return next((v.device for v in (*module.parameters(), *module.buffers())), otherwise)


def sample_seeds(seed: int, n: int, rows: int) -> list[list[int]]:
    """A seed for every sample k of every row: n lists of ``rows``; none depends on how many others there are."""
    return [[seed + k + 1_000_003 * row for row in range(rows)] for k in range(n)]


def in_batches(
    draw: Callable[[Tensor, list[int]], Tensor], images: Tensor, n: int, seed: int, batch_size: int = 64
) -> Tensor:
    """(n, N, ...) draws for N images; ``draw(some rows, a seed for each)`` is called on batches of rows and draws."""
    seeds = torch.tensor(sample_seeds(seed, n, len(images))).flatten()
    rows = torch.arange(len(images)).repeat(n)
    parts = [
        draw(images[part], chosen.tolist())
        for part, chosen in zip(rows.split(batch_size), seeds.split(batch_size), strict=True)
    ]
    return torch.cat(parts).unflatten(0, (n, len(images)))


def check_images(images: Tensor, name: str = "images", channels: int | None = None) -> Tensor:
    """``images`` as a plain tensor: MONAI's carries its history along and slows every step of a sampler.

    Raises:
        InvalidArgument: unless ``images`` is a finite batch of slices (N, C, H, W).
    """
    if images.ndim != 4 or not len(images) or (channels is not None and images.shape[1] != channels):
        raise InvalidArgument(
            f"{name} must be slices (N, {channels or 'C'}, H, W), got {tuple(images.shape)}; a volume (C, X, Y, Z) "
            f"becomes slices by volume.permute(3, 0, 1, 2)"
        )
    if not torch.isfinite(images).all():
        raise InvalidArgument(f"{name} has NaN or infinite voxels; mask or fill them first")
    return plain(images)


def check_samples(n: int) -> None:
    """Raise InvalidArgument for less than one sample."""
    if n < 1:
        raise InvalidArgument(f"n must be at least 1 sample, got {n}")
