r"""Analytic teleportation: skip the part of the trajectory on which the data look Gaussian.

At high noise the probability-flow ODE of the data is nearly that of N(mean, cov), which has the closed-form solution

    x_s = alpha_s mu + ((alpha_s^2 S + sigma_s^2) / (alpha_t^2 S + sigma_t^2))^(1/2) (x_t - alpha_t mu).

So x goes from the first level to kappa at no cost, and any sampler spends all its evaluations below.
Wang, Vastola (2024), "The Unreasonable Effectiveness of Gaussian Score Approximation for Diffusion Models",
arXiv:2412.09726, sec. 6.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..condition import Condition
from ..denoiser import Denoiser
from ..errors import InvalidArgument
from ..random import Generators
from ..schedules import Schedule
from .base import Sampler, first_state
from .grids import T_MAX

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
        kappa: noise level sigma / alpha to jump to; ``Teleport.fit`` measures a good one.
    """

    sampler: Sampler
    statistics: GaussianStatistics
    kappa: float

    def __post_init__(self) -> None:
        if not 0 < self.kappa < np.inf:
            raise InvalidArgument(f"kappa must be positive and finite, got {self.kappa}")

    @classmethod
    def fit(
        cls,
        sampler: Sampler,
        denoiser: Denoiser,
        statistics: GaussianStatistics,
        data: Tensor,
        cond: Condition | None = None,
        explained: float = 0.95,
        generator: torch.Generator | None = None,
    ) -> Teleport:
        """Jump to the smallest kappa above which the linear denoiser explains the trained one.

        Args:
            sampler, denoiser, statistics: as above.
            data: clean held-out samples (N, *event), a few hundred.
            cond: their condition.
            explained: share of variance to be explained; about .95 for 10 evaluations or fewer, .99 for 20 or more.
            generator: of the noise the samples are given.
        """
        from ..analysis import explained_variance

        schedule = denoiser.schedule
        top = schedule.kappa(T_MAX if schedule.alpha(1.0) == 0 else 1.0)
        kappas = np.geomspace(top, max(schedule.kappa(schedule.t_min), top * 1e-4), 33).tolist()
        best = top
        for kappa in kappas:
            if explained_variance(denoiser, statistics, data, [kappa], cond, generator)[0] < explained:
                break
            best = kappa
        return cls(sampler, statistics, float(best))

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
        """Draw samples; arguments as of ``Sampler``, from noise or from a noisy batch at ``start``."""
        schedule = denoiser.schedule
        x = first_state(denoiser, schedule.level(start), shape, x, None, generator, device, dtype)
        to = schedule.t_of_kappa(self.kappa)
        if to < start:
            x, start = self.statistics.denoiser(schedule).to(x.device).flow(x, start, to), to
        return self.sampler(denoiser, x=x, generator=generator, start=start, device=device, dtype=dtype, **options)
