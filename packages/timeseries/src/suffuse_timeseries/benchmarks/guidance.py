"""Is the quantile energy better than the mean square? With the paper's scale, at any value of it, and without one."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from suffuse.bench import benchmark

from ..quiet import quiet
from .tasks import Loaded, tasks

if TYPE_CHECKING:
    from gluonts.model.forecast import Forecast
    from matplotlib.figure import Figure

    from suffuse.bench import Run

    from .store import Store

__all__ = ["guidance"]

ENERGIES = {"q": "quantile", "ms": "mean square"}


@benchmark(
    "timeseries/guidance",
    paper="Kollovieh et al. 2023, arXiv:2307.11494, table 1",
    claim="Quantile guidance forecasts better than mean-square guidance.",
    peers=("mean-square guidance", "guidance without a scale"),
)
def guidance(run: Run) -> None:
    """CRPS of forecasts of one unconditional model, guided by either energy: with one scale s for all levels, as in the
    paper, by factors of two from the preset's to beyond the best on either side; and as far as the energy falls along
    its gradient (s ``none``).

    s ``best`` is what an energy reaches when s is chosen without the windows it is judged on: every other window has
    the s with the least CRPS on the windows between. On a CPU the full profile has 60 windows of each dataset.
    """
    from .store import Store

    store = Store(run)
    for task in tasks(run)[: 1 if run.quick else None]:
        with quiet():
            few = 60 if not run.quick and not run.device.startswith("cuda") else task.series
            compare(dataclasses.replace(task, series=few).load(run), store)


def compare(loaded: Loaded, store: Store) -> None:
    """Rows and picture of one dataset."""
    from ..metrics import score

    run, model = loaded.run, loaded.model(store)[0]
    curves: dict[str, dict[float, float]] = {}
    best: dict[str, float] = {}
    free: dict[str, float] = {}
    for energy, name in ENERGIES.items():
        made: dict[float | None, list[Any]] = {}

        def crps(s: float | None, energy: str = energy, name: str = name, made: dict[Any, Any] = made) -> float:
            with run.stage(f"{loaded.task.dataset}: {name}, {s or 'no scale'}"):
                made[s], seconds = ask(loaded, store, model, energy, s)
            value = score(made[s], loaded.test)["CRPS"]
            run.row(dataset=loaded.name, method=name, metric="CRPS", value=value, better="lower",
                    setting={"s": "none" if s is None else s}, seconds=seconds)  # fmt: skip
            return value

        free[name], curves[name] = crps(None), downhill(loaded.guidance_scale(energy), crps)
        best[name] = chosen_elsewhere({s: each for s, each in made.items() if s is not None}, loaded.test)
        run.row(dataset=loaded.name, method=name, metric="CRPS", value=best[name], better="lower",
                setting={"s": "best"})  # fmt: skip
    q, ms = ENERGIES.values()
    with_scale, without = 100 * (best[q] / best[ms] - 1), 100 * (free[q] / free[ms] - 1)
    run.note(
        f"{loaded.name}: the quantile's CRPS is {with_scale:+.1f} % of the mean square's away with the best s of each "
        f"({best[q]:.4f} and {best[ms]:.4f}), {without:+.1f} % without a scale ({free[q]:.4f} and {free[ms]:.4f})."
    )
    caption = f"{loaded.name}: CRPS of guided forecasts against the scale; dashed: without one."
    run.figure(f"scales-{loaded.task.dataset}", plot(curves, free), caption)


def downhill(guess: float, crps: Callable[[float], float]) -> dict[float, float]:
    """Values at the guess and, by factors of two on both sides of it, down to the first that is worse than the last."""
    found: dict[float, float] = {}
    for direction in (2.0, 0.5):
        factor, last = 1.0, math.inf
        while True:
            s = float(f"{factor * guess:.3g}")
            if s not in found:
                found[s] = crps(s)
            if not found[s] < last:
                break
            factor, last = factor * direction, found[s]
    return dict(sorted(found.items()))


def chosen_elsewhere(made: dict[float | None, list[Any]], test: list[Any]) -> float:
    """CRPS of all windows when those of even number have the scale that is best for the odd ones, and the reverse."""
    from ..metrics import score

    forecasts: list[Any] = [None] * len(test)
    for mine in (0, 1):
        other = {s: score(each[1 - mine :: 2], test[1 - mine :: 2])["CRPS"] for s, each in made.items()}
        forecasts[mine::2] = made[min(other, key=other.__getitem__)][mine::2]
    return score(forecasts, test)["CRPS"]


def ask(loaded: Loaded, store: Store, model: Any, energy: str, s: float | None) -> tuple[list[Any], float]:
    """Forecasts with one energy and one scale, and the seconds they took."""
    from ..metrics import forecast

    task = loaded.task
    how: dict[str, Any] = {"guidance_scale": s, "sampler": task.sampler}

    def make() -> tuple[list[Forecast], float]:
        start = time.perf_counter()
        made = forecast(model.using(method=energy, steps=task.sampling_steps, **how), loaded.test, task.samples)
        return made, time.perf_counter() - start

    facts = loaded.facts(what="guidance", samples=task.samples, series=task.series, energy=energy)
    return store.forecasts({**facts, **how, "sampling_steps": task.sampling_steps}, loaded.test, make)


def plot(curves: dict[str, dict[float, float]], free: dict[str, float]) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3.4), layout="constrained")
    axes = figure.subplots()
    for (name, curve), color in zip(curves.items(), ("C0", "C1"), strict=True):
        axes.plot(list(curve), list(curve.values()), "o-", color=color, markersize=5, label=name)
        axes.axhline(free[name], color=color, linestyle="--", linewidth=1)
    lowest = min(*free.values(), *(crps for curve in curves.values() for crps in curve.values()))
    axes.set(xlabel="scale s", ylabel="CRPS", xscale="log", ylim=(0.95 * lowest, 2 * lowest))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, frameon=False)
    return figure
