"""Is the quantile energy better than the mean square? With the paper's scale, at any value of it, and without one."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

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
#: The scales of the paper's quantile guidance, by dataset (those of its mean-square guidance are not published).
PUBLISHED = (1, 2, 4, 8)


@benchmark(
    "timeseries/guidance",
    paper="Kollovieh et al. 2023, arXiv:2307.11494, table 1",
    claim="Quantile guidance forecasts better than mean-square guidance.",
    peers=("mean-square guidance", "guidance without a scale"),
)
def guidance(run: Run) -> None:
    """CRPS of forecasts of one unconditional model, guided by either energy: with one scale s for all levels, as in the
    paper, at its scales of 1 to 8 (times what a shorter window needs) and by factors of two beyond them for as long as
    that is better; and as far as the energy falls along its gradient (s ``none``).

    s ``1 to 8`` and s ``best`` are what an energy reaches when s is chosen without the windows it is judged on, among
    the paper's or among all: every other window has the s with the least CRPS on the windows between. The exchange
    rates are standardised, as in ``timeseries/forecasting``, and once more divided by their mean, as in the paper: what
    there is to follow is then a hundredth of the values. On a CPU the full profile has 60 windows of each dataset.
    """
    from ..presets import preset
    from .store import Store

    store, panels = Store(run), []
    for task in tasks(run)[: 1 if run.quick else None]:
        few = 60 if not run.quick and not run.device.startswith("cuda") else task.series
        task, scaling = dataclasses.replace(task, series=few), preset(task.dataset).scaling
        with quiet():
            panels.append(compare(task.load(run), store))
            if task.scaling not in (None, scaling):
                published = dataclasses.replace(task, scaling=scaling)
                panels.append(compare(published.load(run), store, " divided by their mean"))
    caption = "CRPS of guided forecasts against the scale, those of the paper in grey; dashed: without one."
    run.figure("scales", plot(panels), caption)


class Panel(NamedTuple):
    """CRPS by energy and scale, and without one; the paper's scales in units of these windows."""

    dataset: str
    curves: dict[str, dict[float, float]]
    free: dict[str, float]
    published: list[float]


def compare(loaded: Loaded, store: Store, how: str = "") -> Panel:
    """Rows and panel of one dataset."""
    from suffuse.errors import SamplingDiverged

    from ..metrics import score

    run, model, dataset = loaded.run, loaded.model(store)[0], loaded.name + how
    published = [float(f"{each * loaded.stretch:.3g}") for each in PUBLISHED]
    curves: dict[str, dict[float, float]] = {}
    chosen: dict[str, dict[str, float]] = {}
    for energy, name in ENERGIES.items():
        made: dict[float, list[Any]] = {}

        def crps(s: float | None, energy: str = energy, name: str = name, made: dict[Any, Any] = made) -> float:
            with run.stage(f"{dataset}: {name}, {s or 'no scale'}"):
                try:
                    forecasts, seconds = ask(loaded, store, model, energy, s)
                except SamplingDiverged:
                    return math.inf
            value = score(forecasts, loaded.test)["CRPS"]
            run.row(dataset=dataset, method=name, metric="CRPS", value=value, better="lower",
                    setting={"s": "none" if s is None else s}, seconds=seconds)  # fmt: skip
            if s is not None:
                made[s] = forecasts
            return value

        chosen[name] = {"none": crps(None)}
        curves[name] = {s: value for s, value in beyond(loaded.stretch, crps).items() if math.isfinite(value)}
        among = {"1 to 8": {s: made[s] for s in published if s in made}, "best": made}
        for label, forecasts in among.items():
            value = chosen[name][label] = chosen_elsewhere(forecasts, loaded.test)
            run.row(dataset=dataset, method=name, metric="CRPS", value=value, better="lower", setting={"s": label})
    q, ms = (chosen[name] for name in ENERGIES.values())
    parts = [
        f"{100 * (q[s] / ms[s] - 1):+.1f} % with s {s} ({q[s]:.4f} and {ms[s]:.4f})" for s in ("1 to 8", "best", "none")
    ]
    run.note(f"{dataset}: the quantile's CRPS is away from the mean square's by {', '.join(parts)}.")
    return Panel(dataset, curves, {name: each["none"] for name, each in chosen.items()}, published)


def beyond(unit: float, crps: Callable[[float], float]) -> dict[float, float]:
    """Values at the paper's scales, and by factors of two on from an end where the least is, to the first worse one."""
    found = {math.log2(each): crps(float(f"{each * unit:.3g}")) for each in PUBLISHED}
    for end, step in ((min, -1), (max, 1)):
        k = end(found)
        while math.isfinite(found[k]) and found[k] == min(found.values()):
            k += step
            found[k] = crps(float(f"{2**k * unit:.3g}"))
    return {float(f"{2**k * unit:.3g}"): value for k, value in sorted(found.items())}


def chosen_elsewhere(made: dict[float, list[Any]], test: list[Any]) -> float:
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


def plot(panels: list[Panel]) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * len(panels), 3.4), layout="constrained")
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        axes.axvspan(min(panel.published), max(panel.published), color="0.93", zorder=0)
        for (name, curve), color in zip(panel.curves.items(), ("C0", "C1"), strict=True):
            axes.plot(list(curve), list(curve.values()), "o-", color=color, markersize=5, label=name)
            axes.axhline(panel.free[name], color=color, linestyle="--", linewidth=1)
        lowest = min(*panel.free.values(), *(crps for curve in panel.curves.values() for crps in curve.values()))
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set(xlabel="scale s", ylabel="CRPS", ylim=(0.95 * lowest, 2 * lowest), title=panel.dataset)
        axes.title.set_fontsize(9)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(fontsize=8, frameon=False)
    return figure
