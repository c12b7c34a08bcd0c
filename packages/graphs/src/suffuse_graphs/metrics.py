"""Scores of probabilistic imputation."""

from __future__ import annotations

import torch
from torch import Tensor


def crps(samples: Tensor, truth: Tensor) -> Tensor:
    """Continuous ranked probability score of an ensemble, elementwise, in the unit of truth; lower is better.

        CRPS = mean_i |X_i - y| - 1 / (2 m (m - 1)) sum_ij |X_i - X_j|

    the "fair" estimator, unbiased in the number m of samples. Ferro (2014), doi:10.1002/qj.2270.

    Args:
        samples: (m, *shape), m >= 2.
        truth: (*shape).
    """
    m = len(samples)
    rank = torch.arange(1 - m, m, 2, dtype=samples.dtype, device=samples.device).view(-1, *[1] * truth.dim())
    spread = (rank * samples.sort(0).values).sum(0) / (m * (m - 1))  # sum_ij |X_i - X_j| / 2 by order statistics
    return (samples - truth).abs().mean(0) - spread


def mean_over(values: Tensor, where: Tensor) -> float:
    """Mean of values (B, ...) where the mask of the same shape is set."""
    return float(values[where.bool()].mean())
