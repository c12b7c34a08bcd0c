"""Measured behaviour: what a robot did, in physical units, never what a model thinks it did.

Most behaviours are the mean over time of a number per control step, so that any stretch of an episode has one:

    speed   (x_{t+1} - x_t) / dt                          m/s     its mean is displacement / time, exactly
    height  torso height after the step                   m
    energy  sum_j |torque_j x joint rate_j|               W       mechanical power of the motors
    effort  mean_j u_j^2                                  1       of motor commands in [-1, 1]
    smooth  -mean_j (u_j - u_j of the step before)^2      1
    pitch   torso angle                                   rad

Three are not:

    jump    mean of the upper tenth of the heights        m       a plain mean confuses crouching with hopping little
    stride  speed / fundamental frequency of the hip      m       length of a full cycle, by its amplitude spectrum
    leg     (left - right) / (left + right) work          1       which leg does more

The first author's paper names these behaviours and prints no formulas (Dong et al. 2024, "AlignDiff",
arXiv:2310.02054, table 1). A plan, which has observations and actions but no x, is measured by its forward-velocity
observation instead.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import cast

import numpy as np

from suffuse.errors import InvalidArgument, unknown

from .envs import Array, Robot

UNITS = {
    "speed": "m/s", "height": "m", "energy": "W", "effort": "1", "smooth": "1", "pitch": "rad", "jump": "m",
    "stride": "m", "leg": "1",
}  # fmt: skip
SERIES = ("speed", "height", "energy", "effort", "smooth", "pitch", "left", "right", "hip")


def check(names: Iterable[str]) -> tuple[str, ...]:
    """The names as a tuple, or one clear error."""
    names = tuple(names)
    if not names:
        raise InvalidArgument(f"behaviours is empty; name at least one of {', '.join(UNITS)}")
    for name in names:
        if name not in UNITS:
            raise unknown("behaviour", name, UNITS)
    return names


def per_step(robot: Robot, observations: Array, actions: Array) -> dict[str, Array]:
    """What is measured at every step, from observations (..., T, o) and actions (..., T, a): ``SERIES``, (..., T) each.

    Besides the behaviours there are the work rates of the legs, ``left`` and ``right`` in W, and the ``hip`` angle.
    """
    torque = np.asarray(robot.gear) * np.clip(actions, -1.0, 1.0)
    power = np.abs(torque * robot.joint_rates(observations))
    change = np.zeros(actions.shape[:-1])
    change[..., 1:] = np.square(np.diff(actions, axis=-2)).mean(-1)
    return {
        "speed": robot.forward_velocity(observations),
        "height": robot.height(observations),
        "energy": power.sum(-1),
        "effort": np.square(actions).mean(-1),
        "smooth": -change,
        "pitch": robot.pitch(observations),
        "left": power[..., list(robot.left)].sum(-1),
        "right": power[..., list(robot.right)].sum(-1),
        "hip": robot.angles(observations)[..., robot.left[0]],
    }


def over(name: str, series: Mapping[str, Array], first: Array, last: Array, dt: float) -> Array:
    """A behaviour over each of the stretches first … last (excluded), (W,) each, of flat series (S,): (W,).

    Args:
        name: of the behaviour.
        series: as of ``per_step``.
        first, last: where the stretches lie; an empty one gives 0.
        dt: seconds per step.
    """
    if name == "leg":
        left, right = (mean_over(series[side], first, last) for side in ("left", "right"))
        return cast(Array, (left - right) / np.maximum(left + right, 1e-9))
    if name in ("jump", "stride"):
        out = np.zeros(len(first))
        lengths = last - first
        for length in np.unique(lengths[lengths > 0]):  # nearly always one
            rows = np.flatnonzero(lengths == length)
            at = first[rows][:, None] + np.arange(length)
            if name == "jump":
                count = max(round(0.1 * length), 1)
                out[rows] = np.sort(series["height"][at], 1)[:, -count:].mean(1)
            else:
                out[rows] = mean_over(series["speed"], first[rows], last[rows]) / cadence(series["hip"][at], dt)
        return out
    return mean_over(series[name], first, last)


def cadence(angle: Array, dt: float) -> Array:
    """Fundamental frequency in Hz of each row (W, T): the peak of the zero-padded amplitude spectrum above 0.5 Hz.

    Where a row spans less than two of the slowest cycles, the lowest frequency it can tell apart, 1 / (T dt), bounds
    the answer from below.
    """
    steps = angle.shape[1]
    size = 8 * max(steps, 16)
    window = np.hanning(steps + 2)[1:-1]
    spectrum = np.abs(np.fft.rfft((angle - angle.mean(1, keepdims=True)) * window, n=size, axis=1))
    frequency = np.fft.rfftfreq(size, dt)
    allowed = frequency >= max(0.5, 1 / (steps * dt))
    if not allowed.any():
        return np.full(len(angle), 1 / (steps * dt))
    return cast(Array, frequency[allowed][spectrum[:, allowed].argmax(1)])


def mean_over(series: Array, first: Array, last: Array) -> Array:
    """Mean of a series (S,) over each of the stretches first … last (excluded), (W,) each: (W,)."""
    total = np.concatenate([[0.0], np.cumsum(series, dtype=np.float64)])
    return cast(Array, (total[last] - total[first]) / np.maximum(last - first, 1))
