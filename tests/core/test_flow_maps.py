"""Flow maps: identities, the Gaussian's in closed form, objectives that only the true map satisfies, and sampling."""

import math

import pytest
import torch
from torch import nn

from suffuse import Condition, NetworkDenoiser, hub
from suffuse.distillation import FlowMap, FlowMapNetwork, FlowMapObjective, GaussianFlowMap
from suffuse.errors import InvalidArgument
from suffuse.exact import Covariance, GaussianDenoiser, MixtureDenoiser
from suffuse.guidance import ClassifierFree
from suffuse.metrics import energy_distance
from suffuse.nets import MLP, DiT
from suffuse.random import generators
from suffuse.samplers import DDIM, DPMSolverPP, FlowMapSampler, Heun
from suffuse.schedules import EDM, DiscreteBetas, RectifiedFlow, VPCosine, VPLinear
from suffuse.training import LogNormalKappa, fit

SCHEDULES = [VPLinear(), VPCosine(), EDM(), RectifiedFlow(), DiscreteBetas.linear()]
IDENTITIES = ["semigroup", "eulerian", "lagrangian"]


def name(value):
    return value if isinstance(value, str) else type(value).__name__


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def gaussian(schedule):
    a = torch.randn(3, 3, dtype=torch.float64, generator=seeded())
    return GaussianDenoiser(torch.tensor([0.3, -0.2, 1.0]), a @ a.T / 3 + 0.1 * torch.eye(3), schedule)


def noisy(schedule, t):
    noise = torch.randn(6, 3, dtype=torch.float64, generator=seeded(1))
    return schedule.add_noise(gaussian(schedule).sample(6, seeded()), t, noise)


def network(seed=0, schedule=None, data_std=1.0):
    """A flow map with random weights."""
    torch.manual_seed(seed)
    backbone = MLP(3, hidden=16, depth=1, tokens={"target": FlowMapNetwork.TARGET})
    nn.init.normal_(backbone.head.weight, std=0.3)
    return FlowMapNetwork(backbone, schedule or VPLinear(), data_std).double().eval()


# --- identities -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", SCHEDULES, ids=name)
@pytest.mark.parametrize("make", [lambda s: GaussianFlowMap(gaussian(s)), lambda s: network(schedule=s)], ids=str)
def test_from_a_time_to_itself_is_the_identity(make, schedule):
    flow_map = make(schedule)
    for t in (0.01, 0.5, 1.0, torch.linspace(0.1, 1, 6, dtype=torch.float64)):
        x = noisy(schedule, t)
        torch.testing.assert_close(flow_map(x, t, t), x)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=name)
def test_the_gaussian_flow_map_is_the_gaussian_flow(schedule):
    flow_map, denoiser = GaussianFlowMap(gaussian(schedule)), gaussian(schedule)
    for t, s in ((1.0, 0.3), (0.5, 0.1), (0.3, 0.8)):
        x = noisy(schedule, t)
        torch.testing.assert_close(flow_map(x, t, s), denoiser.flow(x, t, s))
        torch.testing.assert_close(flow_map(flow_map(x, t, s), s, 0.2), flow_map(x, t, 0.2))
        torch.testing.assert_close(flow_map.as_denoiser()(x, t), denoiser(x, t))
    # a consistency function: the same clean sample from everywhere on a path
    x = noisy(schedule, 1.0)
    clean = flow_map(x, 1.0)
    for s in (0.7, 0.2):
        torch.testing.assert_close(flow_map(flow_map(x, 1.0, s), s, 0.0), clean)
    end = denoiser.flow(x, 1.0, 0.0)
    torch.testing.assert_close(clean, end, rtol=0, atol=0.02 if schedule.sigma(0.0) else 1e-9)  # EDM ends above 0


@pytest.mark.parametrize("schedule", SCHEDULES, ids=name)
def test_a_silent_network_is_the_flow_map_of_white_data(schedule):
    backbone = MLP(3, hidden=8, depth=1, tokens={"target": 16})  # its last layer starts at zero
    flow_map = FlowMapNetwork(backbone, schedule, data_std=0.5).double()
    exact = GaussianDenoiser(torch.zeros(3), torch.full((3,), 0.25), schedule)
    for t, s in ((1.0, 0.3), (0.5, 0.1), (0.3, 0.8)):
        x = noisy(schedule, t)
        torch.testing.assert_close(flow_map(x, t, s), exact.flow(x, t, s))


@pytest.mark.parametrize("schedule", SCHEDULES, ids=name)
def test_the_limit_of_short_jumps_is_the_velocity_and_a_v_prediction(schedule):
    flow_map = network(schedule=schedule, data_std=0.7)
    t, h = 0.4004, 1e-6  # between two of the nodes of discrete betas
    x = noisy(schedule, t)
    velocity = (flow_map(x, t, t + h) - flow_map(x, t, t - h)) / (2 * h)
    torch.testing.assert_close(flow_map.as_denoiser().velocity(x, t), velocity, rtol=1e-4, atol=1e-4)

    class Diagonal(nn.Module):
        def forward(self, z, c_noise, cond=None):
            tau = torch.sigmoid(4 * c_noise)
            scale = ((1 - tau) ** 2 * 0.49 + tau**2).sqrt()[:, None]
            slope = (tau - 0.49 * (1 - tau))[:, None] / scale**2
            return (flow_map.average(z * scale, tau, tau) - slope * z * scale) / 0.7 * scale

    denoiser = NetworkDenoiser(Diagonal(), schedule, "v_prediction", data_std=0.7)
    torch.testing.assert_close(denoiser(x, t), flow_map.as_denoiser()(x, t))


def test_times_may_differ_by_row_and_batches_do_not_matter():
    flow_map, x = network(), noisy(VPLinear(), 0.5)
    t, s = torch.linspace(0.3, 1, 6, dtype=torch.float64), torch.linspace(0, 0.2, 6, dtype=torch.float64)
    rows = torch.cat([flow_map(x[i : i + 1], float(t[i]), float(s[i])) for i in range(6)])
    torch.testing.assert_close(flow_map(x, t, s), rows)


# --- objectives -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("difference", [None, 1e-3])
@pytest.mark.parametrize("identity", IDENTITIES)
@pytest.mark.parametrize("schedule", SCHEDULES, ids=name)
def test_an_objective_is_zero_at_the_exact_flow_map(schedule, identity, difference):
    denoiser = gaussian(schedule)
    objective = FlowMapObjective(identity, denoiser, difference=difference)
    loss = objective(GaussianFlowMap(denoiser), denoiser.sample(64, seeded()), None, seeded(1))
    assert float(loss) < (1e-20 if difference is None else 1e-9)


class Bent(FlowMap):
    """The exact flow map and an error of some size."""

    def __init__(self, exact, size):
        super().__init__()
        self.exact, self.schedule = exact, exact.schedule
        self.size = nn.Parameter(torch.tensor(size, dtype=torch.float64))

    def average(self, y, tau, r, cond=None):
        bend = torch.sin(2 * y + tau[:, None]) * (1 + r[:, None])
        return self.exact.average(y, tau, r, cond) + self.size.to(y) * bend


@pytest.mark.parametrize("identity", IDENTITIES)
def test_learning_from_a_teacher_leads_to_the_exact_flow_map(identity):
    """The gradient vanishes there, and points back to it from both sides."""
    denoiser = gaussian(EDM())
    x0 = denoiser.sample(2000, seeded())
    slopes = []
    for size in (-0.2, 0.0, 0.2):
        flow_map = Bent(GaussianFlowMap(denoiser), size)
        FlowMapObjective(identity, denoiser)(flow_map, x0, None, seeded(1)).backward()
        slopes.append(float(flow_map.size.grad))
    assert slopes[0] < -0.01
    assert abs(slopes[1]) < 1e-9
    assert slopes[2] > 0.01


@pytest.mark.parametrize("identity", IDENTITIES)
def test_learning_from_data_leads_to_the_exact_flow_map(identity):
    """In the mean over noise: many small batches, and their spread."""
    denoiser = gaussian(RectifiedFlow())
    objective = FlowMapObjective(identity)
    slopes = {}
    for size in (-0.3, 0.0, 0.3):
        grads = []
        for k in range(20):
            flow_map = Bent(GaussianFlowMap(denoiser), size)
            objective(flow_map, denoiser.sample(1000, seeded(k)), None, seeded(100 + k)).backward()
            grads.append(flow_map.size.grad)
        slopes[size] = torch.stack(grads)
    error = float(slopes[0.0].std()) / math.sqrt(20)
    assert abs(float(slopes[0.0].mean())) < 4 * error
    assert float(slopes[-0.3].mean()) < -8 * error
    assert float(slopes[0.3].mean()) > 8 * error


@pytest.mark.parametrize("identity", ["eulerian", "lagrangian"])
def test_derivatives_pass_attention_and_agree_with_differences(identity):
    torch.manual_seed(0)
    flow_map = FlowMapNetwork(DiT(1, 2, ndim=1, hidden=16, depth=1, heads=2, tokens={"target": 16, "class": 2}), EDM())
    for parameter in flow_map.parameters():
        nn.init.normal_(parameter, std=0.05)
    x0, cond = torch.randn(8, 1, 8), Condition(tokens={"class": torch.eye(2)[torch.arange(8) % 2][:, None]})
    losses = [
        FlowMapObjective(identity, diagonal=0.2, difference=d)(flow_map, x0, cond, seeded()) for d in (None, 1e-3)
    ]
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-3)
    losses[0].backward()
    assert all(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in flow_map.parameters())


def test_pairs_are_what_is_asked_for():
    flow_map = network(schedule=RectifiedFlow())
    tau, r = FlowMapObjective(diagonal=0.3, clean=0.2).pairs(flow_map, torch.zeros(4000, 3), seeded())
    assert bool((tau >= r).all())
    assert float((tau == r).double().mean()) == pytest.approx(0.3, abs=0.03)
    assert float((r == 0).double().mean()) == pytest.approx(0.2, abs=0.03)
    tau, r = FlowMapObjective("eulerian", diagonal=0, clean=1).pairs(flow_map, torch.zeros(100, 3), seeded())
    assert bool((r == 0).all())


def test_weights_and_powers_enter_the_loss():
    flow_map, x0 = network(), torch.randn(8, 3, dtype=torch.float64)
    plain = FlowMapObjective()(flow_map, x0, None, seeded())
    half = FlowMapObjective()(flow_map, x0, None, seeded(), torch.full((8, 3), 0.5))
    assert half.item() == pytest.approx(0.5 * plain.item())
    for scale in (1.0, 10.0):  # with p = 1 every error counts alike, as long as it is not tiny
        loss = FlowMapObjective(power=1.0)(Bent(flow_map, scale), x0, None, seeded())
        assert 0.8 < loss.item() < 1


# --- training and sampling --------------------------------------------------------------------------------------


@pytest.mark.parametrize("teacher", [True, False], ids=["distilled", "from data"])
def test_a_trained_network_is_the_gaussian_flow_map(teacher, tmp_path):
    denoiser = GaussianDenoiser(torch.tensor([0.5, -0.5]), torch.tensor([[1.0, 0.6], [0.6, 0.5]]), VPCosine())
    data = denoiser.sample(4000, seeded()).float()
    torch.manual_seed(0)
    backbone = MLP(2, hidden=32, depth=1, tokens={"target": FlowMapNetwork.TARGET})
    trained = fit(
        FlowMapNetwork(backbone, VPCosine(), data_std=float(data.std())), data, steps=400, batch_size=256, lr=5e-3,
        objective=FlowMapObjective(teacher=denoiser if teacher else None), ema_decay=0.98, out=tmp_path / "run",
        progress=False,
    )  # fmt: skip
    x = torch.randn(500, 2, generator=seeded())
    with torch.no_grad():
        for t, s in ((1.0, 0.0), (1.0, 0.5), (0.6, 0.2)):
            off = (trained(x, t, s) - denoiser.flow(x, t, s)).square().mean().sqrt()
            move = (x - denoiser.flow(x, t, s)).square().mean().sqrt()
            assert float(off) < (0.1 if teacher else 0.2) * float(move)
    again = hub.load(tmp_path / "run")
    torch.testing.assert_close(again(x, 1.0, 0.2), trained(x, 1.0, 0.2))


def test_one_jump_beats_four_steps_of_a_solver_on_a_mixture():
    """On eight modes, distilled from the exact denoiser."""
    angle = torch.arange(8, dtype=torch.float64) * math.pi / 4
    means = torch.stack([angle.cos(), angle.sin()], -1)
    ring = MixtureDenoiser(torch.ones(8), means, Covariance.diagonal(torch.full((8, 2), 0.01)), RectifiedFlow())
    data = ring.sample(4000, seeded()).float()
    torch.manual_seed(0)
    backbone = MLP(2, hidden=64, depth=2, octaves=3, tokens={"target": FlowMapNetwork.TARGET})
    trained = fit(
        FlowMapNetwork(backbone, RectifiedFlow(), data_std=float(data.std())), data, steps=300, batch_size=256,
        lr=5e-3, objective=FlowMapObjective(teacher=ring), ema_decay=0.98, progress=False,
    )  # fmt: skip
    truth = ring.sample(2000, seeded(1))
    jumped = FlowMapSampler(1)(trained, (2000, 2), generator=seeded(2))
    solved = DPMSolverPP(4)(ring, (2000, 2), generator=seeded(2))
    assert energy_distance(jumped, truth) < 0.5 * energy_distance(solved, truth)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=name)
@pytest.mark.parametrize("steps", [1, 3])
def test_without_fresh_noise_any_number_of_jumps_is_the_flow(schedule, steps):
    flow_map = GaussianFlowMap(gaussian(schedule))
    x = noisy(schedule, 1.0)
    found = FlowMapSampler(steps)(flow_map, x=x, dtype=torch.float64)
    torch.testing.assert_close(found, flow_map(x, 1.0, 0.0))
    found = FlowMapSampler(steps)(flow_map, x=noisy(schedule, 0.8), start=0.8, stop=0.3, dtype=torch.float64)
    torch.testing.assert_close(found, flow_map(noisy(schedule, 0.8), 0.8, 0.3))


@pytest.mark.parametrize("gamma", [0.5, 1.0])
@pytest.mark.parametrize("schedule", SCHEDULES, ids=name)
def test_fresh_noise_leaves_the_distribution_as_it_is(schedule, gamma):
    flow_map = GaussianFlowMap(gaussian(schedule))
    truth = gaussian(schedule).sample(20000, seeded(1))
    x = FlowMapSampler(4, gamma=gamma)(flow_map, (20000, 3), generator=seeded(2), dtype=torch.float64)
    torch.testing.assert_close(x.mean(0), truth.mean(0), rtol=0, atol=0.05)
    torch.testing.assert_close(x.T.cov(), truth.T.cov(), rtol=0, atol=0.05)


def test_gamma_one_is_multistep_consistency():
    """Jump to the clean end, noise to the next level, and so on."""
    flow_map, schedule = network(), VPLinear()
    x = torch.randn(4, 3, dtype=torch.float64, generator=seeded()) * schedule.sigma(1.0)
    generator = seeded(1)
    found = FlowMapSampler(3, gamma=1.0)(flow_map, x=x, generator=generator, dtype=torch.float64)
    generator, expected = seeded(1), x
    for t, s in ((1.0, 2 / 3), (2 / 3, 1 / 3), (1 / 3, 0.0)):
        expected = flow_map(expected, t, 0.0)
        if s:
            noise = torch.randn(4, 3, dtype=torch.float64, generator=generator)
            expected = schedule.add_noise(expected, s, noise)
    torch.testing.assert_close(found, expected)


def test_a_flow_map_is_a_denoiser_for_samplers_and_guidance():
    flow_map, denoiser = GaussianFlowMap(gaussian(EDM())), gaussian(EDM())
    x = noisy(EDM(), 1.0)
    for sampler in (DDIM(5), Heun(4)):
        torch.testing.assert_close(
            sampler(flow_map.as_denoiser(), x=x, dtype=torch.float64), sampler(denoiser, x=x, dtype=torch.float64)
        )
    torch.manual_seed(0)
    backbone = MLP(3, hidden=8, depth=1, tokens={"target": FlowMapNetwork.TARGET, "class": 2})
    nn.init.normal_(backbone.head.weight)
    view = FlowMapNetwork(backbone, VPLinear()).as_denoiser()
    cond = Condition(tokens={"class": torch.eye(2)[torch.arange(4) % 2][:, None]})
    x = torch.randn(4, 3)
    with torch.no_grad():
        c, u = view(x, 0.5, cond), view(x, 0.5, cond.null())
        torch.testing.assert_close(ClassifierFree(view, 2.0)(x, 0.5, cond), u + 2 * (c - u))


def test_a_sample_depends_on_its_own_seed_only():
    flow_map = network().float()
    sampler = FlowMapSampler(3, gamma=0.7)
    batch = sampler(flow_map, (4, 3), generator=generators(range(4)))
    alone = sampler(flow_map, (1, 3), generator=generators([2]))
    torch.testing.assert_close(alone[0], batch[2])
    assert sampler.nfe(VPLinear()) == 3


def test_checkpoints_keep_the_map(tmp_path):
    flow_map, x = network(data_std=0.6).float(), torch.randn(3, 3)
    again = hub.load(hub.save(flow_map, tmp_path / "map"))
    torch.testing.assert_close(again(x, 0.9, 0.2), flow_map(x, 0.9, 0.2))
    assert (again.schedule, again.data_std) == (VPLinear(), 0.6)


def test_other_times_of_pairs():
    objective = FlowMapObjective(time=LogNormalKappa(0.0, 1.5))
    flow_map = network(schedule=EDM())
    assert bool(torch.isfinite(objective(flow_map, torch.randn(32, 3, dtype=torch.float64), None, seeded())))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: FlowMapObjective("euler"), "unknown identity 'euler'; did you mean 'eulerian'"),
        (lambda: FlowMapObjective(diagonal=0.7, clean=0.5), "in sum at most 1"),
        (lambda: FlowMapObjective(diagonal=0.0), "learns u from pairs with s = t"),
        (lambda: FlowMapObjective("lagrangian", diagonal=0.0), "learns u from pairs with s = t"),
        (lambda: FlowMapObjective(difference=0.0), "difference must be positive"),
        (lambda: FlowMapObjective(cond_dropout=2.0), "cond_dropout"),
        (lambda: FlowMapSampler(gamma=1.5), "gamma must lie in"),
        (lambda: FlowMapSampler()(gaussian(EDM()), (2, 3)), "needs a FlowMap, got GaussianDenoiser"),
        (lambda: FlowMapNetwork(nn.Identity(), EDM(), data_std=0.0), "is the data constant"),
        (
            lambda: network()(torch.zeros(2, 3).double(), 0.5, 0.1, Condition(tokens={"a": torch.ones(3, 1, 1)})),
            "batch",
        ),
        (lambda: network()(torch.zeros(2, 4).double(), 0.5, 0.1), "x must have 3 entries a sample"),
        (lambda: FlowMapNetwork(MLP(3, tokens={"target": 16}, out_dim=2), EDM())(torch.zeros(2, 3), 0.5), "shapes"),
        (lambda: MLP(3, depth=0), "depth must be at least 1"),
    ],
)
def test_bad_arguments_say_what_is_wrong(call, message):
    with pytest.raises(InvalidArgument, match=message):
        call()
