"""Recorded behaviour in memory, and the windows a planner is trained on.

Episodes lie one after another in flat float32 arrays. A window is ``horizon`` consecutive steps of one episode; it
crosses neither a termination nor a truncation.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from suffuse.errors import InvalidArgument

from .. import behaviours
from ..envs import Array, control_step, robot
from .files import replacing


@dataclass(frozen=True)
class Windows:
    """W windows of H steps.

    Attributes:
        trajectories: (W, H, o + a) observation and the action taken there, in the units of the environment.
        behaviour: name -> (W,), what was measured from the window's start on, in its unit; or another label by which
            to ask for such windows: attribute strengths in [0, 1], returns.
        episode, start: (W,) where each window comes from.
        measured: (W, 2) first and last step (excluded), of all steps of the dataset, over which it was measured;
            None for windows of no dataset.
    """

    trajectories: Tensor
    behaviour: dict[str, Tensor]
    episode: Tensor
    start: Tensor
    measured: Tensor | None = None

    def __len__(self) -> int:
        return len(self.trajectories)


@dataclass(frozen=True)
class Episodes:
    """E episodes, S steps in all.

    Attributes:
        env_id: the robot.
        observations: (S, o) before each action.
        actions: (S, a) in [-1, 1].
        behaviour: what ``behaviours.per_step`` measures, name -> (S,).
        offsets: (E + 1,) episode e holds the steps offsets[e] … offsets[e + 1].
        name: where the data comes from.
        rewards: (S,), the environment's own, or None.
        states: generalised positions (S, nq) and velocities (S, nv) before each action, or None.
        dt: seconds per step.
    """

    env_id: str
    observations: Array
    actions: Array
    behaviour: dict[str, Array]
    offsets: Array
    name: str = "arrays"
    rewards: Array | None = None
    states: tuple[Array, Array] | None = None
    dt: float = 0.05

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
        rewards: list[Array] = []
        states: list[list[Array]] = [[], []]
        measured: dict[str, list[Array]] = {name: [] for name in behaviours.SERIES}
        for episode in dataset.iterate_episodes(chosen) if len(chosen) else ():
            before = np.asarray(episode.observations[:-1], np.float32)
            action = np.asarray(episode.actions, np.float32)
            steps = behaviours.per_step(known, before, action)
            infos = episode.infos or {}
            for name, values in measured.items():
                values.append(np.asarray(infos[name][1:] if name in infos else steps[name], np.float32))
            for part, key in zip(states, ("qpos", "qvel"), strict=True):
                part.extend([np.asarray(infos[key][:-1])] if key in infos else [])
            observations.append(before)
            actions.append(action)
            rewards.append(np.asarray(episode.rewards, np.float32))
            lengths.append(len(action))
        return cls(
            env_id=env_id,
            observations=_concatenate(observations, known.observation_dim),
            actions=_concatenate(actions, known.joints),
            behaviour={name: np.concatenate(values) if values else np.zeros(0) for name, values in measured.items()},
            offsets=np.cumsum(lengths),
            name=str(dataset.spec.dataset_id),
            rewards=np.concatenate(rewards) if rewards else None,
            states=(np.concatenate(states[0]), np.concatenate(states[1]))
            if len(states[0]) == len(chosen) > 0
            else None,
            dt=control_step(env_id),
        )

    @classmethod
    def from_hdf5(cls, path: Path | str, env_id: str, *, episode_steps: int | None = None) -> Episodes:
        """Read a file in D4RL's layout, or of AlignDiff's behaviours: ``observations``, ``actions`` and, where there
        are any, ``rewards``, ``terminals``, ``timeouts``, and ``qpos`` with ``qvel`` (also inside ``infos``).

        Args:
            path: the file.
            env_id: the robot that the data is of; such files do not say.
            episode_steps: length of each episode, for files without flags. D4RL's observations are those of the v2
                environments, and its scores are not comparable with the v5 ones.
        """
        import h5py

        if not Path(path).is_file():
            raise InvalidArgument(f"path={str(path)!r} is not a file")
        with h5py.File(path, "r") as file:

            def read(*names: str) -> Array | None:
                return next((np.asarray(file[name]) for name in names if name in file), None)

            observations, actions = read("observations"), read("actions")
            if observations is None or actions is None:
                raise InvalidArgument(f"{Path(path).name} has {sorted(file)}; it needs observations and actions")
            if observations.ndim == 3:  # (episodes, steps, o)
                episode_steps = observations.shape[1]
                observations, actions = (v.reshape(-1, v.shape[-1]) for v in (observations, actions))
            terminals, timeouts = read("terminals"), read("timeouts")
            ends = np.zeros(len(observations), bool) if terminals is None else terminals.reshape(-1).astype(bool)
            if timeouts is None and episode_steps:
                timeouts = np.arange(1, len(observations) + 1) % episode_steps == 0
            qpos, qvel = read("qpos", "infos/qpos"), read("qvel", "infos/qvel")
            states = None
            if qpos is not None and qvel is not None:
                states = qpos.reshape(len(ends), -1), qvel.reshape(len(ends), -1)
            rewards = read("rewards")
        out = cls.from_arrays(env_id, observations, actions, ends, timeouts)
        rewards = None if rewards is None else rewards.reshape(-1).astype(np.float32)
        return dataclasses.replace(out, name=Path(path).name, rewards=rewards, states=states)

    def to_hdf5(self, path: Path | str) -> Path:
        """Write the layout that ``from_hdf5`` reads, which is D4RL's; the last step of an episode is a timeout."""
        import h5py

        timeouts = np.zeros(len(self.observations), bool)
        timeouts[self.offsets[1:] - 1] = True
        arrays = {"observations": self.observations, "actions": self.actions, "timeouts": timeouts}
        arrays["terminals"] = np.zeros_like(timeouts)
        if self.rewards is not None:
            arrays["rewards"] = self.rewards
        if self.states is not None:
            arrays |= {"qpos": self.states[0], "qvel": self.states[1]}
        with replacing(path) as target, h5py.File(target, "w") as file:
            for name, values in arrays.items():
                file.create_dataset(name, data=values, compression="gzip")
        return Path(path)

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
        steps = behaviours.per_step(known, observations, actions) if fits else {}
        return cls(env_id, observations, actions, steps, offsets, dt=control_step(env_id))

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
        behaviour = {name: behaviours.over(name, self.behaviour, first, last, self.dt) for name in names}
        return Windows(
            trajectories=torch.from_numpy(np.concatenate([self.observations[steps], self.actions[steps]], -1)).float(),
            behaviour={name: torch.from_numpy(values).float() for name, values in behaviour.items()},
            episode=torch.from_numpy(episode),
            start=torch.from_numpy(start),
            measured=torch.from_numpy(np.stack([first, last], 1)),
        )

    def returns(self, windows: Windows, discount: float = 0.997) -> Tensor:
        """Discounted sum of the rewards from each window's start to the end of its episode: (W,).

        As many steps are counted for every window as the longest episode has: what is missing at the end of an episode
        that ran out of time is taken to go on as it went, so that a late window is not a bad one.
        """
        if self.rewards is None:
            raise InvalidArgument(f"dataset {self.name!r} has no rewards; plan for behaviours, or collect it anew")
        longest = int(np.diff(self.offsets).max())
        total = np.zeros(len(self.rewards))
        for first, last in pairwise(self.offsets):
            tail = 0.0
            for step in range(last - 1, first - 1, -1):
                total[step] = tail = self.rewards[step] + discount * tail
        steps = self.offsets[windows.episode.numpy()] + windows.start.numpy()
        left = self.offsets[windows.episode.numpy() + 1] - steps
        horizon = (1 - discount ** np.array([longest])) / (1 - discount**left)
        return torch.from_numpy(total[steps] * horizon).float()

    def select(self, episodes: Iterable[int]) -> Episodes:
        """Only these episodes, in this order."""
        chosen = np.asarray(list(episodes), int)
        if len(chosen) == 0:
            raise InvalidArgument("episodes is empty; select at least one")
        rows = np.concatenate([np.arange(self.offsets[e], self.offsets[e + 1]) for e in chosen])
        lengths = np.diff(self.offsets)[chosen]
        return Episodes(
            self.env_id, self.observations[rows], self.actions[rows],
            {name: values[rows] for name, values in self.behaviour.items()}, np.concatenate([[0], np.cumsum(lengths)]),
            self.name, None if self.rewards is None else self.rewards[rows],
            None if self.states is None else (self.states[0][rows], self.states[1][rows]), self.dt,
        )  # fmt: skip


def _concatenate(parts: list[Array], width: int) -> Array:
    return np.concatenate(parts) if parts else np.zeros((0, width), np.float32)
