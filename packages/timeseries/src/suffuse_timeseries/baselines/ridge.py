"""A classical forecaster to stand beside: global ridge regression, as a GluonTS predictor.

With a window scaled by the mean |y| of its context, x = context (K) and h = horizon (H),

    h = W x + b,   W, b = argmin sum ||h - W x - b||^2 + alpha ||W||^2        over all windows of all series,

the "Linear" row of the TSDiff paper (Kollovieh et al. 2023, arXiv:2307.11494). That is a point forecast; with
``residuals`` a sample path is the point forecast plus the residual vector of a training window drawn at random, which
makes it an honest probabilistic rival.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from gluonts.dataset import DataEntry, Dataset
from gluonts.model.estimator import Estimator
from gluonts.model.forecast import Forecast, SampleForecast
from gluonts.model.predictor import Predictor
from safetensors.numpy import load_file, save_file

from suffuse.errors import InvalidArgument

__all__ = ["RidgeEstimator", "RidgePredictor"]


class RidgePredictor(Predictor):
    """See the module. Missing values are carried forward; windows reach back before a series' start by repeating it.

    Args:
        weight: W, (H, K).
        bias: b, (H,).
        residuals: (n, H) in scaled units, or None for a point forecast.
        scaled: whether windows are divided by the mean |y| of their context.
        seed: of the residuals that are drawn.
    """

    def __init__(
        self,
        weight: np.ndarray,
        bias: np.ndarray,
        residuals: np.ndarray | None = None,
        scaled: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__(prediction_length=len(bias))
        self.weight, self.bias, self.residuals, self.scaled, self.seed = weight, bias, residuals, scaled, seed

    @classmethod
    def fit(
        cls,
        dataset: Dataset,
        prediction_length: int,
        context_length: int,
        *,
        alpha: float = 1.0,
        windows: int = 10_000,
        residuals: bool = False,
        scaled: bool = True,
        seed: int = 0,
    ) -> RidgePredictor:
        """Fit on up to ``windows`` windows drawn from all series.

        Args:
            dataset: training series; those shorter than context and horizon together are left out.
            prediction_length, context_length: H and K, in steps.
            alpha: the ridge penalty, in scaled units.
            windows: number of windows.
            residuals: whether forecasts carry resampled residuals, out of sample: of the last fifth of the windows in
                time, with the model fitted to the rest; the model is then refitted to all.
            scaled: whether windows are divided by the mean |y| of their context.
            seed: of all random draws.
        """
        from sklearn.linear_model import Ridge

        length = context_length + prediction_length
        series = [filled(entry) for entry in dataset]
        series = [y for y in series if len(y) >= length]
        if not series:
            raise InvalidArgument(f"no series has the {length} steps of a window; shorten context_length")
        views = [np.lib.stride_tricks.sliding_window_view(y, length) for y in series]
        keep = min(1.0, windows / sum(len(v) for v in views))
        rng = np.random.default_rng(seed)
        chosen = [v[np.sort(rng.choice(len(v), max(1, round(keep * len(v))), replace=False))] for v in views]

        def pairs(parts: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
            rows = np.concatenate(parts)
            rows = rows / size(rows[:, :context_length]) if scaled else rows
            return rows[:, :context_length], rows[:, context_length:]

        errors = None
        if residuals:
            early = pairs([v[: max(1, int(0.8 * len(v)))] for v in chosen])
            x, y = pairs([v[-max(1, len(v) // 5) :] for v in chosen])
            errors = y - Ridge(alpha=alpha).fit(*early).predict(x)
        model = Ridge(alpha=alpha).fit(*pairs(chosen))
        return cls(model.coef_.reshape(-1, context_length), np.atleast_1d(model.intercept_), errors, scaled, seed)

    def predict(self, dataset: Dataset, num_samples: int = 100, **kwargs: Any) -> Iterator[Forecast]:
        rng = np.random.default_rng(self.seed)
        context_length = self.weight.shape[1]
        for entry in dataset:
            y = filled(entry)[-context_length:]
            y = np.pad(y, (context_length - len(y), 0), mode="edge")
            scale = size(y) if self.scaled else 1.0
            path = (self.weight @ (y / scale) + self.bias)[None]  # (1, H)
            if self.residuals is not None:
                path = path + self.residuals[rng.integers(len(self.residuals), size=num_samples)]
            start = entry["start"] + len(entry["target"])
            yield SampleForecast(path * scale, start_date=start, item_id=entry.get("item_id"))

    def serialize(self, path: Path) -> None:
        super().serialize(path)
        arrays = {
            "weight": self.weight,
            "bias": self.bias,
            "scaled": np.array([self.scaled]),
            "seed": np.array([self.seed]),
        }
        if self.residuals is not None:
            arrays["residuals"] = self.residuals
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, path / "ridge.safetensors")

    @classmethod
    def deserialize(cls, path: Path, **kwargs: Any) -> RidgePredictor:
        arrays = load_file(path / "ridge.safetensors")
        scaled, seed = bool(arrays.pop("scaled")[0]), int(arrays.pop("seed")[0])
        return cls(**arrays, scaled=scaled, seed=seed)


class RidgeEstimator(Estimator):
    """``RidgePredictor.fit`` as an estimator, with the same arguments."""

    def __init__(self, prediction_length: int, context_length: int, **settings: Any) -> None:
        super().__init__()
        self.settings = {"prediction_length": prediction_length, "context_length": context_length, **settings}

    def train(self, training_data: Dataset, validation_data: Dataset | None = None) -> RidgePredictor:
        return RidgePredictor.fit(training_data, **self.settings)


def size(context: np.ndarray) -> np.ndarray:
    """Mean |y| over the last axis, kept, and 1 where that is 0."""
    mean = np.abs(context).mean(-1, keepdims=True)
    return np.where(mean > 0, mean, 1.0)


def filled(entry: DataEntry) -> np.ndarray:
    """The target (T,) with each gap at the value before it (the start of a series at the first value; all gaps: 0)."""
    import pandas as pd

    return pd.Series(np.asarray(entry["target"], dtype=np.float64)).ffill().bfill().fillna(0.0).to_numpy()
