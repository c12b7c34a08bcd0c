"""Which dataset in which size: what the benchmarks of one model, asked in many ways, have in common."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..presets import Preset, preset

if TYPE_CHECKING:
    from gluonts.dataset import DataEntry

    from suffuse.bench import Run

    from ..baselines import Problem
    from ..tsdiff import TSDiffPredictor
    from .store import Store

__all__ = ["FULL", "QUICK", "Loaded", "Task", "tasks"]


@dataclass(frozen=True)
class Task:
    """One dataset in one size.

    Args:
        dataset: its name.
        steps, batch_size, width, state, lr: of training and network.
        scaling: ``mean`` or ``std``; None for the preset's.
        lags: whether lags are further channels; None for the preset's.
        context: steps of a window before the horizon; None for the preset's.
        samples: sample paths per forecast.
        series: number of test entries, evenly spread over the test set; None for all.
        sampler, sampling_steps: of guided forecasts.
        rivals: those of ``baselines.BASELINES`` that learn, and stand beside.
        rival_steps: of their training.
    """

    dataset: str
    steps: int
    batch_size: int = 32
    width: int = 32
    state: int = 32
    lr: float = 2e-3
    scaling: str | None = None
    lags: bool | None = None
    context: int | None = None
    samples: int = 50
    series: int | None = None
    sampler: str = "dpmpp-2m"
    sampling_steps: int = 10
    rivals: tuple[str, ...] = ()
    rival_steps: int = 0

    def load(self, run: Run) -> Loaded:
        """The data, with what is known of them."""
        from .. import data

        dataset = data.load(self.dataset, run.data)
        chosen = preset(self.dataset)
        if self.scaling is not None:
            chosen = dataclasses.replace(chosen, scaling=self.scaling)
        if self.lags is not None:
            chosen = dataclasses.replace(chosen, lags=self.lags)
        if self.context is not None:
            chosen = dataclasses.replace(chosen, context_length=self.context)
        test = list(dataset.test)
        if self.series is not None and self.series < len(test):
            test = [test[i * len(test) // self.series] for i in range(self.series)]
        meta = dataset.metadata
        return Loaded(self, run, meta.freq, int(meta.prediction_length), list(dataset.train), test, chosen)


@dataclass(frozen=True)
class Loaded:
    """A task with its data."""

    task: Task
    run: Run
    freq: str
    horizon: int
    train: list[DataEntry]
    test: list[DataEntry]
    preset: Preset

    @property
    def context(self) -> int:
        return self.preset.context_length or 7 * self.horizon

    @property
    def name(self) -> str:
        """Of the dataset, with the number of test entries where they are a part."""
        return self.task.dataset if self.task.series is None else f"{self.task.dataset}[{len(self.test)} series]"

    @property
    def stretch(self) -> float:
        """By which s grows where windows are shorter than the preset's: its energy is a sum."""
        whole = (preset(self.task.dataset).context_length or 7 * self.horizon) + self.horizon
        return whole / (self.context + self.horizon)

    def guidance_scale(self, method: str) -> float:
        """s of ``q`` or ``ms`` by the preset."""
        known = preset(self.task.dataset)
        weak = known.guidance_scale / 8 if known.guidance_scale_ms is None else known.guidance_scale_ms
        return (weak if method == "ms" else known.guidance_scale) * self.stretch

    def tuned(self, store: Store, model: TSDiffPredictor, method: str) -> float:
        """s with the least CRPS on the last horizons of some training series; the preset's in the quick profile."""
        from ..metrics import forecast, score

        guess = self.guidance_scale(method)
        if self.run.quick:
            return guess
        count = min(len(self.train), VALIDATION)
        shown = [self.train[i * len(self.train) // count] for i in range(count)]
        how = {"method": method, "sampler": self.task.sampler, "steps": self.task.sampling_steps}
        scores: dict[float, float] = {}
        for factor in FACTORS:
            scale = float(f"{factor * guess:.3g}")

            def make(scale: float = scale) -> tuple[list[Any], float]:
                return forecast(model.using(guidance_scale=scale, **how), shown, self.task.samples), 0.0

            facts = self.facts(what="tuning", part="all", samples=self.task.samples, guidance_scale=scale, **how)
            scores[scale] = score(store.forecasts(facts, shown, make)[0], shown)["CRPS"]
        return min(scores, key=scores.__getitem__)

    def facts(self, **more: Any) -> dict[str, Any]:
        """All that a trained model depends on."""
        names = ("dataset", "steps", "batch_size", "width", "state", "lr")
        chosen = {"context": self.context, "lags": self.preset.lags, "scaling": self.preset.scaling}
        return {**{name: getattr(self.task, name) for name in names}, **chosen, **more}

    def problem(self, steps: int | None = None) -> Problem:
        """What every method is given."""
        from ..baselines import Problem

        return Problem(
            self.freq,
            self.horizon,
            self.preset,
            steps=steps or self.task.steps,
            batch_size=self.task.batch_size,
            width=self.task.width,
            state=self.task.state,
            lr=self.task.lr,
            seed=self.run.seed,
            trainer_kwargs=self.trainer_kwargs(steps or self.task.steps),
        )

    def trainer_kwargs(self, steps: int) -> dict[str, Any]:
        from ..recipes import trainer_kwargs

        return trainer_kwargs(self.run.out / self.task.dataset, steps, min(steps, 100), self.run.device, False)

    def model(
        self, store: Store, train: list[DataEntry] | None = None, **settings: Any
    ) -> tuple[TSDiffPredictor, float]:
        """A TSDiff model and its seconds of training; unconditional unless ``settings`` of the estimator differ.

        Args:
            store: which keeps it.
            train: other training series than the task's; then ``settings`` must tell them apart by ``part``.
            settings: of ``TSDiffEstimator``, and ``part``, a name of the training series.
        """
        part = settings.pop("part", "all")
        settings = {"condition_dropout": 1.0, **settings}

        def make() -> TSDiffPredictor:
            problem = self.problem()
            estimator = self.preset.estimator(
                self.freq, self.horizon, width=problem.width, state=problem.state, **problem.budget, **settings
            )
            return estimator.train(self.train if train is None else train)  # type: ignore[return-value]

        return store.model(self.facts(part=part, **settings), make)


#: Scales that are tried, in units of the preset's, and the number of series that they are tried on.
FACTORS, VALIDATION = (1 / 64, 1 / 16, 1 / 4, 1, 4), 12

#: Small networks on the bundled series.
QUICK = (
    Task("elnino", steps=400, samples=25),
    Task("co2", steps=400, samples=25),
)

#: The paper's network, and the training of its repository's later version (100 epochs), on a GPU.
PAPER: dict[str, Any] = {
    "steps": 12_800, "batch_size": 64, "width": 64, "state": 128, "lr": 1e-3, "samples": 100, "sampler": "ddpm",
    "sampling_steps": 100, "rivals": ("deepar", "patchtst", "tft", "csdi"), "rival_steps": 5_000,
}  # fmt: skip
#: What two cores can do in some minutes per dataset and seed: every test series, with smaller networks, shorter
#: training and windows, and fewer samples.
CORES: dict[str, Any] = {
    "steps": 1_000, "batch_size": 32, "width": 32, "state": 32, "lr": 2e-3, "samples": 16, "sampler": "ddpm",
    "sampling_steps": 50, "rivals": ("deepar", "patchtst", "tft", "csdi"), "rival_steps": 300,
}  # fmt: skip
#: Contexts on a CPU; the paper has 312 to 360.
SHORT = {"m4_hourly": 144, "exchange_rate_nips": 150}

#: Exchange rates move by half a percent around their level: divided by their mean, as in the paper, what is to be
#: learnt lies below the smallest noise of the schedule; standardised it does not. The paper's lags,
#: 30 to 360 days, are left out: a network trained this shortly forecasts better without them.
OTHERWISE: dict[str, dict[str, Any]] = {"exchange_rate_nips": {"scaling": "std", "lags": False}}

FULL = tuple(
    Task(name, **PAPER, **OTHERWISE.get(name, {}))
    for name in (
        "m4_hourly", "exchange_rate_nips", "solar_nips", "electricity_nips", "traffic_nips", "uber_tlc_hourly",
        "kdd_cup_2018_without_missing", "wiki2000_nips",
    )
)  # fmt: skip


def tasks(run: Run) -> list[Task]:
    """Those that can be run here: quick or full, on a GPU or in the size for a CPU; absent data are noted."""
    from .. import data

    sized = QUICK if run.quick else FULL
    if not run.quick and not run.device.startswith("cuda"):
        sized = tuple(dataclasses.replace(task, context=SHORT.get(task.dataset), **CORES) for task in sized)
        run.note(
            f"On a CPU the full profile has shorter contexts, trains networks of width {CORES['width']} for "
            f"{CORES['steps']} steps of {CORES['batch_size']} windows, and draws {CORES['samples']} samples by DDPM in "
            f"{CORES['sampling_steps']} steps; on a GPU it has the paper's sizes, 100 samples and DDPM in 100 steps."
        )
    here = data.available(run.data)
    absent = [task.dataset for task in sized if task.dataset not in here]
    if absent:
        run.note(f"Left out, because SUFFUSE_DATA does not have them: {', '.join(absent)}.")
    found = [task for task in sized if task.dataset in here]
    if not found:
        run.skip("none of the paper's datasets is in SUFFUSE_DATA")
    return found
