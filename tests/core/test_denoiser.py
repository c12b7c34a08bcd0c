"""Denoisers: views that agree, prediction types that are equivalent, schedules that can be exchanged."""

import pytest
import torch
from torch import nn

from suffuse import Condition, Denoiser, NetworkDenoiser, as_denoiser
from suffuse.denoiser import FunctionDenoiser
from suffuse.errors import InvalidArgument
from suffuse.exact import Covariance, MixtureDenoiser
from suffuse.schedules import EDM, DiscreteBetas, RectifiedFlow, VPCosine, VPLinear

SCHEDULES = [VPLinear(), VPCosine(), EDM(), RectifiedFlow(), DiscreteBetas.linear()]
TYPES = ["sample", "epsilon", "v_prediction", "flow_prediction"]
TIMES = [0.02, 0.3, 0.9, torch.tensor([0.02, 0.1, 0.5, 0.8, 0.97])]


def name(schedule):
    return type(schedule).__name__


def truth(schedule):
    means = torch.tensor([[-1.0, 0.5, 0.0], [1.0, -0.5, 0.2]])
    return MixtureDenoiser([1.0, 2.0], means, Covariance.diagonal(torch.full((2, 3), 0.1)), schedule)


class Oracle(nn.Module):
    """A backbone that knows the exact posterior mean and answers in the parametrisation it is asked to speak."""

    def __init__(self, exact, prediction_type, data_std):
        super().__init__()
        self.exact, self.prediction_type, self.data_std = exact, prediction_type, data_std

    def forward(self, x, c_noise, cond=None):
        schedule, s = self.exact.schedule, self.data_std
        t = schedule.t_of_log_kappa(4 * c_noise.double())
        level = schedule.level(t, like=x)
        scale = (level.alpha**2 * s**2 + level.sigma**2).sqrt()
        noisy = x * scale
        mean = self.exact(noisy, t)
        eps = (noisy - level.alpha * mean) / level.sigma
        match self.prediction_type:
            case "sample":
                return mean
            case "epsilon":
                return eps
            case "flow_prediction":
                return level.dalpha * mean + level.dsigma * eps
            case "v_prediction":
                # (c_skip x - D) / c_out; for variance preserving and s = 1 this is alpha eps - sigma x0
                return (level.alpha * s**2 / scale**2 * noisy - mean) * scale / (level.sigma * s)


@pytest.mark.parametrize("t", TIMES, ids=str)
@pytest.mark.parametrize("data_std", [1.0, 0.5])
@pytest.mark.parametrize(
    ("schedule", "prediction_type"),
    # epsilon is refused where alpha vanishes: see test_epsilon_says_nothing_where_alpha_is_zero
    [(s, p) for s in SCHEDULES for p in TYPES if p != "epsilon" or s.alpha(1.0) > 0],
    ids=lambda v: v if isinstance(v, str) else name(v),
)
def test_prediction_types_are_equivalent(prediction_type, schedule, data_std, t):
    exact = truth(schedule)
    denoiser = NetworkDenoiser(Oracle(exact, prediction_type, data_std), schedule, prediction_type, data_std)
    x = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    t = t.double() if isinstance(t, torch.Tensor) else t
    torch.testing.assert_close(denoiser(x, t), exact(x, t), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("schedule", [VPLinear(), VPCosine(), DiscreteBetas.linear()], ids=name)
def test_v_is_that_of_salimans_and_ho_when_variance_is_preserved(schedule):
    denoiser = NetworkDenoiser(nn.Identity(), schedule, "v_prediction")
    level = schedule.level(0.4)
    assert denoiser.coefficients(level) == pytest.approx((level.alpha, -level.sigma), rel=1e-9)


@pytest.mark.parametrize("schedule", [*SCHEDULES[:3], SCHEDULES[4]], ids=name)
def test_a_silent_network_with_edm_preconditioning_is_the_linear_denoiser(schedule):
    """F = 0 gives D = c_skip x, the exact denoiser of N(0, s^2 I)."""

    class Silent(nn.Module):
        def forward(self, x, c_noise, cond=None):
            return torch.zeros_like(x)

    denoiser = NetworkDenoiser(Silent(), schedule, "v_prediction", data_std=0.7)
    x, level = torch.randn(4, 3), schedule.level(0.4)
    expected = x * level.alpha * 0.49 / (level.alpha**2 * 0.49 + level.sigma**2)
    torch.testing.assert_close(denoiser(x, 0.4), expected)


@pytest.mark.parametrize("t", TIMES, ids=str)
@pytest.mark.parametrize("schedule", SCHEDULES, ids=name)
def test_views_give_back_the_mean(schedule, t):
    """eps, score and velocity each determine the posterior mean."""
    denoiser = truth(schedule)
    x = torch.randn(5, 3, dtype=torch.float64)
    mean, level = denoiser(x, t), schedule.level(t, like=x)
    torch.testing.assert_close((x - level.sigma * denoiser.eps(x, t)) / level.alpha, mean)
    torch.testing.assert_close((x + level.sigma**2 * denoiser.score(x, t)) / level.alpha, mean)
    velocity = denoiser.velocity(x, t)
    torch.testing.assert_close((level.dsigma * x - level.sigma * velocity) / level.wronskian, mean)


@pytest.mark.parametrize("schedule", [VPLinear(), VPCosine(), EDM()], ids=name)
def test_velocity_is_the_time_derivative_of_the_path(schedule):
    """For a point mass the path is known: x_t = alpha x0 + sigma eps, and dx/dt is its derivative."""
    x0, noise = torch.randn(4, 3, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)
    point = FunctionDenoiser(lambda x, t, cond: x0, schedule)
    t, h = 0.4, 1e-5
    difference = (schedule.add_noise(x0, t + h, noise) - schedule.add_noise(x0, t - h, noise)) / (2 * h)
    torch.testing.assert_close(point.velocity(schedule.add_noise(x0, t, noise), t), difference, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("t", TIMES, ids=str)
@pytest.mark.parametrize("other", SCHEDULES, ids=name)
def test_another_schedule_needs_no_training(other, t):
    there = truth(VPLinear()).with_schedule(other)
    direct = truth(other)
    x = torch.randn(5, 3, dtype=torch.float64)
    torch.testing.assert_close(there(x, t), direct(x, t), rtol=1e-6, atol=1e-6)
    assert direct.with_schedule(other) is direct


def test_a_function_becomes_a_denoiser():
    denoiser = as_denoiser(lambda x, t, cond: 0.5 * x, EDM())
    assert isinstance(denoiser, Denoiser)
    assert as_denoiser(denoiser) is denoiser
    assert as_denoiser(denoiser, VPLinear()).schedule == VPLinear()
    with pytest.raises(InvalidArgument, match="schedule is needed"):
        as_denoiser(lambda x, t, cond: x)


def test_the_network_sees_unit_variance_and_the_noise_level():
    seen = {}

    class Spy(nn.Module):
        def forward(self, x, c_noise, cond=None):
            seen.update(x=x, c_noise=c_noise)
            return x

    schedule = EDM()
    denoiser = NetworkDenoiser(Spy(), schedule, data_std=0.5)
    x0 = 0.5 * torch.randn(20000, 1)
    for t in (0.2, torch.full((20000,), 0.2)):
        denoiser(schedule.add_noise(x0, t, torch.randn_like(x0)), t)
        assert float(seen["x"].std()) == pytest.approx(1.0, abs=0.02)
        assert seen["c_noise"].shape == (20000,)
        assert float(seen["c_noise"][0]) == pytest.approx(schedule.log_kappa(0.2) / 4, rel=1e-5)


def test_the_noise_label_is_finite_at_the_end_of_a_flow():
    class Spy(nn.Module):
        def forward(self, x, c_noise, cond=None):
            assert torch.isfinite(c_noise).all()
            return x

    denoiser = NetworkDenoiser(Spy(), RectifiedFlow(), "flow_prediction")
    assert torch.isfinite(denoiser(torch.randn(2, 3), 1.0)).all()
    assert torch.isfinite(denoiser(torch.randn(2, 3), torch.ones(2))).all()


def test_epsilon_says_nothing_where_alpha_is_zero():
    with pytest.raises(InvalidArgument, match="flow_prediction"):
        NetworkDenoiser(nn.Identity(), RectifiedFlow(), "epsilon")


def test_bad_arguments_say_what_is_wrong():
    with pytest.raises(InvalidArgument, match="prediction_type must be one of"):
        NetworkDenoiser(nn.Identity(), EDM(), "eps")
    with pytest.raises(InvalidArgument, match="is the data constant"):
        NetworkDenoiser(nn.Identity(), EDM(), data_std=0.0)

    class Wrong(nn.Module):
        def forward(self, x, c_noise, cond=None):
            return x[:, :1]

    with pytest.raises(InvalidArgument, match="shapes must be equal"):
        NetworkDenoiser(Wrong(), EDM())(torch.randn(2, 3), 0.5)
    with pytest.raises(InvalidArgument, match="batch size 3 but x has 2"):
        NetworkDenoiser(Wrong(), EDM())(torch.randn(2, 3), 0.5, Condition(tokens={"a": torch.ones(3, 1, 1)}))
