"""Requested against obtained: the same requests, starts and seeds for every policy, judged by the simulator."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import ArrayLike

from suffuse.errors import InvalidArgument

from .. import behaviours, metrics
from ..collect.cpg import CPG
from ..collect.dataset import controllers, measured_controllers
from ..data import Scale
from ..envs import Array, Policy, Rollout, control_step, robot, rollout
from ..planners import Planner
from ..requests import Commanded


@dataclass(frozen=True)
class Tracking:
    """How one behaviour was tracked over n tests.

    Attributes:
        behaviour: its name.
        requested, achieved: (n,) in its unit; achieved is the mean over the steps after settling.
        scale: its range in the data, by which errors are scaled for ``area``.
        rollout: the motion itself.
        seconds: wall time of the whole rollout.
    """

    behaviour: str
    requested: Array
    achieved: Array
    scale: Scale
    rollout: Rollout
    seconds: float

    @property
    def errors(self) -> Array:
        """|achieved - requested| (n,), in the unit of the behaviour."""
        return cast(Array, np.abs(self.achieved - self.requested))

    @property
    def mae(self) -> float:
        return metrics.mae(self.requested, self.achieved)

    @property
    def spearman(self) -> float:
        return metrics.spearman(self.requested, self.achieved)

    @property
    def area(self) -> float:
        return metrics.area(np.clip(self.errors / (self.scale.high - self.scale.low), 0.0, 1.0))


def track(
    policy: Policy,
    targets: ArrayLike,
    *,
    env_id: str,
    scale: Scale,
    behaviour: str = "speed",
    repeats: int = 3,
    steps: int = 150,
    settle: int = 50,
    seed: int = 0,
) -> Tracking:
    """Roll a policy out from rest, ``repeats`` times for each target, all at once.

    Args:
        policy: asked for the targets if it can be asked; otherwise it does what it does.
        targets: (m,) in the unit of the behaviour.
        env_id: the robot.
        scale: range of the behaviour in the data.
        behaviour: which behaviour is requested and measured.
        repeats: tests per target, each from its own initial state.
        steps: control steps of a test.
        settle: the first of these, which are not judged.
        seed: of the initial states: equal seeds make tests of two policies pairs.
    """
    if not 0 <= settle < steps:
        raise InvalidArgument(f"settle must lie in [0, steps={steps}), got {settle}")
    requested = repeat(targets, repeats)
    if isinstance(policy, Commanded):
        policy.request(**{behaviour: requested})
    start = time.perf_counter()
    result = rollout(policy, env_id=env_id, n=len(requested), steps=steps, seed=seed)
    seconds = time.perf_counter() - start
    return Tracking(behaviour, requested, result.behaviour(behaviour, settle), scale, result, seconds)


def repeat(targets: ArrayLike, repeats: int) -> Array:
    """(m,) -> (m repeats,), the tests of one target side by side."""
    return np.repeat(np.asarray(targets, dtype=float), repeats)


def targets(scale: Scale, n: int) -> Array:
    """n requests spread evenly over the range of the data, its outer twentieths left out."""
    margin = 0.05 * (scale.high - scale.low)
    return np.linspace(scale.low + margin, scale.high - margin, n)


def nearest(env_id: str, requested: Mapping[str, Array]) -> Array:
    """For each request, behaviour -> (n,), the bundled controller that was measured nearest to it: indices (n,).

    Distances are added up in units of what nine tenths of the controllers span.
    """
    distance = np.zeros(())
    for name, wanted in requested.items():
        known = measured_controllers(env_id)[name]
        distance = distance + np.abs(known - np.asarray(wanted)[:, None]) / np.ptp(np.quantile(known, [0.05, 0.95]))
    return cast(Array, distance.argmin(1))


def nearest_controller(env_id: str, requested: Array, *, behaviour: str = "speed") -> CPG:
    """The controllers nearest to requests (n,): what the data itself can do."""
    chosen = nearest(env_id, {behaviour: requested})
    return CPG(robot(env_id), controllers(env_id)[chosen], control_step(env_id))


def latency(policy: Planner, *, n: int = 1, decisions: int = 20) -> float:
    """Decisions per second for n environments at once: wall time of ``plan``, after one warm-up."""
    observation = np.zeros((n, robot(policy.env_id).observation_dim), np.float32)
    policy.request()
    policy.plan(observation)
    start = time.perf_counter()
    for _ in range(decisions):
        policy.plan(observation)
    return decisions / (time.perf_counter() - start)


def summary(tracking: Tracking) -> dict[str, Any]:
    """The numbers of one policy, as JSON."""
    return {
        "behaviour": tracking.behaviour,
        "unit": behaviours.UNITS[tracking.behaviour],
        "mae": tracking.mae,
        "spearman": tracking.spearman,
        "area": tracking.area,
        "tests": [
            {"requested": float(r), "achieved": float(a)}
            for r, a in zip(tracking.requested, tracking.achieved, strict=True)
        ],
    }
