"""Answers by rule: the measured behaviour decides, with ties, mistakes and doubt as people have them.

For a pair with measures m_1, m_2 of one attribute, and s the interquartile range of that measure over all stretches,

    equal                                 if |m_2 - m_1| < margin s
    second with probability sigmoid((m_2 - m_1) / (temperature s)), else first      (Bradley-Terry; sure at 0)
    and then turned around with probability noise_rate.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from suffuse.errors import InvalidArgument

from .. import behaviours
from ..data import Episodes
from ..envs import Array
from .dataset import Preferences


def stretches(episodes: Episodes, n: int, length: int, *, seed: int = 0) -> Array:
    """First steps (n,), of all steps of the dataset, of random stretches that cross no end of an episode."""
    lengths = np.diff(episodes.offsets)
    rooms = np.maximum(lengths - length + 1, 0)
    if rooms.sum() == 0:
        raise InvalidArgument(
            f"length={length} is longer than every episode of {episodes.name!r} (the longest has {lengths.max()} "
            "steps); shorten the stretches or collect longer episodes"
        )
    starts = np.concatenate([o + np.arange(r) for o, r in zip(episodes.offsets[:-1], rooms, strict=True)])
    return np.asarray(starts[np.random.default_rng(seed).integers(len(starts), size=n)])


def label(
    episodes: Episodes,
    attributes: Iterable[str],
    *,
    n: int = 2000,
    length: int = 50,
    margin: float = 0.02,
    noise_rate: float = 0.0,
    temperature: float = 0.0,
    seed: int = 0,
) -> Preferences:
    """Label random pairs of stretches by their measured behaviour.

    Args:
        episodes: the dataset.
        attributes: behaviours to compare.
        n: pairs.
        length: steps of a stretch.
        margin: below this share of the interquartile range two stretches are equal.
        noise_rate: probability of the wrong answer, for each attribute apart.
        temperature: doubt, in interquartile ranges; 0 for none.
        seed: of everything.
    """
    names = behaviours.check(attributes)
    if n < 1 or length < 2:
        raise InvalidArgument(f"n must be at least 1 and length at least 2, got n={n}, length={length}")
    if not 0 <= noise_rate <= 1 or margin < 0 or temperature < 0:
        raise InvalidArgument(
            f"noise_rate must lie in [0, 1], margin and temperature must not be negative, got {noise_rate}, {margin}, "
            f"{temperature}"
        )
    generator = np.random.default_rng([seed, 1])  # another stream than that of the stretches
    first = stretches(episodes, 2 * n, length, seed=seed)
    pref = np.zeros((n, len(names)), int)
    for k, name in enumerate(names):
        measure = behaviours.over(name, episodes.behaviour, first, first + length, episodes.dt)
        low, high = np.quantile(measure, [0.25, 0.75])
        change = np.diff(measure.reshape(n, 2), axis=1)[:, 0] / max(high - low, 1e-12)
        second = change > 0
        if temperature:
            second = generator.random(n) < 1 / (1 + np.exp(-np.clip(change / temperature, -50, 50)))
        second = second ^ (generator.random(n) < noise_rate)
        pref[:, k] = np.where(np.abs(change) < margin, 0, np.where(second, 1, -1))
    at = first.reshape(n, 2)[..., None] + np.arange(length)
    return Preferences(names, episodes.observations[at], episodes.actions[at], pref, np.full(n, "rule"))
