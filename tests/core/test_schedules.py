"""Schedules: inverses, derivatives, agreement with diffusers, dtypes."""

import math

import pytest
import torch

from suffuse.errors import InvalidArgument, SuffuseError
from suffuse.schedules import EDM, DiscreteBetas, RectifiedFlow, Schedule, VPCosine, VPLinear

SCHEDULES = [
    VPLinear(),
    VPLinear(0.5, 12.0),
    VPCosine(),
    EDM(),
    RectifiedFlow(),
    RectifiedFlow(shift=3.0),
    DiscreteBetas.linear(),
    DiscreteBetas.scaled_linear(),
    DiscreteBetas.cosine(steps=400),
]
VARIANCE_PRESERVING = [s for s in SCHEDULES if not isinstance(s, EDM | RectifiedFlow)]


def name(schedule):
    return type(schedule).__name__


@pytest.fixture
def t():
    return torch.linspace(1e-3, 0.999, 301, dtype=torch.float64)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=name)
def test_log_snr_is_decreasing_and_has_its_inverse(schedule, t):
    log_snr = schedule.log_snr(t)
    assert (log_snr.diff() < 0).all()
    torch.testing.assert_close(schedule.t_of_log_snr(log_snr), t, atol=1e-10, rtol=0)
    torch.testing.assert_close(schedule.t_of_kappa(schedule.kappa(t)), t, atol=1e-10, rtol=0)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=name)
def test_derivatives_are_those_of_autograd(schedule, t):
    t.requires_grad_()
    for value, derivative in ((schedule.alpha, schedule.dalpha), (schedule.sigma, schedule.dsigma)):
        y = value(t).sum()
        expected = torch.autograd.grad(y, t)[0] if y.requires_grad else torch.zeros_like(t)
        torch.testing.assert_close(derivative(t).detach(), expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=name)
def test_kappa_is_the_ratio_and_the_wronskian_is_positive(schedule, t):
    level = schedule.level(t)
    torch.testing.assert_close(level.kappa, level.sigma / level.alpha, rtol=1e-9, atol=0)
    assert (level.wronskian > 0).all()


@pytest.mark.parametrize("schedule", VARIANCE_PRESERVING, ids=name)
def test_variance_is_preserved(schedule, t):
    torch.testing.assert_close(schedule.alpha(t) ** 2 + schedule.sigma(t) ** 2, torch.ones_like(t))


@pytest.mark.parametrize("schedule", SCHEDULES, ids=name)
def test_floats_give_the_numbers_of_tensors(schedule):
    level, tensor = schedule.level(0.3), schedule.level(torch.tensor([0.3], dtype=torch.float64))
    for key in ("alpha", "sigma", "dalpha", "dsigma", "log_kappa", "kappa", "log_snr"):
        assert isinstance(getattr(level, key), float)
        assert getattr(level, key) == pytest.approx(float(getattr(tensor, key)), rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_tensors_keep_their_dtype_and_shape(dtype):
    t = torch.full((2, 3), 0.5, dtype=dtype)
    assert VPCosine().alpha(t).dtype == dtype
    assert VPCosine().alpha(t).shape == t.shape


def test_small_times_keep_their_digits():
    """kappa near the data end comes from expm1, not from 1 - alpha^2: relative accuracy survives."""
    for schedule in (VPLinear(), VPCosine()):
        t = 1e-7
        assert schedule.t_of_kappa(schedule.kappa(t)) == pytest.approx(t, rel=1e-6)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=name)
def test_levels_broadcast_against_a_batch(schedule):
    x = torch.zeros(4, 2, 8)
    level = schedule.level(torch.rand(4) * 0.9 + 0.05, like=x)
    assert level.alpha.shape == (4, 1, 1)
    assert level.alpha.dtype == x.dtype


@pytest.mark.parametrize(
    ("ours", "beta_schedule", "options"),
    [
        (DiscreteBetas.linear(), "linear", {}),
        (DiscreteBetas.scaled_linear(), "scaled_linear", {"beta_start": 0.00085, "beta_end": 0.012}),
        (DiscreteBetas.cosine(), "squaredcos_cap_v2", {}),
    ],
)
def test_discrete_betas_are_diffusers(ours, beta_schedule, options):
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.DDPMScheduler(beta_schedule=beta_schedule, **options).alphas_cumprod
    torch.testing.assert_close(ours.alphas_cumprod.float(), theirs, rtol=2e-5, atol=1e-7)
    k = torch.arange(1, 1001, dtype=torch.float64) / 1000
    torch.testing.assert_close(ours.alpha(k).square(), ours.alphas_cumprod, rtol=1e-9, atol=0)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=name)
def test_configuration_round_trip_and_immutability(schedule):
    again = Schedule.from_config(schedule.to_config())
    assert again == schedule
    assert hash(again) == hash(schedule)
    with pytest.raises(AttributeError):
        schedule.anything = 1.0


def test_rectified_flow_ends_in_pure_noise():
    level = RectifiedFlow().level(1.0)
    assert (level.alpha, level.sigma) == (0.0, 1.0)
    assert math.isinf(level.kappa)


def test_a_schedule_that_keeps_signal_warns():
    with pytest.warns(UserWarning, match="starts? from pure noise|start from"):
        DiscreteBetas.linear(steps=250).warn_if_signal_remains()
    EDM().warn_if_signal_remains()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: VPLinear(beta_min=3, beta_max=1), "beta_min < beta_max"),
        (lambda: VPCosine(alpha_min=2), "alpha_min"),
        (lambda: EDM(sigma_min=0), "sigma_min"),
        (lambda: RectifiedFlow(shift=0), "shift must be positive"),
        (lambda: DiscreteBetas((0.5,)), "at least two"),
        (lambda: Schedule.from_config({"type": "VPCosin"}), "did you mean 'VPCosine'"),
        (lambda: Schedule.from_config({"type": "EDM", "sigma": 3}), "no field"),
        (lambda: EDM().level(1.5), "must lie in"),
    ],
)
def test_bad_arguments_say_what_is_wrong(make, message):
    with pytest.raises(InvalidArgument, match=message) as caught:
        make()
    assert isinstance(caught.value, SuffuseError)
