"""Exact denoisers: Tweedie's formula, special cases of one another, and the distributions they stand for."""

import pytest
import torch

from suffuse import Condition
from suffuse.errors import InvalidArgument
from suffuse.exact import Covariance, EmpiricalDenoiser, GaussianDenoiser, MixtureDenoiser
from suffuse.random import generators
from suffuse.schedules import EDM, RectifiedFlow, VPLinear

SCHEDULES = [VPLinear(), EDM(), RectifiedFlow()]
D, K, R = 6, 3, 2


def orthonormal(*shape, generator):
    return torch.linalg.qr(torch.randn(*shape, dtype=torch.float64, generator=generator))[0]


def mixture(kind, schedule, classes=None):
    g = torch.Generator().manual_seed(1)
    means = torch.randn(K, D, dtype=torch.float64, generator=g)
    if kind == "full":
        a = torch.randn(K, D, D, dtype=torch.float64, generator=g)
        cov = Covariance.full(a @ a.mT / D + 0.01 * torch.eye(D))
    elif kind == "diagonal":
        cov = Covariance.diagonal(torch.rand(K, D, dtype=torch.float64, generator=g) + 0.05)
    else:
        basis = orthonormal(K, D, R, generator=g)
        cov = Covariance.low_rank(basis, torch.rand(K, R, generator=g) + 0.5, noise_variance=0.01)
    return MixtureDenoiser([1.0, 2.0, 3.0], means, cov, schedule, classes)


def dense(covariance):
    """The matrices a spectrum stands for, (K, d, d)."""
    eye = torch.eye(covariance.dim, dtype=torch.float64)
    columns = eye[:, None, :].expand(-1, len(covariance.eigenvalues), -1)
    return covariance.apply(lambda s: s, columns).permute(1, 2, 0)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("kind", ["full", "diagonal", "low_rank"])
def test_the_score_is_the_gradient_of_the_log_density(kind, schedule):
    """Tweedie: D = (x + sigma^2 grad log p_t) / alpha."""
    denoiser = mixture(kind, schedule)
    x = torch.randn(5, D, dtype=torch.float64, generator=torch.Generator().manual_seed(2), requires_grad=True)
    for t in (0.1, 0.5, torch.tensor([0.05, 0.2, 0.5, 0.8, 0.95], dtype=torch.float64)):
        (gradient,) = torch.autograd.grad(denoiser.log_prob(x, t).sum(), x)
        torch.testing.assert_close(denoiser.score(x, t), gradient, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", ["full", "diagonal", "low_rank"])
def test_the_log_density_is_that_of_the_dense_gaussians(kind):
    denoiser, t = mixture(kind, VPLinear()), 0.3
    level, x = denoiser.schedule.level(t), torch.randn(4, D, dtype=torch.float64)
    parts = [
        torch.distributions.MultivariateNormal(
            level.alpha * mean, level.alpha**2 * cov + level.sigma**2 * torch.eye(D, dtype=torch.float64)
        ).log_prob(x)
        for mean, cov in zip(denoiser.means, dense(denoiser.cov), strict=True)
    ]
    expected = (torch.stack(parts, -1) + denoiser.log_weights).logsumexp(-1)
    torch.testing.assert_close(denoiser.log_prob(x, t), expected)


def test_the_same_covariance_in_three_forms_gives_the_same_denoiser():
    g = torch.Generator().manual_seed(0)
    basis, values = orthonormal(1, D, R, generator=g), torch.tensor([[2.0, 0.5]])
    low = Covariance.low_rank(basis, values, noise_variance=0.1)
    full = Covariance.full(dense(low))
    x = torch.randn(7, D, dtype=torch.float64, generator=g)
    a, b = (GaussianDenoiser(torch.ones(D), c, VPLinear()) for c in (low, full))
    torch.testing.assert_close(a(x, 0.4), b(x, 0.4))
    torch.testing.assert_close(a.flow(x, 0.9, 0.1), b.flow(x, 0.9, 0.1))
    c = GaussianDenoiser(torch.ones(D), torch.full((D,), 0.3), VPLinear())
    d = GaussianDenoiser(torch.ones(D), 0.3 * torch.eye(D), VPLinear())
    torch.testing.assert_close(c(x, 0.4), d(x, 0.4))


def test_the_flow_map_composes():
    denoiser = GaussianDenoiser(torch.zeros(D), torch.linspace(0.1, 2, D), EDM())
    x = torch.randn(3, D, dtype=torch.float64)
    torch.testing.assert_close(denoiser.flow(denoiser.flow(x, 0.9, 0.5), 0.5, 0.1), denoiser.flow(x, 0.9, 0.1))
    torch.testing.assert_close(denoiser.flow(x, 0.5, 0.5), x)


def test_samples_have_the_moments_of_the_mixture():
    denoiser = mixture("full", VPLinear())
    x = denoiser.sample(40000, torch.Generator().manual_seed(0))
    w, covs = denoiser.log_weights.exp(), dense(denoiser.cov)
    mean = w @ denoiser.means
    second = torch.einsum("k,kij->ij", w, covs + denoiser.means[:, :, None] * denoiser.means[:, None, :])
    torch.testing.assert_close(x.mean(0), mean, atol=0.03, rtol=0)
    torch.testing.assert_close(x.T.cov(), second - mean[:, None] * mean, atol=0.1, rtol=0)


def test_a_class_keeps_its_own_modes():
    denoiser = mixture("diagonal", EDM(), classes=[0, 1, 1])
    alone = MixtureDenoiser(
        [2.0, 3.0], denoiser.means[1:], Covariance.diagonal(denoiser.cov.eigenvalues[1:]), denoiser.schedule
    )
    x = torch.randn(4, D, dtype=torch.float64)
    one = Condition(tokens={"class": torch.eye(2)[[1, 1, 1, 1]][:, None]})
    torch.testing.assert_close(denoiser(x, 0.4, one), alone(x, 0.4))
    torch.testing.assert_close(denoiser.log_prob(x, 0.4, one), alone.log_prob(x, 0.4))
    torch.testing.assert_close(denoiser(x, 0.4, one.null()), denoiser(x, 0.4))
    drawn = denoiser.sample(
        200, torch.Generator().manual_seed(0), Condition(tokens={"class": torch.eye(2)[[0] * 200][:, None]})
    )
    assert (denoiser.responsibilities(drawn.float(), 0.0).argmax(-1) == 0).float().mean() > 0.9


def test_the_empirical_denoiser_is_a_mixture_of_points():
    data = torch.randn(9, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    tiny = MixtureDenoiser(torch.ones(9), data, Covariance.diagonal(torch.full((9, 6), 1e-14)), EDM())
    empirical = EmpiricalDenoiser(data, EDM())
    x = torch.randn(5, 2, 3, dtype=torch.float64)
    times = torch.tensor([0.3, 0.5, 0.6, 0.7, 0.9], dtype=torch.float64)
    torch.testing.assert_close(empirical(x, 0.6), tiny(x, 0.6))
    torch.testing.assert_close(empirical(x, times), tiny(x, times))
    near = data + 1e-3 * torch.randn_like(data)
    torch.testing.assert_close(empirical(near, 0.0), data)
    drawn = empirical.sample(20, torch.Generator().manual_seed(1))
    assert all(any(torch.equal(one, row) for row in data) for one in drawn)


def test_an_exact_draw_depends_on_its_own_seed_only():
    denoiser = mixture("low_rank", EDM())
    torch.testing.assert_close(denoiser.sample(5, generators(range(5)))[3:4], denoiser.sample(1, generators([3])))


def test_sample_dtype_follows_x_and_shapes_are_checked():
    denoiser = mixture("full", VPLinear())
    assert denoiser(torch.randn(2, D), 0.5).dtype == torch.float32
    with pytest.raises(InvalidArgument, match="x must be"):
        denoiser(torch.randn(2, D + 1), 0.5)
    with pytest.raises(InvalidArgument, match="without classes"):
        denoiser(torch.randn(2, D), 0.5, Condition(tokens={"class": torch.ones(2, 1, 2)}))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Covariance.diagonal(torch.tensor([-1.0])), "eigenvalues >= 0"),
        (lambda: Covariance.full(torch.tensor([[1.0, 2.0], [0.0, 1.0]])), "symmetric"),
        (lambda: Covariance.full(torch.ones(3)), "must be"),
        (lambda: Covariance.full(torch.tensor([[1.0, 2.0], [2.0, 1.0]])), "is the matrix a covariance"),
        (lambda: GaussianDenoiser(torch.zeros(3), torch.eye(2), EDM()), "dimensions"),
        (lambda: MixtureDenoiser([0.0], torch.zeros(1, 2), Covariance.diagonal(torch.ones(2)), EDM()), "positive"),
        (lambda: EmpiricalDenoiser(torch.zeros(0, 2), EDM()), "empty"),
    ],
)
def test_bad_arguments_say_what_is_wrong(make, message):
    with pytest.raises(InvalidArgument, match=message):
        make()
