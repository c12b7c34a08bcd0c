"""Scales: trajectories to mean 0 and standard deviation 1, requests to [0, 1]. Saved with every checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from suffuse.errors import InvalidArgument


@dataclass(frozen=True)
class Normaliser:
    """(x - mean) / std per channel; a constant channel keeps its unit (std 1).

    Args:
        mean, std: (C,).
    """

    mean: Tensor
    std: Tensor

    @classmethod
    def fit(cls, x: Tensor) -> Normaliser:
        """From samples (N, C)."""
        std = x.std(0, correction=0)
        return cls(x.mean(0), torch.where(std > 1e-6, std, torch.ones_like(std)))

    def __call__(self, x: Tensor) -> Tensor:
        """Physical units (..., C) -> normalised."""
        return (x - self.mean.to(x)) / self.std.to(x)

    def inverse(self, x: Tensor) -> Tensor:
        """Normalised (..., C) -> physical units."""
        return x * self.std.to(x) + self.mean.to(x)

    def to_config(self) -> dict[str, list[float]]:
        return {"mean": self.mean.tolist(), "std": self.std.tolist()}

    @classmethod
    def from_config(cls, config: Mapping[str, Sequence[float]]) -> Normaliser:
        return cls(torch.tensor(config["mean"]), torch.tensor(config["std"]))


@dataclass(frozen=True)
class Scale:
    """The range of one behaviour in the data, in its unit; requests outside of it are clipped to it.

    Args:
        low, high: 1st and 99th percentile over the training windows.
    """

    low: float
    high: float

    @classmethod
    def fit(cls, values: Tensor) -> Scale:
        """From the behaviour (N,) of training windows."""
        low, high = torch.quantile(values.double(), torch.tensor([0.01, 0.99], dtype=torch.float64)).tolist()
        if not high > low:
            raise InvalidArgument(
                f"the behaviour is {low} in every window: nothing can be requested; collect more data"
            )
        return cls(low, high)

    def __call__(self, value: Tensor) -> Tensor:
        """Unit -> [0, 1]."""
        return ((value - self.low) / (self.high - self.low)).clamp(0.0, 1.0)

    def to_config(self) -> dict[str, Any]:
        return {"low": self.low, "high": self.high}
