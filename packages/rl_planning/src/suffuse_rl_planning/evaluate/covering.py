"""Covering: one attribute is swept over its range, and what comes out is laid beside what the dataset holds.

    spearman   rank correlation of requested strength and measured behaviour
    deviation  mean |u - u*(v)|, in the unit of the behaviour
    distance   Jensen-Shannon distance, in [0, 1], of the map p(u | v) to the dataset's own, averaged over v

Dong et al. (2024), "AlignDiff", arXiv:2310.02054, figure 5.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from .. import behaviours, metrics
from ..attributes import Attributes
from ..data import Episodes
from ..envs import Array, rollout
from ..preferences import stretches
from ..requests import Commanded
from .matching import MeasureMap, start_states


@dataclass(frozen=True)
class Covering:
    """A sweep of one attribute.

    Attributes:
        behaviour: its name.
        strengths: (n,) requested.
        achieved: (n,) measured, in its unit.
        expected: (n,) u*(v).
        data: strengths and measures (N,) each, of the dataset.
    """

    behaviour: str
    strengths: Array
    achieved: Array
    expected: Array
    data: tuple[Array, Array]

    @property
    def spearman(self) -> float:
        return metrics.spearman(self.strengths, self.achieved)

    @property
    def deviation(self) -> float:
        return metrics.mae(self.expected, self.achieved)

    @property
    def distance(self) -> float:
        return map_distance((self.strengths, self.achieved), self.data)


def map_distance(one: tuple[Array, Array], two: tuple[Array, Array], bins: int = 8) -> float:
    """Mean over bins of v of the Jensen-Shannon distance (base 2) of two histograms of u; bins that one lacks count 1.

    Args:
        one, two: strengths in [0, 1] and measures, (n,) each.
        bins: of v, and of u between the extremes of both.
    """
    from scipy.spatial.distance import jensenshannon

    low, high = (f([f(one[1]), f(two[1])]) for f in (np.min, np.max))
    edges = np.linspace(low, high + 1e-9, bins + 1)
    distances = []
    for b in range(bins):
        counts = []
        for v, u in (one, two):
            inside = np.minimum((v * bins).astype(int), bins - 1) == b
            counts.append(np.histogram(u[inside], edges)[0])
        if counts[0].sum() or counts[1].sum():
            both = counts[0].sum() and counts[1].sum()
            distances.append(float(jensenshannon(*counts, base=2)) if both else 1.0)
    return float(np.mean(distances))


def cover(
    policy: Commanded,
    attributes: Attributes,
    maps: Mapping[str, MeasureMap],
    episodes: Episodes,
    *,
    n: int = 40,
    steps: int = 150,
    settle: int = 50,
    seed: int = 0,
) -> dict[str, Covering]:
    """Sweep each measurable attribute alone over [0, 1], n episodes from random states of the dataset."""
    strengths = np.linspace(0, 1, n)
    length = steps - settle
    first = stretches(episodes, 1000, min(length, int(np.diff(episodes.offsets).max())), seed=seed)
    width = min(length, int(np.diff(episodes.offsets).max()))
    observed = torch.from_numpy(episodes.observations[first[:, None] + np.arange(width)])
    known = attributes(observed).numpy()
    out = {}
    for name, u in maps.items():
        policy.request(**{name: strengths})
        start = start_states(episodes, n, seed=seed)
        result = rollout(policy, env_id=episodes.env_id, n=n, steps=steps, start=start, seed=seed)  # type: ignore[arg-type]
        achieved = result.behaviour(name, settle)
        data = behaviours.over(name, episodes.behaviour, first, first + width, episodes.dt)
        k = attributes.names.index(name)
        out[name] = Covering(name, strengths, achieved, u(strengths), (known[:, k], data))
    return out
