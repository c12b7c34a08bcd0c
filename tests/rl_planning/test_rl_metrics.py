"""Measures of how well a request was met."""

from __future__ import annotations

import numpy as np
import pytest

from suffuse.errors import InvalidArgument
from suffuse_rl_planning import metrics


@pytest.mark.parametrize(
    ("error", "area"),
    [
        (0, 0.99),
        (0.005, 0.95),
        (0.01, 0.91),
        (0.02, 0.76),
        (0.05, 0.58),
        (0.1, 0.45),
        (0.2, 0.32),
        (0.3, 0.24),
        (0.9, 0.03),
    ],
)
def test_area_of_a_constant_error(error, area):
    """Values of AlignDiff's own evaluation code."""
    assert metrics.area(np.full(5, error)) == pytest.approx(area, abs=0.011)


def test_chance_is_far_from_zero():
    """Uniform requests: a robot that does something random has area 0.28 or a little more, one in the middle 0.32."""
    rng = np.random.default_rng(0)
    requested, random = rng.random((2, 50_000))
    assert metrics.area(np.abs(requested - random)) == pytest.approx(0.31, abs=0.04)
    assert metrics.area(np.abs(requested - 0.5)) == pytest.approx(0.34, abs=0.04)


def test_spearman_of_perfect_inverse_and_deaf_robots():
    requested = np.linspace(-1, 2, 9)
    assert metrics.spearman(requested, 3 * requested) == pytest.approx(1)
    assert metrics.spearman(requested, -requested) == pytest.approx(-1)
    assert metrics.spearman(requested, np.zeros(9)) == 0


def test_a_paired_interval_sees_what_unpaired_noise_hides():
    rng = np.random.default_rng(1)
    hard = 5 * rng.random(60)  # how hard a test is, for both
    low, high = metrics.paired_interval(hard + 0.1 * rng.random(60), hard + 0.2 + 0.1 * rng.random(60))
    assert low < -0.2 < high < 0
    level = rng.normal(size=200)
    low, high = metrics.paired_interval(level - level.mean(), np.zeros(200))
    assert low < 0 < high


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [([], [], "n > 0"), ([1.0], [1.0, 2.0], "must be"), ([np.nan], [1.0], "NaN or infinite")],
)
def test_bad_input(a, b, message):
    with pytest.raises(InvalidArgument, match=message):
        metrics.mae(np.array(a), np.array(b))
