"""Gaps filled by the model that forecasts: entries hidden at random and in blocks, scored where they were hidden."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from suffuse.bench import benchmark

from ..quiet import quiet
from .missing import cut
from .tasks import Loaded, tasks

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from suffuse.bench import Run

    from .store import Store

__all__ = ["imputation"]

PATTERNS = ("10 %", "50 %", "90 %", "blocks")
Filler = Callable[[list[np.ndarray]], list[np.ndarray]]


@benchmark(
    "timeseries/imputation",
    paper="Kollovieh et al. 2023, arXiv:2307.11494; protocol of Tashiro et al. 2021, arXiv:2107.03502",
    claim="The unconditional model that forecasts also fills gaps, better than interpolation.",
    peers=("last observation carried forward", "linear interpolation", "the season before", "CSDI-style diffusion"),
)
def imputation(run: Run) -> None:
    """Of the last context and horizon of each series 10, 50 or 90 % of the entries are hidden at random, or blocks of
    half a horizon, a third of all in sum. Errors are of the hidden entries alone, in units of their mean size: MAE and
    RMSE of the median, and the CRPS (mean weighted quantile loss over 0.1 to 0.9, for points the MAE). Models are
    trained without these parts of the series.
    """
    from .store import Store

    store = Store(run)
    for task in tasks(run)[: 1 if run.quick else None]:
        if not run.quick and not run.device.startswith("cuda"):
            task = dataclasses.replace(task, series=30)
        with quiet():
            patterns(task.load(run), store)


def patterns(loaded: Loaded, store: Store) -> None:
    """Rows and picture of one dataset."""
    run, task = loaded.run, loaded.task
    length = loaded.context + loaded.horizon
    whole = [np.asarray(entry["target"], np.float32) for entry in loaded.test if len(entry["target"]) >= length]
    with run.stage(f"{task.dataset}: train"):
        free, _ = loaded.model(store, cut(loaded), part="cut")
        told, _ = loaded.model(store, cut(loaded), part="cut", condition_dropout=0.0, training_mask="mix")
    solver: dict[str, Any] = {"sampler": task.sampler, "steps": task.sampling_steps}
    season = loaded.problem().season
    methods: dict[str, Filler] = {
        "tsdiff-q": diffusion(free.using(method="q", **solver), task.samples),
        "tsdiff-cond": diffusion(told.using(method="cond", sampler="dpmpp-2m", steps=10), task.samples),
        "last value": classical("ffill"),
        "linear": classical("linear"),
        "season before": lambda series: [seasonal(y, season) for y in series],
    }
    for pattern in PATTERNS:
        rng = np.random.default_rng(run.seed)
        masks = [hidden(len(y), length, pattern, loaded.horizon, rng) & np.isfinite(y) for y in whole]
        shown = [np.where(mask, np.nan, y) for y, mask in zip(whole, masks, strict=True)]
        paths: dict[str, list[np.ndarray]] = {}
        scores: dict[str, dict[str, float]] = {}
        for name, method in methods.items():
            with run.stage(f"{task.dataset}: {name}, {pattern}"):
                start = time.perf_counter()
                paths[name] = method(shown)
                seconds = time.perf_counter() - start
            scores[name] = errors(whole, masks, paths[name])
            for metric, value in scores[name].items():
                run.row(dataset=loaded.name, method=name, metric=metric, value=value, better="lower",
                        setting={"hidden": pattern}, seconds=seconds)  # fmt: skip
        ours, theirs = scores["tsdiff-q"]["CRPS"], scores["linear"]["CRPS"]
        run.note(f"{loaded.name}, {pattern} hidden: tsdiff-q {'is' if ours < theirs else 'is not'} better than linear "
                 f"interpolation (CRPS {ours:.4f} and {theirs:.4f}).")  # fmt: skip
        if pattern == "blocks":
            figure = plot(whole, masks, paths["tsdiff-q"], length)
            run.figure(f"gaps-{task.dataset}", figure, f"{loaded.name}: hidden blocks, filled by guidance; 80 % bands.")


def hidden(steps: int, last: int, pattern: str, horizon: int, rng: np.random.Generator) -> np.ndarray:
    """What is hidden of a series, (steps,): among its last entries only."""
    mask = np.zeros(steps, bool)
    part = mask[steps - last :]
    if pattern == "blocks":
        size = max(horizon // 2, 1)
        for begin in range(size, last, 3 * size):
            part[begin + int(rng.integers(size)) :][:size] = True
    else:
        part[rng.permutation(last)[: round(last * float(pattern.split()[0]) / 100)]] = True
    return mask


def diffusion(predictor: Any, samples: int) -> Filler:
    """Sample paths (S, T) of ``impute``'s machinery."""

    def method(series: list[np.ndarray]) -> list[np.ndarray]:
        from ..tsdiff.imputation import fill

        step = predictor.batch_size
        groups = [series[i : i + step] for i in range(0, len(series), step)]
        return [path for group in groups for path in fill(predictor.prediction_net, group, samples)]

    return method


def classical(how: str) -> Filler:
    """Single paths (1, T) by pandas."""

    def method(series: list[np.ndarray]) -> list[np.ndarray]:
        import pandas as pd

        frames = [pd.Series(y.astype(np.float64)) for y in series]
        filled = [f.ffill() if how == "ffill" else f.interpolate(how) for f in frames]
        return [f.ffill().bfill().to_numpy()[None] for f in filled]

    return method


def seasonal(y: np.ndarray, season: int) -> np.ndarray:
    """Each gap takes the value of the same phase one season before, (1, T); the first season the last value."""
    out = y.copy()
    for i in np.flatnonzero(np.isnan(y)):
        out[i] = out[i - season] if i >= season else np.nan
    return classical("ffill")([out])[0]


def errors(whole: list[np.ndarray], masks: list[np.ndarray], paths: list[np.ndarray]) -> dict[str, float]:
    """Scores of sample paths (S, T) at hidden entries, relative to the mean size of what was hidden."""
    from gluonts.evaluation.metrics import quantile_loss

    from ..metrics import QUANTILES

    truth = np.concatenate([y[m] for y, m in zip(whole, masks, strict=True)]).astype(np.float64)
    size = np.abs(truth).mean()

    def at(level: float) -> np.ndarray:
        levels = [np.quantile(p[:, m], level, axis=0) for p, m in zip(paths, masks, strict=True)]
        return np.concatenate(levels).astype(np.float64)

    error = truth - at(0.5)
    losses = [quantile_loss(truth, at(q), q) for q in QUANTILES]
    return {
        "CRPS": float(np.mean(losses) / len(truth) / size),
        "MAE": float(np.abs(error).mean() / size),
        "RMSE": float(np.sqrt((error**2).mean()) / size),
    }


def plot(whole: list[np.ndarray], masks: list[np.ndarray], paths: list[np.ndarray], length: int) -> Figure:
    from matplotlib.figure import Figure

    shown = range(0, len(whole), max(len(whole) // 3, 1))[:3]
    figure = Figure(figsize=(9, 1.9 * len(shown)), layout="constrained")
    for axes, i in zip(np.atleast_1d(figure.subplots(len(shown), 1)), shown, strict=True):
        y, mask, path = whole[i][-length:], masks[i][-length:], paths[i][:, -length:]
        steps = np.arange(length)
        axes.plot(steps, np.where(mask, np.nan, y), color="black", linewidth=1.1, label="observed")
        axes.plot(steps, np.where(mask, y, np.nan), color="0.55", linewidth=1.0, linestyle=":", label="hidden")
        low, middle, high = np.quantile(path, [0.1, 0.5, 0.9], axis=0)
        axes.fill_between(steps, low, high, where=mask, color="C0", alpha=0.35, linewidth=0, label="80 %")
        axes.plot(steps, np.where(mask, middle, np.nan), color="C0", linewidth=1.4, label="median")
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
    figure.axes[-1].set_xlabel("step of the window", fontsize=8)
    figure.legend(
        *figure.axes[0].get_legend_handles_labels(), fontsize=8, frameon=False, ncols=4, loc="outside upper left"
    )
    return figure
