"""Which noise levels a batch is trained at.

A time sampler maps a stratified uniform u in (0, 1), one stratum per sample, to t in [t_min, 1]. Stratification (Kingma
et al., 2021, arXiv:2107.00630, app. I.1) spreads every batch over all levels and so lowers the variance of the loss.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from ..analysis.variational import noise_range
from ..errors import InvalidArgument
from ..random import stratified
from ..schedules import Schedule

__all__ = ["LogNormalKappa", "LogitNormalTime", "TimeSampler", "UniformLogSNR", "UniformTime"]


@dataclass(frozen=True)
class TimeSampler(ABC):
    """Base: ``sampler(schedule, batch, generator, device)`` gives t, (B,) float64 (float32 where there is none)."""

    def __call__(
        self,
        schedule: Schedule,
        batch: int,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        kind = torch.float32 if torch.device(device or "cpu").type == "mps" else torch.float64
        u = stratified(batch, generator, device, kind).clamp(1e-6, 1 - 1e-6)
        return self.quantile(u, schedule).clamp(schedule.t_min, 1.0)

    @abstractmethod
    def quantile(self, u: Tensor, schedule: Schedule) -> Tensor:
        """The inverse of the distribution function of t."""


@dataclass(frozen=True)
class UniformTime(TimeSampler):
    """t uniform."""

    def quantile(self, u: Tensor, schedule: Schedule) -> Tensor:
        return schedule.t_min + (1 - schedule.t_min) * u


@dataclass(frozen=True)
class UniformLogSNR(TimeSampler):
    """log kappa uniform between two noise levels; by default the schedule's (``analysis.variational.noise_range``).

    Args:
        kappa: (low, high), 0 < low < high.
    """

    kappa: tuple[float, float] | None = None

    def quantile(self, u: Tensor, schedule: Schedule) -> Tensor:
        low, high = (math.log(k) for k in noise_range(schedule, self.kappa))
        return schedule.t_of_log_kappa(low + (high - low) * u)


@dataclass(frozen=True)
class _Normal(TimeSampler):
    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        if not self.std > 0:
            raise InvalidArgument(f"std must be positive, got {self.std}")

    def _normal(self, u: Tensor) -> Tensor:
        return self.mean + self.std * torch.special.ndtri(u)


@dataclass(frozen=True)
class LogitNormalTime(_Normal):
    """logit t ~ N(mean, std^2): Esser et al. (2024), arXiv:2403.03206, eq. 19."""

    def quantile(self, u: Tensor, schedule: Schedule) -> Tensor:
        return torch.sigmoid(self._normal(u))


@dataclass(frozen=True)
class LogNormalKappa(_Normal):
    """log kappa ~ N(mean, std^2): Karras et al. (2022), arXiv:2206.00364, table 1, for data of variance 0.25."""

    mean: float = -1.2
    std: float = 1.2

    def quantile(self, u: Tensor, schedule: Schedule) -> Tensor:
        return schedule.t_of_log_kappa(self._normal(u))
