"""The search for controllers."""

from __future__ import annotations

import numpy as np
import pytest

from suffuse.errors import InvalidArgument
from suffuse_rl_planning import envs
from suffuse_rl_planning.collect import CPG, controllers
from suffuse_rl_planning.collect import search as searching
from suffuse_rl_planning.collect.cpg import bounds, size


def test_a_trial_agrees_with_a_rollout():
    """The loop without gymnasium measures what the environment does."""
    env_id = "HalfCheetah-v5"
    policy = CPG(envs.robot(env_id), controllers(env_id)[5::24], 0.05)
    n = len(policy.parameters)
    found = searching.trial(env_id, policy, n=n, steps=40, settle=10, seed=0, noise=0.0)
    generator = np.random.default_rng(0)  # the trial's own initial states
    start = np.stack([generator.uniform(-0.1, 0.1, (2, 9)) for _ in range(n)], 1)
    run = envs.rollout(policy, env_id=env_id, n=n, steps=40, start=(start[0], start[1]))
    for name in ("speed", "height"):  # rounding of actions to float32 grows where a foot just touches the ground
        difference = np.abs(found[name] - run.behaviour(name, 10))
        assert np.median(difference) < 0.002 and difference.max() < 0.1


def test_a_robot_that_fell_is_dropped_there():
    env_id = "Walker2d-v5"
    limp = np.zeros((2, size(envs.robot(env_id))))
    limp[:, -3] = 1.0
    found = searching.trial(env_id, CPG(envs.robot(env_id), limp, 0.016), n=2, steps=200, settle=20, seed=0, noise=0.0)
    assert (found["alive"] < 0.9).all() and np.isfinite(list(found.values())).all()


def test_mirrored_legs_are_half_a_cycle_apart():
    robot = envs.robot("Walker2d-v5")
    half = np.random.default_rng(0).uniform(-1, 1, (5, 21))
    both = searching.mirror(robot, half)
    blocks = both[:, :-3].reshape(5, 6, 2, 3)
    for k in (0, 1, 3, 4, 5):
        np.testing.assert_array_equal(blocks[:, k, 0], blocks[:, k, 1])
    np.testing.assert_allclose(np.sin(blocks[:, 2, 0]), -np.sin(blocks[:, 2, 1]), atol=1e-12)
    assert np.abs(blocks[:, 2]).max() <= np.pi


def test_a_short_search_finds_different_controllers(tmp_path, monkeypatch):
    pytest.importorskip("cma")
    plan = searching.Plan((1.0, -1.0), 60, 20, {"speed": 0.1, "height": 0.05})
    lines = []
    found, measured = searching.search(
        "HalfCheetah-v5", plan=plan, generations=3, breedings=2, population=8, seed=0, progress=lines.append
    )
    low, high = bounds(envs.robot("HalfCheetah-v5"))
    assert len(found) >= 3 and ((found >= low - 1e-9) & (found <= high + 1e-9)).all() and len(lines) == 2
    cells = {(int(s // 0.1), int(h // 0.05)) for s, h in zip(measured["speed"], measured["height"], strict=True)}
    assert len(cells) == len(found)
    path = searching.write_table(tmp_path / "cheetah.csv", "HalfCheetah-v5", found, measured)
    from suffuse_rl_planning.collect import dataset

    monkeypatch.setattr(dataset, "_bundled", lambda env_id: dataset._table(str(path)))
    np.testing.assert_allclose(dataset.controllers("HalfCheetah-v5"), found, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("env_id", ["Hopper-v5", "Walker2d-v5"])
def test_bundled_gaits_of_robots_that_can_fall_stay_up(env_id):
    pool = controllers(env_id)
    chosen = pool[:: max(len(pool) // 8, 1)][:8]
    policy = CPG(envs.robot(env_id), chosen, envs.control_step(env_id))
    found = searching.trial(env_id, policy, n=len(chosen), steps=250, settle=50, seed=7, noise=0.1)
    assert found["alive"].mean() > 0.8 and np.ptp(found["speed"]) > 0.5


def test_a_humanoid_needs_controllers_of_ones_own():
    with pytest.raises(InvalidArgument, match="no plan for env_id='Humanoid-v5'"):
        searching.search("Humanoid-v5", generations=1)
