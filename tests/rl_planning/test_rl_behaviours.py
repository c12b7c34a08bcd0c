"""Measured behaviours that are not plain means, and the robots' legs."""

from __future__ import annotations

import numpy as np
import pytest

from suffuse_rl_planning import behaviours, envs
from suffuse_rl_planning.collect import CPG, controllers


def stretch(n):
    return np.array([0]), np.array([n])


@pytest.mark.parametrize("frequency", [1.0, 2.3, 4.0])
def test_the_cadence_of_a_sine_is_its_frequency(frequency):
    time = np.arange(150) * 0.02
    hip = np.stack([0.3 + 0.5 * np.sin(2 * np.pi * frequency * time + phase) for phase in (0.0, 1.0)])
    np.testing.assert_allclose(behaviours.cadence(hip, 0.02), frequency, rtol=0.03)


def test_a_stride_is_the_way_of_one_cycle():
    time = np.arange(200) * 0.02
    series = {"speed": np.full(200, 3.0), "hip": np.sin(2 * np.pi * 2.0 * time)}
    assert behaviours.over("stride", series, *stretch(200), 0.02)[0] == pytest.approx(1.5, rel=0.03)


def test_a_jump_is_told_from_standing_tall():
    """Hopping around a low mean reaches higher than standing above it."""
    hops = 1.0 + 0.3 * np.sin(np.linspace(0, 20 * np.pi, 400))
    tall = np.full(400, 1.1)
    high = [behaviours.over("jump", {"height": h}, *stretch(400), 0.01)[0] for h in (hops, tall)]
    assert hops.mean() < tall.mean() and high[0] > high[1] == pytest.approx(1.1)


def test_leg_preference_changes_sides_with_the_legs():
    one = {"left": np.array([3.0, 1.0]), "right": np.array([1.0, 1.0])}
    two = {"left": one["right"], "right": one["left"]}
    first, second = (behaviours.over("leg", legs, *stretch(2), 0.01)[0] for legs in (one, two))
    assert first == -second == pytest.approx(2 / 6)


def test_power_of_both_legs_is_all_power_of_the_cheetah():
    policy = CPG(envs.robot("HalfCheetah-v5"), controllers("HalfCheetah-v5")[[40, 250]], 0.05)
    series = envs.rollout(policy, env_id="HalfCheetah-v5", n=2, steps=20, seed=0).series()
    np.testing.assert_allclose(series["left"] + series["right"], series["energy"])
    assert set(series) == set(behaviours.SERIES)


def test_smoothness_is_zero_for_constant_commands_only():
    robot, generator = envs.robot("HalfCheetah-v5"), np.random.default_rng(0)
    observations = generator.standard_normal((2, 10, 17))
    still = np.full((10, 6), 0.3)
    series = behaviours.per_step(robot, observations, np.stack([still, generator.uniform(-1, 1, (10, 6))]))
    assert (series["smooth"][0] == 0).all() and series["smooth"][1, 1:].max() < 0


def test_an_empty_stretch_has_no_behaviour():
    series = {"speed": np.ones(5), "height": np.ones(5), "hip": np.ones(5)}
    for name in ("speed", "jump", "stride"):
        assert behaviours.over(name, series, np.array([2]), np.array([2]), 0.01)[0] == 0
