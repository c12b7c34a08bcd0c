"""AlignDiff, Diffuser, Decision Diffuser, and what they share."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from suffuse import Condition, exact
from suffuse.errors import CheckpointError, InvalidArgument
from suffuse.samplers import DDIM, DPMSolverPP, Euler
from suffuse.schedules import VPCosine
from suffuse_rl_planning import AlignDiff, DecisionDiffuser, Diffuser, directors, planners
from suffuse_rl_planning.attributes import Attributes, AttributeScale, StrengthEnsemble
from suffuse_rl_planning.planners import ValueGuidance
from suffuse_rl_planning.planners.compiled import compile_frozen
from suffuse_rl_planning.planners.objective import PinnedObjective
from suffuse_rl_planning.requests import token

ENV = "HalfCheetah-v5"
TINY = {"steps": 6, "hidden": 16, "depth": 1, "batch_size": 16, "accelerator": "cpu", "progress": False}


@pytest.fixture(scope="module")
def attributes(episodes):
    mean, std = episodes.observations.mean(0), episodes.observations.std(0)
    torch.manual_seed(0)
    model = StrengthEnsemble(("speed", "height"), mean.tolist(), std.tolist(), members=2, width=8)
    out = Attributes(model, env_id=ENV)
    out.relabel(episodes, episodes.windows(8, stride=5))
    return out


@pytest.fixture(scope="module")
def trained(episodes, attributes):
    windows = episodes.windows(8, stride=3)
    return AlignDiff.fit(windows, env_id=ENV, attributes=attributes, episodes=episodes, **TINY)


@pytest.fixture
def aligndiff(trained):
    return copy.copy(trained).request()


@pytest.fixture
def observation(episodes):
    return episodes.observations[[3, 70, 140]]


def test_strengths_are_requested_in_the_unit_interval(aligndiff, observation):
    assert {name: (s.low, s.high) for name, s in aligndiff.scales.items()} == {"speed": (0, 1), "height": (0, 1)}
    with pytest.warns(UserWarning, match="speed is clipped to"):
        aligndiff.request(speed=1.4)
    plan = aligndiff.request(speed=0.9).plan(observation)
    assert plan.actions.shape == (3, 1, 8, 6) and plan.nfe == 5


def test_the_director_chooses_the_plan_with_the_nearest_strengths(aligndiff, observation):
    aligndiff.candidates = 7
    plan = aligndiff.request(speed=[0.9, np.nan, 0.1], height=[np.nan, 0.2, 0.8]).plan(observation)
    v = aligndiff.attributes(plan.observations)
    expected = torch.stack(
        [(v[0, :, 0] - 0.9) ** 2, (v[1, :, 1] - 0.2) ** 2, ((v[2] - torch.tensor([0.1, 0.8])) ** 2).sum(-1)]
    )
    torch.testing.assert_close(plan.costs, expected)
    assert torch.equal(plan.best, expected.argmin(1))


def test_more_candidates_are_never_further_from_the_request(aligndiff, observation):
    """The first candidates are the same, so the best of more is at least as good."""
    aligndiff.request(speed=0.8)
    best = []
    for k in (2, 4, 8):
        aligndiff.candidates = k
        best.append(aligndiff.plan(observation).costs.min(1).values)
    assert (best[1] <= best[0] + 1e-6).all() and (best[2] <= best[1] + 1e-6).all()


@pytest.mark.parametrize("name", ["vp_ddim", "edm"])
def test_both_published_formulations_train_and_plan(episodes, attributes, observation, name):
    windows = episodes.windows(8, stride=3)
    planner = AlignDiff.fit(
        windows, env_id=ENV, attributes=attributes, episodes=episodes, formulation=name, bins=100, candidates=2, **TINY
    )
    assert isinstance(planner.sampler, {"vp_ddim": DDIM, "edm": Euler}[name])
    plan = planner.request(speed=0.5).plan(observation)
    assert plan.nfe == {"vp_ddim": 10, "edm": 5}[name] and plan.actions.isfinite().all()
    assert torch.equal(plan.observations[:, 0, 0], torch.from_numpy(observation))


def test_a_token_of_bins_is_the_bin_of_the_strength():
    u = torch.tensor([0.0, 0.004, 0.0101, 0.5, 0.999, 1.0])
    assert token(u, 100)[:, 0].argmax(1).tolist() == [0, 0, 1, 50, 99, 99]
    assert (token(u, 100).sum(-1) == 1).all()


def test_a_checkpoint_is_whole(aligndiff, observation, tmp_path):
    path = aligndiff.save(tmp_path / "planner")
    again = planners.load(path, candidates=3).request(speed=0.7)
    aligndiff.candidates = 3
    aligndiff.request(speed=0.7)
    assert isinstance(again, AlignDiff)
    np.testing.assert_array_equal(again.predict(observation)[0], aligndiff.predict(observation)[0])
    with pytest.raises(CheckpointError, match="is a aligndiff, not a diffuser"):
        Diffuser.load(path)


def test_half_precision_plans_nearly_the_same(aligndiff, observation):
    """Products are rounded to eight bits; what is pinned and what comes out stay float32."""
    aligndiff.request(speed=0.5)
    exact = aligndiff.plan(observation)
    aligndiff.precision = torch.bfloat16
    plan = aligndiff.plan(observation)
    assert plan.latent.dtype == torch.float32 and torch.equal(plan.observations[:, 0, 0], torch.from_numpy(observation))
    assert 0 < (plan.latent - exact.latent).abs().mean() < 0.05 * exact.latent.abs().mean()


def test_a_warm_start_goes_on_from_the_last_plan(aligndiff, observation):
    """Noised by nearly nothing, the new plan is the old one moved on, except where the world has moved."""
    aligndiff.warm_start, aligndiff.replan, aligndiff.guidance_scale = 0.02, 2, 1.0
    aligndiff.sampler = DPMSolverPP(steps=10, grid="time")
    aligndiff.request(speed=0.5)
    _, state = aligndiff.predict(observation)
    first = state.latent.clone()
    _, state = aligndiff.predict(observation, state)
    _, state = aligndiff.predict(observation, state)
    moved = torch.cat([first[..., 2:], first[..., -1:].expand(-1, -1, 2)], -1)
    assert (state.latent[:, 17:] - moved[:, 17:]).abs().mean() < 0.15
    assert state.decisions.tolist() == [2, 2, 2]


def test_a_reset_or_a_new_request_starts_cold(aligndiff, observation):
    class Watching(AlignDiff):
        def _plan(self, o, asked, rows, decisions, deterministic, last=None):
            self.log.append((rows.tolist(), last is not None))
            return super()._plan(o, asked, rows, decisions, deterministic, last)

    aligndiff.__class__, aligndiff.log = Watching, []
    aligndiff.warm_start, aligndiff.replan = 0.3, 1
    _, state = aligndiff.request(speed=0.5).predict(observation)
    _, state = aligndiff.predict(observation, state, np.array([False, True, False]))
    assert aligndiff.log == [([0, 1, 2], False), ([1], False), ([0, 2], True)]
    aligndiff.log.clear()
    aligndiff.request(speed=[0.5, 0.5, 0.6]).predict(observation, state)
    assert aligndiff.log == [([2], False), ([0, 1], True)]


def test_directors_add_up_and_limits_forbid(aligndiff, observation):
    aligndiff.candidates = 5
    bar = directors.limit(lambda observations, actions: observations[..., 0] - 10.0)  # nothing is that high
    never = directors.limit(lambda observations, actions: torch.ones_like(actions[..., 0]))
    plan = aligndiff.request(speed=0.5).plan(observation)
    arguments = (plan.observations, plan.actions, aligndiff.asked(3), aligndiff.scales)
    assert (bar(*arguments) == 0).all() and (never(*arguments) == 8).all()
    both = directors.weighted((1.0, aligndiff.director), (2.0, never))
    torch.testing.assert_close(both(*arguments), plan.costs + 16)
    assert (directors.disagreement(aligndiff.attributes)(*arguments) > 0).all()


# --- objective ----------------------------------------------------------------------------------------------------


def test_a_share_of_the_batch_is_asked_nothing():
    cond = Condition(tokens={name: torch.ones(4000, 1, 7) for name in ("a", "b", "c")})

    class Spy(torch.nn.Module):
        schedule = VPCosine()

        def forward(self, x, t, cond=None):
            self.cond = cond
            return x

    spy = Spy()
    objective = PinnedObjective(weighting="sample", observation_dim=2, cond_dropout=0.2, drop_all=0.1)
    objective(spy, torch.randn(4000, 3, 4), cond, torch.Generator().manual_seed(0))
    nothing = ~torch.stack([spy.cond.masks[name][:, 0] for name in cond.names]).any(0)
    assert nothing.float().mean() == pytest.approx(0.1 + 0.9 * 0.2**3, abs=0.015)


# --- Diffuser ---------------------------------------------------------------------------------------------------------


def test_value_guidance_is_the_posterior_mean_under_a_tilted_gaussian():
    """p = N(0, 1) tilted by exp(w b x) is N(w b, 1), whose posterior mean is known."""
    b, w = 0.7, 1.5
    schedule = VPCosine()
    plain = exact.GaussianDenoiser(torch.zeros(2), torch.ones(2), schedule)
    tilted = exact.GaussianDenoiser(torch.full((2,), w * b), torch.ones(2), schedule)

    def value(x, t):  # log E exp(w b x_0 | x_t) / w up to a constant: the exact value of noisy x
        level = schedule.level(t, like=x)
        return (b * level.alpha / (level.alpha**2 + level.sigma**2) * x).sum(1)

    guided = ValueGuidance(plain, value, w)
    x = torch.randn(6, 2, generator=torch.Generator().manual_seed(0))
    for t in (0.2, 0.5, 0.9):
        torch.testing.assert_close(guided(x, t), tilted(x, t), atol=1e-5, rtol=1e-4)


@pytest.fixture(scope="module")
def diffuser(episodes):
    windows = episodes.windows(8, stride=3)
    return Diffuser.fit(
        windows, env_id=ENV, returns=episodes.returns(windows), value_steps=40, options={"candidates": 4}, **TINY
    )


def test_diffuser_prefers_plans_that_its_value_prefers(diffuser, observation, tmp_path):
    plan = diffuser.plan(observation)
    x = diffuser.normaliser(torch.cat([plan.observations, plan.actions], -1)).transpose(2, 3)
    value = torch.stack([diffuser.value(x[:, k], diffuser.denoiser.schedule.t_min) for k in range(4)], 1)
    assert torch.equal(plan.best, value.argmax(1))
    again = planners.load(diffuser.save(tmp_path / "d"), candidates=4)
    np.testing.assert_array_equal(again.predict(observation)[0], diffuser.predict(observation)[0])


def test_guidance_by_value_raises_the_value(diffuser, observation):
    weak, strong = copy.copy(diffuser), copy.copy(diffuser)
    weak.guidance_scale, strong.guidance_scale = 0.0, 1.0
    assert strong.plan(observation).costs.mean() < weak.plan(observation).costs.mean()


def test_diffuser_needs_returns(episodes):
    with pytest.raises(InvalidArgument, match="returns must be a finite number for each"):
        Diffuser.fit(episodes.windows(8, stride=9), env_id=ENV, **TINY)
    with pytest.raises(InvalidArgument, match="has no rewards"):
        dataclasses.replace(episodes, rewards=None).returns(episodes.windows(8))


def test_returns_are_discounted_sums(episodes):
    """With discount one half, the return at the start of the last whole window is a geometric sum."""
    windows = episodes.windows(8)
    rewards = episodes.rewards[:60]
    expected = sum(0.5**k * rewards[k] for k in range(60))
    assert episodes.returns(windows, 0.5)[0] == pytest.approx(float(expected), rel=1e-4)


# --- Decision Diffuser ------------------------------------------------------------------------------------------------


def test_decision_diffuser_reads_actions_from_its_plan(episodes, observation, tmp_path):
    windows = episodes.windows(8, stride=3)
    returns = dataclasses.replace(windows, behaviour={"returns": episodes.returns(windows)})
    planner = DecisionDiffuser.fit(returns, env_id=ENV, inverse_steps=30, candidates=1, replan=2, **TINY)
    assert planner.denoiser.backbone.in_channels == 17
    planner.request(returns=planner.scales["returns"].high)
    plan = planner.plan(observation)
    s = planner.normaliser(plan.observations)
    expected = planner.inverse(s[..., :-1, :], s[..., 1:, :]).clamp(-1, 1)
    torch.testing.assert_close(plan.actions[..., :-1, :], expected, atol=1e-4, rtol=1e-3)
    again = planners.load(planner.save(tmp_path / "dd"), replan=2).request(returns=planner.scales["returns"].high)
    np.testing.assert_array_equal(again.predict(observation)[0], planner.predict(observation)[0])


def test_the_inverse_model_learns_the_action(episodes):
    windows = episodes.windows(8)
    planner = DecisionDiffuser.fit(windows, env_id=ENV, inverse_steps=400, replan=2, **TINY)
    s = planner.normaliser(windows.trajectories[..., :17])
    a = windows.trajectories[..., 17:]
    error = (planner.inverse(s[:, :-1], s[:, 1:]) - a[:, :-1]).square().mean()
    assert error < 0.35 * a.var()


def test_bad_input(aligndiff, episodes, attributes):
    windows = episodes.windows(8, stride=9)
    with pytest.raises(InvalidArgument, match="unknown formulation 'edn'; did you mean 'edm'"):
        AlignDiff.fit(windows, env_id=ENV, attributes=attributes, episodes=episodes, formulation="edn", **TINY)
    with pytest.raises(InvalidArgument, match="attributes is needed"):
        AlignDiff.fit(windows, env_id=ENV, **TINY)
    with pytest.raises(InvalidArgument, match="warm_start must lie in"):
        planners.DiffusionPlanner(
            aligndiff.denoiser, env_id=ENV, horizon=8, normaliser=aligndiff.normaliser, scales=aligndiff.scales,
            warm_start=1.0,
        )  # fmt: skip
    assert AttributeScale.fit(torch.rand(9, 1)).kind == "minmax"


@pytest.mark.slow
def test_a_compiled_planner_plans_the_same(trained, observation):
    plain, compiled = copy.copy(trained), copy.copy(trained)
    compiled.denoiser = copy.deepcopy(trained.denoiser)
    compiled.compile()
    plans = [planner.request(speed=0.7).plan(observation) for planner in (plain, compiled)]
    torch.testing.assert_close(plans[0].actions, plans[1].actions, atol=1e-4, rtol=1e-3)


@pytest.mark.slow
def test_a_frozen_network_has_its_own_weights_and_notices_new_ones():
    networks = [nn.Sequential(nn.Linear(4, 8), nn.GELU("tanh"), nn.Linear(8, 3)) for _ in range(2)]
    plain = [copy.deepcopy(network) for network in networks]
    x = torch.randn(5, 4)
    for network in networks:
        compile_frozen(network)
    with torch.no_grad():
        for network, same in zip(networks, plain, strict=True):
            torch.testing.assert_close(network(x), same(x))
        for network in (networks[0], plain[0]):
            network[0].weight += 1
        for network, same in zip(networks, plain, strict=True):
            torch.testing.assert_close(network(x), same(x))
            torch.testing.assert_close(copy.deepcopy(network)(x), same(x))
        networks[1].load_state_dict(plain[0].state_dict())
        torch.testing.assert_close(networks[1](x), plain[0](x))
    networks[0](x).sum().backward()  # with gradients too
    assert networks[0][0].weight.grad is not None
