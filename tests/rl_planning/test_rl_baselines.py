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
def obedient():
    """Data in which the first action is half the speed that was measured, and the second echoes the pitch."""
    generator = torch.Generator().manual_seed(0)
    observations = torch.randn(400, 8, 17, generator=generator)
    speed = 2 * torch.rand(400, generator=generator) - 1
    actions = torch.zeros(400, 8, 6)
    actions[..., 0], actions[..., 1] = speed[:, None] / 2, 0.3 * observations[..., 1]
    data = Windows(torch.cat([observations, actions], -1), {"speed": speed}, torch.zeros(400), torch.zeros(400))
    return BehaviourCloning.fit(data, env_id=ENV, steps=400, hidden=64)


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
