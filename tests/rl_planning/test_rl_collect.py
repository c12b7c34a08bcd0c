"""Controllers and the Minari datasets they leave."""

from __future__ import annotations

import minari
import numpy as np
import pytest

from suffuse.errors import InvalidArgument
from suffuse_rl_planning import envs
from suffuse_rl_planning.collect import CPG, collect, controllers
from suffuse_rl_planning.collect.cpg import bounds, size
from suffuse_rl_planning.collect.dataset import held_out, measured_controllers, schedule, spread
from suffuse_rl_planning.envs import control_step

ENV = "HalfCheetah-v5"


def test_a_dataset_survives_the_disk(recorded):
    again = minari.load_dataset("tests/halfcheetah/small-v0")
    assert again.total_episodes == 8 and again.total_steps == 8 * 60
    episode = again[2]
    assert episode.observations.shape == (61, 17) and episode.actions.shape == (60, 6)
    assert episode.truncations[-1] and not episode.terminations.any()
    dt = control_step(ENV)
    np.testing.assert_allclose(episode.infos["speed"][1:], np.diff(episode.infos["qpos"][:, 0]) / dt, atol=1e-9)
    np.testing.assert_allclose(episode.infos["qpos"][:, 1:], episode.observations[:, :8])
    metadata = next(iter(again.storage.get_episode_metadata([2])))
    assert metadata["speed"] == pytest.approx(episode.infos["speed"][1:].mean())
    assert metadata["split"] in ("train", "test") and len(metadata["controllers"]) in (1, 2)
    assert any(line.startswith("mujoco==") for line in again.storage.metadata["requirements"])
    assert again.recover_environment().spec.id == ENV


def test_the_same_seed_records_the_same_behaviour(recorded):
    again = collect("tests/halfcheetah/again-v0", episodes=8, steps=60, switch=0.5, seed=3)
    for first, second in zip(recorded, again, strict=True):
        np.testing.assert_array_equal(first.actions, second.actions)
        np.testing.assert_array_equal(first.observations, second.observations)


def test_bundled_controllers_run_as_fast_as_their_table_says():
    chosen = spread(12, len(controllers(ENV)))
    policy = CPG(envs.robot(ENV), controllers(ENV)[chosen], control_step(ENV))
    run = envs.rollout(policy, env_id=ENV, n=12, steps=150, seed=11)
    listed = measured_controllers(ENV)["speed"][chosen]
    assert np.ptp(listed) > 4 and np.corrcoef(run.behaviour("speed", 50), listed)[0, 1] > 0.9


def test_bundled_controllers_are_within_bounds_and_sorted():
    low, high = bounds(envs.robot(ENV))
    table = controllers(ENV)
    assert ((table >= low - 1e-3) & (table <= high + 1e-3)).all()
    assert (np.diff(measured_controllers(ENV)["speed"]) >= 0).all()


def test_a_switch_hands_over_from_one_controller_to_the_next():
    """Before the switch the first acts, ten steps later only the second, in between a mixture."""
    robot, pool = envs.robot(ENV), controllers(ENV)
    one, two = pool[5:6], pool[-5:-4]
    both = CPG(robot, np.stack([one, two], 1), 0.05, at=np.array([[3]]))
    observation = np.zeros((1, 17))
    for step in range(16):
        at = np.array([step])
        action, first, second = (
            p.predict(observation, at)[0] for p in (both, CPG(robot, one, 0.05), CPG(robot, two, 0.05))
        )
        share = min(max((step - 3) / 10, 0), 1)
        np.testing.assert_allclose(action, (1 - share) * first + share * second)


def test_those_who_take_over_are_of_the_same_split():
    """Switches come ``dwell`` to twice ``dwell`` steps apart, and no episode mixes controllers of both splits."""
    robot, pool = envs.robot(ENV), controllers(ENV)
    policy, used = schedule(robot, pool, 0.05, episodes=100, steps=200, switch=0.6, dwell=40, seed=0)
    apart = np.diff(policy.at, axis=1)[policy.at[:, 0] < 200]
    assert apart.min() >= 40 and apart.max() < 80 and (policy.at[:, 0] < 200).mean() == pytest.approx(0.6, abs=0.15)
    assert {len(row) for row in used} >= {1, 3, 4}
    assert all(len(set(held_out(np.array(row)))) == 1 for row in used)
    assert 0.05 < np.mean([held_out(np.array(row)).any() for row in used]) < 0.15
    for total, episodes in ((401, 40), (401, 60), (291, 30), (68, 34)):  # no resonance leaves a split empty
        assert 0.02 < held_out(spread(episodes, total)).mean() < 0.2


def test_an_episode_ends_where_the_robot_falls():
    """Also a walker's, whose environment goes on: without torque it sinks, and the last observation shows it down."""

    class Limp:
        def predict(self, observation, state=None, episode_start=None, deterministic=True):
            return np.zeros((len(observation), 6)), None

    dataset = collect(
        "tests/walker/falling-v0", env_id="Walker2d-v5", episodes=2, steps=200, policies=[Limp()], action_noise=0.0
    )
    robot = envs.robot("Walker2d-v5")
    for episode in (dataset[2], dataset[3]):
        down = robot.fallen(episode.observations[1:])
        assert len(down) < 200 and down[-1] and not down[:-1].any()
        assert episode.terminations[-1] and not episode.truncations.any()


def test_contamination_adds_random_episodes():
    dataset = collect("tests/halfcheetah/spoilt-v0", episodes=4, steps=10, contaminate=0.5, seed=0)
    metadata = list(dataset.storage.get_episode_metadata(range(6)))
    assert dataset.total_episodes == 6 and [len(m["controllers"]) > 0 for m in metadata] == [True] * 4 + [False] * 2


def test_random_data_of_any_robot_can_be_collected():
    dataset = collect("tests/hopper/random-v0", env_id="Hopper-v5", controller="random", episodes=3, steps=400)
    assert dataset.total_steps < 3 * 400 and all(episode.terminations[-1] for episode in dataset)


def test_an_existing_dataset_is_kept_unless_told_otherwise(recorded):
    with pytest.raises(InvalidArgument, match="exists; load it, choose another id or pass overwrite=True"):
        collect("tests/halfcheetah/small-v0", episodes=1, steps=10)
    collect("tests/halfcheetah/twice-v0", episodes=1, steps=10)
    assert collect("tests/halfcheetah/twice-v0", episodes=2, steps=10, overwrite=True).total_episodes == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"env_id": "Ant-v5"}, "unknown environment"),
        ({"controller": "cgp"}, "unknown controller 'cgp'; did you mean 'cpg'"),
        ({"env_id": "Humanoid-v5"}, "no controllers are bundled"),
        ({"episodes": 0}, "episodes must be at least 1"),
        ({"steps": 1}, "steps must be at least 2"),
        ({"switch": 1.5}, "switch must lie in"),
        ({"dwell": 0}, "dwell must be at least 1"),
        ({"parameters": np.zeros((2, 5))}, r"parameters must be \(n, 39\)"),
    ],
)
def test_bad_input(options, message):
    with pytest.raises(InvalidArgument, match=message):
        collect("tests/halfcheetah/bad-v0", **options)


def test_controllers_that_take_over_need_a_time():
    robot = envs.robot(ENV)
    with pytest.raises(InvalidArgument, match=r"at must be \(1, 1\), one step for every controller"):
        CPG(robot, np.zeros((1, 2, size(robot))), 0.05)


def test_a_reward_for_requests_is_one_minus_their_error():
    from suffuse_rl_planning.collect.sb3 import rewarded

    env = rewarded(envs.make(ENV), {"speed": 1.0, "height": 0.5})
    env.reset(seed=0)
    observation, reward, *_, info = env.step(np.full(6, 0.2, np.float32))
    height = envs.robot(ENV).height(observation)
    assert reward == pytest.approx(1 - abs(info["x_velocity"] - 1.0) - abs(height - 0.5) / 0.2)
    env.close()
    with pytest.raises(InvalidArgument, match="unknown behaviour of a single step 'stride'"):
        rewarded(envs.make(ENV), {"stride": 1.0})


def test_policies_of_others_add_episodes():
    class Swing:
        def predict(self, observation, state=None, episode_start=None, deterministic=True):
            return np.full((len(observation), 6), 0.3), None

    dataset = collect("tests/halfcheetah/mixed-v0", episodes=2, steps=10, policies=[Swing()], action_noise=0.0)
    assert dataset.total_episodes == 4
    np.testing.assert_allclose(dataset[3].actions, 0.3, rtol=1e-6)
    metadata = list(dataset.storage.get_episode_metadata(range(4)))
    assert [len(m["controllers"]) > 0 for m in metadata] == [True, True, False, False]
