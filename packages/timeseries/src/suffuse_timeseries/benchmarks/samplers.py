"""How many evaluations does a guided forecast need? Every kind of core sampler on one trained model.

The paper samples by DDPM in 100 steps. Guidance that is a denoiser made of a denoiser can be integrated by any solver.
"""

from __future__ import annotations

import dataclasses
import time
from typing import TYPE_CHECKING, Any

from suffuse.bench import benchmark

from ..quiet import quiet
from .tasks import Loaded, tasks

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from suffuse.bench import Run

    from .store import Store

__all__ = ["samplers"]

SOLVERS = ("ddim", "dpmpp-2m", "deis-2", "unipc-2", "heun", "ddpm")
EVALUATIONS = {True: (5, 10, 20), False: (5, 10, 20, 50)}  # by run.quick
CHAIN = {True: (), False: (100,)}  # and these for DDPM


@benchmark(
    "timeseries/samplers",
    paper="Kollovieh et al. 2023, arXiv:2307.11494; Lu et al. 2022, arXiv:2211.01095",
    claim="Guided by a solver of the ODE in 10 to 20 evaluations, forecasts are as good as by DDPM in 100.",
    peers=("DDPM, the paper's",),
)
def samplers(run: Run) -> None:
    """CRPS of quantile-guided forecasts of one unconditional model against evaluations of the network (each with its
    gradient). Guidance goes as far as the energy falls along its gradient; with a ``scale`` it is as the paper has it,
    one s for all, weighted by the level that a step leads to. ``post-step`` is guided after each step as the
    official code does, with two evaluations a step.
    """
    from .store import Store

    store = Store(run)
    for task in tasks(run)[: 1 if run.quick else None]:
        with quiet():
            part = dataclasses.replace(task, series=None if task.series is None else min(task.series, 60))
            if not run.device.startswith("cuda") and not run.quick:
                part = dataclasses.replace(part, series=60)
            curves(part.load(run), store)


def curves(loaded: Loaded, store: Store) -> None:
    """Rows and picture of one dataset."""
    run, model = loaded.run, loaded.model(store)[0]
    scale = loaded.tuned(store, model, "q")
    asked: list[tuple[str, int, dict[str, Any]]] = [
        (name, n, {"sampler": name, "steps": n // 2 if name == "heun" else n})
        for name in SOLVERS
        for n in (*EVALUATIONS[run.quick], *(CHAIN[run.quick] if name == "ddpm" else ()))
        if not (name == "heun" and n % 2)
    ]
    asked += [
        (f"{name}, scale", n, {"sampler": name, "steps": n, "guidance_scale": scale})
        for name in ("ddim", "dpmpp-2m", "ddpm")
        for n in (*EVALUATIONS[run.quick], *(CHAIN[run.quick] if name == "ddpm" else ()))
    ]
    most = max(n for _, n, _ in asked)
    late = {"sampler": "ddpm", "steps": most // 2, "post_step": True, "guidance_scale": scale}
    asked.append(("ddpm, scale, post-step", most, late))
    scores: dict[str, list[tuple[int, float]]] = {}
    for name, nfe, how in asked:
        with run.stage(f"{loaded.task.dataset}: {name}, {nfe}"):
            crps, seconds = one(loaded, store, model, {"guidance_scale": None, **how})
        run.row(dataset=loaded.name, method=name, metric="CRPS", value=crps, better="lower", setting={"nfe": nfe},
                seconds=seconds)  # fmt: skip
        scores.setdefault(name, []).append((nfe, crps))
    short, name = min((dict(points)[20], name) for name, points in scores.items() if name in SOLVERS[:-1])
    chain, long = max(scores["ddpm, scale"])
    run.note(f"{loaded.name}: CRPS {short:.4f} by {name} in 20 evaluations, {long:.4f} by the paper's DDPM in {chain}.")
    caption = f"{loaded.name}: CRPS of guided forecasts against evaluations of the network."
    run.figure(f"curves-{loaded.task.dataset}", plot(scores), caption)


def one(loaded: Loaded, store: Store, model: Any, how: dict[str, Any]) -> tuple[float, float]:
    """CRPS and seconds of one way of asking."""
    from ..metrics import forecast, score

    def make() -> tuple[list[Any], float]:
        start = time.perf_counter()
        made = forecast(model.using(method="q", **how), loaded.test, loaded.task.samples)
        return made, time.perf_counter() - start

    facts = loaded.facts(method="tsdiff-q", samples=loaded.task.samples, series=loaded.task.series, what="samplers")
    forecasts, seconds = store.forecasts({**facts, **how}, loaded.test, make)
    return score(forecasts, loaded.test)["CRPS"], seconds


def plot(scores: dict[str, list[tuple[int, float]]]) -> Figure:
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator

    figure = Figure(figsize=(5.5, 3.6), layout="constrained")
    axes = figure.subplots()
    for name, points in scores.items():
        style: dict[str, Any] = {"marker": "o"}
        if "scale" in name:
            style = {"color": "0.6", "marker": {"ddim, scale": "s", "ddpm, scale": "o"}.get(name, "^")}
        if name.endswith("post-step"):
            style = {"color": "black", "marker": "x"}
        axes.plot(*zip(*points, strict=True), markersize=5, label=name, **style)
    axes.set(xlabel="evaluations of the network", ylabel="CRPS", xscale="log", yscale="log")
    ticks = sorted({n for points in scores.values() for n, _ in points})
    axes.set_xticks(ticks, [str(n) for n in ticks])
    axes.minorticks_off()
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, frameon=False)
    return figure
