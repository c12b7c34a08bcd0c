"""How simple a denoiser is: what Gaussians, mixtures and the samples themselves explain of it."""

import pytest
import torch

from suffuse.analysis import GaussianStatistics, approximations, explained_by, explained_variance, fit_mixture
from suffuse.benchmarks.truths import ring2d
from suffuse.errors import InvalidArgument
from suffuse.exact import Covariance, EmpiricalDenoiser, GaussianDenoiser, MixtureDenoiser
from suffuse.schedules import EDM, VPLinear

KAPPAS = [0.05, 0.3, 3.0]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def three(schedule):
    """Three correlated modes in 4 dimensions, well apart."""
    a = torch.randn(3, 4, 4, dtype=torch.float64, generator=generator(1))
    means = 10 * torch.eye(4, dtype=torch.float64)[:3]
    return MixtureDenoiser([1.0, 1.0, 1.0], means, Covariance.full(a @ a.mT / 8 + 0.02 * torch.eye(4)), schedule)


def shares(entries, name, of):
    return [e.share for e in entries if (e.approximation, e.of) == (name, of)]


@pytest.mark.parametrize("schedule", [EDM(), VPLinear()], ids=["EDM", "VP"])
def test_a_mixture_is_explained_by_the_mixture_and_each_simpler_one_explains_less(schedule):
    exact = three(schedule)
    train, held_out = exact.sample(3000, generator()), exact.sample(500, generator(2))
    simple = approximations(train, schedule, components=3, variance=0.9999)
    entries = explained_by(exact, simple, held_out, KAPPAS)
    assert len(entries) == 4 * 2 * len(KAPPAS)
    for of in ("mean", "score"):
        isotropic, gaussian, mixture = (shares(entries, n, of) for n in ("isotropic", "Gaussian", "mixture"))
        assert min(mixture) > 0.97
        assert isotropic[1] < gaussian[1] < mixture[1]  # at the scale of a mode


def test_a_network_that_knows_its_samples_by_heart_is_explained_by_them():
    """The empirical denoiser of the data explains itself, and one of other samples of the same law does not."""
    exact = ring2d()
    train = exact.sample(300, generator())
    simple = approximations(train, EDM(), components=8)
    memorised = explained_by(EmpiricalDenoiser(train, EDM()), simple, train, [0.01])
    learned = explained_by(exact, simple, exact.sample(300, generator(1)), [0.01])
    assert shares(memorised, "empirical", "score") == pytest.approx([1.0])
    assert shares(memorised, "mixture", "score")[0] < 0.9
    assert shares(learned, "empirical", "score")[0] < shares(learned, "mixture", "score")[0]


def test_an_isotropic_gaussian_needs_no_more_than_the_isotropic_approximation():
    exact = GaussianDenoiser(torch.ones(2, 3), torch.full((2, 3), 0.5), EDM())
    simple = approximations(exact.sample(4000, generator()), EDM(), components=1)
    entries = explained_by(exact, simple, exact.sample(300, generator(1)), KAPPAS)
    for of in ("mean", "score"):
        assert min(shares(entries, "isotropic", of)) > 0.999
        assert min(shares(entries, "Gaussian", of)) > 0.995


def test_the_fitted_mixture_has_the_weights_means_and_covariances_of_the_clusters():
    exact = three(EDM())
    fitted = fit_mixture(exact.sample(6000, generator()), 3, EDM(), variance=0.9999)
    order = (fitted.means @ exact.means.T).argmax(0)
    torch.testing.assert_close(fitted.means[order], exact.means, atol=0.05, rtol=0)
    torch.testing.assert_close(
        fitted.log_weights.exp(), torch.full((3,), 1 / 3, dtype=torch.float64), atol=0.03, rtol=0
    )
    axes = torch.eye(4, dtype=torch.float64)[:, None]
    dense = [c.apply(lambda s: s, axes.expand(-1, 3, -1)).permute(1, 0, 2) for c in (fitted.cov, exact.cov)]
    # four standard deviations of a variance that is estimated from 2000 samples
    torch.testing.assert_close(dense[0][order], dense[1], atol=0.05, rtol=4 * (2 / 2000) ** 0.5)


def test_any_denoiser_can_be_the_explanation():
    exact = three(EDM())
    data = exact.sample(200, generator())
    assert explained_variance(exact, exact, data, KAPPAS) == pytest.approx([1.0] * 3)
    fitted = GaussianStatistics.fit(data, variance=1.0)
    a, b = (
        explained_variance(exact, s, data, KAPPAS, generator=generator(1)) for s in (fitted, fitted.denoiser(EDM()))
    )
    assert a == b


def test_scores_are_explained_better_than_means_where_noise_prevails():
    """Above the size of the data the score is mostly the noise, which every denoiser knows."""
    exact = ring2d()
    data = exact.sample(500, generator())
    simple = {"Gaussian": GaussianStatistics.fit(data, variance=1.0).denoiser(EDM())}
    entries = explained_by(exact, simple, data, [1.0], generator=generator(1))
    assert shares(entries, "Gaussian", "score")[0] > shares(entries, "Gaussian", "mean")[0]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: fit_mixture(x, 0, EDM()), "components"),
        (lambda x: fit_mixture(x, 20, EDM()), "components"),
        (lambda x: fit_mixture(x, 2, EDM(), variance=1.0), "variance must lie"),
    ],
)
def test_bad_arguments_say_what_is_wrong(call, message):
    with pytest.raises(InvalidArgument, match=message):
        call(torch.randn(50, 4, dtype=torch.float64))
