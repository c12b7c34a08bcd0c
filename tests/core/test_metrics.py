"""Laws of distances between samples."""

from __future__ import annotations

import math

import pytest
import torch

from suffuse.errors import InvalidArgument
from suffuse.metrics import distances, energy_distance, mmd

BOTH = pytest.mark.parametrize("distance", [energy_distance, mmd], ids=lambda f: f.__name__)


def normal(n: int, d: int, seed: int, mean: float = 0.0) -> torch.Tensor:
    return mean + torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


@BOTH
def test_zero_on_average_for_equal_distributions(distance):
    """Unbiased: over many small samples the mean is zero within its own standard error, and some are negative."""
    values = torch.tensor([distance(normal(20, 2, 2 * i), normal(30, 2, 2 * i + 1)) for i in range(300)])
    assert abs(values.mean()) < 3 * values.std() / math.sqrt(len(values))
    assert values.min() < 0 < values.max()


@BOTH
def test_grows_with_the_shift_and_is_symmetric(distance):
    x, near, far = normal(200, 3, 0), normal(200, 3, 1, 0.5), normal(200, 3, 2, 1.5)
    assert 0 < distance(x, near) < distance(x, far)
    assert distance(x, far) == pytest.approx(distance(far, x))


def assert_mean(values: list[float], exact: float) -> None:
    """The mean of independent unbiased estimates is within three of its standard errors, which are small themselves."""
    sample = torch.tensor(values)
    error = sample.std() / math.sqrt(len(values))
    assert error < 0.05 * exact
    assert abs(sample.mean() - exact) < 3 * error


def test_energy_distance_of_two_normals_on_the_line():
    """E|N(m, 2)| = 2/sqrt(pi) exp(-m^2/4) + m erf(m/2), so the distance between N(0, 1) and N(m, 1) is known."""
    m = 1.0
    cross = 2 / math.sqrt(math.pi) * math.exp(-(m**2) / 4) + m * math.erf(m / 2)
    exact = 2 * cross - 2 * 2 / math.sqrt(math.pi)
    assert_mean([energy_distance(normal(200, 1, 2 * i), normal(200, 1, 2 * i + 1, m)) for i in range(100)], exact)


def test_mmd_of_two_normals_on_the_line():
    """E exp(-(X-Y)^2 / (2 b^2)) = b / sqrt(b^2 + 2) exp(-m^2 / (2 (b^2 + 2)))."""
    m, b = 1.0, 1.5
    exact = 2 * b / math.sqrt(b**2 + 2) * (1 - math.exp(-(m**2) / (2 * (b**2 + 2))))
    assert_mean([mmd(normal(200, 1, 2 * i), normal(200, 1, 2 * i + 1, m), bandwidth=b) for i in range(100)], exact)


@BOTH
def test_blocks_do_not_matter(distance, monkeypatch):
    x, y = normal(50, 2, 0), normal(70, 2, 1)
    whole = distance(x, y)
    monkeypatch.setattr(distances, "CHUNK", 7)
    assert distance(x, y) == pytest.approx(whole)


@BOTH
def test_events_are_flattened(distance):
    x, y = normal(20, 12, 0), normal(20, 12, 1)
    assert distance(x.reshape(20, 3, 2, 2), y.reshape(20, 3, 2, 2)) == pytest.approx(distance(x, y))


@BOTH
@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (torch.zeros(1, 2), torch.zeros(5, 2), "x: needs at least two"),
        (torch.zeros(5, 2), torch.full((5, 2), torch.nan), "y: has values that are NaN"),
        (torch.zeros(5, 2), torch.zeros(5, 3), "y: samples of shape (3,)"),
    ],
)
def test_bad_samples_are_named(distance, x, y, message):
    with pytest.raises(InvalidArgument) as error:
        distance(x, y)
    assert message in str(error.value)


def test_bandwidth_must_be_positive():
    with pytest.raises(InvalidArgument, match="bandwidth"):
        mmd(torch.zeros(3, 1), torch.ones(3, 1), bandwidth=0.0)


def test_equal_points_have_no_median_distance():
    assert mmd(torch.zeros(3, 1), torch.zeros(3, 1)) == 0
