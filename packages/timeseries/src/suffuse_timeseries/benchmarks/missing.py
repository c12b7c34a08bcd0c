"""Forecasts when half of the context is missing: the paper's three patterns, and one model for all of them.

RM hides entries at random, BM-B the first half of the context, BM-E its last half, right before the horizon.
"""

from __future__ import annotations

import dataclasses
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from suffuse.bench import benchmark

from ..quiet import quiet
from .tasks import Loaded, tasks

if TYPE_CHECKING:
    from gluonts.dataset import DataEntry

    from suffuse.bench import Run

    from .store import Store

__all__ = ["cut", "hide", "missing"]

PATTERNS = ("none", "RM", "BM-B", "BM-E")


@benchmark(
    "timeseries/missing",
    paper="Kollovieh et al. 2023, arXiv:2307.11494, table 2",
    claim="One unconditional model, guided, forecasts from gappy contexts about as well as conditional models that "
    "were trained to.",
    peers=("TSDiff-Cond, trained with gaps", "seasonal naive", "ridge regression"),
)
def missing(run: Run) -> None:
    """CRPS of forecasts when half of the context is hidden. ``tsdiff-q`` and ``tsdiff-ms`` are the one unconditional
    model; ``tsdiff-cond`` is trained with random gaps and to forecast, one model for all patterns where the paper has
    one for each. Seasonal naive and ridge regression see gaps filled by the value before. Models are trained without
    the last context and horizon of each series, so that none has seen what is hidden.
    """
    from .store import Store

    store = Store(run)
    for task in tasks(run)[: 1 if run.quick else None]:
        if not run.quick and not run.device.startswith("cuda"):
            task = dataclasses.replace(task, series=100)
        with quiet():
            patterns(task.load(run), store)


def cut(loaded: Loaded) -> list[DataEntry]:
    """The training series without their last context and horizon; those that would vanish are left out."""
    last = loaded.context + loaded.horizon
    return [{**e, "target": e["target"][:-last]} for e in loaded.train if len(e["target"]) > last + loaded.horizon]


def hide(entry: DataEntry, pattern: str, context: int, horizon: int, rng: np.random.Generator) -> DataEntry:
    """A test entry with half of the context before its horizon missing, (T,)."""
    target = np.array(entry["target"], dtype=np.float32)
    begin, end = max(len(target) - horizon - context, 0), len(target) - horizon
    match pattern:
        case "RM":
            target[begin + rng.permutation(end - begin)[: (end - begin) // 2]] = np.nan
        case "BM-B":
            target[begin : begin + (end - begin) // 2] = np.nan
        case "BM-E":
            target[end - (end - begin) // 2 : end] = np.nan
    return {**entry, "target": target}


def patterns(loaded: Loaded, store: Store) -> None:
    """Rows of one dataset."""
    from ..baselines import BASELINES
    from ..metrics import forecast, score

    run, task = loaded.run, loaded.task
    with run.stage(f"{task.dataset}: train"):
        free, _ = loaded.model(store, cut(loaded), part="cut")
        told, _ = loaded.model(store, cut(loaded), part="cut", condition_dropout=0.0, training_mask="mix")
        classical = {name: BASELINES[name](loaded.problem()).train(cut(loaded)) for name in ("seasonal-naive", "ridge")}
    solver: dict[str, Any] = {"sampler": task.sampler, "steps": task.sampling_steps}
    asked: dict[str, tuple[Any, dict[str, Any]]] = {
        "tsdiff-q": (free, {"method": "q", **solver}),
        "tsdiff-ms": (free, {"method": "ms", **solver}),
        "tsdiff-cond": (told, {"method": "cond", "sampler": "dpmpp-2m", "steps": 10}),
        **{name: (predictor, {}) for name, predictor in classical.items()},
    }
    table: dict[tuple[str, str], float] = {}
    for pattern in PATTERNS:
        rng = np.random.default_rng(run.seed)
        shown = [hide(entry, pattern, loaded.context, loaded.horizon, rng) for entry in loaded.test]
        for name, (predictor, how) in asked.items():

            def make(predictor: Any = predictor, how: Any = how, shown: Any = shown) -> tuple[list[Any], float]:
                start = time.perf_counter()
                if how:
                    predictor = predictor.using(**how)
                else:
                    shown = [filled(entry) for entry in shown]
                return forecast(predictor, shown, task.samples), time.perf_counter() - start

            facts = loaded.facts(method=name, samples=task.samples, series=task.series, what="missing", pattern=pattern)
            with run.stage(f"{task.dataset}: {name}, {pattern}"):
                forecasts, seconds = store.forecasts({**facts, **how}, loaded.test, make)
            table[name, pattern] = score(forecasts, loaded.test)["CRPS"]
            run.row(dataset=loaded.name, method=name, metric="CRPS", value=table[name, pattern], better="lower",
                    setting={"missing": pattern}, seconds=seconds)  # fmt: skip
    for pattern in PATTERNS[1:]:
        ours, theirs = table["tsdiff-q", pattern], table["tsdiff-cond", pattern]
        run.note(f"{loaded.name}, {pattern}: tsdiff-q {ours:.4f}, tsdiff-cond {theirs:.4f}; with nothing missing "
                 f"{table['tsdiff-q', 'none']:.4f} and {table['tsdiff-cond', 'none']:.4f}.")  # fmt: skip


def filled(entry: DataEntry) -> DataEntry:
    """Gaps take the value before; what came last, for methods that read whole seasons."""
    import pandas as pd

    target = pd.Series(np.asarray(entry["target"])).ffill().bfill().to_numpy(dtype=np.float32)
    return {**entry, "target": target}
