"""Wasserstein distances, and the gap between the samples of the ODE and of the SDE."""

import math
from itertools import pairwise

import pytest
import torch

from suffuse import as_denoiser
from suffuse.analysis import ode_sde_gap, wasserstein
from suffuse.benchmarks.truths import ring2d
from suffuse.errors import InvalidArgument
from suffuse.exact import GaussianDenoiser
from suffuse.schedules import EDM

pytest.importorskip("ot")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_the_distance_of_a_shifted_set_is_the_shift():
    x = torch.randn(200, 3, generator=generator())
    shift = torch.tensor([1.0, -2.0, 2.0])
    assert wasserstein(x, x[torch.randperm(200, generator=generator())]) == pytest.approx(0, abs=1e-5)
    assert wasserstein(x, x + shift) == pytest.approx(3.0, rel=1e-4)


def test_on_the_line_it_is_the_distance_of_the_sorted_samples():
    x, y = torch.randn(300, 1, generator=generator()), 2 * torch.rand(300, 1, generator=generator(1))
    sorted_distance = (x.sort(0).values - y.sort(0).values).square().mean().sqrt()
    assert wasserstein(x, y) == pytest.approx(float(sorted_distance), rel=1e-5)


def test_gaussians_have_their_closed_form():
    """|m - n|^2 + |S^1/2 - T^1/2|_F^2 for commuting covariances."""
    x = torch.randn(4000, 2, generator=generator())
    y = torch.randn(3000, 2, generator=generator(1)) * torch.tensor([2.0, 1.0]) + torch.tensor([0.0, 1.0])
    assert wasserstein(x, y, cell=0.1) == pytest.approx(math.sqrt(1 + 1), rel=0.03)


def test_merging_changes_little_and_weighs_by_counts():
    x, y = torch.randn(1500, 2, generator=generator()), torch.randn(1200, 2, generator=generator(1)) + 0.5
    exact = wasserstein(x, y)
    assert wasserstein(x, y, cell=0.1) == pytest.approx(exact, rel=0.02)
    lumps = torch.tensor([[0.0], [0.0], [0.0], [1.0]])
    assert wasserstein(lumps, torch.zeros(1, 1), cell=0.5) == pytest.approx(0.5)


def test_an_exact_score_has_no_gap():
    exact = ring2d()
    truth = exact.sample(1000, generator(1))
    gap = ode_sde_gap(exact, (1000, 2), truth=truth, steps=80, generator=generator())
    assert gap.ode_sde < 1.6 * gap.floor
    assert max(gap.ode_truth, gap.sde_truth) < 1.6 * gap.floor


def test_a_wrong_score_has_the_gap_of_its_closed_form():
    """c times the score of N(0, 1) ends in Gaussians, whose variances follow from linear equations in v = kappa^2:

    ODE   dvar/dv = -g(v) var,    SDE   dvar/dv = -2 g(v) var + 1   backwards in v,    g(v) = -c / (1 + v).
    """
    c, schedule = 0.8, EDM(0.05, 30.0)
    exact = GaussianDenoiser(torch.zeros(1), torch.ones(1), schedule)
    wrong = as_denoiser(lambda x, t, cond: x + c * (exact(x, t) - x), schedule)
    high, low = 30.0**2, 0.05**2
    v = torch.linspace(math.log(1 + high), math.log(1 + low), 20001, dtype=torch.float64).exp() - 1
    ode = sde = torch.tensor(high, dtype=torch.float64)
    for a, b in pairwise(v):
        h = a - b
        ode, sde = ode - h * c / (1 + a) * ode, sde + h * (1 - 2 * c / (1 + a) * sde)
    # the last step of both samplers is the posterior mean, D = (1 - c / (1 + v) v) x
    last = 1 - c * low / (1 + low)
    expected = abs(math.sqrt(ode) - math.sqrt(sde)) * last
    gap = ode_sde_gap(wrong, (4000, 1), steps=150, cell=0.01, generator=generator())
    assert expected > 0.05
    assert gap.ode_sde == pytest.approx(expected, abs=0.04)
    assert gap.floor < 0.5 * gap.ode_sde
    assert gap.ode_truth is None and gap.sde_truth is None


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: wasserstein(x, x[:, :1]), "one shape"),
        (lambda x: wasserstein(x, x * math.nan), "NaN"),
        (lambda x: wasserstein(x, x, cell=0.0), "cell must be positive"),
        (lambda x: wasserstein(x.repeat(900, 1), x), "give cell"),
    ],
)
def test_bad_arguments_say_what_is_wrong(call, message):
    with pytest.raises(InvalidArgument, match=message):
        call(torch.randn(10, 2))
