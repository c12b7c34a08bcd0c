"""Does one diffusion model over windows, never told what forecasting is, forecast? TSDiff beside classical forecasters.

Quick: the bundled sea-surface temperatures and CO2, with small networks. Full: also sunspots and, where SUFFUSE_DATA
has them, M4-hourly and the exchange rates with the paper's network, training length and DDPM sampler.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from suffuse.bench import benchmark

from ..quiet import quiet

if TYPE_CHECKING:
    from gluonts.model.forecast import Forecast
    from gluonts.model.predictor import Predictor

    from suffuse.bench import Run

__all__ = ["forecasting"]

#: CRPS in table 1 of the paper, by dataset and method.
PUBLISHED = {
    "m4_hourly": {"seasonal-naive": 0.048, "ridge": 0.039, "tsdiff-cond": 0.039, "tsdiff-ms": 0.045, "tsdiff-q": 0.036},
    "exchange_rate_nips": {
        "seasonal-naive": 0.011,
        "ridge": 0.011,
        "tsdiff-cond": 0.013,
        "tsdiff-ms": 0.018,
        "tsdiff-q": 0.011,
    },
}
METRICS = ("CRPS", "ND", "NRMSE", "MASE")  # less is better


@dataclass(frozen=True)
class Task:
    """One dataset in one profile.

    Args:
        dataset: name.
        steps, batch_size, width, state: of training and network.
        samples: sample paths per forecast.
        series: number of test entries, evenly spread over the test set; None for all.
        sampler, sampling_steps: of the guided forecasts.
    """

    dataset: str
    steps: int
    batch_size: int = 32
    width: int = 32
    state: int = 32
    samples: int = 100
    series: int | None = None
    sampler: str = "ddim"
    sampling_steps: int = 20


QUICK = (
    Task("elnino", steps=400, samples=50),
    Task("co2", steps=400, samples=50),
)
PAPER: dict[str, Any] = {"batch_size": 64, "width": 64, "state": 128, "sampler": "ddpm", "sampling_steps": 100}
FULL = (
    Task("elnino", steps=1000),
    Task("co2", steps=2000),
    Task("sunspots", steps=1000),
    Task("m4_hourly", steps=12_800, **PAPER),
    Task("exchange_rate_nips", steps=12_800, **PAPER),
)


@benchmark(
    "timeseries/forecasting",
    paper="Kollovieh et al. 2023, arXiv:2307.11494, table 1",
    claim="An unconditional diffusion model, guided by its own estimate of the observed values, forecasts better than "
    "seasonal naive, and quantile guidance better than mean-square guidance.",
    peers=("seasonal naive", "ridge regression", "ridge regression with resampled residuals"),
)
def forecasting(run: Run) -> None:
    """CRPS is GluonTS's mean weighted quantile loss over the levels 0.1 to 0.9, summed over series and steps.

    ``tsdiff-q`` and ``tsdiff-ms`` are guided forecasts of the unconditional model and ``tsdiff-cond`` forecasts of the
    conditional one; here one network, trained with half of the windows unconditioned, is both. ``ridge`` is the paper's
    Linear, a point forecast; ``ridge-residuals`` adds residual vectors of held-out training windows.
    """
    from .. import data

    for task in QUICK if run.quick else FULL:
        if task.dataset not in data.available(run.data):
            run.note(f"{task.dataset} was left out: SUFFUSE_DATA does not have it.")
            continue
        with quiet():
            compare(run, task)
    if run.quick:
        run.note("Quick profile: small networks and short training; numbers are not comparable with the paper's.")
    run.note(
        "One network serves the conditional and the unconditional rows (condition dropout 0.5); the paper trains one "
        "network each."
    )


def compare(run: Run, task: Task) -> None:
    """Fit every method on one dataset, score each, and draw the fans."""
    import lightning.pytorch as pl
    from gluonts.model.seasonal_naive import SeasonalNaivePredictor
    from gluonts.time_feature import get_seasonality

    from .. import data
    from ..baselines import RidgePredictor
    from ..plots import fans
    from ..presets import preset
    from ..recipes import resolve, trainer_kwargs

    pl.seed_everything(run.seed, verbose=False)
    dataset, chosen = data.load(task.dataset, run.data), preset(task.dataset)
    freq, horizon = dataset.metadata.freq, dataset.metadata.prediction_length
    train, test = list(dataset.train), list(dataset.test)
    shown = spread(test, task.series)
    season = chosen.season or get_seasonality(freq)
    context = chosen.context_length or 7 * horizon

    naive = SeasonalNaivePredictor(prediction_length=horizon, season_length=season)
    score(run, task, "seasonal-naive", naive, shown, {"season": season})
    with run.stage(f"{task.dataset}: ridge"):
        for name, residuals in (("ridge", False), ("ridge-residuals", True)):
            ridge = RidgePredictor.fit(train, horizon, context, residuals=residuals, seed=run.seed)
            score(run, task, name, ridge, shown, {"context": context})

    epoch = min(task.steps, 100)
    estimator = chosen.estimator(
        freq,
        horizon,
        context_length=context,
        width=task.width,
        state=task.state,
        batch_size=task.batch_size,
        lr=2e-3 if run.quick else 1e-3,
        num_batches_per_epoch=epoch,
        trainer_kwargs=trainer_kwargs(run.out / task.dataset, task.steps, epoch, run.device, progress=False),
    )
    with run.stage(f"{task.dataset}: train"):
        start = time.perf_counter()
        predictor = estimator.train(train).to(resolve(run.device))
        seconds = time.perf_counter() - start

    scale = chosen.guidance_scale
    weaker = scale / 8 if chosen.guidance_scale_ms is None else chosen.guidance_scale_ms
    guided = {"sampler": task.sampler, "steps": task.sampling_steps}
    asked: dict[str, dict[str, Any]] = {
        "tsdiff-cond": {"method": "cond", "sampler": "dpmpp-2m", "steps": 10},
        "tsdiff-ms": {"method": "ms", "guidance_scale": weaker, **guided},
        "tsdiff-q": {"method": "q", "guidance_scale": scale, **guided},
    }
    rows: list[tuple[str, list[Forecast]]] = []
    for name, how in asked.items():
        with run.stage(f"{task.dataset}: {name}"):
            setting = {k: v for k, v in how.items() if k != "method"} | {"context": context, "train_steps": task.steps}
            forecasts = score(run, task, name, predictor.using(**how), shown, setting, seconds)
            rows.append((name, forecasts))
    crps = {row.method: row.value for row in run.rows if row.metric == "CRPS" and row.dataset.startswith(task.dataset)}
    for ours, other in (("tsdiff-q", "seasonal-naive"), ("tsdiff-q", "tsdiff-ms")):
        verdict = "is" if crps[ours] < crps[other] else "is not"
        run.note(f"{task.dataset}: {ours} {verdict} better than {other} (CRPS {crps[ours]:.4f} and {crps[other]:.4f}).")

    columns = range(len(shown))[-3:] if len(shown) <= 12 else range(0, len(shown), len(shown) // 3)[:3]
    picked = [(name, [forecasts[i] for i in columns]) for name, forecasts in rows if name != "tsdiff-ms"]
    figure = fans(picked, [shown[i] for i in columns], history=min(context, 4 * horizon))
    run.figure(f"fan-{task.dataset}", figure, f"{task.dataset}: forecasts of held-out windows, bands of 50 % and 90 %.")


def score(
    run: Run,
    task: Task,
    method: str,
    predictor: Predictor,
    test: list[Any],
    setting: dict[str, Any],
    train_seconds: float = 0.0,
) -> list[Forecast]:
    """Rows of all metrics, and the forecasts. ``seconds`` is training (shared by the three methods) and forecasting."""
    from ..metrics import evaluate

    start = time.perf_counter()
    scores, forecasts = evaluate(predictor, test, task.samples)
    seconds = train_seconds + time.perf_counter() - start
    published = PUBLISHED.get(task.dataset, {}).get(method) if task.series is None else None
    for metric in METRICS:
        run.row(
            dataset=task.dataset if task.series is None else f"{task.dataset}[{len(test)} series]",
            method=method,
            metric=metric,
            value=scores[metric],
            better="lower",
            setting=setting,
            published=published if metric == "CRPS" else None,
            seconds=seconds,
        )
    return forecasts


def spread(entries: list[Any], count: int | None) -> list[Any]:
    """``count`` entries, evenly spaced over the list; all for None."""
    if count is None or count >= len(entries):
        return entries
    return [entries[i * len(entries) // count] for i in range(count)]
