"""How the bundled controllers were found: CMA-ES for a few target speeds, then MAP-Elites for everything between.

CMA-ES maximises exp(-|v - v*| / max(1, |v*|)) - 0.02 mean u^2, one target speed v* after another, warm-started.
MAP-Elites keeps the best controller of each cell of (speed, height) and breeds with the iso+line operator,
x' = x_1 + N(0, s_iso^2) + (x_2 - x_1) N(0, s_line^2).
Mouret, Clune (2015), arXiv:1504.04909; Vassiliades, Mouret (2018), arXiv:1804.03906. Needs ``[search]`` (cma).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from suffuse.errors import require

from ..envs import Array, robot, rollout
from .cpg import CPG, bounds, control_step

SETTLE = 50  # control steps before behaviour is measured


def evaluate(env_id: str, parameters: Array, *, steps: int, seed: int, noise: float) -> dict[str, Array]:
    """What controllers (n, p) do once settled: speed, height, energy, drift, tilt, effort (mean u^2), alive: (n,)."""
    result = rollout(
        CPG(robot(env_id), parameters, control_step(env_id)),
        env_id=env_id,
        n=len(parameters),
        steps=steps,
        seed=seed,
        action_noise=noise,
    )
    half = (SETTLE + steps) // 2
    out = {name: result.behaviour(name, SETTLE) for name in ("speed", "height", "energy")}
    out["drift"] = np.abs(result.behaviour("speed", SETTLE, half) - result.behaviour("speed", half))
    out["tilt"] = np.abs(robot(env_id).pitch(result.observations)).max(1)
    out["effort"] = (result.actions**2).mean((1, 2))
    out["alive"] = result.length / steps
    return out


def search(
    env_id: str = "HalfCheetah-v5",
    *,
    targets: tuple[float, ...] = (1.0, 2.5, 4.0, 6.0, -1.5, -3.0),
    generations: int = 40,
    breedings: int = 60,
    population: int = 24,
    steps: int = 200,
    cells: tuple[float, float] = (0.1, 0.05),
    noise: float = 0.1,
    seed: int = 0,
) -> tuple[Array, dict[str, Array]]:
    """Find controllers of many speeds and heights.

    Args:
        targets: speeds in m/s that CMA-ES aims at, in this order.
        generations: of CMA-ES per target speed.
        breedings: rounds of MAP-Elites, each of ``4 * population`` controllers.
        cells: size of a cell, (m/s, m).

    Returns:
        controllers (n, p) and their behaviours (n,) each.
    """
    cma = require("cma", extra="search", package="suffuse-rl-planning")
    generator = np.random.default_rng(seed)
    low, high = bounds(robot(env_id))
    archive: dict[tuple[int, int], tuple[float, Array, dict[str, float]]] = {}

    def decode(unit: Array) -> Array:
        scaled: Array = low + (high - low) * np.clip(unit, 0.0, 1.0)
        return scaled

    def visit(units: Array) -> dict[str, Array]:
        found = evaluate(env_id, decode(units), steps=steps, seed=int(generator.integers(2**31)), noise=noise)
        quality = -found["drift"] - 0.3 * found["effort"]
        upright = (found["tilt"] < 1.2) & (found["alive"] == 1.0) & (found["drift"] < 0.3)
        for i in np.flatnonzero(upright):
            cell = (int(found["speed"][i] // cells[0]), int(found["height"][i] // cells[1]))
            if cell not in archive or quality[i] > archive[cell][0]:
                archive[cell] = (quality[i], units[i], {name: float(v[i]) for name, v in found.items()})
        return found

    mean = np.full(len(low), 0.5)
    for target in targets:
        strategy: Any = cma.CMAEvolutionStrategy(
            mean, 0.2, {"bounds": [0, 1], "popsize": population, "seed": seed + 1, "verbose": -9}
        )
        for _ in range(generations):
            units = np.array(strategy.ask())
            found = visit(units)
            reward = np.exp(-np.abs(found["speed"] - target) / max(1.0, abs(target)))
            reward = reward + found["alive"] - 0.02 * found["effort"] - np.maximum(found["tilt"] - 1.0, 0.0)
            strategy.tell(list(units), list(-reward))
        mean = np.clip(strategy.result.xbest, 0.0, 1.0) if target > 0 else np.full(len(low), 0.5)

    for _ in range(breedings):
        elites = np.array([unit for _, unit, _ in archive.values()])
        first, second = (elites[generator.integers(len(elites), size=4 * population)] for _ in range(2))
        line = 0.2 * generator.standard_normal((len(first), 1))
        children = first + 0.02 * generator.standard_normal(first.shape) + line * (second - first)
        visit(np.clip(children, 0.0, 1.0))

    entries = [archive[cell] for cell in sorted(archive)]
    parameters = np.array([decode(unit) for _, unit, _ in entries])
    return parameters, {name: np.array([m[name] for _, _, m in entries]) for name in entries[0][2]}
