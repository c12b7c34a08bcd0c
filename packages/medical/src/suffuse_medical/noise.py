r"""Noise with structure: coarse noise hides large things, which white noise does not.

A denoiser of white noise reads a lesion of many voxels through the noise: the mean over a region is hardly disturbed.
Noise of long wavelength disturbs it, so the lesion has to be filled in from what is usual there. AnoDDPM adds octaves,

    n(x, y) = sum_{i < octaves} persistence^i  s(x / w_i, y / w_i, z / w_i),     w_i = wavelength / 2^i,

of simplex noise s, a random slice z of a 3-D field for every draw. :class:`SimplexNoise` is that;
:class:`CoarseNoise` is Gaussian with a spectrum in closed form, for which posterior means are known exactly
(:class:`Whitened`). Both are families of noise for ``DenoisingObjective(noise=...)``.

Wyatt, Leach, Schmon, Willcocks (2022), "AnoDDPM: Anomaly detection with denoising diffusion probabilistic models using
simplex noise", CVPR workshops, sec. 3.2; Gustavson (2005), "Simplex noise demystified".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from suffuse import Condition, Denoiser
from suffuse.errors import InvalidArgument
from suffuse.random import Generators, rand, randn
from suffuse.schedules import Scalar

__all__ = ["CoarseNoise", "SimplexNoise", "Whitened"]

#: Standard deviation over space of :func:`simplex`, by integration over 4 million points.
SIMPLEX_STD = 0.42
#: Nearest points of this lattice are sqrt(3) / 2 apart, of OpenSimplex's, which AnoDDPM's code calls, sqrt(2).
LATTICE = math.sqrt(3 / 8)
#: The twelve directions to the edges of a cube.
EDGES = tuple(
    tuple(sign * (axis != skip) for axis, sign in zip(range(3), signs, strict=True))
    for skip in range(3)
    for signs in ((a, b, c) for a in (1, -1) for b in (1, -1) for c in (1, -1) if (a, b, c)[skip] == 1)
)


def _hash(lattice: Tensor, seed: Tensor) -> Tensor:
    """Integers (B, ..., 3) and seeds (B, ...) -> well-mixed integers; torch has no unsigned 64 bits, overflow wraps."""
    h = seed
    for axis, prime in enumerate((0x9E3779B97F4A7C1, 0x2545F4914F6CDD1D, 0x165667B19E3779F9)):
        h = (h ^ lattice[..., axis]) * prime
        h = h ^ (h >> 29)
    return h


def simplex(points: Tensor, seed: Tensor) -> Tensor:
    """Simplex noise in three dimensions, between -1 and 1, one field for every seed.

    Args:
        points: (B, P, 3), in lattice units.
        seed: (B,) integers.
    """
    skew = points.sum(-1, keepdim=True) / 3
    lattice = (points + skew).floor()
    inside = points - lattice + lattice.sum(-1, keepdim=True) / 6  # from the first corner, not skewed
    x, y, z = inside.unbind(-1)
    # how many of the other two coordinates each exceeds, ties broken by order: the path through the cube
    rank = torch.stack([(x >= y).int() + (x >= z), (y > x).int() + (y >= z), (z > x).int() + (z > y)], -1)
    edges = torch.tensor(EDGES, device=points.device, dtype=points.dtype)
    corner = lattice.long()
    total = torch.zeros_like(x)
    for k in range(4):
        step = (rank >= 3 - k).to(points.dtype)  # none, the largest, the two largest, all three
        offset = inside - step + k / 6
        gradient = edges[_hash(corner + step.long(), seed[:, None]).remainder(len(edges))]
        reach = (0.6 - offset.square().sum(-1)).clamp(min=0)
        total = total + reach**4 * (gradient * offset).sum(-1)
    return 32 * total


@dataclass(frozen=True)
class SimplexNoise:
    """AnoDDPM's octaves of simplex noise on images (B, C, H, W); every channel of every image is its own field.

    Args:
        octaves, persistence, wavelength: of the sum in the module's docstring; wavelength in voxels.
        unit: scale to unit variance over space. The published noise has a standard deviation of about 0.5, and far less
            inside a small image: compare families of noise at equal power.
    """

    octaves: int = 6
    persistence: float = 0.8
    wavelength: float = 64.0
    unit: bool = True

    def __post_init__(self) -> None:
        _check(self.octaves, self.persistence, self.wavelength)

    def __call__(
        self,
        shape: Sequence[int],
        generator: Generators = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        batch, channels, *size = shape
        if len(size) != 2:
            raise InvalidArgument(f"shape must be that of images (B, C, H, W), got {tuple(shape)}")
        draws = rand((batch, channels, 4), generator, device, torch.float64).flatten(0, 1)
        seed = (draws[:, 0] * 2**52).long()
        grid = torch.stack(torch.meshgrid(*(torch.arange(n, device=device) for n in size), indexing="ij"), -1)
        plane = torch.cat([grid.flatten(0, 1).float(), torch.zeros(math.prod(size), 1, device=device)], -1)
        # a random place: a random slice of the field; near the origin, where float32 has its digits
        points = plane + self.wavelength * draws[:, None, 1:].float()
        total = torch.zeros(points.shape[:2], device=device)
        for i in range(self.octaves):
            total += self.persistence**i * simplex(points * (LATTICE * 2**i / self.wavelength), seed + i)
        scale = SIMPLEX_STD * math.sqrt(sum(self.persistence ** (2 * i) for i in range(self.octaves)))
        return (total / scale if self.unit else total).reshape(tuple(shape)).to(dtype or torch.float32)

    def spectrum(self, size: Sequence[int]) -> Tensor:
        """K over frequencies, (*size) in the order of the FFT: the mean over draws, as there is no closed form."""
        draws = self((max(64, 2**19 // math.prod(size)), 1, *size), torch.Generator().manual_seed(0))
        return _invertible(torch.fft.fft2(draws.double(), norm="ortho").abs().square().mean((0, 1)))


@dataclass(frozen=True)
class CoarseNoise:
    """Gaussian octaves: white noise, each octave smoothed to its wavelength, on a torus, of unit variance.

    Octave i has the spectrum of white noise behind a Gaussian filter of standard deviation w_i / 4.
    """

    octaves: int = 6
    persistence: float = 0.8
    wavelength: float = 64.0

    def __post_init__(self) -> None:
        _check(self.octaves, self.persistence, self.wavelength)

    def spectrum(self, size: Sequence[int], device: torch.device | str | None = None) -> Tensor:
        """K over frequencies, (*size) in the order of the FFT: real, positive, mean 1."""
        frequencies = torch.meshgrid(
            *(torch.fft.fftfreq(n, device=device, dtype=torch.float64) for n in size), indexing="ij"
        )
        square = sum(f.square() for f in frequencies)
        power = torch.zeros_like(frequencies[0])
        for i in range(self.octaves):
            octave = torch.exp(-((2 * torch.pi * self.wavelength / 2**i / 4) ** 2) * square)
            power = power + self.persistence ** (2 * i) * octave / octave.mean()
        power = _invertible(power)
        return power / power.mean()

    def colour(self, z: Tensor, inverse: bool = False) -> Tensor:
        """K^(1/2) z, or K^(-1/2) z, for z (..., H, W)."""
        axes = (-2, -1)
        gain = self.spectrum(z.shape[-2:], z.device).sqrt()
        gain = 1 / gain if inverse else gain
        return torch.fft.ifft2(gain * torch.fft.fft2(z.double(), dim=axes), dim=axes).real.to(z.dtype)

    def __call__(
        self,
        shape: Sequence[int],
        generator: Generators = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        return self.colour(randn(shape, generator, device, dtype))


def _invertible(power: Tensor) -> Tensor:
    """Large enough everywhere to be divided by in float32."""
    return power + 1e-4 * power.max() * (power < 1e-4 * power.max())


def _check(octaves: int, persistence: float, wavelength: float) -> None:
    if octaves < 1 or not persistence > 0 or wavelength < 2:
        raise InvalidArgument(
            f"need octaves >= 1, persistence > 0 and wavelength >= 2 voxels, got {octaves}, {persistence}, {wavelength}"
        )


class Whitened(Denoiser):
    """A denoiser for coarse noise from one for white noise: D(x) = K^(1/2) D_w(K^(-1/2) x).

    Args:
        denoiser: D_w, of data that were multiplied by K^(-1/2) (``noise.colour(data, inverse=True)``).
        noise: the family with covariance K.
    """

    def __init__(self, denoiser: Denoiser, noise: CoarseNoise) -> None:
        super().__init__()
        self.denoiser, self.noise, self.schedule = denoiser, noise, denoiser.schedule

    def forward(self, x: Tensor, t: Scalar, cond: Condition | None = None) -> Tensor:
        return self.noise.colour(self.denoiser(self.noise.colour(x, inverse=True), t, cond))
