r"""What a generative model has to beat: structures with the right fraction and the right two-point function.

A Gaussian field g of correlation rho(r), cut where its phase 1 has share phi, gives a two-phase structure of

    S2 = phi^2 + integral_0^{arcsin rho} exp(-t^2 / (1 + sin a)) da / (2 pi),      Phi(-t) = phi.

Inverting that for a measured S2 gives rho, and its Fourier transform the spectrum of g, or where there is no such
Gaussian field the nearest spectrum. Fraction and (so far as that goes) S2 are then matched, and what is beyond is not.
Quiblier (1984), J. Colloid Interface Sci. 98, 84; Roberts (1997), Phys. Rev. E 56, 3203.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from suffuse.errors import InvalidArgument
from suffuse.random import randn

from .data.spinodal import SpinodalVolumes
from .metrics import Curve, two_point_correlation
from .microstructure import Microstructure

__all__ = ["GaussianField", "gaussian_correlation", "nearest"]


def gaussian_correlation(s2: NDArray[np.float64], phi: float) -> NDArray[np.float64]:
    """rho of the Gaussian field whose cut at share ``phi`` has the two-point function ``s2``, clipped to [-1, 1]."""
    if not 0 < phi < 1:
        raise InvalidArgument(f"phi must lie in (0, 1), got {phi}; one phase alone has no two-point structure")
    t2 = float(torch.special.ndtri(torch.tensor(phi, dtype=torch.float64))) ** 2
    angle = np.linspace(-math.pi / 2 + 1e-6, math.pi / 2, 4001)
    density = np.exp(-t2 / (1 + np.sin(angle))) / (2 * math.pi)
    table = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2 * np.diff(angle))])
    table += phi - table[-1]  # rho = 1 at distance zero, where S2 = phi
    return np.sin(np.interp(s2, table, angle))


@dataclass(frozen=True)
class GaussianField:
    """Cut Gaussian fields with the two-point function of given structures.

    Args:
        examples: structures to measure, of one shape and spacing.
        neighbours: how many of them, nearest in volume fraction, a request takes its two-point function from.
    """

    examples: Sequence[Microstructure]
    neighbours: int = 16

    def __post_init__(self) -> None:
        if not self.examples:
            raise InvalidArgument("examples is empty; give structures to measure")

    def target(self, phi: float) -> Curve:
        """S2 at share phi: the examples' (S2 - f^2) / (f - f^2), averaged, and scaled to phi."""
        chosen = sorted(self.examples, key=lambda ms: abs(float(ms.labels.mean()) - phi))[: self.neighbours]
        curves = [two_point_correlation(ms) for ms in chosen]
        scaled = [(c.values - c.values[0] ** 2) / (c.values[0] - c.values[0] ** 2) for c in curves]
        return Curve(curves[0].r, phi**2 + (phi - phi**2) * np.mean(scaled, axis=0))

    def __call__(self, phi: float, shape: Sequence[int], generator: torch.Generator | None = None) -> Microstructure:
        """A periodic structure of exactly the share phi (to one voxel)."""
        curve = self.target(phi)
        spacing = self.examples[0].spacing
        lags = [np.fft.fftfreq(n, 1 / n) * d for n, d in zip(shape, spacing, strict=True)]
        distance = np.sqrt(sum(np.square(lag) for lag in np.meshgrid(*lags, indexing="ij")))
        rho = np.interp(distance, curve.r, gaussian_correlation(curve.values, phi), right=0.0)
        spectrum = nearest_spectrum(np.fft.fftn(rho).real)
        noise = randn((1, *shape), generator, dtype=torch.float64)[0].numpy()
        g = np.fft.ifftn(np.fft.fftn(noise) * np.sqrt(spectrum)).real
        return Microstructure.from_field(g, threshold=float(np.quantile(g, 1 - phi)), spacing=spacing)


def nearest_spectrum(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The nearest spectrum, in the mean square, that is not negative and has a mean (the variance) of one.

    It is max(values - c, 0) for one c: the projection onto a simplex. Cutting off what is negative and rescaling would
    instead add a white background, which roughens every interface.
    """
    descending = np.sort(values.ravel())[::-1]
    c = (np.cumsum(descending) - values.size) / np.arange(1, values.size + 1)
    last = np.nonzero(descending > c)[0][-1]
    return np.clip(values - c[last], 0, None)


def nearest(volumes: SpinodalVolumes, phi: float) -> int:
    """The row of the volume whose volume fraction is nearest to phi."""
    return int((volumes.volume_fraction - phi).abs().argmin())
