"""Does one diffusion model over windows, never told what forecasting is, forecast? TSDiff beside other forecasters.

Quick: the bundled sea-surface temperatures and CO2, with small networks. Full: those of the paper's eight datasets that
SUFFUSE_DATA has, in the paper's sizes on a GPU and in smaller ones on a CPU; see ``tasks``. With SUFFUSE_RUNS it can be
done in pieces; see ``store``.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from suffuse.bench import benchmark

from ..quiet import quiet
from .tasks import Loaded, Task, tasks

if TYPE_CHECKING:
    from gluonts.model.forecast import Forecast

    from suffuse.bench import Run

    from .store import Store

__all__ = ["forecasting"]

#: CRPS in table 1 of the paper, by dataset and method; its Linear is our ridge.
ORDER = ("solar_nips", "electricity_nips", "traffic_nips", "exchange_rate_nips", "m4_hourly", "uber_tlc_hourly",
         "kdd_cup_2018_without_missing", "wiki2000_nips")  # fmt: skip
TABLE = {
    "seasonal-naive": (0.512, 0.069, 0.221, 0.011, 0.048, 0.299, 0.561, 0.410),
    "ridge": (0.569, 0.088, 0.179, 0.011, 0.039, 0.360, 0.513, 1.624),
    "deepar": (0.389, 0.054, 0.099, 0.011, 0.052, 0.161, 0.414, 0.231),
    "tft": (0.417, 0.086, 0.134, 0.007, 0.039, 0.193, 0.581, 0.229),
    "csdi": (0.352, 0.054, 0.159, 0.033, 0.040, 0.206, 0.318, 0.289),
    "tsdiff-cond": (0.338, 0.050, 0.094, 0.013, 0.039, 0.172, 0.754, 0.218),
    "tsdiff-ms": (0.391, 0.062, 0.116, 0.018, 0.045, 0.183, 0.325, 0.257),
    "tsdiff-q": (0.358, 0.049, 0.098, 0.011, 0.036, 0.172, 0.311, 0.221),
}
PUBLISHED = {method: dict(zip(ORDER, values, strict=True)) for method, values in TABLE.items()}

#: CRPS of seasonal naive, known exactly: a wrong protocol shows here before any model is blamed.
CHECK = {"m4_hourly": 0.04831, "exchange_rate_nips": 0.01075}

METRICS = ("CRPS", "ND", "NRMSE", "MASE")  # less is better
CLASSICAL = ("seasonal-naive", "ridge", "ridge-residuals")


@benchmark(
    "timeseries/forecasting",
    paper="Kollovieh et al. 2023, arXiv:2307.11494, table 1",
    claim="An unconditional diffusion model, guided by its own estimate of the observed values, forecasts better than "
    "seasonal naive, and quantile guidance better than mean-square guidance.",
    peers=("seasonal naive", "ridge regression", "DeepAR, PatchTST and TFT of GluonTS", "CSDI-style diffusion"),
)
def forecasting(run: Run) -> None:
    """CRPS is GluonTS's mean weighted quantile loss over the levels 0.1 to 0.9, summed over series and steps.

    ``tsdiff-q`` and ``tsdiff-ms`` are guided forecasts of one unconditional model, as far as the energy falls along
    its gradient; ``timeseries/samplers`` has them with a scale, as in the paper. ``tsdiff-cond`` is the same network,
    trained to forecast. ``ridge`` is the paper's Linear, a point forecast; ``ridge-residuals`` adds residual vectors of
    held-out training windows. ``coverage error`` is the distance from 0.8 of the share of what happened between the
    quantiles 0.1 and 0.9.
    """
    from .store import Store

    store = Store(run)
    for task in tasks(run):
        with quiet():
            compare(run, store, task)
    if run.quick:
        run.note("Quick profile: small networks and short training; numbers are not comparable with the paper's.")


def compare(run: Run, store: Store, task: Task) -> None:
    """Fit every method on one dataset, score each, and draw the fans."""
    from ..plots import fans

    loaded = task.load(run)
    names = (*CLASSICAL, *task.rivals, "tsdiff-cond", "tsdiff-ms", "tsdiff-q")
    crps: dict[str, float] = {}
    kept: dict[str, list[Any]] = {}
    for name in names:
        with run.stage(f"{task.dataset}: {name}"):
            crps[name], kept[name] = score(loaded, store, name)

    if task.dataset in CHECK and task.series is None:
        found, known = (f"{value:.5f}" for value in (crps["seasonal-naive"], CHECK[task.dataset]))
        verdict = "that is" if found == known else "it should be"
        run.note(f"{task.dataset}: seasonal naive has CRPS {found}, and {verdict} its known {known}.")
    for ours, other in (("tsdiff-q", "seasonal-naive"), ("tsdiff-q", "tsdiff-ms")):
        verdict = "is" if crps[ours] < crps[other] else "is not"
        run.note(f"{task.dataset}: {ours} {verdict} better than {other} (CRPS {crps[ours]:.4f} and {crps[other]:.4f}).")
    if (published := PUBLISHED["tsdiff-q"].get(task.dataset)) and task.series is None:
        run.note(f"{task.dataset}: tsdiff-q is {100 * (crps['tsdiff-q'] / published - 1):+.0f} % from the published "
                 f"{published}.")  # fmt: skip

    test = loaded.test
    columns = range(len(test))[-3:] if len(test) <= 12 else range(0, len(test), len(test) // 3)[:3]
    rows = [(name, [kept[name][i] for i in columns]) for name in ("tsdiff-q", "tsdiff-cond", "ridge-residuals")]
    figure = fans(rows, [test[i] for i in columns], history=min(loaded.context, 4 * loaded.horizon))
    run.figure(f"fan-{task.dataset}", figure, f"{task.dataset}: forecasts of held-out windows, bands of 50 % and 90 %.")


def score(loaded: Loaded, store: Store, method: str) -> tuple[float, list[Any]]:
    """Rows of all metrics of a method; its CRPS and forecasts. ``seconds`` is training and forecasting."""
    from ..metrics import score as scored

    run, task = loaded.run, loaded.task
    setting, make = METHODS[method](loaded, store) if method in METHODS else baseline(loaded, method)
    facts = {**loaded.facts(method=method, samples=task.samples, series=task.series), **setting}
    forecasts, seconds = store.forecasts(facts, loaded.test, make)
    scores = scored(forecasts, loaded.test)
    published = PUBLISHED.get(method, {}).get(task.dataset) if task.series is None else None
    for metric in METRICS:
        run.row(
            dataset=loaded.name,
            method=method,
            metric=metric,
            value=scores[metric],
            better="lower",
            setting=setting,
            published=published if metric == "CRPS" else None,
            seconds=seconds,
        )
    run.row(
        dataset=loaded.name, method=method, metric="coverage error", better="lower",
        value=abs(scores["coverage-80"] - 0.8), setting=setting,
    )  # fmt: skip
    return scores["CRPS"], forecasts


Making = Callable[[], tuple[list["Forecast"], float]]


def baseline(loaded: Loaded, method: str) -> tuple[dict[str, Any], Making]:
    """What distinguishes a method of ``baselines.BASELINES``, and how its forecasts are made."""
    from ..baselines import BASELINES
    from ..metrics import forecast

    task = loaded.task
    setting: dict[str, Any] = {"context": loaded.context}
    if method == "seasonal-naive":
        setting = {"season": loaded.problem().season}
    elif method in task.rivals:
        setting |= {"train_steps": task.rival_steps}

    def make() -> tuple[list[Forecast], float]:
        start = time.perf_counter()
        predictor = BASELINES[method](loaded.problem(task.rival_steps or None)).train(loaded.train)
        return forecast(predictor, loaded.test, task.samples), time.perf_counter() - start

    return setting, make


def asked(method: str) -> Callable[[Loaded, Store], tuple[dict[str, Any], Making]]:
    """A TSDiff model asked by one method."""

    def how(loaded: Loaded, store: Store) -> tuple[dict[str, Any], Making]:
        from ..metrics import forecast

        task = loaded.task
        model, seconds = loaded.model(store, condition_dropout=0.0 if method == "cond" else 1.0)
        settings: dict[str, Any] = {"sampler": "dpmpp-2m", "steps": 10}
        if method != "cond":
            settings = {"guidance_scale": None, "sampler": task.sampler, "steps": task.sampling_steps}

        def make() -> tuple[list[Forecast], float]:
            start = time.perf_counter()
            made = forecast(model.using(method=method, **settings), loaded.test, task.samples)
            return made, seconds + time.perf_counter() - start

        return {"context": loaded.context, "train_steps": task.steps, **settings}, make

    return how


METHODS = {"tsdiff-cond": asked("cond"), "tsdiff-ms": asked("ms"), "tsdiff-q": asked("q")}
