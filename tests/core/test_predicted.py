"""Guidance by a predictor: against the Gaussian posterior in closed form."""

import math

import pytest
import torch

import suffuse
from suffuse.errors import InvalidArgument
from suffuse.exact import GaussianDenoiser
from suffuse.guidance import Predicted
from suffuse.schedules import EDM, VPCosine

D, A = 6, 2
STD = torch.tensor([0.3, 0.5], dtype=torch.float64)


@pytest.fixture(scope="module")
def problem():
    """Mean and covariance of the data, the predictor's matrix, and what three rows are asked for."""
    g, i = torch.Generator().manual_seed(0), torch.arange(D, dtype=torch.float64)
    a, y = (torch.randn(n, k, generator=g, dtype=torch.float64) for n, k in ((A, D), (3, A)))
    return i / D, torch.exp(-(i[:, None] - i).abs() / 2), a, y


def linear(a):
    return lambda x: (x @ a.T.to(x), STD.to(x).expand(len(x), -1))


def posterior(mean, cov, a, y, std=STD):
    """Mean and covariance of x given y = a x + std z."""
    gain = cov @ a.T @ torch.linalg.inv(a @ cov @ a.T + torch.diag(std**2))
    cov = cov - gain @ a @ cov
    return mean + (y - a @ mean) @ gain.T, (cov + cov.T) / 2


def noisy(schedule, t):
    return torch.randn(3, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * schedule.sigma(t)


@pytest.mark.parametrize("schedule", [VPCosine(), EDM(0.01, 50.0)], ids=["vp", "ve"])
@pytest.mark.parametrize("t", [0.05, 0.4, 0.9])
def test_it_is_the_exact_posterior_mean_for_gaussians_and_a_linear_predictor(problem, schedule, t):
    mean, cov, a, y = problem
    x = noisy(schedule, t)
    guided = Predicted(GaussianDenoiser(mean, cov, schedule), linear(a), y)(x, t)
    for i in range(3):
        truth = GaussianDenoiser(*posterior(mean, cov, a, y[i]), schedule)(x[i : i + 1], t)
        torch.testing.assert_close(guided[i : i + 1], truth, atol=1e-6, rtol=1e-6)


def test_what_is_not_asked_for_is_left_open(problem):
    """A row with NaN is guided by its other attributes, one of NaN alone not at all."""
    mean, cov, a, y = problem
    y = y.clone()
    y[0, 1], y[1] = math.nan, math.nan
    denoiser = GaussianDenoiser(mean, cov, VPCosine())
    x = noisy(VPCosine(), 0.4)
    guided = Predicted(denoiser, linear(a), y)(x, 0.4)
    given_one = GaussianDenoiser(*posterior(mean, cov, a[:1], y[0, :1], STD[:1]), VPCosine())
    torch.testing.assert_close(guided[:1], given_one(x[:1], 0.4), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(guided[1:2], denoiser(x[1:2], 0.4))
    nothing = Predicted(denoiser, linear(a), torch.full((3, A), math.nan))
    torch.testing.assert_close(nothing(x, 0.4), denoiser(x, 0.4))


def test_samples_have_the_posteriors_moments(problem):
    mean, cov, a, y = problem
    guided = Predicted(GaussianDenoiser(mean, cov, VPCosine()), linear(a), y[:1])
    drawn = suffuse.samplers.DPMSolverPP(steps=30)(
        guided, (4000, D), generator=torch.Generator().manual_seed(2), dtype=torch.float64
    )
    given, cov = posterior(mean, cov, a, y[0])
    assert float(((drawn.mean(0) - given) / cov.diagonal().sqrt()).abs().max()) < 4 / math.sqrt(4000) + 0.05
    assert float((drawn.std(0) / cov.diagonal().sqrt() - 1).abs().max()) < 0.05


def test_a_curved_predictor_is_met(problem):
    """Samples have what a nonlinear predictor with a small error is asked for."""
    mean, cov, _, _ = problem

    def radius(x):
        return x.square().sum(1, keepdim=True).sqrt(), torch.full((len(x), 1), 0.02, dtype=x.dtype)

    wanted = torch.tensor([[1.0], [2.0], [4.0]], dtype=torch.float64).repeat_interleave(50, 0)
    guided = Predicted(GaussianDenoiser(mean, cov, VPCosine()), radius, wanted)
    drawn = suffuse.samplers.DPMSolverPP(steps=40)(
        guided, (150, D), generator=torch.Generator().manual_seed(2), dtype=torch.float64
    )
    assert float((radius(drawn)[0] - wanted).abs().mean()) < 0.05


def test_it_is_not_heard_above_max_kappa(problem):
    mean, cov, a, y = problem
    denoiser = GaussianDenoiser(mean, cov, VPCosine())
    x, schedule = noisy(VPCosine(), 0.8), VPCosine()
    assert schedule.level(0.8).kappa > 1 > schedule.level(0.2).kappa
    guided = Predicted(denoiser, linear(a), y, max_kappa=1.0)
    torch.testing.assert_close(guided(x, 0.8), denoiser(x, 0.8))
    each = guided(x, torch.tensor([0.8, 0.2, 0.8], dtype=torch.float64))  # a time per row
    torch.testing.assert_close(each[::2], denoiser(x, 0.8)[::2])
    torch.testing.assert_close(each[1], Predicted(denoiser, linear(a), y)(x, 0.2)[1])


def test_bad_arguments(problem):
    mean, cov, a, y = problem
    denoiser = GaussianDenoiser(mean, cov, VPCosine())
    with pytest.raises(InvalidArgument, match=r"y must be finite \(B, A\)"):
        Predicted(denoiser, linear(a), y[0])
    with pytest.raises(InvalidArgument, match="y must be finite"):
        Predicted(denoiser, linear(a), y / 0.0)
    with pytest.raises(InvalidArgument, match="2 rows for a batch of 3"):
        Predicted(denoiser, linear(a), y[:2])(noisy(VPCosine(), 0.4), 0.4)
    with pytest.raises(InvalidArgument, match=r"mean \(3, 1\).*\(3, 2\)"):
        Predicted(denoiser, linear(a[:1]), y)(noisy(VPCosine(), 0.4), 0.4)
    with torch.inference_mode(), pytest.raises(InvalidArgument, match="no_grad"):
        Predicted(denoiser, linear(a), y)(noisy(VPCosine(), 0.4), 0.4)
    with pytest.raises(InvalidArgument, match="max_kappa"):
        Predicted(denoiser, linear(a), y, max_kappa=0.0)
