"""Geometry of scores: exact denoisers are gradients, obey the Fokker-Planck equation, and know their dimension."""

import pytest
import torch

from suffuse import as_denoiser
from suffuse.analysis import asymmetry, flipd, fokker_planck_residual, intrinsic_dimension, jacobian
from suffuse.errors import InvalidArgument
from suffuse.exact import Covariance, GaussianDenoiser, MixtureDenoiser
from suffuse.schedules import EDM, VPLinear

SCHEDULES = [VPLinear(), EDM()]


def name(value):
    return type(value).__name__


def mixture(schedule):
    g = torch.Generator().manual_seed(0)
    a = torch.randn(3, 4, 4, dtype=torch.float64, generator=g)
    means = torch.randn(3, 4, dtype=torch.float64, generator=g)
    return MixtureDenoiser([1.0, 2.0, 1.0], means, Covariance.full(a @ a.mT / 4 + 0.05 * torch.eye(4)), schedule)


def turned(denoiser, strength):
    """The score plus strength times an antisymmetric matrix times the score: a gauge, which is no gradient."""
    a = torch.zeros(4, 4, dtype=torch.float64)
    a[0, 1], a[1, 0] = strength, -strength

    def mean(x, t, cond):
        level = denoiser.schedule.level(t, like=x)
        d = denoiser(x, t)
        return d + (d - x / level.alpha) @ a.T

    return as_denoiser(mean, denoiser.schedule)


@pytest.fixture
def y():
    return torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("schedule", SCHEDULES, ids=name)
def test_the_jacobian_of_an_exact_denoiser_is_a_covariance(schedule, y):
    """kappa^2 dD/dy = Cov[x0 | y]: symmetric and positive."""
    j = jacobian(mixture(schedule), y, 0.8)
    torch.testing.assert_close(j, j.mT)
    assert (torch.linalg.eigvalsh(j) > 0).all()
    gaussian = GaussianDenoiser(torch.zeros(4), torch.tensor([0.1, 0.5, 1.0, 2.0]), schedule)
    expected = torch.diag(gaussian.cov.eigenvalues[0] / (gaussian.cov.eigenvalues[0] + 0.64))
    torch.testing.assert_close(jacobian(gaussian, y, 0.8), expected.expand(5, -1, -1))


@pytest.mark.parametrize("schedule", SCHEDULES, ids=name)
def test_asymmetry_finds_a_field_that_is_no_gradient(schedule, y):
    assert float(asymmetry(mixture(schedule), y, 0.5).max()) < 1e-9
    assert float(asymmetry(turned(mixture(schedule), 0.5), y, 0.5).min()) > 0.05


@pytest.mark.parametrize("schedule", SCHEDULES, ids=name)
def test_the_exact_score_obeys_the_fokker_planck_equation(schedule, y):
    kappa = torch.tensor([0.3, 0.5, 1.0, 2.0, 4.0], dtype=torch.float64)
    exact = fokker_planck_residual(mixture(schedule), y, kappa)
    assert exact.shape == y.shape
    assert float(exact.abs().max()) < 1e-6
    off = fokker_planck_residual(turned(mixture(schedule), 0.5), y, kappa)
    assert float(off.abs().max()) > 1e-2


def test_the_residual_can_be_trained_with(y):
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.Tanh(), torch.nn.Linear(8, 4)).double()
    learned = as_denoiser(lambda x, t, cond: net(torch.cat([x, t[:, None].to(x)], -1)), EDM())
    residual = fokker_planck_residual(learned, y, torch.ones(5, dtype=torch.float64), create_graph=True)
    residual.square().mean().backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in net[0].parameters())


@pytest.mark.parametrize("rank", [1, 3, 6])
def test_the_intrinsic_dimension_is_the_rank(rank):
    """Mixtures of low-rank Gaussians in 16 dimensions with very little noise off the subspaces."""
    g = torch.Generator().manual_seed(rank)
    basis = torch.linalg.qr(torch.randn(2, 16, rank, dtype=torch.float64, generator=g))[0]
    cov = Covariance.low_rank(basis, torch.ones(2, rank), noise_variance=1e-6)
    denoiser = MixtureDenoiser([1.0, 1.0], 3 * torch.randn(2, 16, generator=g), cov, EDM())
    x = denoiser.sample(6, g)
    estimate = intrinsic_dimension(denoiser, x, 0.05, generator=g)
    assert estimate.tolist() == [rank] * 6
    assert float(flipd(denoiser, x, 0.05).mean()) == pytest.approx(rank, abs=1.0)
    with pytest.raises(InvalidArgument, match="at least the dimension"):
        intrinsic_dimension(denoiser, x, 0.05, samples=3)
