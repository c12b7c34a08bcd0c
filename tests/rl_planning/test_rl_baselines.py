"""Behaviour cloning, and the tests that compare policies."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from suffuse.errors import InvalidArgument
from suffuse_rl_planning import BehaviourCloning, evaluate
from suffuse_rl_planning.collect import RandomPolicy
from suffuse_rl_planning.data import Scale, Windows

ENV = "HalfCheetah-v5"


@pytest.fixture(scope="module")
def orders():
    """Data in which the first action is half the speed that was measured, and the second echoes the pitch."""
    generator = torch.Generator().manual_seed(0)
    observations = torch.randn(400, 8, 17, generator=generator)
    speed = 2 * torch.rand(400, generator=generator) - 1
    actions = torch.zeros(400, 8, 6)
    actions[..., 0], actions[..., 1] = speed[:, None] / 2, 0.3 * observations[..., 1]
    return Windows(torch.cat([observations, actions], -1), {"speed": speed}, torch.zeros(400), torch.zeros(400))


@pytest.fixture(scope="module")
def obedient(orders):
    return BehaviourCloning.fit(orders, env_id=ENV, steps=400, hidden=64)


def test_cloning_learns_the_policy_and_the_request(obedient):
    observation = np.random.default_rng(0).standard_normal((50, 17))
    wanted = np.linspace(-0.9, 0.9, 50)
    action, _ = obedient.request(speed=wanted).predict(observation)
    assert np.abs(action[:, 0] - wanted / 2).mean() < 0.1
    assert np.corrcoef(action[:, 1], observation[:, 1])[0, 1] > 0.95


def test_an_open_request_gives_the_mean(obedient):
    observation = np.zeros((1, 17))
    assert abs(obedient.request().predict(observation)[0][0, 0]) < 0.25


def test_one_observation_without_batch_axis(obedient):
    assert obedient.request(speed=0.5).predict(np.zeros(17))[0].shape == (6,)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p: p.predict(np.zeros((1, 3))), "observation must be"),
        (lambda p: p.request(sped=1.0), "unknown behaviour"),
        (lambda p: evaluate.track(p, [0.0], env_id=ENV, scale=p.scales["speed"], steps=5, settle=5), "settle must lie"),
    ],
)
def test_bad_input(obedient, call, message):
    with pytest.raises(InvalidArgument, match=message):
        call(obedient)


def test_tests_of_two_policies_are_pairs():
    """Equal seeds start every policy in the same states; the judge is displacement over time."""
    scale = Scale(-1.0, 1.0)
    one, two = (
        evaluate.track(
            RandomPolicy(6, seed), [-0.5, 0.5], env_id=ENV, scale=scale, repeats=2, steps=12, settle=2, seed=9
        )
        for seed in (1, 2)
    )
    np.testing.assert_array_equal(one.rollout.qpos[:, 0], two.rollout.qpos[:, 0])
    assert not np.array_equal(one.achieved, two.achieved)
    assert one.requested.tolist() == [-0.5, -0.5, 0.5, 0.5]
    x = one.rollout.qpos[..., 0]
    np.testing.assert_allclose(one.achieved, (x[:, 12] - x[:, 2]) / (10 * one.rollout.dt))
    assert one.mae == pytest.approx(np.abs(one.achieved - one.requested).mean())


def test_targets_lie_inside_the_data():
    scale = Scale(-2.0, 3.0)
    targets = evaluate.targets(scale, 7)
    assert len(targets) == 7 and scale.low < targets.min() and targets.max() < scale.high


def test_the_nearest_controller_tracks_well():
    requested = np.array([-1.0, 0.5, 2.0])
    tracking = evaluate.track(
        evaluate.nearest_controller(ENV, requested), requested, env_id=ENV, scale=Scale(-2.5, 3.5), repeats=1, steps=120
    )
    assert tracking.mae < 0.6 and tracking.spearman > 0.9 and tracking.area > 0.5


# --- sequence model, offline RL, floors -----------------------------------------------------------------------------


def test_the_sequence_model_does_not_see_the_future():
    from suffuse_rl_planning.baselines.decision_transformer import CausalModel

    torch.manual_seed(0)
    model = CausalModel(4, 5, 2, context=6, width=16, depth=2, heads=2).eval()
    told, s, a = torch.randn(1, 4), torch.randn(1, 6, 5), torch.randn(1, 6, 2)
    nothing = torch.zeros(1, 6, dtype=torch.bool)
    before = model(told, s, a, nothing)
    later_s, later_a = s.clone(), a.clone()
    later_s[:, 4:], later_a[:, 3:] = 9.0, 9.0  # the action of step 3 is what is predicted there
    torch.testing.assert_close(model(told, later_s, later_a, nothing)[:, :4], before[:, :4])
    absent = nothing.clone()
    absent[:, :2] = True
    lost = s.clone()
    lost[:, :2] = -5.0
    torch.testing.assert_close(model(told, lost, a, absent)[:, 2:], model(told, s, a, absent)[:, 2:])


def test_acting_step_by_step_is_reading_the_whole_window(orders):
    from suffuse_rl_planning.baselines import DecisionTransformer

    policy = DecisionTransformer.fit(orders, env_id="HalfCheetah-v5", steps=3, hidden=16, depth=1, seed=0)
    observations = orders.trajectories[:2, :3, :17].numpy()
    policy.request(speed=0.5)
    state, actions = None, []
    for t in range(3):
        action, state = policy.predict(observations[:, t], state)
        actions.append(action)
    _, done, absent = state
    assert absent.sum() == 2 * 5 and not absent[:, 5:].any()
    np.testing.assert_allclose(done[:, 5:].numpy(), np.stack(actions, 1), atol=1e-6)
    _, state = policy.predict(observations[:, 0], state, np.array([True, False]))
    assert state[2].sum(1).tolist() == [7, 4]


@pytest.mark.parametrize("name", ["DecisionTransformer", "TD3BC"])
def test_other_baselines_learn_the_request_too(orders, name):
    from suffuse_rl_planning import baselines

    policy = getattr(baselines, name).fit(orders, env_id="HalfCheetah-v5", steps=400, seed=0)
    observation = np.zeros((2, 17), np.float32)
    action, _ = policy.request(speed=[-0.8, 0.8]).predict(observation)
    assert action.shape == (2, 6) and np.abs(action).max() <= 1
    assert action[1, 0] - action[0, 0] > 0.3


def test_a_constant_policy_does_the_median_episode_whatever_is_asked(episodes):
    from suffuse_rl_planning.baselines import Constant

    policy = Constant.middling(episodes)
    speeds = [
        episodes.behaviour["speed"][a:b].mean()
        for a, b in zip(episodes.offsets[:-1], episodes.offsets[1:], strict=True)
    ]
    chosen = np.abs(speeds - np.median(speeds)).argmin()
    action, state = policy.predict(np.zeros((2, 17)))
    np.testing.assert_array_equal(action[0], episodes.actions[episodes.offsets[chosen]])
    action, _ = policy.predict(np.zeros((2, 17)), state, np.array([True, False]))
    np.testing.assert_array_equal(action, episodes.actions[episodes.offsets[chosen] + np.array([0, 1])])
