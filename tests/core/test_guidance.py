"""Classifier-free guidance: its identities, its cost, and its closed form on Gaussians."""

import pytest
import torch

from suffuse import Condition
from suffuse.errors import InvalidArgument
from suffuse.exact import Covariance, MixtureDenoiser
from suffuse.guidance import ClassifierFree
from suffuse.samplers import DPMSolverPP
from suffuse.schedules import VPLinear


class Counted(torch.nn.Module):
    def __init__(self, denoiser):
        super().__init__()
        self.denoiser, self.schedule, self.rows = denoiser, denoiser.schedule, []

    def forward(self, x, t, cond=None):
        self.rows.append(len(x))
        return self.denoiser(x, t, cond)


@pytest.fixture
def denoiser():
    means = torch.tensor([[-1.0, 0.5], [1.0, -0.5], [0.0, 1.0]])
    cov = Covariance.diagonal(torch.full((3, 2), 0.1))
    return Counted(MixtureDenoiser([1.0, 1.0, 1.0], means, cov, VPLinear(), classes=[0, 1, 2]))


@pytest.fixture
def cond():
    return Condition(tokens={"class": torch.eye(3)[[0, 1, 2, 1]][:, None]})


@pytest.fixture
def x():
    return torch.randn(4, 2, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("t", [0.3, torch.tensor([0.1, 0.4, 0.6, 0.9])], ids=["one time", "a time each"])
def test_scale_one_is_the_identity_and_zero_the_unconditional(denoiser, cond, x, t):
    torch.testing.assert_close(ClassifierFree(denoiser, 1.0)(x, t, cond), denoiser(x, t, cond), rtol=0, atol=0)
    torch.testing.assert_close(ClassifierFree(denoiser, 0.0)(x, t, cond), denoiser(x, t), rtol=0, atol=0)


def test_scale_one_costs_nothing_more(denoiser, cond, x):
    ClassifierFree(denoiser, 1.0)(x, 0.3, cond)
    assert denoiser.rows == [4]


def test_guidance_is_one_call_on_the_doubled_batch(denoiser, cond, x):
    guided = ClassifierFree(denoiser, 3.0)(x, 0.3, cond)
    assert denoiser.rows == [8]
    u, c = denoiser(x, 0.3), denoiser(x, 0.3, cond)
    torch.testing.assert_close(guided, u + 3 * (c - u))


def test_names_outside_of_the_guidance_are_in_both_branches(denoiser, cond, x):
    torch.testing.assert_close(ClassifierFree(denoiser, 3.0, names=())(x, 0.3, cond), denoiser(x, 0.3, cond))
    named, every = ClassifierFree(denoiser, 3.0, names=("class",)), ClassifierFree(denoiser, 3.0)
    torch.testing.assert_close(named(x, 0.3, cond), every(x, 0.3, cond))


def test_scales_may_differ_by_sample_and_by_level(denoiser, cond, x):
    each = ClassifierFree(denoiser, torch.tensor([1.0, 2.0, 3.0, 0.0]))(x, 0.3, cond)
    for i, w in enumerate((1.0, 2.0, 3.0, 0.0)):
        torch.testing.assert_close(each[i], ClassifierFree(denoiser, w)(x, 0.3, cond)[i])
    rising = ClassifierFree(denoiser, lambda kappa: 1 + kappa)
    kappa = denoiser.schedule.kappa(0.3)
    torch.testing.assert_close(rising(x, 0.3, cond), ClassifierFree(denoiser, 1 + kappa)(x, 0.3, cond))


def test_outside_the_interval_the_conditional_is_used_alone(denoiser, cond, x):
    guided = ClassifierFree(denoiser, 3.0, interval=(0.5, 2.0))
    schedule = denoiser.schedule
    inside, outside = schedule.t_of_kappa(1.0), schedule.t_of_kappa(5.0)
    torch.testing.assert_close(guided(x, outside, cond), denoiser(x, outside, cond))
    assert denoiser.rows[0] == 4
    plain = ClassifierFree(denoiser, 3.0)
    torch.testing.assert_close(guided(x, inside, cond), plain(x, inside, cond))
    mixed = torch.tensor([inside, outside, inside, outside])
    result = guided(x, mixed, cond)
    torch.testing.assert_close(result[::2], plain(x, mixed, cond)[::2])
    torch.testing.assert_close(result[1::2], denoiser(x, mixed, cond)[1::2])


def test_guided_samples_fall_on_their_class(denoiser):
    cond = Condition(tokens={"class": torch.eye(3)[[2] * 300][:, None]})
    guided = ClassifierFree(denoiser, 2.0)
    samples = DPMSolverPP(12)(guided, (300, 2), cond=cond, generator=torch.Generator().manual_seed(0))
    likely = denoiser.denoiser.responsibilities(samples, 1e-3).argmax(-1)
    assert (likely == 2).float().mean() > 0.97


def test_bad_arguments_say_what_is_wrong(denoiser, cond, x):
    with pytest.raises(InvalidArgument, match="cond is needed"):
        ClassifierFree(denoiser, 2.0)(x, 0.3)
    with pytest.raises(InvalidArgument, match="interval must be"):
        ClassifierFree(denoiser, 2.0, interval=(2.0, 1.0))
    with pytest.raises(InvalidArgument, match="3 entries for a batch of 4"):
        ClassifierFree(denoiser, torch.ones(3))(x, 0.3, cond)
    with pytest.raises(InvalidArgument, match="one t for the whole batch"):
        ClassifierFree(denoiser, lambda k: k)(x, torch.rand(4), cond)
