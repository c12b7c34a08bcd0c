"""Analysis and what is built on it: Gaussian statistics, teleportation, inversion, likelihoods; against known truth."""

import pytest
import torch

from suffuse.analysis import GaussianStatistics, explained_variance, log_likelihood
from suffuse.errors import InvalidArgument, SamplingDiverged
from suffuse.exact import Covariance, GaussianDenoiser, MixtureDenoiser, StationaryCovariance
from suffuse.samplers import DDIM, DDPM, DPMSolverPP, Heun, Teleport, invert
from suffuse.schedules import EDM, RectifiedFlow, VPLinear

D = 5
SCHEDULES = [VPLinear(), EDM(), RectifiedFlow()]


def name(value):
    return type(value).__name__


def gaussian(schedule):
    g = torch.Generator().manual_seed(0)
    a = torch.randn(D, D, dtype=torch.float64, generator=g)
    return GaussianDenoiser(torch.ones(D), a @ a.T / D + 0.05 * torch.eye(D), schedule)


def mixture(schedule):
    means = torch.tensor([[-1.0, 0.5], [1.0, -0.5]])
    return MixtureDenoiser([1.0, 2.0], means, Covariance.diagonal(torch.full((2, 2), 0.05)), schedule)


# --- Gaussian statistics ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [200, 4])
def test_statistics_are_the_sample_mean_and_covariance(n):
    """With all the variance kept, also when there are fewer samples than dimensions."""
    data = gaussian(EDM()).sample(n, torch.Generator().manual_seed(0))
    fitted = GaussianStatistics.fit(data, variance=1.0)
    torch.testing.assert_close(fitted.mean, data.mean(0))
    eye = torch.eye(D, dtype=torch.float64)[:, None]
    torch.testing.assert_close(fitted.cov.apply(lambda s: s, eye)[:, 0], data.T.cov(), atol=1e-9, rtol=1e-6)


def test_low_rank_keeps_the_total_variance():
    data = torch.randn(500, 3, 8, generator=torch.Generator().manual_seed(0)) * torch.logspace(0, -2, 8)
    fitted = GaussianStatistics.fit(data, variance=0.9)
    kept = fitted.cov.eigenvalues.shape[1]
    assert 1 < kept < 24
    total = fitted.cov.eigenvalues.sum() + (24 - kept) * fitted.cov.floor
    assert float(total) == pytest.approx(float(data.double().reshape(500, -1).var(0).sum()), rel=1e-9)
    diagonal = GaussianStatistics.fit(data, "diagonal")
    torch.testing.assert_close(diagonal.cov.eigenvalues[0], data.double().reshape(500, -1).var(0))


def test_a_gaussian_explains_itself_and_a_mixture_only_at_high_noise():
    denoiser = mixture(EDM())
    data = denoiser.sample(2000, torch.Generator().manual_seed(0))
    statistics = GaussianStatistics.fit(data, variance=1.0)
    high, low = explained_variance(denoiser, statistics, data, [20.0, 0.7])
    assert high > 0.99
    assert low < 0.93
    exact = statistics.denoiser(EDM())
    assert explained_variance(exact, statistics, data, [5.0, 0.3]) == pytest.approx([1.0, 1.0])


# --- teleportation ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", SCHEDULES, ids=name)
def test_teleporting_a_gaussian_is_exact(schedule):
    """For Gaussian data the jump is the ODE itself: jumping, then a fine solver, ends at the exact solution."""
    denoiser = gaussian(schedule)
    statistics = GaussianStatistics(denoiser.means[0], denoiser.cov)
    x = torch.randn(6, D, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * schedule.sigma(1.0)
    stop = schedule.t_of_kappa(0.05)
    jumped = Teleport(Heun(200), statistics, kappa=2.0)(denoiser, x=x, stop=stop, dtype=torch.float64)
    torch.testing.assert_close(jumped, denoiser.flow(x, 1.0, stop), rtol=1e-3, atol=1e-3)


def test_teleporting_saves_evaluations_on_a_mixture():
    """With a measured jump, 8 evaluations end nearer to the ODE's solution than 8 from the top."""
    denoiser = mixture(EDM())
    statistics = GaussianStatistics.fit(denoiser.sample(1000, torch.Generator().manual_seed(0)), variance=1.0)
    sampler = DPMSolverPP(8, grid="karras")
    teleport = Teleport.fit(sampler, denoiser, statistics, generator=torch.Generator().manual_seed(1))
    assert 0.5 < teleport.kappa < 20
    assert teleport.nfe(EDM()) == 8
    x = 80 * torch.randn(1000, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    truth = Heun(600)(denoiser, x=x, dtype=torch.float64)
    off = [float((s(denoiser, x=x, dtype=torch.float64) - truth).norm(dim=-1).median()) for s in (teleport, sampler)]
    assert off[0] < 0.5 * off[1]


def test_no_jump_is_kept_where_the_statistics_are_wrong():
    denoiser = mixture(EDM())
    wrong = GaussianStatistics(torch.tensor([40.0, 0.0], dtype=torch.float64), Covariance.diagonal(torch.ones(1, 2)))
    sampler = DPMSolverPP(10)
    teleport = Teleport.fit(sampler, denoiser, wrong, samples=16, generator=torch.Generator().manual_seed(0))
    assert teleport.kappa == torch.inf
    x = torch.randn(4, 2) * 80
    assert torch.equal(teleport(denoiser, x=x), sampler(denoiser, x=x))


@pytest.mark.parametrize("schedule", SCHEDULES, ids=name)
def test_the_jump_is_measured_under_every_schedule(schedule):
    denoiser = mixture(schedule)
    statistics = GaussianStatistics.fit(denoiser.sample(500, torch.Generator().manual_seed(0)), variance=1.0)
    teleport = Teleport.fit(DDIM(5), denoiser, statistics, samples=32, generator=torch.Generator().manual_seed(1))
    assert 0.5 < teleport.kappa < 80


def test_teleport_draws_from_noise_and_does_nothing_above_its_start():
    denoiser = mixture(EDM())
    statistics = GaussianStatistics.fit(denoiser.sample(100), variance=1.0)
    teleport = Teleport(DDIM(5), statistics, kappa=3.0)
    assert teleport(denoiser, (4, 2), generator=torch.Generator().manual_seed(0)).shape == (4, 2)
    x = torch.randn(4, 2)
    start = EDM().t_of_kappa(1.0)
    assert torch.equal(teleport(denoiser, x=x, start=start), DDIM(5)(denoiser, x=x, start=start))


def test_a_jump_that_is_not_finite_stops():
    broken = GaussianStatistics(torch.full((2,), torch.nan, dtype=torch.float64), Covariance.diagonal(torch.ones(1, 2)))
    with pytest.raises(SamplingDiverged, match=r"kappa=3.*statistics\.mean"):
        Teleport(DDIM(5), broken, kappa=3.0)(mixture(EDM()), (4, 2))


# --- statistics -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["low_rank", "diagonal", "stationary"])
def test_statistics_of_batches_are_those_of_the_whole(kind):
    data = torch.randn(60, 2, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).cumsum(-1) + 3
    whole = GaussianStatistics.fit(data, kind, variance=1.0)
    parts = GaussianStatistics.fit(((batch, None) for batch in data.split(17)), kind, variance=1.0)
    torch.testing.assert_close(parts.mean, whole.mean)
    x = torch.randn(5, 2, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(parts.denoiser(EDM())(x, 0.7), whole.denoiser(EDM())(x, 0.7))


def test_a_stationary_covariance_is_the_circulant_matrix():
    """Denoiser, likelihood, draws and ODE solution from the spectrum are those of the matrix with that spectrum."""

    def smooth(white):
        field = white.reshape(-1, 2, 6, 5)
        field = field + 0.9 * field.roll(1, -1) + 0.5 * field.roll(1, -2)
        return torch.einsum("cd,ndhw->nchw", torch.tensor([[1.0, 0.4], [0.1, 0.3]], dtype=torch.float64), field)

    generator = torch.Generator().manual_seed(0)
    identity = torch.eye(60, dtype=torch.float64)
    data = smooth(torch.randn(4000, 60, dtype=torch.float64, generator=generator))
    truth = smooth(identity).flatten(1).T @ smooth(identity).flatten(1)
    statistics = GaussianStatistics.fit(data, "stationary")
    assert isinstance(statistics.cov, StationaryCovariance)
    matrix = statistics.cov.apply(lambda v: v, identity[None]).squeeze(0)
    shifted = matrix.reshape(2, 6, 5, 2, 6, 5).roll((2, 3, 2, 3), (1, 2, 4, 5)).reshape(60, 60)
    torch.testing.assert_close(shifted, matrix)
    torch.testing.assert_close(matrix, truth, atol=0.06, rtol=0)
    fast, dense = statistics.denoiser(EDM()), GaussianDenoiser(statistics.mean, matrix, EDM())
    x = 3 * data[:7]
    for view in ("forward", "log_prob"):
        torch.testing.assert_close(getattr(fast, view)(x, 0.6), getattr(dense, view)(x, 0.6))
    torch.testing.assert_close(fast.flow(x, 0.9, 0.4), dense.flow(x, 0.9, 0.4))
    draws = fast.sample(4000, generator)
    torch.testing.assert_close(torch.cov(draws.flatten(1).T), matrix, atol=0.25, rtol=0)


# --- inversion --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", SCHEDULES[:2], ids=name)
def test_exact_inversion_is_undone_by_ddim(schedule):
    denoiser, stop = mixture(schedule), schedule.t_of_kappa(0.1)
    x = denoiser.sample(50, torch.Generator().manual_seed(0))
    up = invert(denoiser, x, steps=40, stop=stop, iterations=30)
    torch.testing.assert_close(DDIM(40)(denoiser, x=up, stop=stop, dtype=torch.float64), x, rtol=1e-4, atol=1e-4)


def test_ddim_inversion_is_exact_in_the_limit():
    denoiser, stop = gaussian(EDM()), EDM().t_of_kappa(0.1)
    x = denoiser.sample(50, torch.Generator().manual_seed(0))
    errors = [(invert(denoiser, x, steps=n, stop=stop) - denoiser.flow(x, stop, 1.0)).norm() for n in (50, 100)]
    assert float(errors[1] / errors[0]) == pytest.approx(0.5, abs=0.1)
    assert invert(denoiser, x.float(), steps=5).shape == x.shape


# --- likelihood -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", SCHEDULES, ids=name)
def test_likelihoods_of_a_mixture_are_within_a_hundredth_of_a_nat(schedule):
    denoiser = mixture(schedule)
    x = denoiser.sample(64, torch.Generator().manual_seed(0))
    estimate = log_likelihood(denoiser, x, kappa=(0.005, 60.0), steps=150)
    truth = denoiser.log_prob(x, schedule.t_of_kappa(0.005)) + x.shape[1] * torch.log(
        torch.tensor(schedule.alpha(schedule.t_of_kappa(0.005)))
    )
    assert float((estimate - truth).abs().mean()) / 2 < 0.02


def test_hutchinson_estimates_the_exact_trace():
    denoiser = gaussian(EDM())
    x = denoiser.sample(4, torch.Generator().manual_seed(0))
    exact = log_likelihood(denoiser, x, steps=20)
    estimates = [
        log_likelihood(denoiser, x, steps=20, trace="hutchinson", probes=20, generator=torch.Generator().manual_seed(k))
        for k in range(4)
    ]
    torch.testing.assert_close(torch.stack(estimates).mean(0), exact, atol=0.5, rtol=0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: GaussianStatistics.fit(torch.zeros(1, 2)), "at least 2"),
        (lambda: GaussianStatistics.fit(torch.full((3, 2), torch.nan)), "NaN"),
        (lambda: GaussianStatistics.fit(torch.zeros(3, 2), "full"), "unknown kind"),
        (lambda: GaussianStatistics.fit([torch.zeros(3, 10_000)]), "too many"),
        (lambda: GaussianStatistics.fit(torch.zeros(3, 2), variance=0), "variance must lie"),
        (lambda: Teleport(DDIM(3), GaussianStatistics.fit(torch.randn(9, 2)), 0.0), "kappa must be"),
        (lambda: Teleport.fit(DDPM(3), mixture(EDM()), GaussianStatistics.fit(torch.randn(9, 2))), "draws noise"),
        (lambda: invert(gaussian(EDM()), torch.zeros(1, D), iterations=-1), "iterations"),
        (lambda: log_likelihood(gaussian(EDM()), torch.zeros(1, D), steps=0), "steps and probes"),
        (lambda: log_likelihood(gaussian(EDM()), torch.zeros(1, D), trace="full"), "trace must be"),
        (lambda: log_likelihood(gaussian(EDM()), torch.zeros(1, D), kappa=(1.0, torch.inf)), "kappa must be"),
    ],
)
def test_bad_arguments_say_what_is_wrong(call, message):
    with pytest.raises(InvalidArgument, match=message):
        call()
