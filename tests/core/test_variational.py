"""The variational view: bounds that are tight for the exact denoiser, and variances that are learned."""

import math

import pytest
import torch
from torch import nn
from torch.distributions import Normal, kl_divergence

from suffuse import NetworkDenoiser
from suffuse.analysis import GaussianStatistics, bits_per_dim, discrete_elbo, elbo, log_likelihood
from suffuse.analysis.variational import log_bins, noise_range, step_kl
from suffuse.errors import InvalidArgument, SuffuseError
from suffuse.exact import Covariance, GaussianDenoiser, MixtureDenoiser
from suffuse.nets import DiT
from suffuse.samplers import DDPM
from suffuse.schedules import EDM, DiscreteBetas, RectifiedFlow, VPCosine, VPLinear
from suffuse.training import DenoisingObjective, UniformLogSNR, UniformTime

SCHEDULES = [VPLinear(), VPCosine(), EDM(), RectifiedFlow(), DiscreteBetas.linear()]
KAPPA = (0.02, 60.0)


def name(value):
    return type(value).__name__


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def gaussian(schedule):
    a = torch.randn(3, 3, dtype=torch.float64, generator=seeded())
    return GaussianDenoiser(torch.tensor([0.3, -0.2, 0.0]), a @ a.T / 3 + 0.2 * torch.eye(3), schedule)


def mixture(schedule):
    means = torch.tensor([[-1.0, 0.5], [1.0, -0.5]])
    return MixtureDenoiser([1.0, 2.0], means, Covariance.diagonal(torch.full((2, 2), 0.1)), schedule)


def truth(denoiser, x, kappa):
    """log p of the data with noise of that level."""
    t = denoiser.schedule.t_of_kappa(kappa)
    alpha = denoiser.schedule.alpha(t)
    return denoiser.log_prob(alpha * x, t) + x[0].numel() * math.log(alpha)


# --- the continuous bound ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", SCHEDULES, ids=name)
def test_the_bound_of_a_gaussian_is_its_likelihood(schedule):
    """Sample by sample and without chance, when the prior and the control are that Gaussian too."""
    denoiser = gaussian(schedule)
    x = denoiser.sample(20, seeded())
    own = GaussianStatistics(denoiser.means[0], denoiser.cov)
    bound = elbo(denoiser, x, samples=2, kappa=(0.005, 80.0), statistics=own, generator=seeded())
    torch.testing.assert_close(-bound.total, truth(denoiser, x, 0.0001), rtol=0, atol=1e-3)
    again = elbo(denoiser, x, samples=3, kappa=(0.005, 80.0), statistics=own, generator=seeded(1))
    torch.testing.assert_close(bound.total, again.total, rtol=0, atol=1e-9)


@pytest.mark.parametrize("make", [gaussian, mixture], ids=["gaussian", "mixture"])
def test_the_bound_of_the_exact_denoiser_is_the_likelihood(make):
    """Up to the error of so many draws, with the standard normal as prior and control."""
    denoiser = make(VPLinear())
    x = denoiser.sample(4000, seeded())
    gap = elbo(denoiser, x, samples=64, kappa=(0.01, 60.0), generator=seeded(1)).total + truth(denoiser, x, 0.01)
    error = float(gap.std()) / math.sqrt(len(gap))
    assert error < 0.012
    assert abs(float(gap.mean())) < 4 * error


def test_a_denoiser_that_is_wrong_has_a_larger_bound():
    denoiser, x = mixture(VPLinear()), mixture(VPLinear()).sample(1000, seeded())
    wrong = GaussianDenoiser(torch.zeros(2), torch.eye(2), VPLinear())
    right, off = (elbo(d, x, samples=8, kappa=KAPPA, generator=seeded()).total.mean() for d in (denoiser, wrong))
    assert float(off - right) > 0.1


def test_the_bound_does_not_depend_on_the_schedule():
    x = mixture(EDM()).sample(10, seeded())
    totals = [elbo(mixture(s), x, samples=4, kappa=KAPPA, generator=seeded()).total for s in SCHEDULES]
    for total in totals[1:]:
        torch.testing.assert_close(total, totals[0], rtol=1e-5, atol=1e-5)


def test_the_terms_are_what_they_are_called():
    denoiser, x = gaussian(VPLinear()), torch.tensor([[0.5, -1.0, 2.0]])
    bound = elbo(denoiser, x, samples=1, kappa=(0.02, 3.0), generator=seeded())
    level = VPLinear().level(VPLinear().t_of_kappa(3.0))
    # the prior is N(0, alpha^2 + sigma^2), which is 1 here
    prior = kl_divergence(Normal(level.alpha * x, level.sigma), Normal(torch.zeros(3), 1.0)).sum(1)
    torch.testing.assert_close(bound.prior, prior.double(), rtol=1e-6, atol=1e-6)
    draws = x.expand(20000, 3) + 0.02 * torch.randn(20000, 3, generator=seeded())
    t = VPLinear().t_of_kappa(0.02)
    mean = denoiser(VPLinear().alpha(t) * draws, t)
    expected = -Normal(mean, 0.02).log_prob(x).sum(1).mean()
    assert float(bound.reconstruction) == pytest.approx(float(expected), abs=0.05)


@pytest.mark.parametrize("schedule", [VPLinear(), EDM()], ids=name)
def test_the_elbo_weighting_is_the_diffusion_term_and_log_snr_times_have_less_variance(schedule):
    denoiser = gaussian(schedule)
    x = denoiser.sample(4000, seeded())
    low, high = noise_range(schedule)
    term = elbo(denoiser, x, samples=8, generator=seeded()).diffusion.mean() / 3
    by_time = DenoisingObjective(UniformTime(), "elbo")(denoiser, x, None, seeded(1)) * (1 - schedule.t_min)
    by_snr = DenoisingObjective(UniformLogSNR(), "epsilon")(denoiser, x, None, seeded(2)) * math.log(high / low)
    assert float(by_time) == pytest.approx(float(term), rel=0.2)
    assert float(by_snr) == pytest.approx(float(term), rel=0.05)


# --- the ODE's likelihood --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dim", [2, 16])
@pytest.mark.parametrize("schedule", SCHEDULES, ids=name)
def test_twenty_evaluations_give_the_likelihood_of_a_mixture(schedule, dim):
    """Within a fiftieth of a nat per dimension, sample by sample, under every schedule."""
    means = torch.randn(5, dim, dtype=torch.float64, generator=seeded(dim))
    variances = 0.02 + 0.3 * torch.rand(5, dim, dtype=torch.float64, generator=seeded(dim))
    denoiser = MixtureDenoiser(torch.arange(1, 6), means, Covariance.diagonal(variances), schedule)
    x = denoiser.sample(100, seeded(1))
    statistics = GaussianStatistics.fit(denoiser.sample(5000, seeded(2)))
    estimate = log_likelihood(denoiser, x, steps=10, kappa=(0.01, 80.0), statistics=statistics)
    assert float((estimate - truth(denoiser, x, 0.01)).abs().mean()) / dim < 0.02


def test_the_error_of_the_likelihood_falls_with_the_square_of_the_steps():
    denoiser = gaussian(EDM())
    x = denoiser.sample(50, seeded())
    own = GaussianStatistics(denoiser.means[0], denoiser.cov)
    exact = truth(denoiser, x, 0.002)
    off = [float((log_likelihood(denoiser, x, steps=n, statistics=own) - exact).abs().mean()) for n in (20, 40, 80)]
    assert off[0] / off[1] == pytest.approx(4, rel=0.3)
    assert off[1] / off[2] == pytest.approx(4, rel=0.3)


# --- discrete steps ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variance", ["small", "large"])
def test_the_divergence_of_a_step_is_that_of_the_samplers_gaussians(variance):
    t, s = VPLinear().level(0.6), VPLinear().level(0.5)
    x, x_t, mean = (torch.randn(5, 3, dtype=torch.float64, generator=seeded(k)) for k in range(3))
    a, b, std = DDPM(variance="small").coefficients(t, s, ())
    own = DDPM(variance=variance).coefficients(t, s, ())[2]
    expected = kl_divergence(Normal(a * x + b * x_t, std), Normal(a * mean + b * x_t, own))
    fraction = torch.full_like(x, float(variance == "large"))
    torch.testing.assert_close(step_kl((x - mean).square(), t, s, fraction), expected)


@pytest.mark.parametrize("schedule", [VPLinear(), RectifiedFlow()], ids=name)
def test_the_bound_falls_to_the_likelihood_with_more_steps(schedule):
    """With the posterior's variance at a rate of 1 / steps; with the transition's it is there sooner."""
    denoiser = mixture(schedule)
    x = denoiser.sample(300, seeded())
    likelihood = truth(denoiser, x, schedule.kappa(schedule.t_min)).mean()

    def gap(steps, variance):
        bound = discrete_elbo(denoiser, x, steps=steps, grid="logsnr", variance=variance, generator=seeded(1))
        return float(bound.total.mean() + likelihood)

    small = [gap(n, "small") for n in (10, 80, 160)]
    assert small[0] > small[1] > small[2] > 0
    assert small[1] / small[2] == pytest.approx(2, abs=0.3)
    assert abs(gap(160, "large")) < 0.3 * small[2]


def test_discrete_values_have_a_probability():
    values = torch.linspace(-1, 1, 5, dtype=torch.float64)
    mean = torch.tensor([[-3.0, 0.1, 0.9, 4.0]], dtype=torch.float64)
    mass = torch.stack([log_bins(v.expand(1, 4), mean, 0.3, values).exp() for v in values])
    torch.testing.assert_close(mass.sum(0), torch.ones(1, 4, dtype=torch.float64))
    inner = Normal(mean, 0.3).cdf(torch.tensor(0.75)) - Normal(mean, 0.3).cdf(torch.tensor(0.25))
    torch.testing.assert_close(mass[3], inner)
    assert torch.isfinite(log_bins(values[:1].expand(1, 1), mean[:, 3:], 0.02, values)).all()
    # data on two points: the exact denoiser knows them, and a bit of information is left
    points = MixtureDenoiser([1.0, 1.0], torch.tensor([[-1.0], [1.0]]), Covariance.diagonal(torch.zeros(2, 1)), EDM())
    x = points.sample(2000, seeded())
    bound = elbo(points, x, samples=16, values=torch.tensor([-1.0, 1.0]), generator=seeded())
    assert float(bits_per_dim(bound.total, (1,)).mean()) == pytest.approx(1.0, abs=0.05)


def test_bits_of_a_uniform_density():
    """The density 1/2 on [-1, 1], of 256 grey levels 1/128 apart, is 8 bits."""
    nats = torch.full((3,), 64 * math.log(2))
    torch.testing.assert_close(bits_per_dim(nats, (1, 8, 8), bin_width=1 / 128), torch.full((3,), 8.0))


# --- learned variance -------------------------------------------------------------------------------------------

SPECTRUM = torch.tensor([0.02, 0.1, 0.3])


class MLP(nn.Module):
    def __init__(self, out):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, out))

    def forward(self, x, c_noise, cond=None):
        return self.net(torch.cat([x, c_noise[:, None]], -1))


@pytest.fixture(scope="module")
def learned():
    """A small network that has learned a Gaussian, and the data."""
    torch.manual_seed(0)
    data = GaussianDenoiser(torch.zeros(3), SPECTRUM, VPLinear()).sample(4096, seeded()).float()
    denoiser = NetworkDenoiser(MLP(6), VPLinear(), learn_variance=True)
    objective, generator = DenoisingObjective(variance_steps=50), seeded()
    optimiser = torch.optim.Adam(denoiser.parameters(), lr=1e-2)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 300)
    for _ in range(300):
        rows = torch.randint(0, len(data), (256,), generator=generator)
        optimiser.zero_grad()
        objective(denoiser, data[rows], None, generator).backward()
        optimiser.step()
        decay.step()
    return denoiser.eval(), data


def test_a_learned_variance_is_nearer_to_the_true_one_than_either_fixed_choice(learned):
    """For a Gaussian the variance of x_s given x_t is known: the posterior's, and what is not known of x."""
    denoiser, data = learned
    off = {"learned": [], "small": [], "large": []}
    for k in range(2, 51, 4):
        t, s = VPLinear().level(k / 50), VPLinear().level((k - 1) / 50)
        small, large = (DDPM(variance=v).coefficients(t, s, ())[2] ** 2 for v in ("small", "large"))
        a = DDPM().coefficients(t, s, ())[0]
        true = small + a**2 * SPECTRUM * t.sigma**2 / (t.alpha**2 * SPECTRUM + t.sigma**2)
        x = VPLinear().add_noise(data[:200], t.t, torch.randn(200, 3, generator=seeded(k)))
        with torch.no_grad():
            fraction = denoiser.with_variance(x, t.t)[1]
        for kind, f in (("learned", fraction), ("small", torch.zeros(3)), ("large", torch.ones(3))):
            off[kind].append((math.log(small) + f * math.log(large / small) - true.log()).abs().mean())
    off = {kind: float(torch.stack(errors).mean()) for kind, errors in off.items()}
    assert off["learned"] < 0.7 * min(off["small"], off["large"])


def test_a_learned_variance_gives_the_best_bound(learned):
    denoiser, data = learned
    bounds = {
        v: float(discrete_elbo(denoiser, data[:300], steps=50, variance=v, generator=seeded()).total.mean())
        for v in ("small", "large", "learned")
    }
    assert bounds["learned"] < min(bounds["small"], bounds["large"])


def test_learning_the_variance_does_not_move_the_mean():
    """The gradient of the mean's channels is the same without the variance's loss."""
    gradients = []
    for weight in (0.0, 1e-3):
        torch.manual_seed(0)
        net = nn.Linear(3, 6)

        class Backbone(nn.Module):
            def __init__(self, net):
                super().__init__()
                self.net = net

            def forward(self, x, c_noise, cond=None):
                return self.net(x)

        denoiser = NetworkDenoiser(Backbone(net), VPLinear(), learn_variance=True)
        DenoisingObjective(variance_weight=weight)(denoiser, torch.ones(8, 3), None, seeded()).backward()
        gradients.append(net.weight.grad)
    torch.testing.assert_close(gradients[0][:3], gradients[1][:3])
    assert bool((gradients[0][3:] == 0).all())
    assert bool((gradients[1][3:] != 0).any())


def test_images_learn_a_variance_with_twice_the_channels():
    torch.manual_seed(0)
    denoiser = NetworkDenoiser(
        DiT(1, 2, ndim=2, hidden=16, depth=1, heads=2, out_channels=2), VPCosine(), learn_variance=True
    )
    x = torch.randn(3, 1, 4, 4, generator=seeded())
    DenoisingObjective()(denoiser, x, None, seeded()).backward()
    mean, fraction = denoiser.with_variance(x, 0.5)
    assert mean.shape == fraction.shape == x.shape
    assert bool((fraction == 0.5).all())  # halfway, before training
    assert DDPM(3, variance="learned")(denoiser, (3, 1, 4, 4), generator=seeded()).shape == x.shape


@pytest.mark.parametrize(("fraction", "fixed"), [(0.0, "small"), (1.0, "large")])
def test_the_ends_of_a_learned_variance_are_the_fixed_ones(fraction, fixed):
    class Fixed(nn.Module):
        def forward(self, x, c_noise, cond=None):
            return torch.cat([0.1 * x, torch.full_like(x, 2 * fraction - 1)], 1)

    denoiser = NetworkDenoiser(Fixed(), VPCosine(), learn_variance=True)
    draws = [DDPM(8, variance=v)(denoiser, (5, 3), generator=seeded()) for v in ("learned", fixed)]
    torch.testing.assert_close(draws[0], draws[1])
    x = torch.randn(5, 3, generator=seeded())
    bounds = [discrete_elbo(denoiser, x, steps=5, variance=v, generator=seeded()) for v in ("learned", fixed)]
    torch.testing.assert_close(bounds[0].total, bounds[1].total)


def test_the_large_variance_is_right_for_white_data():
    """For N(0, 1) the reverse steps have the variance of the transition, and the samples stay N(0, 1)."""
    denoiser = GaussianDenoiser(torch.zeros(2), torch.ones(2), VPLinear())
    stop = VPLinear().t_of_kappa(0.05)
    spread = {
        v: float(DDPM(5, "logsnr", variance=v)(denoiser, (20000, 2), generator=seeded(), stop=stop).std())
        for v in ("small", "large")
    }
    assert spread["large"] == pytest.approx(1.0, abs=0.01)
    assert spread["small"] < 0.9


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda d, x: elbo(d, x, samples=0), "samples must be at least 1"),
        (lambda d, x: elbo(d, x, kappa=(2.0, 1.0)), "kappa must be"),
        (lambda d, x: discrete_elbo(d, x, variance="fixed"), "unknown variance 'fixed'"),
        (lambda d, x: discrete_elbo(d, x, samples=0), "samples must be at least 1"),
        (lambda d, x: discrete_elbo(d, x, variance="learned"), "GaussianDenoiser has no learned variance"),
        (lambda d, x: DDPM(3, variance="learned")(d, x=x), "no learned variance"),
        (lambda d, x: DDPM(3, variance="medium"), "unknown variance 'medium'"),
        (lambda d, x: NetworkDenoiser(nn.Identity(), EDM()).with_variance(x, 0.5), "no learned variance"),
        (lambda d, x: NetworkDenoiser(MLP(3), EDM(), learn_variance=True)(x.float(), 0.5), "twice the channels"),
        (lambda d, x: DenoisingObjective(variance_weight=-1.0), "variance_weight"),
        (lambda d, x: DenoisingObjective(weighting="snr"), "unknown weighting"),
    ],
)
def test_bad_arguments_say_what_is_wrong(call, message):
    denoiser = gaussian(EDM())
    with pytest.raises(SuffuseError, match=message):
        call(denoiser, denoiser.sample(2, seeded()))
    assert issubclass(InvalidArgument, SuffuseError)
