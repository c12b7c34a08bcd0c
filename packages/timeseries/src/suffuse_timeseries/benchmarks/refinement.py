"""Does the model of the data improve forecasts that other models made? Every base forecaster, refined in four ways.

Quick: the bundled sea-surface temperatures. Full: those of the paper's datasets that SUFFUSE_DATA has; on a CPU a part
of their test series.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from suffuse.bench import benchmark

from ..quiet import quiet
from .tasks import Loaded, Task, tasks

if TYPE_CHECKING:
    from gluonts.model.forecast import Forecast
    from gluonts.model.predictor import Predictor

    from suffuse.bench import Run

    from ..tsdiff import TSDiffPredictor
    from .store import Store

__all__ = ["refinement"]

POINT = ("seasonal-naive", "ridge")
BASES = (*POINT, "ridge-residuals")
REFINERS = {f"{method}-{regulariser}": (method, regulariser) for method in ("lmc", "ml") for regulariser in ("ms", "q")}
#: On a CPU, test series that are refined, sample paths of each, and deep bases.
SERIES, SAMPLES, DEEP = 24, 12, 1
#: The deep base of the quick profile.
QUICK_RIVAL = {"rivals": ("deepar",), "rival_steps": 100}


@benchmark(
    "timeseries/refinement",
    paper="Kollovieh et al. 2023, arXiv:2307.11494, section 4.2",
    claim="Refined by the energy of the unconditional diffusion model, every point forecast has a lower CRPS, by at "
    "least one of Langevin Monte Carlo and maximum likelihood with the mean-square or the quantile regulariser.",
    peers=("the forecasts as they are: seasonal naive, ridge regression, DeepAR and PatchTST of GluonTS",),
)
def refinement(run: Run) -> None:
    """CRPS of base forecasts (``none``) and of what becomes of them in 20 iterations at the representative step."""
    from .store import Store

    store = Store(run)
    for task in tasks(run)[: 1 if run.quick else None]:
        if run.quick:
            task = dataclasses.replace(task, samples=16, **QUICK_RIVAL)  # type: ignore[arg-type]
        with quiet():
            compare(run, store, task)


def compare(run: Run, store: Store, task: Task) -> None:
    """All bases of one dataset."""
    if cpu := not run.device.startswith("cuda"):
        task = dataclasses.replace(task, rivals=task.rivals[:DEEP])
    loaded = task.load(run)
    part, samples = list(range(len(loaded.test))), task.samples
    if cpu:
        count, samples = min(SERIES, len(part)), min(SAMPLES, samples)
        part = [i * len(part) // count for i in range(count)]
    name = task.dataset if len(part) == len(loaded.test) else f"{task.dataset}[{len(part)} series]"
    test = [loaded.test[i] for i in part]

    model = loaded.model(store)[0]
    with run.stage(f"{task.dataset}: representative step"):
        time_ = representative(loaded, model)
    improved: dict[str, tuple[float, float, str]] = {}
    shown: list[tuple[str, list[Forecast]]] = []
    for base in (*BASES, *task.rivals):
        with run.stage(f"{task.dataset}: {base}"):
            forecasts = based(loaded, store, base)
            forecasts = [forecasts[i] for i in part]
            crps = {"none": report(run, name, base, "none", forecasts, test)}
            for refiner in REFINERS:
                made = refined(loaded, store, model, base, forecasts, test, refiner, time_, samples)
                crps[refiner] = report(run, name, base, refiner, *made[:1], test, made[1])
                if base == "seasonal-naive" and refiner == "lmc-q":
                    shown = [(base, forecasts), (f"{base} + {refiner}", made[0])]
        best = min(REFINERS, key=crps.__getitem__)
        improved[base] = crps["none"], crps[best], best
    for base, (before, after, best) in improved.items():
        verdict = f"{100 * (1 - after / before):.0f} % better" if after < before else "not better"
        run.note(f"{name}: {base} is {verdict} when refined, at best by {best} (CRPS {before:.4f} to {after:.4f}).")
    run.note(f"{name}: the representative step is t = {time_:.2f}.")
    draw(run, task, loaded, shown, test)


def draw(run: Run, task: Task, loaded: Loaded, shown: list[tuple[str, list[Forecast]]], test: list[Any]) -> None:
    from ..plots import fans

    columns = sorted({0, len(test) // 2, len(test) - 1})
    rows = [(name, [forecasts[i] for i in columns]) for name, forecasts in shown]
    figure = fans(rows, [test[i] for i in columns], history=min(loaded.context, 4 * loaded.horizon))
    run.figure(f"fan-{task.dataset}", figure, f"{task.dataset}: a point forecast, and what refinement makes of it.")


def report(
    run: Run, dataset: str, base: str, refiner: str, forecasts: list[Any], test: list[Any], seconds: float | None = None
) -> float:
    """The rows of one method, and its CRPS."""
    from ..metrics import score

    scores = score(forecasts, test)
    for metric in ("CRPS", "NRMSE"):
        run.row(
            dataset=dataset,
            method=base,
            metric=metric,
            value=scores[metric],
            better="lower",
            setting={"refiner": refiner},
            seconds=seconds,
        )
    return scores["CRPS"]


def representative(loaded: Loaded, model: TSDiffPredictor) -> float:
    """tau, from 1024 windows of the training series on a GPU, fewer on a CPU."""
    from ..tsdiff import representative_time

    gpu = loaded.run.device.startswith("cuda")
    windows, levels = (1024, 100) if gpu else (128, 50)
    return representative_time(model, loaded.train, windows, levels, loaded.run.seed, progress=False)


def based(loaded: Loaded, store: Store, base: str) -> list[Any]:
    """The base forecasts of all test entries; the same that the forecasting benchmark has."""
    from .forecasting import baseline

    setting, make = baseline(loaded, base)
    facts = {**loaded.facts(method=base, samples=loaded.task.samples, series=loaded.task.series), **setting}
    return store.forecasts(facts, loaded.test, make)[0]


def refined(
    loaded: Loaded,
    store: Store,
    model: TSDiffPredictor,
    base: str,
    forecasts: list[Any],
    test: list[Any],
    refiner: str,
    time_: float,
    samples: int,
) -> tuple[list[Any], float]:
    """The refined forecasts, and the seconds they took."""
    from ..metrics import forecast
    from ..tsdiff import RefinedPredictor, Refinement

    how = Refinement(*REFINERS[refiner], step_size=loaded.preset.refinement_step)  # type: ignore[arg-type]

    def make() -> tuple[list[Forecast], float]:
        start = time.perf_counter()
        made = forecast(RefinedPredictor(recorded(forecasts, loaded.horizon), model, time_, how), test, samples)
        return made, time.perf_counter() - start

    facts = loaded.facts(base=base, samples=samples, series=len(test), time=time_, **dataclasses.asdict(how))
    steps = loaded.task.rival_steps if base in loaded.task.rivals else 0
    return store.forecasts({**facts, "base_steps": steps}, test, make)


def recorded(forecasts: list[Any], prediction_length: int) -> Predictor:
    """A predictor that gives forecasts which were made before, in their order."""
    from gluonts.model.predictor import Predictor

    class Recorded(Predictor):
        def predict(self, dataset: Any, **kwargs: Any) -> Iterator[Forecast]:
            yield from forecasts

    return Recorded(prediction_length)
