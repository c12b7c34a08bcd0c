"""The robots: gymnasium MuJoCo environments, many at once, with state resets and measured behaviour.

A planar walker with j joints observes ``[z, pitch, joint angles (j), v_x, v_z, pitch rate, joint velocities (j)]``,
that is its generalised positions without x, then its generalised velocities (metres, radians, seconds).
Humanoid-v5 observes the same of its 17 joints, with an orientation in place of the pitch, and much more behind that.
Actions are motor commands in [-1, 1]. A :class:`Rollout` is what n environments did for T steps.

The environments stand for those of Dong et al. (2024), "AlignDiff", arXiv:2310.02054: Hopper-v5 for MO-Hopper (its
control step and its limits), Walker2d-v5 without termination for DMControl's walker, Humanoid-v5 with its 270
observations and without termination for MO-Humanoid. Behaviours correspond; numbers do not.
"""

from __future__ import annotations

import contextlib
import ctypes.util
import dataclasses
import functools
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from suffuse.errors import InvalidArgument, unknown

Array = NDArray[Any]


@dataclass(frozen=True)
class Robot:
    """One robot: how to make it and how to read its observation. This class reads planar ones.

    Attributes:
        env_id: gymnasium id.
        joints: number j of actuated joints; the observation has 2 j + 5 entries.
        gear: torque in N m of a motor command of 1, per joint.
        height_offset: torso height in metres minus the first observation.
        upright: (lowest torso height in m, largest pitch in rad) of a robot that has not fallen.
        left, right: its joints by leg, hip first; for the cheetah's hind and fore leg, for the hopper the same leg.
        attributes: behaviours that are worth asking for.
        options: keyword arguments of ``gymnasium.make``.
    """

    env_id: str
    joints: int
    gear: tuple[float, ...]
    height_offset: float = 0.0
    upright: tuple[float, float] = (0.0, 1.2)
    left: tuple[int, ...] = (0,)
    right: tuple[int, ...] = (0,)
    attributes: tuple[str, ...] = ("speed", "height", "energy")
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def observation_dim(self) -> int:
        return 2 * self.joints + 5

    def fallen(self, observation: Array) -> Array:
        """Whether the torso is too low or too tilted (...,)."""
        low, tilt = self.upright
        return cast(Array, (self.height(observation) < low) | (np.abs(self.pitch(observation)) > tilt))

    def angles(self, observation: Array) -> Array:
        """Joint angles (..., j) in rad."""
        return observation[..., 2 : 2 + self.joints]

    def joint_rates(self, observation: Array) -> Array:
        """Joint velocities (..., j) in rad/s."""
        return observation[..., 5 + self.joints :]

    def pitch(self, observation: Array) -> Array:
        """Torso pitch (...,) in rad."""
        return observation[..., 1]

    def pitch_rate(self, observation: Array) -> Array:
        """Torso pitch rate (...,) in rad/s."""
        return observation[..., 4 + self.joints]

    def forward_velocity(self, observation: Array) -> Array:
        """Forward velocity of the torso (...,) in m/s."""
        return observation[..., 2 + self.joints]

    def height(self, observation: Array) -> Array:
        """Torso height above the ground (...,) in m."""
        return observation[..., 0] + self.height_offset

    def power(self, observation: Array, action: Array) -> Array:
        """Mechanical power of the motors, sum |torque x joint rate| (...,) in W."""
        torque = np.asarray(self.gear) * np.clip(action, -1.0, 1.0)
        return cast(Array, np.abs(torque * self.joint_rates(observation)).sum(-1))


@dataclass(frozen=True)
class Spatial(Robot):
    """A robot that moves in space: ``[z, orientation (w, x, y, z), joint angles (j), v (3), rotation (3), joint
    velocities (j), ...]``. Its motors take commands in [-0.4, 0.4], which are rescaled to [-1, 1].
    """

    size: int = 270
    order: tuple[int, ...] = (1, 0, *range(2, 17))  # of joints as motors are numbered

    @property
    def observation_dim(self) -> int:
        return self.size

    def angles(self, observation: Array) -> Array:
        return observation[..., 5 + np.asarray(self.order)]

    def joint_rates(self, observation: Array) -> Array:
        return observation[..., 11 + self.joints + np.asarray(self.order)]

    def pitch(self, observation: Array) -> Array:
        w, x, y, z = np.moveaxis(observation[..., 1:5], -1, 0)
        return cast(Array, np.arcsin(np.clip(2 * (w * y - z * x), -1.0, 1.0)))

    def pitch_rate(self, observation: Array) -> Array:
        return observation[..., 9 + self.joints]

    def forward_velocity(self, observation: Array) -> Array:
        return observation[..., 5 + self.joints]


ROBOTS = {
    robot.env_id: robot
    for robot in (
        Robot(
            "HalfCheetah-v5", 6, (120.0, 90.0, 60.0, 120.0, 60.0, 30.0), height_offset=0.7, left=(0, 1, 2),
            right=(3, 4, 5),
        ),
        Robot(
            "Walker2d-v5", 6, (100.0,) * 6, upright=(0.7, 1.0), right=(0, 1, 2), left=(3, 4, 5),
            attributes=("speed", "height", "stride", "leg"),
            options={"terminate_when_unhealthy": False, "frame_skip": 8},  # 16 ms; DMControl's walker has 25 ms
        ),
        Robot(
            "Hopper-v5", 3, (200.0,) * 3, upright=(0.4, np.pi / 2), left=(0, 1, 2), right=(0, 1, 2),
            attributes=("speed", "jump"),
            options={
                "frame_skip": 5,
                "healthy_z_range": (0.4, 100.0),
                "healthy_angle_range": (-np.pi / 2, np.pi / 2),
            },
        ),
        Spatial(
            "Humanoid-v5", 17,
            tuple(0.4 * g for g in (100, 100, 100, 100, 100, 300, 200, 100, 100, 300, 200, 25, 25, 25, 25, 25, 25)),
            upright=(0.8, 1.2), right=(5, 3, 4, 6), left=(9, 7, 8, 10), attributes=("speed", "height"),
            options={"include_cfrc_ext_in_observation": False, "terminate_when_unhealthy": False},
        ),
    )
}  # fmt: skip


def robot(env_id: str) -> Robot:
    """The robot of a gymnasium id, or one clear error with the known ids."""
    if env_id not in ROBOTS:
        raise unknown("environment", env_id, ROBOTS)
    return ROBOTS[env_id]


def headless() -> None:
    """Let MuJoCo draw without a display, if EGL is installed. Works until something imports mujoco."""
    on_screen = os.environ.get("DISPLAY") or sys.platform != "linux"
    installed = ctypes.util.find_library("EGL") and (
        ctypes.util.find_library("OpenGL") or ctypes.util.find_library("GL")
    )
    if not on_screen and "mujoco" not in sys.modules and installed:
        os.environ.setdefault("MUJOCO_GL", "egl")


@contextlib.contextmanager
def quiet_model_loading() -> Iterator[None]:
    """Drop MuJoCo's deprecation message about half_cheetah.xml, which it also appends to MUJOCO_LOG.TXT."""
    headless()
    import mujoco

    api = cast(Any, mujoco)
    previous = api.get_mju_user_warning()
    api.set_mju_user_warning(lambda message: None)
    try:
        yield
    finally:
        api.set_mju_user_warning(previous)


def make(env_id: str, **options: Any) -> Any:
    """One environment of a known robot. ``options`` go to ``gymnasium.make`` (``render_mode="rgb_array"``, …)."""
    import gymnasium

    known = robot(env_id)
    with quiet_model_loading():
        env = gymnasium.make(env_id, **{**known.options, **options})
        return _unit_commands(env) if isinstance(known, Spatial) else env


def _unit_commands(env: Any) -> Any:
    """Motor commands in [-1, 1], whatever the simulator's own range."""
    from gymnasium.wrappers import RescaleAction

    return RescaleAction(env, np.float32(-1.0), np.float32(1.0))


@functools.cache
def control_step(env_id: str) -> float:
    """Seconds between two actions."""
    env = make(env_id)
    try:
        return float(env.unwrapped.dt)
    finally:
        env.close()


def make_vec(env_id: str, n: int, **options: Any) -> Any:
    """n environments in lockstep (gymnasium ``SyncVectorEnv``); one that ends restarts in the same step."""
    import gymnasium
    from gymnasium.vector import AutoresetMode

    known = robot(env_id)
    if n < 1:
        raise InvalidArgument(f"n must be at least 1 environment, got {n}")
    with quiet_model_loading():
        return gymnasium.make_vec(
            env_id,
            num_envs=n,
            vectorization_mode="sync",
            vector_kwargs={"autoreset_mode": AutoresetMode.SAME_STEP},
            wrappers=[_unit_commands] if isinstance(known, Spatial) else None,
            **{**known.options, **options},
        )


def get_states(venv: Any) -> tuple[Array, Array]:
    """Generalised positions (n, nq) and velocities (n, nv) of all environments."""
    data = [env.unwrapped.data for env in venv.envs]
    return np.stack([d.qpos.copy() for d in data]), np.stack([d.qvel.copy() for d in data])


def set_states(venv: Any, qpos: Array, qvel: Array) -> Array:
    """Put every environment into a stored state; returns the observations (n, o)."""
    if len(qpos) != venv.num_envs or len(qvel) != venv.num_envs:
        raise InvalidArgument(f"qpos and qvel need {venv.num_envs} rows, one per environment, got {len(qpos)}")
    for env, position, velocity in zip(venv.envs, qpos, qvel, strict=True):
        env.unwrapped.set_state(np.asarray(position, dtype=float), np.asarray(velocity, dtype=float))
    return np.stack([env.unwrapped._get_obs() for env in venv.envs])


class Policy(Protocol):
    """What acts: the ``predict`` of stable-baselines3, on a batch of environments."""

    def predict(
        self, observation: Array, state: Any = None, episode_start: Array | None = None, deterministic: bool = True
    ) -> tuple[Array, Any]:
        """observation (n, o) -> (action (n, a) in [-1, 1], state to hand back at the next step)."""
        ...


@dataclass(frozen=True)
class Rollout:
    """n episodes of at most T control steps of ``dt`` seconds; entries past ``length`` are not part of an episode.

    Attributes:
        observations: (n, T + 1, o).
        actions: (n, T, a), as executed, in [-1, 1].
        rewards: (n, T), the environment's own.
        qpos, qvel: (n, T + 1, nq) and (n, T + 1, nv), for state resets and rendering; qpos[..., 0] is x in m.
        length: (n,) steps before the episode ended.
        terminated: (n,) bool, the environment ended the episode: the robot fell (never for HalfCheetah).
    """

    env_id: str
    dt: float
    observations: Array
    actions: Array
    rewards: Array
    qpos: Array
    qvel: Array
    length: Array
    terminated: Array

    def __len__(self) -> int:
        return len(self.actions)

    @functools.cached_property
    def _series(self) -> dict[str, Array]:
        from . import behaviours

        series = behaviours.per_step(robot(self.env_id), self.observations[:, 1:], self.actions)
        series["speed"] = np.diff(self.qpos[..., 0], axis=1) / self.dt
        return series

    def until_fall(self) -> Rollout:
        """The same, with every episode ended by the step after which its robot is first seen fallen."""
        down = robot(self.env_id).fallen(self.observations[:, 1:])
        down &= np.arange(down.shape[1]) < self.length[:, None]
        fell = down.any(1)
        length = np.where(fell, down.argmax(1) + 1, self.length)
        return dataclasses.replace(self, length=length, terminated=self.terminated | fell)

    def series(self) -> dict[str, Array]:
        """What is measured at every control step, each (n, T): see :mod:`suffuse_rl_planning.behaviours`."""
        return self._series

    def behaviour(self, name: str, start: int = 0, stop: int | None = None) -> Array:
        """A behaviour over control steps start … stop of each episode: (n,), in its unit; 0 where it ended before."""
        from . import behaviours

        steps = self.actions.shape[1]
        end = np.minimum(steps if stop is None else stop, self.length)
        flat = {key: values.reshape(-1) for key, values in self._series.items()}
        row = np.arange(len(self)) * steps
        return behaviours.over(name, flat, row + np.minimum(start, end), row + end, self.dt)


def rollout(
    policy: Policy,
    *,
    env_id: str,
    n: int,
    steps: int,
    seed: int = 0,
    start: tuple[Array, Array] | None = None,
    action_noise: float = 0.0,
) -> Rollout:
    """Let a policy act in n environments at once for at most ``steps`` control steps.

    Args:
        policy: anything with ``predict``; called once per step with all observations.
        env_id: a known robot.
        n: number of environments.
        steps: T.
        seed: of the initial states and of the action noise.
        start: states (qpos (n, nq), qvel (n, nv)) to start from, in place of the environment's own reset.
        action_noise: standard deviation of Gaussian noise on the executed motor commands.
    """
    if steps < 1:
        raise InvalidArgument(f"steps must be at least 1, got {steps}")
    noise = np.random.default_rng(seed)
    venv = make_vec(env_id, n, max_episode_steps=steps + 1)
    try:
        observation, _ = venv.reset(seed=seed)
        if start is not None:
            observation = set_states(venv, *start)
        qpos, qvel = get_states(venv)
        observations, positions, velocities = [observation], [qpos], [qvel]
        actions, rewards = [], []
        running, length = np.ones(n, bool), np.zeros(n, int)
        memory, first = None, np.ones(n, bool)
        for _ in range(steps):
            action, memory = policy.predict(observation, memory, first)
            if action_noise:
                action = action + action_noise * noise.standard_normal(action.shape)
            action = np.clip(action, -1.0, 1.0).astype(np.float32)
            observation, reward, terminated, _, info = venv.step(action)
            qpos, qvel = get_states(venv)
            length += running
            running = running & ~terminated
            first = terminated
            after = observation.copy()
            for i in np.flatnonzero(terminated):
                after[i] = info["final_obs"][i]
            observations.append(after)
            positions.append(qpos)
            velocities.append(qvel)
            actions.append(action)
            rewards.append(reward)
        return Rollout(
            env_id=env_id,
            dt=float(venv.envs[0].unwrapped.dt),
            observations=np.stack(observations, 1),
            actions=np.stack(actions, 1),
            rewards=np.stack(rewards, 1),
            qpos=np.stack(positions, 1),
            qvel=np.stack(velocities, 1),
            length=length,
            terminated=~running,
        )
    finally:
        venv.close()
