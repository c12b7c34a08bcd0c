"""Guidance by a linear measurement: against the Gaussian posterior in closed form."""

import math

import pytest
import torch

import suffuse
from suffuse.errors import InvalidArgument
from suffuse.exact import GaussianDenoiser
from suffuse.guidance import DataConsistency, Measured, conjugate_gradient
from suffuse.schedules import EDM, VPCosine

D, M = 6, 3


class Matrix:
    def __init__(self, a):
        self.a = a

    def __call__(self, x):
        return x @ self.a.T.to(x)

    def adjoint(self, y):
        return y @ self.a.to(y)


@pytest.fixture(scope="module")
def problem():
    g = torch.Generator().manual_seed(0)
    root = torch.randn(D, D, generator=g, dtype=torch.float64)
    return (
        torch.randn(D, generator=g, dtype=torch.float64),
        root @ root.T / D + 0.05 * torch.eye(D, dtype=torch.float64),
        Matrix(torch.randn(M, D, generator=g, dtype=torch.float64)),
        torch.randn(1, M, generator=g, dtype=torch.float64),
    )


def posterior(mean, cov, operator, y, noise):
    """Mean and covariance of x given y."""
    a = operator.a
    gain = cov @ a.T @ torch.linalg.inv(a @ cov @ a.T + noise**2 * torch.eye(M, dtype=torch.float64))
    return mean + (y[0] - a @ mean) @ gain.T, cov - gain @ a @ cov


@pytest.mark.parametrize("schedule", [VPCosine(), EDM(0.01, 50.0)], ids=["vp", "ve"])
@pytest.mark.parametrize("noise", [0.0, 0.3])
@pytest.mark.parametrize("t", [0.05, 0.4, 0.9])
def test_measured_is_the_exact_posterior_mean_for_gaussians(problem, schedule, noise, t):
    mean, cov, operator, y = problem
    denoiser = GaussianDenoiser(mean, cov, schedule)
    x = torch.randn(4, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * schedule.sigma(t)
    guided = Measured(denoiser, operator, y, noise, iterations=2 * M)(x, t)
    given_y, cov_y = posterior(mean, cov, operator, y, noise)  # then condition on x_t as well
    truth = GaussianDenoiser(given_y, (cov_y + cov_y.T) / 2, schedule)(x, t)
    torch.testing.assert_close(guided, truth, atol=1e-6, rtol=1e-6)


def test_samples_have_the_posteriors_moments(problem):
    mean, cov, operator, y = problem
    guided = Measured(GaussianDenoiser(mean, cov, VPCosine()), operator, y, 0.3, iterations=2 * M)
    drawn = suffuse.samplers.DPMSolverPP(steps=30)(
        guided, (4000, D), generator=torch.Generator().manual_seed(2), dtype=torch.float64
    )
    given_y, cov_y = posterior(mean, cov, operator, y, 0.3)
    error = (drawn.mean(0) - given_y) / cov_y.diagonal().sqrt()
    assert float(error.abs().max()) < 4 / math.sqrt(4000) + 0.05
    assert float((drawn.std(0) / cov_y.diagonal().sqrt() - 1).abs().max()) < 0.05


def test_approximations_agree_where_the_prior_is_white():
    """For N(0, I) the isotropic spread is the true one."""
    operator = Matrix(torch.eye(D, dtype=torch.float64)[:M])
    denoiser = GaussianDenoiser(torch.zeros(D), torch.eye(D, dtype=torch.float64), VPCosine())
    x, y = torch.randn(2, 3, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64).unbind()
    y = y[:, :M]
    exact, isotropic = (Measured(denoiser, operator, y, 0.1, spread)(x, 0.5) for spread in ("jacobian", "isotropic"))
    torch.testing.assert_close(exact, isotropic)
    dps = Measured(denoiser, operator, y, 0.1, "none")(x, 0.5)
    assert float((dps - exact).norm()) > float((isotropic - exact).norm())


@pytest.mark.parametrize("gamma", [None, 2.0])
def test_data_consistency(problem, gamma):
    mean, cov, operator, y = problem
    denoiser = GaussianDenoiser(mean, cov, VPCosine())
    x = torch.randn(2, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    before, after = denoiser(x, 0.5), DataConsistency(denoiser, operator, y, gamma, iterations=2 * D)(x, 0.5)
    if gamma is None:
        torch.testing.assert_close(operator(after), y.expand(2, -1))
        nearest = before + (y - operator(before)) @ torch.linalg.pinv(operator.a).T
    else:
        normal = torch.eye(D, dtype=torch.float64) + gamma * operator.a.T @ operator.a
        nearest = torch.linalg.solve(normal, (before + gamma * operator.adjoint(y)).T).T
    torch.testing.assert_close(after, nearest)


def test_conjugate_gradients_treat_rows_alike():
    g = torch.Generator().manual_seed(0)
    root = torch.randn(5, 5, generator=g, dtype=torch.float64)
    m = root @ root.T + torch.eye(5, dtype=torch.float64)
    b = torch.randn(3, 5, generator=g, dtype=torch.float64)
    b[1] = 0  # solved from the start
    u = conjugate_gradient(lambda v: v @ m, b, iterations=20)
    torch.testing.assert_close(u, torch.linalg.solve(m, b.T).T)
    torch.testing.assert_close(conjugate_gradient(lambda v: v @ m, b[2:], iterations=20), u[2:])


def test_bad_arguments(problem):
    mean, cov, operator, y = problem
    denoiser = GaussianDenoiser(mean, cov, VPCosine())
    with pytest.raises(InvalidArgument, match="noise_std"):
        Measured(denoiser, operator, y, -1.0)
    with pytest.raises(InvalidArgument, match="noise_std"):
        Measured(denoiser, operator, y, 0.0, "none")
    with pytest.raises(InvalidArgument, match="spread"):
        Measured(denoiser, operator, y, 0.1, "wide")
    with pytest.raises(InvalidArgument, match="NaN"):
        Measured(denoiser, operator, y * float("nan"))
    with torch.inference_mode(), pytest.raises(InvalidArgument, match="no_grad"):
        Measured(denoiser, operator, y, 0.1)(torch.zeros(1, D, dtype=torch.float64), 0.5)
    with pytest.raises(InvalidArgument, match="gamma"):
        DataConsistency(denoiser, operator, y, gamma=-1.0)
