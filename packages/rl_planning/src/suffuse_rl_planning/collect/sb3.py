"""Behaviour by reinforcement learning: stable-baselines3 policies that were rewarded for a request.

    r = 1 - sum_i |u_i - u_i*| / s_i

for requested behaviours u* in their units, measured at every step, and scales s. Policies kept at several stages of
training walk well, badly and not at all, which is what a planner should have seen. Needs ``[sb3]``; hours on a CPU.

    policies = sb3.train("Walker2d-v5", {"speed": 1.5}, steps=300_000, stages=3)
    collect("mine/walker2d/sac-v0", env_id="Walker2d-v5", episodes=50, policies=policies)
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np

from suffuse.errors import InvalidArgument, require, unknown

from .. import behaviours
from ..envs import Policy, make, robot

#: What an error of 1 in the reward is, in the unit of the behaviour.
SCALES = {"speed": 1.0, "height": 0.2, "energy": 500.0, "pitch": 0.5, "effort": 0.5, "smooth": 0.5}


def rewarded(env: Any, requests: Mapping[str, float]) -> Any:
    """An environment whose reward is how well the requests are met; a gymnasium wrapper."""
    import gymnasium

    for name in requests:
        if name not in SCALES:
            raise unknown("behaviour of a single step", name, SCALES)
    known = robot(env.spec.id)

    class Requested(gymnasium.Wrapper):  # type: ignore[misc]
        def step(self, action: Any) -> Any:
            observation, _, terminated, truncated, info = self.env.step(action)
            now = behaviours.per_step(known, observation[None], np.asarray(action)[None])
            now["speed"] = np.array([info["x_velocity"]])
            reward = 1 - sum(abs(float(now[name][0]) - value) / SCALES[name] for name, value in requests.items())
            return observation, reward, terminated, truncated, info

    return Requested(env)


def train(
    env_id: str, requests: Mapping[str, float], *, steps: int = 300_000, stages: int = 3, algorithm: str = "SAC",
    seed: int = 0, **options: Any,
) -> list[Policy]:  # fmt: skip
    """Policies of several stages of one training, the youngest first.

    Args:
        env_id: the robot.
        requests: behaviour -> value in its unit, see ``SCALES``.
        steps: environment steps in all.
        stages: how many policies to keep, after equally many steps each.
        algorithm: class of stable-baselines3 ("SAC", "PPO", "TD3", …).
        seed: of the training.
        options: of that class.
    """
    library = require("stable_baselines3", extra="sb3", package="suffuse-rl-planning")
    if stages < 1 or steps < stages:
        raise InvalidArgument(f"need 1 <= stages <= steps, got stages={stages}, steps={steps}")
    if not hasattr(library, algorithm):
        raise unknown("algorithm", algorithm, ("SAC", "PPO", "TD3", "A2C", "DDPG"))
    model = getattr(library, algorithm)("MlpPolicy", rewarded(make(env_id), requests), seed=seed, **options)
    policies: list[Policy] = []
    for _ in range(stages):
        model.learn(steps // stages, reset_num_timesteps=False)
        policies.append(copy.deepcopy(model.policy))
    return policies
