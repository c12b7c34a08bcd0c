"""What long benchmarks keep between runs, so that they can be done in pieces and share their models.

With the environment variable SUFFUSE_RUNS, trained models and the quantiles of forecasts stay in that folder, each
under a name made of everything that it depends on, and a run that is started again takes them up. Scores and tables are
computed anew each time. Without the variable nothing outlives a run.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from gluonts.model.forecast import Forecast, QuantileForecast
from safetensors.numpy import load_file, save_file

from suffuse.bench.row import write_text

from ..metrics import QUANTILES

if TYPE_CHECKING:
    from gluonts.dataset import DataEntry

    from suffuse.bench import Run

    from ..tsdiff import TSDiffPredictor

__all__ = ["Store"]

#: Of every forecast: what the scores need, and the bands of fan plots.
KEPT = ("mean", *map(str, sorted({*QUANTILES, 0.05, 0.25, 0.75, 0.95})))


class Store:
    """Models and forecasts of a run, kept or not.

    Args:
        run: the benchmark run; its seed is part of every name.
    """

    def __init__(self, run: Run) -> None:
        self.folder = Path(os.environ.get("SUFFUSE_RUNS") or run.out / "kept")
        self.seed, self.device = run.seed, run.device

    def place(self, kind: str, facts: dict[str, Any]) -> Path:
        """Where that thing is, or will be."""
        facts = {**facts, "seed": self.seed}
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:12]
        return self.folder / f"{facts.get('dataset', 'data')}-{kind}-{digest}"

    def model(self, facts: dict[str, Any], train: Callable[[], TSDiffPredictor]) -> tuple[TSDiffPredictor, float]:
        """A TSDiff model and the seconds its training took.

        Args:
            facts: all that the model depends on, JSON-able.
            train: makes it, when it is not there.
        """
        from suffuse import hub

        from ..recipes import resolve
        from ..tsdiff import TSDiffPredictor

        folder = self.place("model", facts)
        if not (folder / "model.safetensors").is_file():
            seed(self.seed)
            start = time.perf_counter()
            predictor = train()
            predictor.serialize(folder, metadata={**facts, "seconds": time.perf_counter() - start})
        predictor = TSDiffPredictor.deserialize(folder, device=resolve(self.device))
        return predictor, float(hub.read_config(folder)["metadata"]["seconds"])

    def forecasts(
        self, facts: dict[str, Any], test: Sequence[DataEntry], make: Callable[[], tuple[list[Forecast], float]]
    ) -> tuple[list[QuantileForecast], float]:
        """Forecasts of the last steps of test entries as quantiles, and the seconds that training and they took.

        Args:
            facts: all that they depend on, JSON-able.
            test: the entries that are forecast.
            make: makes forecasts, and says the seconds that training and they took.
        """
        path = self.place("forecast", facts).with_suffix(".safetensors")
        if not path.is_file():
            seed(self.seed)
            forecasts, seconds = make()
            kept = np.stack(
                [[f.mean if name == "mean" else f.quantile(float(name)) for name in KEPT] for f in forecasts]
            )
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_suffix(".part")
            save_file({"quantiles": kept.astype(np.float32)}, part)
            write_text(path.with_suffix(".json"), json.dumps({"seconds": seconds, **facts}, default=str))
            part.replace(path)
        kept = load_file(path)["quantiles"]
        seconds = float(json.loads(path.with_suffix(".json").read_text())["seconds"])
        return [
            QuantileForecast(
                each,
                start_date=entry["start"] + (np.shape(entry["target"])[-1] - each.shape[-1]),
                forecast_keys=list(KEPT),
                item_id=entry.get("item_id"),
            )
            for each, entry in zip(kept, test, strict=True)
        ], seconds


def seed(number: int) -> None:
    """The same draws, whether what came before was made now or taken up."""
    import lightning.pytorch as pl

    pl.seed_everything(number, verbose=False)
