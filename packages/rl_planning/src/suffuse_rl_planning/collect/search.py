"""How controllers are found: CMA-ES for a few target speeds, then MAP-Elites for everything between.

CMA-ES maximises alive + exp(-|v - v*| / max(1, |v*|)) - 0.02 mean u^2, one target speed v* after another, warm-started.
A robot that can fall is first asked to stay up for a third of the time, then for two thirds, then for all of it, each
time with fresh noise: gaits otherwise fit the horizon that they were tried on, and fall soon after it.
MAP-Elites keeps the best controller of each cell of (speed, second behaviour) and breeds with the iso+line operator,
x' = x_1 + N(0, s_iso^2) + (x_2 - x_1) N(0, s_line^2).
Mouret, Clune (2015), arXiv:1504.04909; Vassiliades, Mouret (2018), arXiv:1804.03906. Needs ``[search]`` (cma).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from suffuse.errors import InvalidArgument, require

from .. import behaviours
from ..data.files import replacing
from ..envs import Array, Policy, Robot, Spatial, control_step, make, robot
from .cpg import CPG, bounds, size

MEASURED = ("speed", "height", "energy", "jump", "stride", "leg")


@dataclass(frozen=True)
class Plan:
    """What a search looks for in one robot.

    Attributes:
        targets: speeds in m/s that CMA-ES aims at, in this order; a negative one starts from scratch.
        steps: control steps of a trial.
        settle: the first of these, before behaviour is measured.
        cells: behaviours that MAP-Elites spreads over, and the size of a cell in their units.
        stages: shares of ``steps`` that are tried one after another.
        amplitude: of the swings at the start, as a share of the largest.
        mirrored: the legs begin as mirror images of each other, half a cycle apart.
    """

    targets: tuple[float, ...]
    steps: int
    settle: int
    cells: dict[str, float]
    stages: tuple[float, ...] = (1.0,)
    amplitude: float = 0.5
    mirrored: bool = False


PLANS = {
    "HalfCheetah-v5": Plan((1.0, 2.5, 4.0, 6.0, -1.5, -3.0), 200, 50, {"speed": 0.1, "height": 0.05}),
    "Walker2d-v5": Plan(
        (0.5, 1.0, 1.6, 2.2, -0.6), 400, 80, {"speed": 0.1, "height": 0.02}, (0.3, 0.6, 1.0), 0.2, mirrored=True
    ),
    "Hopper-v5": Plan((0.5, 1.0, 1.6, 2.2, 0.0), 400, 80, {"speed": 0.1, "jump": 0.02}, (0.3, 0.6, 1.0), 0.2),
}


def trial(env_id: str, policy: Policy, *, n: int, steps: int, settle: int, seed: int, noise: float) -> dict[str, Array]:
    """Drive n robots, and drop each where it falls: what they did once settled, (n,) each.

    Returns:
        ``MEASURED``; ``drift``, the change of speed from the first to the second half; ``tilt``, the largest pitch;
        ``effort``, mean u^2; ``alive``, the share of the time before the fall.
    """
    import mujoco

    known = robot(env_id)
    if isinstance(known, Spatial):
        raise InvalidArgument(f"a search needs a planar robot, {env_id} is not one; pass parameters of your own")
    env = make(env_id)
    try:
        base = env.unwrapped
        model: Any = base.model
        frame_skip, dt, spread = base.frame_skip, float(base.dt), base._reset_noise_scale
    finally:
        env.close()
    generator = np.random.default_rng(seed)
    worlds = [mujoco.MjData(model) for _ in range(n)]
    for world in worlds:
        world.qpos[:] = base.init_qpos + generator.uniform(-spread, spread, model.nq)
        world.qvel[:] = base.init_qvel + generator.uniform(-spread, spread, model.nv)

    def observe(rows: Array) -> Array:
        return np.stack([np.concatenate([worlds[i].qpos[1:], worlds[i].qvel]) for i in rows])

    observations = np.zeros((n, steps + 1, known.observation_dim))
    actions = np.zeros((n, steps, known.joints))
    x = np.zeros((n, steps + 1))
    running, length, state = np.arange(n), np.full(n, steps), None
    observations[:, 0] = observe(running)
    for t in range(steps):
        action, state = policy.predict(observations[:, t], state)
        actions[:, t] = np.clip(action + noise * generator.standard_normal(action.shape), -1.0, 1.0)
        for i in running:
            worlds[i].ctrl[:] = actions[i, t]
            mujoco.mj_step(model, worlds[i], nstep=frame_skip)
            x[i, t + 1] = worlds[i].qpos[0]
        observations[running, t + 1] = observe(running)
        fell = known.fallen(observations[running, t + 1])
        length[running[fell]] = t + 1
        running = running[~fell]
        if not len(running):
            break
    series = behaviours.per_step(known, observations[:, 1:], actions)
    series["speed"] = np.diff(x, axis=1) / dt
    flat = {key: values.reshape(-1) for key, values in series.items()}
    start, end = np.arange(n) * steps + np.minimum(settle, length), np.arange(n) * steps + length
    half = (start + end) // 2
    out = {name: behaviours.over(name, flat, start, end, dt) for name in MEASURED}
    out["drift"] = np.abs(
        behaviours.over("speed", flat, start, half, dt) - behaviours.over("speed", flat, half, end, dt)
    )
    out["tilt"] = np.abs(np.where(np.arange(steps) < length[:, None], series["pitch"], 0.0)).max(1)
    out["effort"] = behaviours.over("effort", flat, end - length, end, dt)
    out["alive"] = length / steps
    return out


def mirror(known: Robot, half: Array) -> Array:
    """Controllers (n, 6 j / 2 + 3) of one leg -> (n, 6 j + 3) of both, the other half a cycle later."""
    blocks, rest = half[:, :-3].reshape(len(half), 6, known.joints // 2), half[:, -3:]
    other = blocks.copy()
    other[:, 2] = (other[:, 2] + 2 * np.pi) % (2 * np.pi) - np.pi  # phase + pi, in [-pi, pi]
    return np.concatenate([np.concatenate([blocks, other], 2).reshape(len(half), -1), rest], 1)


def search(
    env_id: str = "HalfCheetah-v5",
    *,
    plan: Plan | None = None,
    generations: int = 40,
    breedings: int = 60,
    population: int = 24,
    noise: float = 0.1,
    seed: int = 0,
    progress: Callable[[str], None] = lambda line: None,
) -> tuple[Array, dict[str, Array]]:
    """Find controllers of many speeds and postures.

    Args:
        plan: what to look for; ``PLANS[env_id]`` if None.
        generations: of CMA-ES per target speed and stage.
        breedings: rounds of MAP-Elites, each of ``4 * population`` controllers.
        population: controllers per generation.
        noise: standard deviation of the noise on motor commands.
        progress: called with a line of text now and then.

    Returns:
        controllers (n, p), sorted by cell, and their behaviours (n,) each.

    Raises:
        InvalidArgument: when not one controller stays upright.
    """
    cma = require("cma", extra="search", package="suffuse-rl-planning")
    known, generator = robot(env_id), np.random.default_rng(seed)
    if plan is None and env_id not in PLANS:
        raise InvalidArgument(f"no plan for env_id={env_id!r}, only for {', '.join(PLANS)}; pass plan=")
    plan = plan or PLANS[env_id]
    low, high = bounds(known)
    keep = np.r_[tuple(np.arange(known.joints // 2) + k * known.joints for k in range(6))]
    one_leg = np.concatenate([keep, np.arange(size(known) - 3, size(known))])  # of the numbers of both legs
    archive: dict[tuple[int, ...], tuple[float, Array, dict[str, float]]] = {}

    def decode(units: Array) -> Array:
        units = np.clip(units, 0.0, 1.0)
        if units.shape[1] == len(low):
            return cast(Array, low + (high - low) * units)
        return mirror(known, low[one_leg] + (high - low)[one_leg] * units)

    def visit(parameters: Array, share: float = 1.0) -> dict[str, Array]:
        steps = round(plan.steps * share)
        found = trial(
            env_id, CPG(known, parameters, control_step(env_id)), n=len(parameters), steps=steps,
            settle=round(plan.settle * share), seed=int(generator.integers(2**31)), noise=noise,
        )  # fmt: skip
        quality = -found["drift"] - 0.3 * found["effort"]
        good = (found["tilt"] < known.upright[1]) & (found["alive"] == 1.0) & (found["drift"] < 0.3)
        for i in np.flatnonzero(good) if share == 1.0 else ():
            cell = tuple(int(found[name][i] // width) for name, width in plan.cells.items())
            if cell not in archive or quality[i] > archive[cell][0]:
                archive[cell] = (quality[i], parameters[i], {name: float(found[name][i]) for name in MEASURED})
        return found

    start = (np.zeros(len(low)) - low) / (high - low)
    start[known.joints : 2 * known.joints], start[-3:] = plan.amplitude, 0.5
    mean = origin = start[one_leg] if plan.mirrored else start
    if plan.stages == (1.0,):
        mean = origin = np.full(len(low), 0.5)
    for target in plan.targets:
        mean = mean if target > 0 else origin
        for share in plan.stages:
            strategy: Any = cma.CMAEvolutionStrategy(
                mean, 0.2, {"bounds": [0, 1], "popsize": population, "seed": seed + 1, "verbose": -9}
            )
            for _ in range(max(1, generations // len(plan.stages))):
                units = np.array(strategy.ask())
                found = visit(decode(units), share)
                reward = np.exp(-np.abs(found["speed"] - target) / max(1.0, abs(target))) * found["alive"]
                reward = reward + found["alive"] - 0.02 * found["effort"] - np.maximum(found["tilt"] - 1.0, 0.0)
                strategy.tell(list(units), list(-reward))
            mean = np.clip(strategy.result.xfavorite, 0.0, 1.0)
            progress(
                f"target {target:+.1f} m/s, {round(plan.steps * share)} steps: best {reward.max():.2f}, "
                f"alive {found['alive'].mean():.2f}, speed {np.median(found['speed']):+.2f}; {len(archive)} controllers"
            )
    if not archive:
        raise InvalidArgument(f"no controller of {env_id} stayed upright; raise generations={generations}")
    for k in range(breedings):
        elites = np.array([parameters for _, parameters, _ in archive.values()])
        first, second = (elites[generator.integers(len(elites), size=4 * population)] for _ in range(2))
        line = 0.2 * generator.standard_normal((len(first), 1))
        step = 0.02 * (high - low) * generator.standard_normal(first.shape)
        visit(np.clip(first + step + line * (second - first), low, high))
        if k % 10 == 9:
            progress(f"breeding {k + 1}: {len(archive)} controllers")

    entries = [archive[cell] for cell in sorted(archive)]
    parameters = np.array([p for _, p, _ in entries])
    return parameters, {name: np.array([m[name] for _, _, m in entries]) for name in MEASURED}


def robust(
    env_id: str, parameters: Array, *, trials: int = 3, noise: float = 0.1, seed: int = 1, settle: int | None = None,
    steps: int | None = None,
) -> tuple[Array, dict[str, Array]]:  # fmt: skip
    """The controllers (n, p) that stay up in further trials, slowest first, with what they did on average."""
    plan = PLANS[env_id]
    policy = CPG(robot(env_id), parameters, control_step(env_id))
    found = [
        trial(
            env_id, policy, n=len(parameters), steps=steps or plan.steps,
            settle=plan.settle if settle is None else settle, seed=seed + k, noise=noise,
        )
        for k in range(trials)
    ]  # fmt: skip
    mean = {name: np.mean([f[name] for f in found], 0) for name in (*MEASURED, "alive")}
    order = np.argsort(mean["speed"])
    order = order[mean["alive"][order] == 1.0]
    return parameters[order], {name: mean[name][order] for name in MEASURED}


def write_table(path: Path | str, env_id: str, parameters: Array, measured: dict[str, Array]) -> Path:
    """Write controllers (n, p) with what they did as the CSV that ``collect.controllers`` reads."""
    j = robot(env_id).joints
    names = [
        f"{part}{i}" for part in ("offset", "amplitude", "phase", "pitch", "pitch_rate", "velocity") for i in range(j)
    ]
    header = ",".join([*measured, *names, "frequency", "kp", "kd"])
    table = np.column_stack([*measured.values(), parameters])
    with replacing(path) as target:
        np.savetxt(target, table, fmt="%.5g", delimiter=",", header=header, comments="")
    return Path(path)
