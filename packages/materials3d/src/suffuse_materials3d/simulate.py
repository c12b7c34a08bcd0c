r"""Spinodal decomposition: the Cahn-Hilliard equation on a periodic box, in Fourier space.

A mixture u in [-1, 1] that prefers to separate lowers its free energy

    F[u] = integral f(u) + kappa/2 |grad u|^2,      f(u) = (u^2 - 1)^2 / 4,

without creating or losing matter:

    du/dt = M lap mu,      mu = f'(u) - kappa lap u,      f'(u) = u^3 - u.

A step treats the stiff fourth derivative, and S u of the rest, implicitly. With ^ the Fourier transform, k2 = |k|^2,

    (1 + dt M (S k2 + kappa k2^2)) u^_new = (1 + dt M S k2) u^ - dt M k2 (f'(u))^.

Cahn, Hilliard (1958), J. Chem. Phys. 28, 258; the step: Eyre (1998), "Unconditionally gradient stable time marching";
Zhu, Chen, Shen, Tikare (1999), Phys. Rev. E 60, 3564.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from suffuse.errors import InvalidArgument, SuffuseError
from suffuse.random import Generators, randn

__all__ = ["CahnHilliard", "SimulationDiverged", "wave_numbers"]

#: |mean| beyond which the mixture is stable against small fluctuations, f''(u) = 3 u^2 - 1 > 0.
SPINODAL = 1 / math.sqrt(3)


class SimulationDiverged(SuffuseError):
    """The field is no longer finite."""


@dataclass(frozen=True)
class CahnHilliard:
    """The equation and its time step. Lengths are in voxels unless ``dx`` says otherwise.

    Args:
        kappa: gradient energy; an interface is about 3 sqrt(kappa) wide (10 to 90 %).
        mobility: M.
        dt: time step. Stable is not accurate: above 2 the stabiliser visibly slows the decomposition.
        stabiliser: S; at least half of max f'' = 2 keeps the energy falling.
        dx: edge of a voxel.
    """

    kappa: float = 1.0
    mobility: float = 1.0
    dt: float = 1.0
    stabiliser: float = 1.0
    dx: float = 1.0

    def __post_init__(self) -> None:
        for name in ("kappa", "mobility", "dt", "dx"):
            if not 0 < getattr(self, name) < math.inf:
                raise InvalidArgument(f"{name} must be positive, got {getattr(self, name)}")
        if not 0 <= self.stabiliser < math.inf:
            raise InvalidArgument(f"stabiliser must not be negative, got {self.stabiliser}")

    # --- the physics --------------------------------------------------------------------------------------------
    def energy(self, u: Tensor) -> Tensor:
        """Free energy per volume, (B,), of fields (B, X, Y, Z); the gradient is taken in Fourier space."""
        bulk = ((u.square() - 1).square() / 4).mean((1, 2, 3))
        u_hat = torch.fft.fftn(u, dim=(1, 2, 3))
        k2 = wave_numbers(u.shape[1:], self.dx, u, half=False).square().sum(0)
        gradient = (k2 * u_hat.abs().square()).sum((1, 2, 3)) / u[0].numel() ** 2
        energy: Tensor = bulk + self.kappa / 2 * gradient
        return energy

    def growth_rate(self, k: float, mean: float = 0.0) -> float:
        """Rate at which a small wave of wave number k grows around a mean: M (k^2 (1 - 3 mean^2) - kappa k^4)."""
        return self.mobility * (k**2 * (1 - 3 * mean**2) - self.kappa * k**4)

    def fastest_wavelength(self, mean: float = 0.0) -> float:
        """The wavelength that grows fastest, 2 pi sqrt(2 kappa / (1 - 3 mean^2)), for |mean| below the spinodal."""
        return 2 * math.pi * math.sqrt(2 * self.kappa / (1 - 3 * mean**2))

    # --- the computation ----------------------------------------------------------------------------------------
    def start(self, mean: Tensor, shape: Sequence[int], generator: Generators = None, noise: float = 0.05) -> Tensor:
        """A mixed state (B, X, Y, Z): exactly the given means (B,), and small white noise."""
        z = randn((len(mean), *shape), generator, device=mean.device, dtype=mean.dtype)
        return mean.view(-1, 1, 1, 1) + noise * (z - z.mean((1, 2, 3), keepdim=True))

    def run(self, u: Tensor, times: Sequence[float]) -> Tensor:
        """Fields at the given times.

        Args:
            u: (B, X, Y, Z) at time 0.
            times: ascending, each rounded to a whole number of steps.

        Returns:
            (B, len(times), X, Y, Z).

        Raises:
            InvalidArgument: for a field that is not (B, X, Y, Z) or not finite, or times that do not ascend.
            SimulationDiverged: when the field stops being finite; says which stabiliser to take.
        """
        if u.ndim != 4:
            raise InvalidArgument(f"u must be (B, X, Y, Z), got shape {tuple(u.shape)}")
        if not bool(torch.isfinite(u).all()):
            raise InvalidArgument("u has NaN or infinite values")
        stops = [round(t / self.dt) for t in times]
        if not stops or any(b < a for a, b in zip([0, *stops], stops, strict=False)):
            raise InvalidArgument(f"times must ascend from 0, got {list(times)}")
        grid, dim = u.shape[1:], (1, 2, 3)
        k2 = wave_numbers(grid, self.dx, u).square().sum(0)
        stiff = self.dt * self.mobility * k2
        keep = (1 + stiff * self.stabiliser) / (1 + stiff * (self.stabiliser + self.kappa * k2))
        push = -stiff / (1 + stiff * (self.stabiliser + self.kappa * k2))
        u_hat, snapshots, done = torch.fft.rfftn(u, dim=dim), [], 0
        for stop in stops:
            for _ in range(stop - done):
                u_hat = keep * u_hat + push * torch.fft.rfftn(u * (u * u - 1), dim=dim)
                u = torch.fft.irfftn(u_hat, s=grid, dim=dim)
            done = stop
            if not bool(torch.isfinite(u).all()):
                raise SimulationDiverged(
                    f"the field is not finite at time {stop * self.dt:g}; dt={self.dt:g} is too large for "
                    f"stabiliser={self.stabiliser:g}: take stabiliser >= max f'' / 2 = 1, or a smaller dt"
                )
            snapshots.append(u)
        return torch.stack(snapshots, 1)


def wave_numbers(shape: Sequence[int], dx: float | Sequence[float], like: Tensor, half: bool = True) -> Tensor:
    """(3, X, Y, Z) wave vectors k = 2 pi / wavelength of an FFT over a box; with ``half`` those of ``rfftn``."""
    edges = (dx,) * 3 if isinstance(dx, int | float) else tuple(dx)
    kind = {"device": like.device, "dtype": like.dtype}
    axes = [2 * math.pi * torch.fft.fftfreq(n, d, **kind) for n, d in zip(shape, edges, strict=True)]
    if half:
        axes[-1] = 2 * math.pi * torch.fft.rfftfreq(shape[-1], edges[-1], **kind)
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))
