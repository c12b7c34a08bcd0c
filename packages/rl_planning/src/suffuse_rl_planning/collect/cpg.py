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
        parameters: (n, 6 j + 3), or (n, K, 6 j + 3) for K controllers one after another.
        dt: control step in s.
        at: steps (n, K - 1), increasing, at which the next one takes over, cross-faded over 10 steps. Switches teach a
            planner what a transition looks like.
    """

    robot: Robot
    parameters: Array
    dt: float
    at: Array | None = None

    def __post_init__(self) -> None:
        shape = self.parameters.shape
        if len(shape) not in (2, 3) or shape[-1] != size(self.robot):
            raise InvalidArgument(
                f"parameters must be (n, {size(self.robot)}) or (n, K, {size(self.robot)}) for {self.robot.env_id}, "
                f"got {tuple(shape)}"
            )
        switches = (shape[0], shape[1] - 1 if len(shape) == 3 else 0)
        if (np.zeros((shape[0], 0)) if self.at is None else self.at).shape != switches:
            raise InvalidArgument(f"at must be {switches}, one step for every controller that takes over")

    def predict(
        self, observation: Array, state: Any = None, episode_start: Array | None = None, deterministic: bool = True
    ) -> tuple[Array, Any]:
        """observation (n, o) -> (action (n, j), steps taken so far (n,))."""
        step = np.zeros(len(observation), int) if state is None else state
        if episode_start is not None:
            step = np.where(episode_start, 0, step)
        if self.at is None or not self.at.shape[1]:
            return self._command(self.parameters.reshape(len(step), -1), step, observation), step + 1
        rows, now = np.arange(len(step)), (step[:, None] >= self.at).sum(1)
        before = np.maximum(now - 1, 0)
        share = np.clip((step - self.at[rows, before]) / FADE_STEPS, 0.0, 1.0)[:, None]
        first, second = (self._command(self.parameters[rows, k], step, observation) for k in (before, now))
        return (1 - share) * first + share * second, step + 1

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
