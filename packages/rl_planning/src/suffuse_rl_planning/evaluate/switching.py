"""Switching: the request changes in the middle of an episode, and how long it takes to follow.

A behaviour is read as the mean over the last ``smooth`` control steps, about a stride. After each change,

    settling time   steps until it stays within 5% of the dataset's range of the level that it ends at
    steady error    |level - u*(v)|, in the unit of the behaviour
    overshoot       how far it goes beyond that level, seen from where it came, as a share of the range

The level is the mean over the last half of the time before the next change. A policy that wavers by more than 5% of the
range never settles, however soon it changed; so the time is also given for the mean over all episodes, a curve like the
paper's. It says when behaviour changes, and the time of single episodes whether it then stays.
Dong et al. (2024), "AlignDiff", arXiv:2310.02054, figure 6.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from suffuse.errors import InvalidArgument

from ..envs import Array, Policy, Rollout, rollout
from ..requests import Commanded
from .matching import MeasureMap

#: The strengths of the paper's figure 6, 200 steps each: of speed, and of torso height.
SCHEDULES = {"speed": (0.5, 0.75, 0.875, 0.3875), "height": (0.8, 0.4, 0.7, 0.35)}


class Changing:
    """A policy that is asked for something else every ``every`` steps."""

    def __init__(self, policy: Commanded, schedules: Mapping[str, Sequence[float]], every: int) -> None:
        self.policy, self.schedules, self.every = policy, schedules, every
        self.step = 0

    def predict(
        self, observation: Array, state: Any = None, episode_start: Array | None = None, deterministic: bool = True
    ) -> tuple[Array, Any]:
        phase = self.step // self.every
        self.policy.request(**{name: values[min(phase, len(values) - 1)] for name, values in self.schedules.items()})
        self.step += 1
        policy: Any = self.policy
        return policy.predict(observation, state, episode_start, deterministic)


@dataclass(frozen=True)
class Switching:
    """One behaviour under a schedule of requests.

    Attributes:
        behaviour: its name.
        requested: (phases,) in its unit, u*(v).
        trace: (n, T) its running mean.
        settling: (n, phases) in control steps.
        together: (phases,) the same of the mean over episodes.
        steady: (n, phases) steady error, in its unit.
        overshoot: (n, phases) as a share of the range.
        every: control steps of a phase.
        rollout: the motion.
    """

    behaviour: str
    requested: Array
    trace: Array
    settling: Array
    together: Array
    steady: Array
    overshoot: Array
    every: int
    rollout: Rollout


def running_mean(series: Array, width: int) -> Array:
    """Mean over the last ``width`` steps, or as many as there are: (n, T)."""
    total = np.concatenate([np.zeros((len(series), 1)), np.cumsum(series, 1)], 1)
    last = np.arange(1, series.shape[1] + 1)
    first = np.maximum(last - width, 0)
    return np.asarray((total[:, last] - total[:, first]) / (last - first))


def analyse(trace: Array, requested: Array, scale: MeasureMap, every: int, tolerance: float = 0.05) -> dict[str, Array]:
    """Settling time, steady error and overshoot of each phase, (n, phases) each, of a trace (n, phases every)."""
    phases = trace.reshape(len(trace), len(requested), every)
    level = phases[..., every // 2 :].mean(-1, keepdims=True)
    outside = np.abs(phases - level) > tolerance * scale.range
    settling = every - np.argmax(np.concatenate([outside[..., ::-1], np.ones_like(outside[..., :1])], -1), -1)
    before = np.concatenate([phases[:, :1, :1], phases[:, :-1, -1:]], 1)
    direction = np.sign(level - before)
    beyond = np.maximum(((phases - level) * direction).max(-1), 0.0) / scale.range
    steady = np.abs(level[..., 0] - np.asarray(requested))
    return {"settling": settling, "steady": steady, "overshoot": beyond}


def switch(
    policy: Policy,
    maps: Mapping[str, MeasureMap],
    *,
    env_id: str,
    schedules: Mapping[str, Sequence[float]] | None = None,
    every: int = 200,
    n: int = 5,
    smooth: int = 20,
    start: tuple[Array, Array] | None = None,
    seed: int = 0,
) -> dict[str, Switching]:
    """Let requests change ``phases - 1`` times in n episodes.

    Args:
        policy: that can be asked for strengths; one that cannot does what it does.
        maps: strength to unit, of every behaviour in the schedules.
        env_id: the robot.
        schedules: behaviour -> strengths, one per phase; those of the paper if None, as far as the policy knows them.
        every: control steps of a phase.
        n: episodes.
        smooth: control steps of the running mean.
        start: states to start from.
        seed: of initial states and noise.
    """
    if isinstance(policy, Commanded):
        schedules = schedules or {name: values for name, values in SCHEDULES.items() if name in policy.scales}
    schedules = schedules or SCHEDULES
    lengths = {len(values) for values in schedules.values()}
    if len(lengths) != 1 or not set(schedules) <= set(maps):
        raise InvalidArgument(f"schedules must be of equal length and of measurable behaviours, got {schedules}")
    phases = lengths.pop()
    acting: Policy = Changing(policy, schedules, every) if isinstance(policy, Commanded) else policy
    result = rollout(acting, env_id=env_id, n=n, steps=every * phases, start=start, seed=seed)
    out = {}
    for name, strengths in schedules.items():
        requested = maps[name](np.asarray(strengths))
        trace = running_mean(result.series()[name], smooth)
        found = analyse(trace, requested, maps[name], every)
        together = analyse(trace.mean(0, keepdims=True), requested, maps[name], every)["settling"][0]
        out[name] = Switching(name, requested, trace, together=together, every=every, rollout=result, **found)
    return out
