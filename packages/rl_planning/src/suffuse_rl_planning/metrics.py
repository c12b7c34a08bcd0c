"""How well a requested behaviour was met."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from suffuse.errors import InvalidArgument

from .envs import Array

#: 90 thresholds equally spaced in the logarithm from 1 to exp(-4.6) = 0.01, then 10 equally spaced from there to 0.
THRESHOLDS = np.concatenate([np.exp(np.linspace(0.0, -4.6, 90)), np.linspace(np.exp(-4.6), 0.0, 10)])


def area(errors: Array) -> float:
    """Area under the curve of P(error < threshold), errors (n,) being in [0, 1] of the behaviour's range.

    1 is perfect. Chance is far from 0: uniformly random behaviour under uniform requests has 0.28, and a robot that
    always does the middle 0.32. Dong et al. (2024), "AlignDiff", arXiv:2310.02054, section 5 (thresholds: its code).
    """
    return float((_pair(errors, errors)[0][:, None] < THRESHOLDS).mean())


def mae(requested: Array, achieved: Array) -> float:
    """Mean absolute error, in the unit of the behaviour."""
    requested, achieved = _pair(requested, achieved)
    return float(np.abs(requested - achieved).mean())


def spearman(requested: Array, achieved: Array) -> float:
    """Rank correlation of requests and what was obtained, in [-1, 1]; 0 for a robot that ignores the request."""
    from scipy import stats

    requested, achieved = _pair(requested, achieved)
    if np.ptp(requested) == 0 or np.ptp(achieved) == 0:
        return 0.0
    return float(stats.spearmanr(requested, achieved).statistic)


def paired_interval(first: Array, second: Array, *, level: float = 0.95, draws: int = 2000) -> tuple[float, float]:
    """Bootstrap interval of mean(first - second) over paired tests (n,): it excludes 0 where the two differ."""
    first, second = _pair(first, second)
    difference = first - second
    rows = np.random.default_rng(0).integers(len(difference), size=(draws, len(difference)))
    low, high = np.quantile(difference[rows].mean(1), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def interval(
    errors: Array, statistic: Callable[[Array], float], *, level: float = 0.95, draws: int = 500
) -> tuple[float, float]:
    """Bootstrap interval of a statistic of the tests' errors (n,)."""
    errors, _ = _pair(errors, errors)
    rows = np.random.default_rng(0).integers(len(errors), size=(draws, len(errors)))
    values = [statistic(errors[row]) for row in rows]
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _pair(first: Array, second: Array) -> tuple[Array, Array]:
    first, second = np.asarray(first, float), np.asarray(second, float)
    if first.ndim != 1 or first.shape != second.shape or len(first) == 0:
        raise InvalidArgument(f"both arguments must be (n,) with n > 0, got {first.shape} and {second.shape}")
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        raise InvalidArgument("a measured or requested behaviour is NaN or infinite; was the rollout finite?")
    return first, second
