"""From controllers to a Minari dataset: diverse gaits, transitions between them, and noise on the motors."""

from __future__ import annotations

import functools
import importlib.resources
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any, cast

import numpy as np

from suffuse.errors import InvalidArgument, unknown

from ..behaviours import SERIES
from ..envs import Array, Policy, Robot, Rollout, control_step, make, quiet_model_loading, robot, rollout
from .cpg import CPG, RandomPolicy
from .search import MEASURED

DATASET_ID = "suffuse/halfcheetah/cpg-v0"
BUNDLED = {"HalfCheetah-v5": "halfcheetah.csv", "Walker2d-v5": "walker2d.csv", "Hopper-v5": "hopper.csv"}


@functools.cache
def _table(file: str) -> dict[str, Array]:
    path = str(importlib.resources.files(__package__).joinpath(file))
    with open(path, encoding="utf-8") as lines:
        names = next(lines).strip().split(",")
    return dict(zip(names, np.loadtxt(path, delimiter=",", skiprows=1).T, strict=True))


def _bundled(env_id: str) -> dict[str, Array]:
    robot(env_id)
    if env_id not in BUNDLED:
        raise InvalidArgument(
            f"no controllers are bundled for env_id={env_id!r}, only for {', '.join(BUNDLED)}; "
            "find some with collect.search.search and pass parameters="
        )
    return _table(BUNDLED[env_id])


def controllers(env_id: str) -> Array:
    """The bundled controllers of a robot (n, p), slowest first, found by :mod:`~suffuse_rl_planning.collect.search`."""
    return np.stack([column for name, column in _bundled(env_id).items() if name not in MEASURED], 1)


def measured_controllers(env_id: str) -> dict[str, Array]:
    """What the bundled controllers did when they were found: behaviour -> (n,) in its unit."""
    return {name: column.copy() for name, column in _bundled(env_id).items() if name in MEASURED}


def spread(n: int, total: int) -> Array:
    """n indices spread evenly over ``total``; with n > total each is used several times."""
    return np.floor(np.arange(n) * total / n).astype(int)


def held_out(controller: Array) -> Array:
    """Whether controllers (…,) belong to the test split: a tenth does, in no step that ``spread`` could share.

    Multiples of the golden ratio fill the circle evenly, and so do those of every tenth, or every fourth, controller.
    """
    return cast(Array, controller * 0.6180339887 % 1.0 < 0.1)


def schedule(
    known: Robot, pool: Array, dt: float, *, episodes: int, steps: int, switch: float, dwell: int, seed: int
) -> tuple[CPG, list[list[int]]]:
    """Which controllers drive which episode, one after another.

    Returns:
        the policy of all episodes, and the controller indices of each.
    """
    generator = np.random.default_rng(seed)
    count = max((steps - 1) // dwell, 0)  # switches that fit, if all come as early as they can
    at = generator.integers(dwell, 2 * dwell, size=(episodes, count)).cumsum(1)
    chosen = np.repeat(spread(episodes, len(pool))[:, None], count + 1, 1)
    for split in (True, False):  # who takes over is of the same split
        rows, others = held_out(chosen[:, 0]) == split, np.flatnonzero(held_out(np.arange(len(pool))) == split)
        if len(others):
            chosen[rows, 1:] = generator.choice(others, (rows.sum(), count))
    at[generator.random(episodes) >= switch] = steps
    used = [[int(c) for c in row[: 1 + (times < steps).sum()]] for row, times in zip(chosen, at, strict=True)]
    return CPG(known, pool[chosen], dt, at=at), used


def collect(
    dataset_id: str = DATASET_ID,
    *,
    env_id: str = "HalfCheetah-v5",
    episodes: int = 120,
    steps: int = 200,
    parameters: Array | None = None,
    controller: str = "cpg",
    policies: Sequence[Policy] = (),
    action_noise: float = 0.1,
    switch: float = 0.25,
    dwell: int = 50,
    contaminate: float = 0.0,
    seed: int = 0,
    overwrite: bool = False,
) -> Any:
    """Record behaviour and write it as a Minari dataset under ``MINARI_DATASETS_PATH``.

    An episode ends where its robot falls, also where the environment would go on: no controller gets up again, and a
    scale of heights that counts lying would spend half of its range on it. Random motion is recorded as it comes.

    Args:
        dataset_id: ``namespace/name-vN``.
        env_id: a known robot.
        episodes: number of episodes, spread evenly over the controllers.
        steps: control steps of each.
        parameters: (n, p) of CPGs to drive with; the bundled ones if None.
        controller: "cpg", or "random" for uniform motor commands only.
        policies: further behaviour, anything with ``predict`` (those of stable-baselines3, say); each drives
            ``episodes`` more episodes, and the last tenth of them is the test split.
        action_noise: standard deviation of the noise on executed motor commands.
        switch: share of the episodes in which one controller takes over from another, at any phase of its stride.
        dwell: control steps between two such switches: so many to twice as many, at random.
        contaminate: share of further episodes, driven at random, that spoil the dataset.
        seed: of everything.
        overwrite: replace a dataset of this id.

    Returns:
        the ``minari.MinariDataset``. Each step has the infos ``qpos``, ``qvel`` and what ``behaviours.per_step``
        measures; each episode the metadata ``controllers``, ``split``, and its mean speed, height and energy.
    """
    import minari

    known = robot(env_id)
    if controller not in ("cpg", "random"):
        raise unknown("controller", controller, ("cpg", "random"))
    for name, value, low in (("episodes", episodes, 1), ("steps", steps, 2), ("dwell", dwell, 1)):
        if value < low:
            raise InvalidArgument(f"{name} must be at least {low}, got {value}")
    for name, share in (("switch", switch), ("contaminate", contaminate)):
        if not 0 <= share <= 1:
            raise InvalidArgument(f"{name} must lie in [0, 1], got {share}")
    if dataset_id in minari.list_local_datasets(compatible_minari_version=False):
        if not overwrite:
            raise InvalidArgument(
                f"dataset_id={dataset_id!r} exists; load it, choose another id or pass overwrite=True"
            )
        minari.delete_dataset(dataset_id)

    buffers: list[Any] = []
    metadata: list[dict[str, Any]] = []

    def record(policy: Any, used: list[list[int]], noise: float, at: int) -> None:
        result = rollout(policy, env_id=env_id, n=len(used), steps=steps, seed=at, action_noise=noise)
        if policy is not spoiler:
            result = result.until_fall()
        means = {name: result.behaviour(name) for name in ("speed", "height", "energy")}
        for i, indices in enumerate(used):
            buffers.append(_buffer(result, i, number=len(buffers), seed=at + i))
            metadata.append(
                {
                    "controllers": indices,
                    "split": "test" if held_out(np.array(indices)).any() else "train",
                    **{name: float(mean[i]) for name, mean in means.items()},
                }
            )

    spoiler = RandomPolicy(known.joints, seed)
    noisy = episodes if controller == "random" else round(contaminate * episodes)
    if controller == "cpg":
        pool = controllers(env_id) if parameters is None else np.asarray(parameters, dtype=float)
        policy, used = schedule(
            known, pool, control_step(env_id), episodes=episodes, steps=steps, switch=switch, dwell=dwell, seed=seed
        )
        record(policy, used, action_noise, seed)
    for k, other in enumerate(policies):
        first = len(buffers)
        record(other, [[] for _ in range(episodes)], action_noise, seed + (k + 2) * episodes)
        for entry in metadata[first + max(1, episodes - episodes // 10) :]:
            entry["split"] = "test"
    if noisy:
        record(spoiler, [[] for _ in range(noisy)], 0.0, seed + episodes)

    env = make(env_id)
    try:
        with quiet_model_loading():
            dataset = minari.create_dataset_from_buffers(
                dataset_id,
                buffers,
                env=env,
                eval_env=env,
                algorithm_name=controller,
                author="suffuse",
                author_email="none",
                code_permalink="none",
                description=f"{len(buffers)} episodes of {env_id} driven by {controller} controllers",
                requirements=[f"{name}=={version(name)}" for name in ("gymnasium", "mujoco")],
            )
    finally:
        env.close()
    dataset.storage.update_episode_metadata(metadata)
    return dataset


def _buffer(result: Rollout, i: int, *, number: int, seed: int) -> Any:
    """Row i as Minari wants its episodes: T + 1 observations and infos, T of everything else."""
    from minari.data_collector import EpisodeBuffer

    length = int(result.length[i])
    ended = np.zeros(length, bool)
    ended[-1] = True
    nothing = np.zeros(length, bool)
    fell = bool(result.terminated[i])
    infos = {"qpos": result.qpos[i, : length + 1], "qvel": result.qvel[i, : length + 1]}
    for name in SERIES:
        series = result.series()[name]
        infos[name] = np.concatenate([[0.0], series[i, :length]])  # nothing was done before the first observation
    return EpisodeBuffer(
        id=number,
        seed=seed,
        observations=result.observations[i, : length + 1],
        actions=result.actions[i, :length],
        rewards=list(result.rewards[i, :length]),
        terminations=list(ended if fell else nothing),
        truncations=list(nothing if fell else ended),
        infos=infos,
    )
