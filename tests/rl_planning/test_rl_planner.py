"""The planner: what is pinned, what it is asked, and what it hands back."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch

from suffuse import Condition, hub
from suffuse.errors import CheckpointError, InvalidArgument
from suffuse.samplers import DDPM, DPMSolverPP, Heun
from suffuse_rl_planning import DiffusionPlanner
from suffuse_rl_planning.directors import measured
from suffuse_rl_planning.planners.objective import PinnedObjective
from suffuse_rl_planning.requests import encode


@pytest.fixture
def observation(episodes):
    return episodes.observations[[3, 70, 140, 200, 260]]


def actions_of(planner, observation, **options):
    return planner.predict(observation, **options)[0]


# --- the objective ------------------------------------------------------------------------------------------------


class Spy(torch.nn.Module):
    """Stands in for a denoiser: keeps what it saw and answers zero."""

    def __init__(self, denoiser):
        super().__init__()
        self.schedule, self.coefficients = denoiser.schedule, denoiser.coefficients

    def forward(self, x, t, cond=None):
        self.x, self.cond = x, cond
        self.answer = torch.zeros_like(x, requires_grad=True)
        return self.answer


def test_the_pinned_observation_is_shown_clean_and_not_judged(planner):
    x0 = torch.randn(6, 23, 8)
    spy = Spy(planner.denoiser)
    objective = PinnedObjective(weighting="sample", observation_dim=17)
    objective(spy, x0, None, torch.Generator().manual_seed(0)).backward()
    assert torch.equal(spy.x[:, :17, 0], x0[:, :17, 0])
    assert (spy.x[:, 17:, 0] != x0[:, 17:, 0]).all() and (spy.x[:, :, 1:] != x0[:, :, 1:]).all()
    gradient = spy.answer.grad / -x0  # of the weighted mean of squares at zero: 2 W / entries
    assert (gradient[:, :17, 0] == 0).all()
    assert torch.allclose(gradient[:, 17:, 0] / gradient[:, 17:, 1], torch.tensor(10.0), rtol=1e-3)


def test_behaviours_are_dropped_apart(planner):
    cond = Condition(tokens={name: torch.ones(400, 1, 7) for name in ("speed", "height")})
    spy = Spy(planner.denoiser)
    objective = PinnedObjective(weighting="sample", observation_dim=17, cond_dropout=0.5, drop_all=0.0)
    objective(spy, torch.randn(400, 23, 8), cond, torch.Generator().manual_seed(0))
    kept = torch.stack([spy.cond.masks[name][:, 0] for name in cond.names])
    assert {tuple(column) for column in kept.T.tolist()} == {(a, b) for a in (True, False) for b in (True, False)}


# --- planning -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sampler", [DPMSolverPP(steps=3, grid="time"), DDPM(steps=3, grid="time"), Heun(steps=2)], ids=repr
)
def test_a_plan_starts_exactly_where_the_robot_is(planner, observation, sampler):
    planner.sampler, planner.candidates = sampler, 3
    plan = planner.request(speed=1.0).plan(observation)
    assert plan.observations.shape == (5, 3, 8, 17) and plan.actions.shape == (5, 3, 8, 6)
    assert torch.equal(plan.observations[:, :, 0], torch.from_numpy(observation)[:, None].expand(-1, 3, -1))
    assert plan.actions.abs().max() <= 1


def test_the_state_is_pinned_at_every_noise_level(planner, observation):
    seen = []

    class Watch(type(planner.denoiser)):
        def forward(self, x, t, cond=None):
            seen.append(x[:, :17, 0].clone())
            return super().forward(x, t, cond)

    planner.denoiser = copy.copy(planner.denoiser)
    planner.denoiser.__class__ = Watch
    planner.request(speed=1.0).plan(observation)
    first = torch.cat([torch.from_numpy(observation), torch.zeros(5, 6)], -1)
    assert len(seen) == 5
    for x in seen:
        assert torch.equal(x, planner.normaliser(first)[:, :17].repeat(2, 1))  # conditional and unconditional


def test_environment_i_does_not_depend_on_the_batch(planner, observation):
    """Row 3 planned alone equals row 3 planned among five."""
    planner.candidates = 2
    planner.request(speed=np.linspace(-0.5, 1, 5))
    together = planner.plan(observation)
    alone = planner.plan(observation[3], rows=[3])
    torch.testing.assert_close(together.actions[3:4], alone.actions, rtol=1e-4, atol=1e-5)


def test_the_same_seed_gives_the_same_plan(planner, observation):
    planner.request(speed=1.0)
    one, two = (actions_of(planner, observation) for _ in range(2))
    np.testing.assert_array_equal(one, two)
    planner.seed = 1
    assert not np.array_equal(one, actions_of(planner, observation))


def test_without_determinism_the_noise_moves_on(planner, observation):
    one, two = (actions_of(planner, observation, deterministic=False) for _ in range(2))
    assert not np.array_equal(one, two)


def test_asking_nothing_is_the_null_condition(planner):
    nothing = encode({name: torch.full((2,), torch.nan) for name in planner.scales}, planner.scales)
    asked = encode({name: torch.zeros(2) for name in planner.scales}, planner.scales)
    for name in planner.scales:
        assert torch.equal(nothing.tokens[name], asked.null().tokens[name])
        assert torch.equal(nothing.masks[name], asked.null().masks[name])


def test_zero_is_a_request(planner, observation):
    planner.guidance_scale = 3.0
    still = actions_of(planner.request(speed=0.0), observation)
    assert not np.allclose(still, actions_of(planner.request(), observation))


def test_any_subset_of_the_behaviours_can_be_requested(planner, observation):
    """A NaN leaves a behaviour open for that environment only."""
    planner.request(speed=[1.0, np.nan, 1.0, 1.0, 1.0], height=0.6)
    mixed = planner.plan(observation).actions
    only_height = planner.request(height=0.6).plan(observation).actions
    torch.testing.assert_close(mixed[1], only_height[1], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(mixed[0], only_height[0], rtol=1e-4, atol=1e-5)


def test_the_director_picks_the_candidate_nearest_to_the_request(planner, observation):
    planner.candidates = 6
    plan = planner.request(speed=1.5).plan(observation)
    speeds = plan.observations[..., 8].mean(-1)
    scale = planner.scales["speed"]
    error = (scale(speeds) - scale(torch.tensor(1.5))).abs()
    assert torch.equal(plan.best, error.argmin(1))
    cost = measured(planner.env_id)(plan.observations, plan.actions, planner.asked(5), planner.scales)
    torch.testing.assert_close(cost, error)


# --- acting -------------------------------------------------------------------------------------------------------


class Counting(DiffusionPlanner):
    def _plan(self, o, asked, rows, decisions, deterministic, last=None):
        self.log.append((rows.tolist(), decisions.tolist()))
        return super()._plan(o, asked, rows, decisions, deterministic, last)


@pytest.fixture
def counting(planner):
    planner.__class__, planner.log, planner.replan = Counting, [], 3
    return planner.request(speed=0.5)


def test_it_replans_every_k_steps_and_executes_the_plan_in_between(counting, observation):
    state, actions = None, []
    for _ in range(4):
        action, state = counting.predict(observation, state)
        actions.append(action)
    assert counting.log == [([0, 1, 2, 3, 4], [0] * 5), ([0, 1, 2, 3, 4], [1] * 5)]
    planned = counting.plan(observation).chosen()[1]
    np.testing.assert_array_equal(np.stack(actions[:3], 1), planned[:, :3].numpy())


def test_a_reset_environment_replans_alone(counting, observation):
    _, state = counting.predict(observation)
    counting.predict(observation, state, episode_start=np.array([False, True, False, False, True]))
    assert counting.log[1] == ([1, 4], [0, 0])


def test_a_new_request_takes_effect_at_once_where_it_changed(counting, observation):
    _, state = counting.predict(observation)
    counting.request(speed=[0.5, 0.5, -0.5, 0.5, np.nan]).predict(observation, state)
    assert counting.log[1] == ([2, 4], [1, 1])


def test_one_environment_needs_no_batch_axis(planner, observation):
    single, _ = planner.request(speed=1.0).predict(observation[0])
    batched, _ = planner.predict(observation[:1])
    assert single.shape == (6,) and np.array_equal(single, batched[0])


# --- keeping ------------------------------------------------------------------------------------------------------


def test_a_checkpoint_holds_all_that_a_decision_needs(planner, observation, tmp_path):
    path = planner.save(tmp_path / "planner", metadata={"recipe": "none"})
    again = DiffusionPlanner.load(path).request(speed=1.0)
    np.testing.assert_array_equal(actions_of(again, observation), actions_of(planner.request(speed=1.0), observation))
    kept = json.loads((path / "config.json").read_text())["metadata"]["planner"]
    assert kept["units"] == {"speed": "m/s", "height": "m"} and "mujoco" in kept["versions"]


def test_a_checkpoint_without_scales_is_refused(planner, tmp_path):
    path = hub.save(planner.denoiser, tmp_path / "bare")
    with pytest.raises(CheckpointError, match="is not a planner"):
        DiffusionPlanner.load(path)


# --- bad input ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda p: p.predict(np.zeros((2, 11))),
            r"observation must be \(17,\) or \(n, 17\) for HalfCheetah-v5, got \(2, 11\)",
        ),
        (lambda p: p.predict(np.zeros((0, 17))), "observation must be"),
        (lambda p: p.predict(np.full(17, np.nan)), "observation holds NaN"),
        (lambda p: p.request(sped=1.0), "unknown behaviour 'sped'; did you mean 'speed'"),
        (lambda p: p.request(energy=1.0), "unknown behaviour 'energy'.*known: height, speed"),
        (lambda p: p.request(speed=np.inf), "speed must be a finite number"),
        (
            lambda p: p.request(speed=[0.5, 1.0]).predict(np.zeros((3, 17))),
            "requested for 2 environments, the observation has 3",
        ),
        (lambda p: DiffusionPlanner(**parts(p), replan=9), "replan must lie between 1 and the horizon of 8"),
        (lambda p: DiffusionPlanner(**parts(p), candidates=0), "candidates must be at least 1"),
    ],
)
def test_bad_input(planner, call, message):
    with pytest.raises(InvalidArgument, match=message):
        call(planner)


def parts(p):
    return {
        "denoiser": p.denoiser,
        "env_id": p.env_id,
        "horizon": p.horizon,
        "normaliser": p.normaliser,
        "scales": p.scales,
    }


def test_a_request_beyond_the_data_is_clipped_with_a_warning(planner, observation):
    high = planner.scales["speed"].high
    with pytest.warns(UserWarning, match="speed is clipped to"):
        planner.request(speed=99.0)
    np.testing.assert_allclose(
        actions_of(planner, observation), actions_of(planner.request(speed=high), observation), atol=1e-5
    )


def test_a_horizon_that_patches_do_not_fill_is_refused(windows):
    with pytest.raises(InvalidArgument, match="horizon=8 must be a multiple of patch=3"):
        DiffusionPlanner.fit(windows, env_id="HalfCheetah-v5", steps=1, patch=3, progress=False)


def test_training_data_with_nan_is_refused(windows):
    import dataclasses

    spoilt = dataclasses.replace(windows, trajectories=windows.trajectories * torch.nan)
    with pytest.raises(InvalidArgument, match="windows hold NaN"):
        DiffusionPlanner.fit(spoilt, env_id="HalfCheetah-v5", steps=1, progress=False)
