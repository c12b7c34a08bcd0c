"""One object, many views: every prediction type read as every view, under every schedule, up to the ends of time;
and networks that are shown their own last estimate."""

import itertools
import math
import warnings

import pytest
import torch
from torch import nn

from suffuse import Condition, NetworkDenoiser, hub
from suffuse.denoiser import PREDICTION_TYPES, FunctionDenoiser
from suffuse.errors import InvalidArgument
from suffuse.exact import Covariance, MixtureDenoiser
from suffuse.guidance import ClassifierFree
from suffuse.nets import MLP, DiT
from suffuse.samplers import DDIM, Heun
from suffuse.schedules import EDM, DiscreteBetas, RectifiedFlow, VPCosine, VPLinear
from suffuse.training import DenoisingObjective, LogNormalKappa, fit

SCHEDULES = [VPLinear(), VPCosine(), EDM(), RectifiedFlow(), RectifiedFlow(shift=3.0), DiscreteBetas.linear()]
PRESERVING = [VPLinear(), VPCosine(), DiscreteBetas.linear()]


def name(value):
    return value if isinstance(value, str) else type(value).__name__


def times(schedule):
    """Near and at both ends of what a network is trained at."""
    return [schedule.t_min or 1e-4, 0.01, 0.5, 0.99, 1.0]


def truth(schedule):
    means = torch.tensor([[-1.0, 0.5, 0.0], [1.0, -0.5, 0.2]])
    return MixtureDenoiser([1.0, 2.0], means, Covariance.diagonal(torch.full((2, 3), 0.1)), schedule)


def noisy(schedule, t, dtype=torch.float64):
    x0 = truth(schedule).sample(64, torch.Generator().manual_seed(0))
    noise = torch.randn(64, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return schedule.add_noise(x0, t, noise).to(dtype)


def mean_of(view, x, level, value):
    """The posterior mean that a view stands for."""
    a, s = level.alpha, level.sigma
    match view:
        case "eps":
            return (x - s * value) / a
        case "score":
            return (x + s**2 * value) / a
        case "velocity":
            return (level.dsigma * x - s * value) / level.wronskian
        case "v":
            return (a * x - s * value) / (a**2 + s**2)


class Speaks(nn.Module):
    """A backbone that knows the posterior mean and answers in a prediction type."""

    def __init__(self, exact, prediction_type, data_std):
        super().__init__()
        self.exact, self.prediction_type, self.data_std = exact, prediction_type, data_std

    def forward(self, x, c_noise, cond=None):
        schedule = self.exact.schedule
        t = schedule.t_of_log_kappa(4 * c_noise.double())
        level = schedule.level(t, like=x)
        x = x * (level.alpha**2 * self.data_std**2 + level.sigma**2) ** 0.5
        match self.prediction_type:
            case "sample":
                return self.exact(x, t)
            case "epsilon":
                return self.exact.eps(x, t)
            case "score":
                return self.exact.score(x, t)
            case "flow_prediction":
                return self.exact.velocity(x, t)
            case "v_prediction":
                c_skip, c_out = NetworkDenoiser(nn.Identity(), schedule, data_std=self.data_std).coefficients(level)
                return (self.exact(x, t) - c_skip * x) / c_out


@pytest.mark.parametrize("schedule", SCHEDULES, ids=name)
@pytest.mark.parametrize("view", ["eps", "score", "velocity", "v"])
def test_every_view_gives_back_the_mean_up_to_the_ends(schedule, view):
    denoiser = truth(schedule)
    for t in times(schedule):
        level = schedule.level(t)
        if level.alpha == 0 and view in ("eps", "score"):
            continue  # noise alone says nothing about the data
        x = noisy(schedule, t)
        value = getattr(denoiser, view)(x, t)
        assert bool(torch.isfinite(value).all())
        torch.testing.assert_close(mean_of(view, x, level, value), denoiser(x, t), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("schedule", "prediction_type"),
    [(s, p) for s in SCHEDULES for p in PREDICTION_TYPES if p not in ("epsilon", "score") or s.alpha(1.0) > 0],
    ids=name,
)
def test_a_model_of_any_prediction_type_is_read_as_any_view_and_under_any_schedule(schedule, prediction_type):
    exact = truth(schedule)
    model = NetworkDenoiser(Speaks(exact, prediction_type, 0.7), schedule, prediction_type, data_std=0.7)
    for t in [0.01, 0.5, 0.98]:
        x = noisy(schedule, t)
        for view in ("eps", "score", "velocity", "v", "__call__"):
            found, expected = (getattr(d, view)(x, t) for d in (model, exact))
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        for other in SCHEDULES:
            here = other.t_of_kappa(schedule.kappa(t))
            if not 0 < here < 1:
                continue  # a noise level that the other schedule does not have
            y = x * (other.alpha(here) / schedule.alpha(t))
            torch.testing.assert_close(model.with_schedule(other)(y, here), exact(x, t), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "flow_prediction", "sample"])
@pytest.mark.parametrize("schedule", PRESERVING, ids=name)
def test_single_precision_is_enough_near_the_ends(schedule, prediction_type):
    """Views of a float32 network: rounding of the size of 1e-7, divided by sigma where noise is what is asked for."""
    exact = truth(schedule)
    model = NetworkDenoiser(Speaks(exact, prediction_type, 1.0), schedule, prediction_type)
    for t in [schedule.t_min, 0.99]:
        x, sigma, alpha = noisy(schedule, t, torch.float32), schedule.sigma(t), schedule.alpha(t)
        off = (model(x, t) - exact(x.double(), t)).abs().max()
        assert float(off) < 5e-6 / alpha + 1e-5
        off = (model.eps(x, t) - exact.eps(x.double(), t)).abs().max()
        assert float(off) < 1e-5 / sigma


@pytest.mark.parametrize("schedule", PRESERVING, ids=name)
def test_v_is_the_derivative_with_respect_to_the_angle(schedule):
    """With alpha = cos phi and sigma = sin phi, v = dx/dphi on the path between a sample and its noise."""
    x0, noise = torch.randn(4, 3, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)
    point = FunctionDenoiser(lambda x, t, cond: x0, schedule)
    angle = math.atan(schedule.kappa(0.4))

    def at(phi):
        return math.cos(phi) * x0 + math.sin(phi) * noise

    difference = (at(angle + 1e-5) - at(angle - 1e-5)) / 2e-5
    torch.testing.assert_close(point.v(at(angle), 0.4), difference, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("inner", "outer"), list(itertools.permutations(SCHEDULES, 2)), ids=name)
def test_another_schedule_is_finite_and_right_at_the_ends(inner, outer):
    """Where the outer schedule goes beyond the noise levels of the inner one, the nearest of those is used."""
    read, direct = truth(inner).with_schedule(outer), truth(outer)
    for t in (0.0, outer.t_min or 1e-4, 0.999, 1.0):
        x = noisy(outer, t)
        expected = direct(x, t) if outer.sigma(t) > 0 else x
        # within the change of the mean over the noise levels that are missing: kappa at one end, 1 / kappa at the other
        for time in (t, torch.full((64,), t, dtype=torch.float64)):
            torch.testing.assert_close(read(x, time), expected, rtol=0.05, atol=0.05)


def test_there_and_back_is_where_it_began():
    for a, b in itertools.permutations(SCHEDULES, 2):
        t = 0.6
        x = noisy(a, t)
        torch.testing.assert_close(truth(a).with_schedule(b).with_schedule(a)(x, t), truth(a)(x, t))


def test_starting_from_noise_where_signal_remains_is_warned_of():
    """A thousand steps' betas cut to 250 keep a quarter of the data at t = 1."""
    short, long = DiscreteBetas.linear(steps=250), DiscreteBetas.linear()
    with pytest.warns(UserWarning, match=r"DiscreteBetas keeps alpha/sigma = 0\.\d+ of the data at t=1"):
        DDIM(2)(truth(short), (4, 3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        DDIM(2)(truth(long), (4, 3))
        DDIM(2)(truth(short), init=torch.zeros(4, 3), start=0.9)


def test_the_end_of_a_flow_looks_to_the_network_like_what_it_was_trained_at():
    """Infinite noise has the label of the noisiest percent; and a trained network says there what it should."""
    labels = []

    class Spy(nn.Module):
        def forward(self, x, c_noise, cond=None):
            labels.append(c_noise)
            return x

    flow = NetworkDenoiser(Spy(), RectifiedFlow(), "flow_prediction")
    for t in (1.0, torch.ones(2), 0.9999, 0.995):
        flow(torch.randn(2, 3), t)
    assert all(torch.equal(label, labels[0]) for label in labels)
    data = truth(EDM()).sample(2000, torch.Generator().manual_seed(0)).float()
    torch.manual_seed(0)
    trained = fit(
        NetworkDenoiser(MLP(3, hidden=32, depth=1), RectifiedFlow()), data, steps=200, batch_size=256, lr=5e-3,
        ema_decay=0.98, progress=False,
    )  # fmt: skip
    with torch.no_grad():
        end = trained(torch.randn(500, 3, generator=torch.Generator().manual_seed(1)), 1.0)
    assert float((end - data.mean(0)).square().mean().sqrt()) < 0.15


@pytest.mark.parametrize("prediction_type", ["epsilon", "score"])
def test_noise_says_nothing_where_there_is_no_data(prediction_type):
    with pytest.raises(InvalidArgument, match=f"prediction_type='{prediction_type}' says nothing"):
        NetworkDenoiser(nn.Identity(), RectifiedFlow(), prediction_type)


# --- weights ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", SCHEDULES, ids=name)
@pytest.mark.parametrize(
    ("weighting", "view"), [("epsilon", "eps"), ("flow", "velocity"), ("sample", "__call__")], ids=name
)
def test_a_weight_is_what_a_view_makes_of_an_error(schedule, weighting, view):
    """w |D - D'|^2 is the squared difference of the two views."""
    t = torch.tensor([0.05, 0.4, 0.9], dtype=torch.float64)
    x = torch.randn(3, 2, dtype=torch.float64)
    level = schedule.level(t, like=x)
    one, other = (FunctionDenoiser(lambda x, t, cond, k=k: k * torch.ones_like(x), schedule) for k in (0.0, 0.5))
    difference = (getattr(one, view)(x, t) - getattr(other, view)(x, t)).square()
    weight = DenoisingObjective(weighting=weighting).weight(one, level)
    torch.testing.assert_close(0.25 * weight * torch.ones_like(x), difference)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=name)
def test_the_elbo_weight_is_half_the_rate_at_which_the_signal_is_lost(schedule):
    t, h = torch.tensor([0.3, 0.7], dtype=torch.float64), 1e-5
    snr = [(-2 * schedule.log_kappa(at)).exp() for at in (t - h, t + h)]
    level = schedule.level(t, like=torch.zeros(2, 1, dtype=torch.float64))
    weight = DenoisingObjective(weighting="elbo").weight(truth(schedule), level)[:, 0]
    torch.testing.assert_close(weight, (snr[0] - snr[1]) / (4 * h), rtol=1e-3, atol=0)


# --- self-conditioning ------------------------------------------------------------------------------------------


class Small(nn.Module):
    """An MLP over (x, estimate or zeros, c_noise)."""

    def __init__(self, dim, hidden=16):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2 * dim + 1, hidden), nn.SiLU(), nn.Linear(hidden, dim))
        self.seen = []

    def forward(self, x, c_noise, cond=None):
        estimate = torch.zeros_like(x)
        if cond is not None and "estimate" in cond.names:
            mask = cond.masks["estimate"]
            estimate = torch.where(mask, cond.tokens["estimate"][:, 0], estimate)
            self.seen.append(torch.where(mask, estimate, torch.nan))
        return self.net(torch.cat([x, estimate, c_noise[:, None]], -1))


def pair():
    """The same small network, with self-conditioning and without."""
    torch.manual_seed(0)
    net = Small(3)
    return [NetworkDenoiser(net, VPCosine(), self_conditioning=on) for on in (True, False)]


def test_without_an_estimate_it_is_the_plain_network():
    on, off = pair()
    x = torch.randn(5, 3)
    assert torch.equal(on(x, 0.3), off(x, 0.3))
    assert bool(on.backbone.seen[0].isnan().all())


@pytest.mark.parametrize("sampler", [DDIM(4), Heun(3)], ids=name)
def test_a_sampler_shows_the_last_mean(sampler):
    """The first evaluation has none; then each sees what the one before it said."""
    on, off = pair()
    states = list(sampler.iterate(on, (5, 3), generator=torch.Generator().manual_seed(0)))
    assert bool(on.backbone.seen[0].isnan().all())
    assert len(on.backbone.seen) == states[-1].nfe
    if isinstance(sampler, DDIM):
        for seen, state in zip(on.backbone.seen[1:], states[1:], strict=False):
            assert torch.equal(seen, state.mean)
    before = len(on.backbone.seen)
    sampler(off, (5, 3))
    assert len(on.backbone.seen) == before


def test_half_of_a_batch_is_trained_with_what_the_network_says_first():
    on, _ = pair()
    x0 = torch.randn(6, 3)
    objective = DenoisingObjective(weighting="sample")
    loss = objective(on, x0, None, torch.Generator().manual_seed(0))
    first, second = on.backbone.seen
    assert bool(first.isnan().all())
    assert len(first) == 3
    generator = torch.Generator().manual_seed(0)
    t = objective.time(on.schedule, 6, generator)
    x = on.schedule.add_noise(x0, t, torch.randn(6, 3, generator=generator))
    estimate = on(x, t).detach()
    torch.testing.assert_close(second[:3], estimate[:3])
    assert bool(second[3:].isnan().all())
    cond = Condition(tokens={"estimate": estimate[:, None]}, masks={"estimate": torch.arange(6)[:, None] < 3})
    torch.testing.assert_close(loss, (on(x, t, cond) - x0).square().mean())


def test_images_are_shown_as_a_map_beside_other_conditions_and_under_guidance(tmp_path):
    torch.manual_seed(0)
    net = DiT(1, 2, ndim=2, hidden=16, depth=1, heads=2, tokens={"class": 2}, maps={"estimate": 1})
    denoiser = NetworkDenoiser(net, VPCosine(), self_conditioning=True)
    cond = Condition(tokens={"class": torch.eye(2)[torch.arange(4) % 2][:, None]})
    loss = DenoisingObjective()(denoiser, torch.randn(4, 1, 4, 4), cond, torch.Generator().manual_seed(0))
    loss.backward()
    assert bool(torch.isfinite(loss))
    x = DDIM(3)(ClassifierFree(denoiser, 2.0), (4, 1, 4, 4), cond=cond)
    assert x.shape == (4, 1, 4, 4)
    again = hub.load(hub.save(denoiser, tmp_path / "model"))
    assert again.self_conditioning
    y = torch.randn(4, 1, 4, 4)
    torch.testing.assert_close(again(y, 0.4, cond), denoiser(y, 0.4, cond))


def test_a_second_look_helps_a_small_network():
    """On a ring of modes the error is lower with the network's own estimate before it than without."""
    angle = torch.arange(8) * math.pi / 4
    means = torch.stack([angle.cos(), angle.sin()], -1)
    ring = MixtureDenoiser(torch.ones(8), means, Covariance.diagonal(torch.full((8, 2), 0.01)), EDM())
    data = ring.sample(4096, torch.Generator().manual_seed(0)).float()
    torch.manual_seed(0)
    denoiser = NetworkDenoiser(Small(2, hidden=64), EDM(), data_std=0.7, self_conditioning=True)
    objective, generator = DenoisingObjective(LogNormalKappa(-1.0, 0.5)), torch.Generator().manual_seed(0)
    optimiser = torch.optim.Adam(denoiser.parameters(), lr=1e-2)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 600)
    for _ in range(600):
        rows = torch.randint(0, len(data), (256,), generator=generator)
        optimiser.zero_grad()
        objective(denoiser, data[rows], None, generator).backward()
        optimiser.step()
        decay.step()
    t = EDM().t_of_kappa(0.4)
    x = EDM().add_noise(data, t, torch.randn(data.shape, generator=generator))
    with torch.no_grad():
        first = denoiser(x, t)
        second = denoiser(x, t, Condition(tokens={"estimate": first[:, None]}))
        exact = ring(x, t)
    assert float((second - exact).square().mean()) < 0.8 * float((first - exact).square().mean())
