r"""What a scanner measures: linear operators y = A x + s z, each with its adjoint and a pseudo-inverse.

    MaskedFourier   y_c = M F (S_c x)           k-space of one or several coils (MRI)
    Radon           y = line sums of x          parallel-beam projections (CT)
    Downsample      y = means of blocks of x    thick slices, low resolution
    Inpaint         y = m x                     a region that was not seen

All are maps of *real* tensors, so that <A x, y> = <x, A^T y> holds as it stands and samplers never meet a complex
number: a complex image has its real and imaginary part as two channels, and so has k-space. For a real image whose
mask is not symmetric, A^T A is therefore no projection (half of a conjugate pair says what both halves say);
``pseudo_inverse`` accounts for it, replacing measured frequencies and taking the real part would not.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from suffuse.errors import InvalidArgument
from suffuse.guidance import conjugate_gradient

__all__ = ["Downsample", "Inpaint", "MaskedFourier", "Operator", "Radon", "coil_sensitivities", "kspace_mask"]


class Operator(ABC):
    """Base: x (B, C, H, W) -> y (B, ...); A^+ by conjugate gradients unless there is a formula."""

    @abstractmethod
    def __call__(self, x: Tensor) -> Tensor: ...

    @abstractmethod
    def adjoint(self, y: Tensor) -> Tensor: ...

    def pseudo_inverse(self, y: Tensor, iterations: int = 30) -> Tensor:
        """The smallest x among those that fit y best."""
        return conjugate_gradient(lambda v: self.adjoint(self(v)), self.adjoint(y), iterations=iterations)

    def residual(self, x: Tensor, y: Tensor) -> Tensor:
        """|A x - y| / |y| of every sample, (B,)."""
        difference = self(x) - y
        return difference.flatten(1).norm(dim=1) / y.expand_as(difference).flatten(1).norm(dim=1)


def as_complex(x: Tensor) -> Tensor:
    """(B, 2 C, H, W) -> (B, C, H, W) complex: the first half of the channels is the real part."""
    real, imaginary = x.chunk(2, dim=1)
    return torch.complex(real.contiguous(), imaginary.contiguous())


def as_real(z: Tensor) -> Tensor:
    """The inverse of :func:`as_complex`."""
    return torch.cat([z.real, z.imag], dim=1)


@dataclass(frozen=True, eq=False)
class MaskedFourier(Operator):
    """Sampled k-space, y (B, 2 coils, H, W), zero where it was not sampled; the transform is unitary.

    Args:
        mask: bool or 0/1, (H, W) or (B, 1, H, W), zero frequency at [0, 0] as ``torch.fft`` has it.
        coils: complex sensitivities (K, H, W); None for one coil that sees everything alike.
        is_complex: whether images are complex, (B, 2, H, W), or real, (B, 1, H, W).
    """

    mask: Tensor
    coils: Tensor | None = None
    is_complex: bool = False

    def __post_init__(self) -> None:
        if not bool(((self.mask == 0) | (self.mask == 1)).all()) or not bool(self.mask.any()):
            raise InvalidArgument("mask must be 0 or 1, with at least one frequency sampled")
        if self.coils is not None and (self.coils.ndim != 3 or self.coils.shape[-2:] != self.mask.shape[-2:]):
            raise InvalidArgument(
                f"coils must be (K, H, W) like the mask {tuple(self.mask.shape[-2:])}, got {tuple(self.coils.shape)}"
            )

    def _mask(self, like: Tensor) -> Tensor:
        return self.mask.to(like.device, like.real.dtype)

    def __call__(self, x: Tensor) -> Tensor:
        wanted = 2 if self.is_complex else 1
        if x.shape[1] != wanted or x.shape[-2:] != self.mask.shape[-2:]:
            raise InvalidArgument(
                f"x must be (B, {wanted}, {', '.join(map(str, self.mask.shape[-2:]))}), got {tuple(x.shape)}"
            )
        image = as_complex(x) if self.is_complex else x + 0j
        if self.coils is not None:
            image = self.coils.to(image) * image
        return as_real(self._mask(x) * torch.fft.fft2(image, norm="ortho"))

    def adjoint(self, y: Tensor) -> Tensor:
        image = torch.fft.ifft2(self._mask(y) * as_complex(y), norm="ortho")
        if self.coils is not None:
            image = (self.coils.to(image).conj() * image).sum(1, keepdim=True)
        return as_real(image) if self.is_complex else image.real

    def pseudo_inverse(self, y: Tensor, iterations: int = 30) -> Tensor:
        if self.coils is not None:
            return super().pseudo_inverse(y, iterations)
        if self.is_complex:
            return self.adjoint(y)
        # A^T A of real images is a multiplication with (m(k) + m(-k)) / 2, the mean of a mask and its mirror image
        mask = self._mask(y)
        mirrored = torch.roll(mask.flip(-2, -1), (1, 1), (-2, -1))
        weight = torch.where(mask + mirrored > 0, 2 / (mask + mirrored).clamp(min=1), 0.0)
        return torch.fft.ifft2(weight * mask * as_complex(y), norm="ortho").real


@dataclass(frozen=True, eq=False)
class Inpaint(Operator):
    """y = m x; ``mask`` is 1 where the image was seen, broadcastable against (B, C, H, W)."""

    mask: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return self.mask.to(x) * x

    def adjoint(self, y: Tensor) -> Tensor:
        return self.mask.to(y) * y

    def pseudo_inverse(self, y: Tensor, iterations: int = 30) -> Tensor:
        return self.adjoint(y)


@dataclass(frozen=True)
class Downsample(Operator):
    """Means of blocks; ``factor`` is a number, or one per spatial axis: (1, 4) is a stack of slices 4 voxels thick.

    Works on images (B, C, H, W) and, with three factors, on volumes (B, C, X, Y, Z).
    """

    factor: int | Sequence[int] = 2

    def _factors(self, dims: int) -> tuple[int, ...]:
        given = (self.factor,) * dims if isinstance(self.factor, int) else tuple(self.factor)
        if len(given) != dims or min(given) < 1:
            raise InvalidArgument(f"factor must be positive, one number or one for each of {dims} axes, got {given}")
        return given

    def __call__(self, x: Tensor) -> Tensor:
        factors = self._factors(x.ndim - 2)
        if any(n % f for n, f in zip(x.shape[2:], factors, strict=True)):
            raise InvalidArgument(f"x of size {tuple(x.shape[2:])} is no multiple of factor {factors}; pad it")
        return (F.avg_pool2d if x.ndim == 4 else F.avg_pool3d)(x, factors)

    def adjoint(self, y: Tensor) -> Tensor:
        return self.pseudo_inverse(y) / math.prod(self._factors(y.ndim - 2))

    def pseudo_inverse(self, y: Tensor, iterations: int = 30) -> Tensor:
        for axis, factor in enumerate(self._factors(y.ndim - 2)):
            y = y.repeat_interleave(factor, dim=axis + 2)
        return y


@dataclass(frozen=True, eq=False)
class Radon(Operator):
    """Parallel-beam projections of square images (B, 1, N, N): y (B, angles, N), sums over N samples along each ray.

    Args:
        angles: (A,) in degrees; 0 sums over the first axis.
    """

    angles: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        if x.ndim != 4 or x.shape[1] != 1 or x.shape[2] != x.shape[3]:
            raise InvalidArgument(f"x must be square images (B, 1, N, N), got {tuple(x.shape)}; pad them")
        n, count = x.shape[-1], len(self.angles)
        turn = torch.deg2rad(self.angles.to(x))
        zero = torch.zeros_like(turn)
        rotation = torch.stack([turn.cos(), -turn.sin(), zero, turn.sin(), turn.cos(), zero], -1).view(count, 2, 3)
        grid = F.affine_grid(rotation, [count, 1, n, n], align_corners=False)
        # all angles at once, with the batch as channels: grid_sample interpolates every channel alike
        turned = F.grid_sample(x[:, 0].expand(count, -1, -1, -1), grid, align_corners=False)
        return turned.sum(2).transpose(0, 1)

    def adjoint(self, y: Tensor) -> Tensor:
        zero = torch.zeros(len(y), 1, y.shape[-1], y.shape[-1], device=y.device, dtype=y.dtype)
        with torch.enable_grad():
            (back,) = torch.func.vjp(self, zero)[1](y)
        return back


def kspace_mask(
    shape: tuple[int, int],
    acceleration: float = 4.0,
    centre_fraction: float = 0.08,
    *,
    kind: str = "random",
    generator: torch.Generator | None = None,
) -> Tensor:
    """Phase-encoding lines that were sampled, (H, W) of 0 and 1 with zero frequency at [0, 0].

    Lines run along the first axis. The masks of fastMRI: Zbontar et al. (2018), arXiv:1811.08839, sec. 6.1; drawn by
    MONAI's ``RandomKspaceMask`` or ``EquispacedKspaceMask``.

    Args:
        shape: (H, W).
        acceleration: of how many lines one is sampled.
        centre_fraction: share of lines around zero frequency that are always sampled.
        kind: ``"random"`` or ``"equispaced"``.
        generator: of the random lines.
    """
    from monai.apps.reconstruction.transforms.array import EquispacedKspaceMask, RandomKspaceMask

    classes = {"random": RandomKspaceMask, "equispaced": EquispacedKspaceMask}
    if kind not in classes:
        raise InvalidArgument(f"kind must be one of {sorted(classes)}, got {kind!r}")
    if acceleration < 1 or not 0 < centre_fraction <= 1 / acceleration:
        raise InvalidArgument(
            f"need acceleration >= 1 and 0 < centre_fraction <= 1 / acceleration, got {acceleration}, {centre_fraction}"
        )
    draw: Any = classes[kind]([centre_fraction], [acceleration], spatial_dims=2, is_complex=True)
    seed = int(torch.randint(2**31, (), generator=generator, device=generator.device if generator else None))
    draw.set_random_state(seed=seed)
    draw(np.zeros((1, *shape, 2), dtype=np.float32))
    lines = torch.as_tensor(draw.mask).float().reshape(1, shape[1])
    return torch.fft.ifftshift(lines.expand(shape), dim=(-2, -1)).contiguous()


def coil_sensitivities(shape: tuple[int, int], coils: int = 4, width: float = 0.6) -> Tensor:
    """Smooth complex sensitivities (K, H, W) of coils around the image, with sum_c |S_c|^2 = 1 everywhere.

    Args:
        width: of the Gaussian that a coil sees, in half widths of the image.
    """
    y, x = torch.meshgrid(*(torch.linspace(-1, 1, n) for n in shape), indexing="ij")
    angle = 2 * torch.pi * torch.arange(coils)[:, None, None] / coils
    distance = (y - angle.sin()) ** 2 + (x - angle.cos()) ** 2
    field = torch.polar((-distance / (2 * width**2)).exp(), angle + 0.5 * (x * angle.cos() + y * angle.sin()))
    return field / field.abs().square().sum(0).sqrt()
