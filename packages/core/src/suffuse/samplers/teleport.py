r"""Analytic teleportation: skip the part of the trajectory on which the data look Gaussian.

At high noise the probability-flow ODE of the data is nearly that of N(mean, cov), which has the closed-form solution

    x_s = alpha_s mu + ((alpha_s^2 S + sigma_s^2) / (alpha_t^2 S + sigma_t^2))^(1/2) (x_t - alpha_t mu).

So x goes from the first level to kappa at no cost, and any sampler spends all its evaluations below.
Wang, Vastola (2024), "The Unreasonable Effectiveness of Gaussian Score Approximation for Diffusion Models",
arXiv:2412.09726, sec. 6.

How far to jump is a trade: a deeper jump leaves the sampler a shorter way, and is itself less exact. ``Teleport.fit``
tries a few depths and keeps the one from which the samples end nearest to the model's own solution of the ODE.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..condition import Condition
from ..denoiser import Denoiser
from ..errors import InvalidArgument, SamplingDiverged
from ..random import Generators
from ..schedules import Schedule
from .adams import DEIS
from .base import Sampler, first_state
from .grids import KAPPA_MAX

if TYPE_CHECKING:
    from ..analysis import GaussianStatistics

__all__ = ["Teleport"]


@dataclass(frozen=True)
class Teleport:
    """Wraps a sampler; called like one.

    The statistics must be those of what is sampled: with a strong condition or guidance, of the conditional data.

    Args:
        sampler: what runs below ``kappa``.
        statistics: of the data.
        kappa: noise level sigma / alpha to jump to; infinity for no jump. ``Teleport.fit`` measures a good one.
    """

    sampler: Sampler
    statistics: GaussianStatistics
    kappa: float

    def __post_init__(self) -> None:
        if not self.kappa > 0:
            raise InvalidArgument(f"kappa must be positive, got {self.kappa}")

    @classmethod
    def fit(
        cls,
        sampler: Sampler,
        denoiser: Denoiser,
        statistics: GaussianStatistics,
        cond: Condition | None = None,
        samples: int = 128,
        generator: torch.Generator | None = None,
    ) -> Teleport:
        """Jump to the level from which the sampler ends nearest to the model's own solution of the ODE.

        Eight depths and none are tried, from the top of the schedule to the standard deviation of the data; the
        distance is the root mean square over values, averaged over samples. It costs nine runs of the sampler and one
        of 60 evaluations.

        Args:
            sampler: deterministic; it is measured as it is, so the depth suits its number of steps and its grid.
            denoiser, statistics: as above.
            cond: conditions to draw from, at least ``samples`` of them; None without condition.
            samples: how many trajectories are compared.
            generator: of their noise, on the device of the denoiser.

        Raises:
            InvalidArgument: for a sampler that draws noise, which has no trajectory to compare.
            SamplingDiverged: where the samples are not finite.
        """
        schedule = denoiser.schedule
        cond = None if cond is None else cond[:samples]
        shape = (samples if cond is None else len(cond), *statistics.mean.shape)
        x = first_state(denoiser, schedule.level(1.0), shape, None, None, generator, None, torch.float32)
        solution = DEIS(steps=60, grid="karras-open")(denoiser, x=x, cond=cond)

        def error(kappa: float) -> float:
            drawn = [cls(sampler, statistics, kappa)(denoiser, x=x, cond=cond) for _ in range(2 if kappa == top else 1)]
            if not torch.equal(drawn[0], drawn[-1]):
                raise InvalidArgument(
                    f"sampler: {type(sampler).__name__} draws noise, so its distance from the solution says nothing of "
                    f"the jump; fit a deterministic sampler and pass its kappa on"
                )
            return float((drawn[0] - solution).square().flatten(1).mean(1).sqrt().mean())

        top = min(schedule.kappa(1.0), KAPPA_MAX)
        spread = math.sqrt(float(statistics.cov.trace()) / statistics.mean.numel())
        depths = [math.inf, *np.geomspace(top, min(spread, top / 2), 8).tolist()]
        return cls(sampler, statistics, min(depths, key=error))

    def nfe(self, schedule: Schedule) -> int:
        """Evaluations of the denoiser for a whole run."""
        return self.sampler.nfe(schedule)

    def __call__(
        self,
        denoiser: Denoiser,
        shape: Sequence[int] | None = None,
        *,
        x: Tensor | None = None,
        generator: Generators = None,
        start: float = 1.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
        **options: Any,
    ) -> Any:
        """Draw samples; arguments as of ``Sampler``, from noise or from a noisy batch at ``start``.

        Raises:
            SamplingDiverged: where the jump is not finite.
        """
        schedule = denoiser.schedule
        x = first_state(denoiser, schedule.level(start), shape, x, None, generator, device, dtype)
        to = schedule.t_of_kappa(self.kappa)
        if to < start:
            x, start = self.statistics.denoiser(schedule).to(x.device).flow(x, start, to), to
            if not bool(torch.isfinite(x).all()):
                raise SamplingDiverged(
                    f"x is not finite after the jump to kappa={self.kappa:.4g}; statistics.mean and statistics.cov "
                    f"must be finite: fit them to data without NaN"
                )
        return self.sampler(denoiser, x=x, generator=generator, start=start, device=device, dtype=dtype, **options)
