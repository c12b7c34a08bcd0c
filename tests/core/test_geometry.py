"""Geometry of scores: exact denoisers are gradients, obey the Fokker-Planck equation, and know their dimension."""

import pytest
import torch

from suffuse import Condition, as_denoiser
from suffuse.analysis import (
    Gauged,
    asymmetry,
    flipd,
    fokker_planck_residual,
    intrinsic_dimension,
    jacobian,
    mmse_dimension,
)
from suffuse.errors import InvalidArgument
from suffuse.exact import Covariance, EmpiricalDenoiser, GaussianDenoiser, MixtureDenoiser
from suffuse.schedules import EDM, VPLinear
from suffuse.training import FokkerPlanck

SCHEDULES = [VPLinear(), EDM()]


def name(value):
    return type(value).__name__


def mixture(schedule):
    g = torch.Generator().manual_seed(0)
    a = torch.randn(3, 4, 4, dtype=torch.float64, generator=g)
    means = torch.randn(3, 4, dtype=torch.float64, generator=g)
    return MixtureDenoiser([1.0, 2.0, 1.0], means, Covariance.full(a @ a.mT / 4 + 0.05 * torch.eye(4)), schedule)


def turned(denoiser, strength):
    """A gauge in the first two coordinates: a field that is no gradient."""
    a = torch.zeros(4, 4, dtype=torch.float64)
    a[0, 1], a[1, 0] = strength, -strength
    return Gauged(denoiser, a)


def low_rank(rank, dim=16, noise=1e-3):
    """Two subspaces through different points, with very little noise off them."""
    g = torch.Generator().manual_seed(rank)
    basis = torch.linalg.qr(torch.randn(2, dim, rank, dtype=torch.float64, generator=g))[0]
    cov = Covariance.low_rank(basis, torch.ones(2, rank), noise_variance=noise**2)
    return MixtureDenoiser([1.0, 1.0], 3 * torch.randn(2, dim, generator=g), cov, EDM())


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


def test_random_probes_estimate_the_residual_without_bias(y):
    off, kappa = turned(mixture(EDM()), 0.5), torch.ones(5, dtype=torch.float64)
    exact = fokker_planck_residual(off, y, kappa)
    many = fokker_planck_residual(off, y, kappa, probes=1000, generator=torch.Generator().manual_seed(0))
    one = fokker_planck_residual(off, y, kappa, probes=1, generator=torch.Generator().manual_seed(0))
    assert float((one - exact).norm()) > 0.1 * float(exact.norm())  # a single direction is a rough estimate ...
    assert float((many - exact).norm()) < 0.1 * float((one - exact).norm())  # ... whose mean is right


def test_the_regulariser_with_probes_has_the_mean_of_the_exact_one():
    off = turned(mixture(EDM()), 0.5)
    x0 = mixture(EDM()).sample(2048, torch.Generator().manual_seed(0))
    terms = [FokkerPlanck(1.0, (0.5, 2.0), points=2048, probes=p) for p in (None, 2)]
    exact, estimate = (term(off, x0, None, torch.Generator().manual_seed(1)).item() for term in terms)
    assert estimate == pytest.approx(exact, rel=0.15)


def test_uniform_collocation_looks_at_empty_regions():
    """A field that is wrong only far from the data costs nothing at the data, and something in the box."""
    exact = GaussianDenoiser(torch.zeros(2), torch.full((2,), 1e-4), EDM())

    def mean(x, t, cond):
        far = torch.sigmoid(8 * (x.norm(dim=-1, keepdim=True) / EDM().level(t, like=x).sigma - 3))
        return exact(x, t) + 0.1 * far * torch.stack([x[:, 1] ** 2, x[:, 0]], -1)

    wrong, x0 = as_denoiser(mean, EDM()), exact.sample(512, torch.Generator().manual_seed(0))
    costs = [
        FokkerPlanck(1.0, (0.9, 1.1), 512, kind)(wrong, x0, None, torch.Generator().manual_seed(1)).item()
        for kind in ("data", "uniform")
    ]
    assert costs[1] > 3 * costs[0]
    exactly = FokkerPlanck(1.0, (0.9, 1.1), 512, "uniform")(exact, x0, None, torch.Generator().manual_seed(1))
    assert exactly.item() < 1e-12


def test_the_residual_can_be_trained_with(y):
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.Tanh(), torch.nn.Linear(8, 4)).double()
    learned = as_denoiser(lambda x, t, cond: net(torch.cat([x, t[:, None].to(x)], -1)), EDM())
    residual = fokker_planck_residual(learned, y, torch.ones(5, dtype=torch.float64), create_graph=True)
    residual.square().mean().backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in net[0].parameters())


# --- dimension ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [1, 3, 6])
def test_all_estimators_find_the_rank(rank):
    g, denoiser = torch.Generator().manual_seed(0), low_rank(rank)
    x = denoiser.sample(6, g)
    assert intrinsic_dimension(denoiser, x, 0.05, generator=g).tolist() == [rank] * 6
    assert float(flipd(denoiser, x, 0.05).mean()) == pytest.approx(rank, rel=0.1)
    assert float(mmse_dimension(denoiser, x, 0.05, 200, generator=g).mean()) == pytest.approx(rank, rel=0.1)


@pytest.mark.parametrize("k", [2, 5])
def test_the_dimension_of_a_curved_manifold_is_within_a_tenth(k):
    """A flat torus: k circles in 2 k of 20 dimensions, whose exact denoiser is a ratio of Bessel functions."""
    from suffuse.benchmarks.intrinsic_dimension import torus

    denoiser, x = torus(k, 20, 8, torch.Generator().manual_seed(0))
    g = torch.Generator().manual_seed(1)
    assert intrinsic_dimension(denoiser, x, 0.05, generator=g).tolist() == [k] * 8
    assert float(flipd(denoiser, x, 0.05).mean()) == pytest.approx(k, rel=0.1)
    assert float(mmse_dimension(denoiser, x, 0.05, 400, generator=g).mean()) == pytest.approx(k, rel=0.1)


def test_dimensions_depend_on_the_scale():
    """Noise of size 0.1 off a plane: below it all 16 dimensions are seen, above it the plane's three."""
    denoiser = low_rank(3, noise=0.1)
    x = denoiser.sample(200, torch.Generator().manual_seed(0))
    g = torch.Generator().manual_seed(1)
    fine, coarse = (float(mmse_dimension(denoiser, x, kappa, generator=g).mean()) for kappa in (0.002, 0.5))
    assert fine == pytest.approx(16, rel=0.05)
    assert coarse < 4
    assert float(flipd(denoiser, x, 0.002).mean()) == pytest.approx(16, rel=0.05)


def test_of_several_noise_levels_the_one_with_the_clearest_gap_is_taken():
    """Samples of a circle in 6 dimensions: the empirical denoiser knows the circle at a scale above their spacing."""
    angle = 2 * torch.pi * torch.rand(400, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    data = torch.zeros(400, 6, dtype=torch.float64)
    data[:, 0], data[:, 1] = angle.cos(), angle.sin()
    denoiser, g = EmpiricalDenoiser(data, EDM()), torch.Generator().manual_seed(1)
    assert intrinsic_dimension(denoiser, data[:8], [0.003, 0.15, 3.0], generator=g).tolist() == [1] * 8
    assert intrinsic_dimension(denoiser, data[:8], 0.003, generator=g).tolist() != [1] * 8


def test_random_signs_estimate_flipd():
    denoiser = mixture(VPLinear())
    x = denoiser.sample(3, torch.Generator().manual_seed(0))
    exact = flipd(denoiser, x, 0.5)
    estimate = flipd(denoiser, x, 0.5, probes=2000, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(estimate, exact, atol=0.1, rtol=0)
    j = jacobian(denoiser, x, 0.5)
    kappa, t = 0.5, VPLinear().t_of_kappa(0.5)
    score = denoiser.score(VPLinear().alpha(t) * x, t) * VPLinear().alpha(t)
    divergence = (j.diagonal(dim1=1, dim2=2).sum(1) - 4) / kappa**2
    torch.testing.assert_close(exact, 4 + kappa**2 * (divergence + score.square().sum(1)))


def test_each_point_has_its_own_condition():
    """Class 0 is a line, class 1 a plane."""
    basis = torch.eye(5, dtype=torch.float64)
    spectra = torch.tensor([[1.0, 1e-6, 1e-6, 1e-6, 1e-6], [1e-6, 1.0, 1.0, 1e-6, 1e-6]])
    denoiser = MixtureDenoiser([1.0, 1.0], torch.zeros(2, 5), Covariance(spectra, basis.expand(2, 5, 5)), EDM(), [0, 1])
    cond = Condition(tokens={"class": torch.eye(2)[[0, 1, 1]][:, None]})
    x = torch.zeros(3, 5, dtype=torch.float64)
    g = torch.Generator().manual_seed(0)
    assert intrinsic_dimension(denoiser, x, 0.05, cond=cond, generator=g).tolist() == [1, 2, 2]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda d, x: intrinsic_dimension(d, x, 0.05, samples=3), "at least the dimension"),
        (lambda d, x: intrinsic_dimension(d, x, []), "one positive noise level"),
        (lambda d, x: intrinsic_dimension(d, x, -1.0), "one positive noise level"),
        (lambda d, x: flipd(d, x, 0.5, probes=0), "probes"),
        (lambda d, x: FokkerPlanck(probes=0), "probes"),
        (lambda d, x: FokkerPlanck(collocation="grid"), "collocation"),
    ],
)
def test_bad_arguments_say_what_is_wrong(call, message):
    denoiser = low_rank(2)
    with pytest.raises(InvalidArgument, match=message):
        call(denoiser, denoiser.sample(2))
