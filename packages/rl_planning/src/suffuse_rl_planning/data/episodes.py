"""Recorded behaviour in memory, and the windows a planner is trained on.

Episodes lie one after another in flat float32 arrays. A window is ``horizon`` consecutive steps of one episode; it
crosses neither a termination nor a truncation.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from suffuse.errors import InvalidArgument

from .. import behaviours
from ..envs import Array, robot


@dataclass(frozen=True)
class Windows:
    """W windows of H steps.

    Attributes:
        trajectories: (W, H, o + a) observation and the action taken there, in the units of the environment.
        behaviour: name -> (W,), the mean that was measured from the window's start on, in its unit.
        episode, start: (W,) where each window comes from.
    """

    trajectories: Tensor
    behaviour: dict[str, Tensor]
    episode: Tensor
    start: Tensor

    def __len__(self) -> int:
        return len(self.trajectories)


@dataclass(frozen=True)
class Episodes:
    """E episodes, S steps in all.

    Attributes:
        env_id: the robot.
        observations: (S, o) before each action.
        actions: (S, a) in [-1, 1].
        behaviour: name -> (S,) per step, in its unit.
        offsets: (E + 1,) episode e holds the steps offsets[e] … offsets[e + 1].
        name: where the data comes from.
    """

    env_id: str
    observations: Array
    actions: Array
    behaviour: dict[str, Array]
    offsets: Array
    name: str = "arrays"

    def __post_init__(self) -> None:
        known = robot(self.env_id)
        if len(self.offsets) < 2 or len(self.observations) == 0:
            raise InvalidArgument(f"dataset {self.name!r} is empty; collect episodes first")
        for what, values, size in (
            ("observations", self.observations, known.observation_dim),
            ("actions", self.actions, known.joints),
        ):
            if values.ndim != 2 or values.shape[1] != size:
                raise InvalidArgument(
                    f"{what} of dataset {self.name!r} must be (steps, {size}) for {self.env_id}, got "
                    f"{tuple(values.shape)}; is it a dataset of another environment?"
                )
        for what, values in (("observations", self.observations), ("actions", self.actions), *self.behaviour.items()):
            if len(values) != self.offsets[-1]:
                raise InvalidArgument(f"{what} of dataset {self.name!r} has {len(values)} of {self.offsets[-1]} steps")
            if not np.isfinite(values).all():
                step = int(np.argmin(np.isfinite(values).reshape(len(values), -1).all(1)))
                raise InvalidArgument(
                    f"{what} of dataset {self.name!r} holds NaN or infinity, first at step {step}; drop that episode"
                )

    def __len__(self) -> int:
        return len(self.offsets) - 1

    # --- sources ------------------------------------------------------------------------------------------------
    @classmethod
    def from_minari(cls, dataset: Any, *, split: str | None = None) -> Episodes:
        """Read a Minari dataset of a known robot, whole, into memory.

        Args:
            dataset: ``minari.MinariDataset`` or the id of a local one.
            split: only the episodes with this ``split`` in their metadata ("train" or "test"); all if None.
        """
        import minari

        if isinstance(dataset, str):
            if dataset not in (local := minari.list_local_datasets(compatible_minari_version=False)):
                raise InvalidArgument(
                    f"dataset={dataset!r} is not among the local Minari datasets ({', '.join(local) or 'none'}); "
                    "collect it, run minari.download_dataset, or set MINARI_DATASETS_PATH"
                )
            dataset = minari.load_dataset(dataset)
        env_id = dataset.env_spec.id if dataset.env_spec else "none"
        known = robot(env_id)
        chosen = np.asarray(dataset.episode_indices)
        if split is not None:
            metadata = dataset.storage.get_episode_metadata(chosen)
            chosen = chosen[[m.get("split") == split for m in metadata]]
        observations, actions, lengths = [], [], [0]
        measured: dict[str, list[Array]] = {name: [] for name in behaviours.UNITS}
        for episode in dataset.iterate_episodes(chosen) if len(chosen) else ():
            before = np.asarray(episode.observations[:-1], np.float32)
            action = np.asarray(episode.actions, np.float32)
            steps = behaviours.of_observations(known, before, action)
            infos = episode.infos or {}
            for name, values in measured.items():
                values.append(np.asarray(infos[name][1:] if name in infos else steps[name], np.float32))
            observations.append(before)
            actions.append(action)
            lengths.append(len(action))
        return cls(
            env_id=env_id,
            observations=_concatenate(observations, known.observation_dim),
            actions=_concatenate(actions, known.joints),
            behaviour={name: np.concatenate(values) if values else np.zeros(0) for name, values in measured.items()},
            offsets=np.cumsum(lengths),
            name=str(dataset.spec.dataset_id),
        )

    @classmethod
    def from_arrays(
        cls, env_id: str, observations: Array, actions: Array, terminals: Array, timeouts: Array | None = None
    ) -> Episodes:
        """From D4RL's layout: flat arrays with a flag at the last step of each episode.

        Args:
            env_id: the robot that the data is of.
            observations: (S, o).
            actions: (S, a).
            terminals, timeouts: (S,) bool; an episode ends where either is set, and at the end of the data.
        """
        observations, actions = np.asarray(observations, np.float32), np.asarray(actions, np.float32)
        known = robot(env_id)
        ends = np.asarray(terminals, bool).reshape(-1)
        if timeouts is not None:
            ends = ends | np.asarray(timeouts, bool).reshape(-1)
        offsets = np.unique(np.concatenate([[0], np.flatnonzero(ends) + 1, [len(observations)]]))
        fits = observations.ndim == 2 and observations.shape[1] == known.observation_dim
        fits = fits and actions.shape == (len(observations), known.joints)  # __post_init__ says what does not
        steps = behaviours.of_observations(known, observations, actions) if fits else {}
        return cls(env_id, observations, actions, steps, offsets)

    # --- windows ------------------------------------------------------------------------------------------------
    def windows(
        self, horizon: int, *, names: Iterable[str] = ("speed",), measure: int | None = None, stride: int = 1
    ) -> Windows:
        """All windows of ``horizon`` steps, every ``stride`` steps, each with the behaviour that it belongs to.

        Args:
            horizon: H.
            names: the behaviours to measure.
            measure: control steps over which behaviour is measured, from the window's start on, or the last that many
                of the episode; H if None. With more than H, the first steps from rest count as part of the run that
                they lead to, and a gait is judged over several strides.
            stride: steps between the starts of windows.

        Raises:
            InvalidArgument: when every episode is shorter than the horizon.
        """
        names = behaviours.check(names)
        measure = horizon if measure is None else measure
        if horizon < 2 or stride < 1 or measure < horizon:
            raise InvalidArgument(
                f"horizon must be at least 2, stride at least 1 and measure at least the horizon, "
                f"got horizon={horizon}, stride={stride}, measure={measure}"
            )
        lengths = np.diff(self.offsets)
        if lengths.max() < horizon:
            raise InvalidArgument(
                f"horizon={horizon} is longer than every episode of {self.name!r} (the longest has {lengths.max()} "
                "steps); shorten the horizon or collect longer episodes"
            )
        starts = [np.arange(0, max(length - horizon + 1, 0), stride) for length in lengths]
        episode = np.repeat(np.arange(len(lengths)), [len(s) for s in starts])
        start = np.concatenate(starts)
        steps = (self.offsets[episode] + start)[:, None] + np.arange(horizon)
        first = self.offsets[episode] + np.minimum(start, np.maximum(lengths[episode] - measure, 0))
        last = np.minimum(first + measure, self.offsets[episode + 1])
        behaviour = {name: behaviours.mean_over(self.behaviour[name], first, last) for name in names}
        return Windows(
            trajectories=torch.from_numpy(np.concatenate([self.observations[steps], self.actions[steps]], -1)).float(),
            behaviour={name: torch.from_numpy(values).float() for name, values in behaviour.items()},
            episode=torch.from_numpy(episode),
            start=torch.from_numpy(start),
        )


def _concatenate(parts: list[Array], width: int) -> Array:
    return np.concatenate(parts) if parts else np.zeros((0, width), np.float32)
