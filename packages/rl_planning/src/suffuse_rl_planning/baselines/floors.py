"""Floors: policies that do not listen."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..data import Episodes
from ..envs import Array


class Constant:
    """One behaviour whatever is asked: the recorded actions of one episode in open loop, over and over.

    Args:
        actions: (T, a) in [-1, 1].
    """

    def __init__(self, actions: Array) -> None:
        self.actions = actions

    @classmethod
    def middling(cls, episodes: Episodes, name: str = "speed") -> Constant:
        """The episode whose mean of a measured behaviour is nearest to the median."""
        first, last = episodes.offsets[:-1], episodes.offsets[1:]
        means = np.array([episodes.behaviour[name][a:b].mean() for a, b in zip(first, last, strict=True)])
        chosen = int(np.abs(means - np.median(means)).argmin())
        return cls(episodes.actions[first[chosen] : last[chosen]])

    def predict(
        self, observation: Array, state: Any = None, episode_start: Array | None = None, deterministic: bool = True
    ) -> tuple[Array, Any]:
        """observation (n, o) -> (action (n, a), steps taken so far (n,))."""
        step = np.zeros(len(observation), int) if state is None else state
        if episode_start is not None:
            step = np.where(episode_start, 0, step)
        return self.actions[step % len(self.actions)], step + 1
