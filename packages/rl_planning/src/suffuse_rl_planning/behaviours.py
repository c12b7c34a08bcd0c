"""Measured behaviour: what a robot did, in physical units, never what a model thinks it did.

Every behaviour is the mean over time of a number per control step, so that any window of an episode has one:

    speed   (x_{t+1} - x_t) / dt                    m/s   its mean is displacement / time, exactly
    height  torso height after the step             m
    energy  sum_j |torque_j x joint rate_j|         W     mechanical power of the motors

A plan, which has observations and actions but no x, is measured by its forward-velocity observation instead.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import numpy as np

from suffuse.errors import InvalidArgument, unknown

from .envs import Array, Robot

UNITS = {"speed": "m/s", "height": "m", "energy": "W"}


def check(names: Iterable[str]) -> tuple[str, ...]:
    """The names as a tuple, or one clear error."""
    names = tuple(names)
    if not names:
        raise InvalidArgument(f"behaviours is empty; name at least one of {', '.join(UNITS)}")
    for name in names:
        if name not in UNITS:
            raise unknown("behaviour", name, UNITS)
    return names


def of_observations(robot: Robot, observations: Array, actions: Array) -> dict[str, Array]:
    """Behaviour per step from observations (..., T, o) and the actions (..., T, a) taken there: each (..., T).

    For data of others, which come without simulator states, and for plans.
    """
    return {
        "speed": robot.forward_velocity(observations),
        "height": robot.height(observations),
        "energy": robot.power(observations, actions),
    }


def mean_over(series: Array, first: Array, last: Array) -> Array:
    """Mean of a series (S,) over each of the stretches first … last (excluded), (W,) each: (W,)."""
    total = np.concatenate([[0.0], np.cumsum(series, dtype=np.float64)])
    return cast(Array, (total[last] - total[first]) / (last - first))
