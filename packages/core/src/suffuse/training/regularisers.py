r"""Regularisers: terms added to the denoising loss.

The Fokker-Planck regulariser penalises how far the learned score is from obeying

    ds/dtau = grad(div s + |s|^2),   tau = kappa^2 / 2,

which every score of a diffused density does. What it violates separates the samples of the ODE from those of the SDE:
their Wasserstein distance is bounded by the residual (``analysis.ode_sde_gap`` measures it).
Deveney et al. (2023), "Closing the ODE-SDE gap in score-based diffusion models through the Fokker-Planck equation",
arXiv:2311.15996, thm. 3.2; here the equation is taken in the coordinates x / alpha, where it has no drift.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from ..analysis.geometry import fokker_planck_residual
from ..condition import Condition
from ..denoiser import Denoiser
from ..errors import InvalidArgument

__all__ = ["FokkerPlanck", "Regulariser"]


class Regulariser(Protocol):
    """A term of the loss: a scalar from a batch of clean data."""

    def __call__(
        self, denoiser: Denoiser, x0: Tensor, cond: Condition | None, generator: torch.Generator | None
    ) -> Tensor: ...


@dataclass(frozen=True)
class FokkerPlanck:
    """The mean squared Fokker-Planck residual; for smooth networks.

    Args:
        weight: of the term. It closes the gap between ODE and SDE samples; large weights cost both accuracy.
        kappa: range of noise levels, log-uniform.
        points: how many samples of a batch it is evaluated at.
        collocation: where: at noised ``"data"``, so that each region counts by its density; or ``"uniform"`` in a box
            of three standard deviations of the noised batch about its mean, so that empty regions count as well (the
            paper's choice, in a fixed box).
        probes: None takes exact divergences, whose cost grows with the dimension; for d > 3 or so, a number of random
            directions. The square is then the product of two independent estimates, which keeps it unbiased.
    """

    weight: float = 0.1
    kappa: tuple[float, float] = (0.1, 10.0)
    points: int = 64
    collocation: Literal["data", "uniform"] = "data"
    probes: int | None = None

    def __post_init__(self) -> None:
        if self.weight < 0 or not 0 < self.kappa[0] < self.kappa[1] or self.points < 1:
            raise InvalidArgument(f"need weight >= 0, 0 < kappa_low < kappa_high and points >= 1, got {self}")
        if self.collocation not in ("data", "uniform"):
            raise InvalidArgument(f"collocation must be 'data' or 'uniform', got {self.collocation!r}")
        if self.probes is not None and self.probes < 1:
            raise InvalidArgument(f"probes must be at least 1, or None for exact divergences; got {self.probes}")

    def __call__(
        self, denoiser: Denoiser, x0: Tensor, cond: Condition | None, generator: torch.Generator | None
    ) -> Tensor:
        few, cond = x0[: self.points], None if cond is None else cond[: self.points]
        u = torch.rand(len(few), generator=generator, device=x0.device, dtype=x0.dtype)
        low, high = (math.log(k) for k in self.kappa)
        kappa = (low + (high - low) * u).exp()
        scale = kappa.reshape(-1, *(1,) * (x0.ndim - 1))
        if self.collocation == "data":
            y = few + scale * torch.randn(few.shape, generator=generator, device=x0.device, dtype=x0.dtype)
        else:
            v = torch.rand(few.shape, generator=generator, device=x0.device, dtype=x0.dtype)
            y = x0.mean(0) + 3 * (x0.var(0) + scale**2).sqrt() * (2 * v - 1)

        def residual() -> Tensor:
            return fokker_planck_residual(denoiser, y, kappa, cond, True, self.probes, generator)

        one = residual()
        other = one if self.probes is None else residual()
        return self.weight * (one * other).mean()
