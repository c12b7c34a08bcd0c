"""Gauge freedom: a field splits into a gradient and a remainder that leaves the distribution as it is."""

import pytest
import torch

from suffuse import as_denoiser
from suffuse.analysis import Gauged, split_gauge
from suffuse.benchmarks.truths import ring2d
from suffuse.errors import InvalidArgument
from suffuse.exact import GaussianDenoiser
from suffuse.metrics import energy_distance
from suffuse.samplers import Heun
from suffuse.schedules import EDM, VPLinear

QUARTER = torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=torch.float64)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def gaussian(dim=6, schedule=None):
    """Correlated, off centre."""
    a = torch.randn(dim, dim, dtype=torch.float64, generator=generator(5))
    return GaussianDenoiser(torch.ones(dim), a @ a.T / dim + 0.1 * torch.eye(dim), schedule or EDM())


def rotation(dim):
    a = torch.randn(dim, dim, dtype=torch.float64, generator=generator(7))
    return (a - a.T) / dim**0.5


@pytest.mark.parametrize("schedule", [EDM(), VPLinear()], ids=["EDM", "VP"])
@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_the_share_of_a_gauge_is_its_norm(schedule, strength):
    """s + k A s with A a quarter turn: |k A s|^2 = k^2 |s|^2, so the share is k^2 / (1 + k^2); grad phi is s itself."""
    exact = ring2d(schedule)
    x = exact.sample(6000, generator())
    found = split_gauge(Gauged(exact, strength * QUARTER), x, 0.5, generator=generator(1))
    assert found.share == pytest.approx(strength**2 / (1 + strength**2), abs=0.02)
    assert found.divergence < 2 * found.noise
    assert found.asymmetry > 0.3
    y = exact.sample(500, generator(2)) + 0.5 * torch.randn(500, 2, dtype=torch.float64, generator=generator(3))
    t = schedule.t_of_kappa(0.5)
    score = exact.score(schedule.alpha(t) * y, t) * schedule.alpha(t)
    assert float((found.conservative(y) - score).norm() / score.norm()) < 0.15


def test_an_exact_score_has_no_gauge_and_a_pure_gauge_has_no_gradient():
    exact = ring2d()
    x = exact.sample(6000, generator())
    none = split_gauge(exact, x, 0.5, generator=generator(1))
    assert none.share < 0.01
    assert none.asymmetry < 1e-9
    pure = as_denoiser(lambda y, t, cond: y + (exact(y, t) - y) @ QUARTER.T, EDM())
    found = split_gauge(pure, x, 0.5, generator=generator(1))
    assert found.share == pytest.approx(1.0, abs=0.02)
    assert found.divergence < 2 * found.noise


def test_gaussians_are_solved_exactly():
    """The score of a Gaussian is linear: its potential is quadratic, and the equation for it is exact."""
    exact, turn = gaussian(), rotation(6)
    x = exact.sample(8000, generator())
    assert split_gauge(exact, x, 0.5, waves=64, generator=generator(1)).share < 1e-6
    found = split_gauge(Gauged(exact, turn), x, 0.5, waves=64, generator=generator(1))
    precision = torch.linalg.inv(exact.cov.apply(lambda s: s + 0.25, torch.eye(6, dtype=torch.float64)[:, None])[:, 0])
    gauge, score = (turn @ precision @ turn.T).trace(), precision.trace()  # E|A s|^2 and E|s|^2
    assert found.share == pytest.approx(float(gauge / (gauge + score)), abs=0.02)
    torch.testing.assert_close(found.conservative.matrix, -precision, atol=0.1, rtol=0.1)


def test_the_same_rotation_is_a_gauge_about_the_centre_and_has_a_gradient_about_another_point():
    centred, off = (GaussianDenoiser(torch.tensor([m, 0.0]), torch.ones(2), EDM()) for m in (0.0, 2.0))
    swirls = [as_denoiser(lambda y, t, cond: y + 0.25 * (y @ QUARTER.T), EDM()) for _ in range(2)]
    shares = [
        split_gauge(swirl, p.sample(6000, generator()), 0.5, generator=generator(1)).share
        for swirl, p in zip(swirls, (centred, off), strict=True)
    ]
    assert shares[0] == pytest.approx(1.0, abs=0.02)
    # E|y - m|^2 / E|y|^2 = 2.5 / 6.5: the constant field A m is a gradient
    assert shares[1] == pytest.approx(2.5 / 6.5, abs=0.03)


def test_a_remainder_with_a_gradient_in_it_fails_the_test_of_divergence():
    """A potential of one wave cannot express the score of eight modes; what it leaves is no gauge, and is found out."""
    x = ring2d().sample(6000, generator())
    poor, good = (split_gauge(ring2d(), x, 0.3, waves=n, generator=generator(1)) for n in (1, 512))
    assert poor.share > 0.1
    assert poor.divergence > 5 * poor.noise
    assert good.divergence < 2 * good.noise


def test_a_gauge_moves_samples_and_keeps_their_distribution():
    exact = ring2d()
    turned = Gauged(exact, 0.5 * QUARTER)
    x = 80 * torch.randn(1500, 2, dtype=torch.float64, generator=generator(1))
    plain, moved = (Heun(120)(d, x=x, dtype=torch.float64) for d in (exact, turned))
    truth = exact.sample(1500, generator(2))
    assert float((plain - moved).norm(dim=-1).mean()) > 0.5
    assert abs(energy_distance(moved, truth)) < 0.01
    assert energy_distance(moved[:, :1], truth[:, 1:]) > 0.005  # the measure tells x from y


def test_shapes_of_images_are_kept():
    exact = GaussianDenoiser(torch.zeros(1, 2, 3), torch.ones(1, 2, 3), EDM())
    x = exact.sample(400, generator()).float()
    turned = Gauged(exact, rotation(6))
    assert turned(x, 0.5).shape == x.shape
    found = split_gauge(turned, x, 1.0, waves=16, generator=generator(1))
    assert found.conservative(x).shape == x.shape


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda d: Gauged(d, torch.eye(2)), "antisymmetric"),
        (lambda d: split_gauge(d, d.sample(10), 1.0), "x0 has 10 samples"),
        (lambda d: split_gauge(d, d.sample(100), 0.0), "kappa > 0"),
        (lambda d: split_gauge(d, d.sample(100), 1.0, waves=0), "waves >= 1"),
    ],
)
def test_bad_arguments_say_what_is_wrong(call, message):
    with pytest.raises(InvalidArgument, match=message):
        call(ring2d())
