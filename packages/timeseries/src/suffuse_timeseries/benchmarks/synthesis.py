"""Are synthetic windows worth as much as real ones to who trains a forecaster on them?

Quick: the bundled sea-surface temperatures. Full: those of the paper's datasets that SUFFUSE_DATA has.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from suffuse.bench import benchmark

from ..quiet import quiet
from .tasks import Loaded, Task, tasks

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from suffuse.bench import Run

    from .store import Store

__all__ = ["synthesis"]

REAL = "real windows (reference)"
#: Windows of each kind: on a GPU the paper's number, on a CPU, and in the quick profile.
WINDOWS = {"gpu": 10_000, "cpu": 2_000, "quick": 1_000}
#: The deep downstream models of the quick profile.
QUICK_RIVAL = {"rivals": ("deepar", "patchtst"), "rival_steps": 100}


@benchmark(
    "timeseries/synthesis",
    paper="Kollovieh et al. 2023, arXiv:2307.11494, section 4.3",
    claim="A forecaster trained on windows that the diffusion model made up forecasts real series within 10 % of one "
    "that was trained on as many real windows.",
    peers=("real windows", "a Gaussian with their mean and covariance"),
)
def synthesis(run: Run) -> None:
    """Test CRPS of forecasters trained on windows, real or synthetic; of ridge regression it is the linear predictive
    score. The deep ones neither scale nor see the calendar. ``gaussian`` draws windows from a normal distribution with
    the mean and the covariance of the real ones, which is all that ridge regression can use.
    """
    from .store import Store

    store = Store(run)
    for task in tasks(run)[: 1 if run.quick else None]:
        if run.quick:
            task = dataclasses.replace(task, **QUICK_RIVAL)  # type: ignore[arg-type]
        with quiet():
            compare(run, store, task)


def compare(run: Run, store: Store, task: Task) -> None:
    """All generators and all downstream models of one dataset."""
    loaded = task.load(run)
    count = WINDOWS["quick" if run.quick else "gpu" if run.device.startswith("cuda") else "cpu"]
    with run.stage(f"{task.dataset}: windows"):
        windows = generated(loaded, store, count)
    scores: dict[tuple[str, str], float] = {}
    for downstream in ("ridge", *(name for name in task.rivals if name in ("deepar", "patchtst"))):
        for source, rows in windows.items():
            with run.stage(f"{task.dataset}: {downstream} on {source}"):
                value = scores[downstream, source] = trained(loaded, downstream, rows)
            run.row(
                dataset=loaded.name,
                method=source,
                metric="LPS" if downstream == "ridge" else f"CRPS of {downstream}",
                value=value,
                better="lower",
                setting={"windows": count},
            )
        ours, real = scores[downstream, "tsdiff"], scores[downstream, REAL]
        run.note(f"{loaded.name}: {downstream} trained on tsdiff's windows has a CRPS of {ours:.4f}, on real ones of "
                 f"{real:.4f}: {100 * (ours / real - 1):+.0f} %.")  # fmt: skip
    picture = plot(windows, loaded.context)
    run.figure(
        f"windows-{task.dataset}", picture, f"{task.dataset}: windows in units of their context, horizon shaded."
    )


def generated(loaded: Loaded, store: Store, count: int) -> dict[str, np.ndarray]:
    """Scaled windows (count, context + horizon) by source."""
    from ..synthesis import real_windows, synthetic_windows

    model, seed = loaded.model(store)[0], loaded.run.seed
    scaling: Any = loaded.preset.scaling
    real = real_windows(loaded.train, loaded.context, loaded.horizon, count, scaling, seed)
    whole = real[np.isfinite(real).all(1)]
    gaussian = np.random.default_rng(seed).multivariate_normal(
        whole.mean(0), np.cov(whole.T), size=count, method="eigh"
    )
    steps = 100 if loaded.task.sampler == "ddpm" else 20
    tsdiff = synthetic_windows(model.using(sampler=loaded.task.sampler, steps=steps), count, seed, progress=False)
    return {REAL: real, "gaussian": gaussian.astype(np.float32), "tsdiff": tsdiff}


def trained(loaded: Loaded, downstream: str, windows: np.ndarray) -> float:
    """Test CRPS of a forecaster that was trained on windows."""
    from ..baselines import BASELINES
    from ..synthesis import linear_predictive_score, train_on_synthetic_test_on_real
    from .store import seed

    task = loaded.task
    scaling: Any = loaded.preset.scaling
    if downstream == "ridge":
        return linear_predictive_score(windows, loaded.test, loaded.horizon, scaling)
    seed(loaded.run.seed)
    estimator = BASELINES[downstream](dataclasses.replace(loaded.problem(task.rival_steps), scaled=False))
    scores = train_on_synthetic_test_on_real(estimator, windows, loaded.test, loaded.horizon, scaling, task.samples)
    return scores["CRPS"]


def plot(windows: dict[str, np.ndarray], context: int, columns: int = 5) -> Figure:
    """A row of windows by source."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2.4 * columns, 1.7 * len(windows)), layout="constrained")
    grid = figure.subplots(len(windows), columns, sharex=True, squeeze=False)
    for row, (source, rows) in zip(grid, windows.items(), strict=True):
        for axes, window in zip(row, rows[:columns], strict=True):
            axes.plot(window, linewidth=0.8)
            axes.axvspan(context, len(window) - 1, color="0.9", zorder=0)
            axes.spines[["top", "right"]].set_visible(False)
            axes.tick_params(labelsize=7)
        row[0].set_ylabel(source.partition(" (")[0], fontsize=9)
    return figure
