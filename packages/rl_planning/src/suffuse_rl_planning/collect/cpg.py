"""Central pattern generators: open-loop oscillators with a little feedback, one per joint.

    theta*_i(t) = offset_i + A_i sin(2 pi f t + phi_i) + g_i pitch + r_i pitch rate + c_i v_x
    u = clip(kp (theta* - theta) - kd d theta/dt, -1, 1)

A controller of a robot with j joints is a vector of 6 j + 3 numbers, ``[offset, A, phi, g, r, c (j each), f, kp, kd]``
(rad, rad, rad, 1, s, rad s/m, Hz, 1/rad, s/rad). Ijspeert (2008), "Central pattern generators for locomotion control
in animals and robots: a review", Neural Networks 21.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from suffuse.errors import InvalidArgument

from ..envs import Array, Robot

FADE_STEPS = 10  # control steps over which one controller hands over to the next


def size(robot: Robot) -> int:
    """Numbers in one controller."""
    return 6 * robot.joints + 3


def bounds(robot: Robot) -> tuple[Array, Array]:
    """Lowest and highest value of each number, (6 j + 3,) each."""
    j = robot.joints
    high = [0.6] * j + [0.9] * j + [np.pi] * j + [1.0] * j + [0.2] * j + [0.15] * j
    low = [-0.6] * j + [0.0] * j + [-np.pi] * j + [-1.0] * j + [-0.2] * j + [-0.15] * j
    return np.array([*low, 0.5, 0.5, 0.0]), np.array([*high, 4.5, 6.0, 0.3])


@dataclass(frozen=True)
class CPG:
    """n controllers for n environments; a policy with ``predict``, whose state is the step count (n,).

    Args:
        robot: whose joints they drive.
        parameters: (n, 6 j + 3).
        dt: control step in s.
        then: controllers (n, 6 j + 3) that take over, cross-faded over 10 steps …
        at: … at these steps (n,). Switches teach a planner what a transition looks like.
    """

    robot: Robot
    parameters: Array
    dt: float
    then: Array | None = None
    at: Array | None = None

    def __post_init__(self) -> None:
        for name in ("parameters", "then"):
            value = getattr(self, name)
            if value is not None and (value.ndim != 2 or value.shape[1] != size(self.robot)):
                raise InvalidArgument(
                    f"{name} must be (n, {size(self.robot)}) for {self.robot.env_id}, got {tuple(value.shape)}"
                )
        if (self.then is None) != (self.at is None):
            raise InvalidArgument("then and at belong together: give both or neither")

    def predict(
        self, observation: Array, state: Any = None, episode_start: Array | None = None, deterministic: bool = True
    ) -> tuple[Array, Any]:
        """observation (n, o) -> (action (n, j), steps taken so far (n,))."""
        step = np.zeros(len(observation), int) if state is None else state
        if episode_start is not None:
            step = np.where(episode_start, 0, step)
        action = self._command(self.parameters, step, observation)
        if self.then is not None and self.at is not None:
            share = np.clip((step - self.at) / FADE_STEPS, 0.0, 1.0)[:, None]
            action = (1 - share) * action + share * self._command(self.then, step, observation)
        return action, step + 1

    def _command(self, parameters: Array, step: Array, observation: Array) -> Array:
        r, j = self.robot, self.robot.joints
        offset, amplitude, phase, pitch, rate, velocity = (parameters[:, k * j : (k + 1) * j] for k in range(6))
        frequency, kp, kd = np.split(parameters[:, -3:], 3, axis=1)
        target = offset + amplitude * np.sin(2 * np.pi * frequency * step[:, None] * self.dt + phase)
        target = target + pitch * r.pitch(observation)[:, None] + rate * r.pitch_rate(observation)[:, None]
        target = target + velocity * r.forward_velocity(observation)[:, None]
        command = kp * (target - r.angles(observation)) - kd * r.joint_rates(observation)
        return cast(Array, np.clip(command, -1.0, 1.0))


@dataclass(frozen=True)
class RandomPolicy:
    """Independent uniform motor commands: the floor of every table, and what contaminates a dataset."""

    action_dim: int
    seed: int = 0

    def predict(
        self, observation: Array, state: Any = None, episode_start: Array | None = None, deterministic: bool = True
    ) -> tuple[Array, Any]:
        """observation (n, o) -> (action (n, a) uniform in [-1, 1], the random generator)."""
        generator = np.random.default_rng(self.seed) if state is None else state
        return generator.uniform(-1.0, 1.0, (len(observation), self.action_dim)), generator
