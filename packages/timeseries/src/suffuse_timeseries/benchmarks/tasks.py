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
    samples: int = 50
    series: int | None = None
    sampler: str = "dpmpp-2m"
    sampling_steps: int = 20
    rivals: tuple[str, ...] = ()
    rival_steps: int = 0

    def load(self, run: Run) -> Loaded:
        """The data, with what is known of them."""
        from .. import data

        dataset = data.load(self.dataset, run.data)
        chosen = preset(self.dataset)
        if self.scaling is not None:
            chosen = dataclasses.replace(chosen, scaling=self.scaling)
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


#: Small networks on the bundled series.
QUICK = (
    Task("elnino", steps=400),
    Task("co2", steps=400),
)

#: The paper's network, and the training of its repository's later version (100 epochs), on a GPU.
PAPER = {
    "steps": 12_800, "batch_size": 64, "width": 64, "state": 128, "lr": 1e-3, "samples": 100, "sampler": "ddpm",
    "sampling_steps": 100, "rivals": ("deepar", "patchtst", "tft", "csdi"), "rival_steps": 5_000,
}  # fmt: skip
#: What two cores can do: every test series, smaller networks, shorter training, fewer samples.
CORES = {
    "steps": 1_500, "samples": 24, "sampling_steps": 10, "rivals": ("deepar", "patchtst"), "rival_steps": 300,
}  # fmt: skip

FULL = (
    Task("m4_hourly", **{**PAPER}),  # type: ignore[arg-type]
    Task("exchange_rate_nips", **{**PAPER, "scaling": "std"}),  # type: ignore[arg-type]
    Task("solar_nips", **PAPER),  # type: ignore[arg-type]
    Task("electricity_nips", **PAPER),  # type: ignore[arg-type]
    Task("traffic_nips", **PAPER),  # type: ignore[arg-type]
    Task("uber_tlc_hourly", **PAPER),  # type: ignore[arg-type]
    Task("kdd_cup_2018_without_missing", **PAPER),  # type: ignore[arg-type]
    Task("wiki2000_nips", **PAPER),  # type: ignore[arg-type]
)


def tasks(run: Run) -> list[Task]:
    """Those that can be run here: quick or full, on a GPU or in the size for a CPU; absent data are noted."""
    from .. import data

    sized = QUICK if run.quick else FULL
    if not run.quick and not run.device.startswith("cuda"):
        small = {"batch_size": 32, "width": 32, "state": 32, "lr": 2e-3, "sampler": "dpmpp-2m", **CORES}
        sized = tuple(dataclasses.replace(task, **small) for task in sized)  # type: ignore[arg-type]
        run.note(
            f"On a CPU the full profile trains networks of width {small['width']} for {small['steps']} steps of "
            f"{small['batch_size']} windows and draws {small['samples']} samples by {small['sampling_steps']} steps of "
            f"{small['sampler']}; on a GPU it has the paper's sizes, 100 samples and DDPM."
        )
    here = data.available(run.data)
    absent = [task.dataset for task in sized if task.dataset not in here]
    if absent:
        run.note(f"Left out, because SUFFUSE_DATA does not have them: {', '.join(absent)}.")
    found = [task for task in sized if task.dataset in here]
    if not found:
        run.skip("none of the paper's datasets is in SUFFUSE_DATA")
    return found
