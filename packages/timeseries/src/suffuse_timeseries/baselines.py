"""A classical forecaster to stand beside: global ridge regression, as a GluonTS predictor.

With a window scaled by the mean |y| of its context, x = context (K) and h = horizon (H),

    h = W x + b,   W, b = argmin sum ||h - W x - b||^2 + alpha ||W||^2        over all windows of all series,

the "Linear" row of the TSDiff paper (Kollovieh et al. 2023, arXiv:2307.11494). That is a point forecast; with
``residuals`` a sample path is the point forecast plus the residual vector of a training window drawn at random, which
makes it an honest probabilistic rival.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from gluonts.dataset import DataEntry, Dataset
from gluonts.model.forecast import Forecast, SampleForecast
from gluonts.model.predictor import Predictor

from suffuse.errors import InvalidArgument

if TYPE_CHECKING:
    from sklearn.linear_model import Ridge

__all__ = ["RidgePredictor"]


class RidgePredictor(Predictor):
    """See the module. Missing values are carried forward; windows reach back before a series' start by repeating it.

    Args:
        model: a fitted scikit-learn regressor, (n, K) -> (n, H).
        context_length: K.
        prediction_length: H.
        residuals: (n, H) in scaled units, or None for a point forecast.
        seed: of the residuals that are drawn.
    """

    def __init__(
        self, model: Ridge, context_length: int, prediction_length: int, residuals: np.ndarray | None, seed: int = 0
    ) -> None:
        super().__init__(prediction_length=prediction_length)
        self.model, self.context_length, self.residuals, self.seed = model, context_length, residuals, seed

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
        seed: int = 0,
    ) -> RidgePredictor:
        """Fit on up to ``windows`` windows drawn from all series.

        Args:
            dataset: training series; those not longer than context and horizon together are left out.
            prediction_length, context_length: H and K, in steps.
            alpha: the ridge penalty, in scaled units.
            windows: number of windows.
            residuals: whether forecasts carry resampled residuals, out of sample: of the last fifth of the windows in
                time, with the model fitted to the rest; the model is then refitted to all.
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

        def fitted(parts: list[np.ndarray]) -> Ridge:
            rows = np.concatenate(parts)
            scaled = rows / size(rows[:, :context_length])
            return Ridge(alpha=alpha).fit(scaled[:, :context_length], scaled[:, context_length:])

        errors = None
        if residuals:
            early = [v[: max(1, int(0.8 * len(v)))] for v in chosen]
            late = np.concatenate([v[-max(1, len(v) // 5) :] for v in chosen])
            late = late / size(late[:, :context_length])
            errors = late[:, context_length:] - fitted(early).predict(late[:, :context_length])
        return cls(fitted(chosen), context_length, prediction_length, errors, seed)

    def predict(self, dataset: Dataset, num_samples: int = 100, **kwargs: Any) -> Iterator[Forecast]:
        rng = np.random.default_rng(self.seed)
        for entry in dataset:
            y = filled(entry)[-self.context_length :]
            y = np.pad(y, (self.context_length - len(y), 0), mode="edge")
            scale = size(y)
            path = self.model.predict((y / scale)[None])  # (1, H)
            if self.residuals is not None:
                path = path + self.residuals[rng.integers(len(self.residuals), size=num_samples)]
            start = entry["start"] + len(entry["target"])
            yield SampleForecast(path * scale, start_date=start, item_id=entry.get("item_id"))


def size(context: np.ndarray) -> np.ndarray:
    """Mean |y| over the last axis, kept, and 1 where that is 0."""
    mean = np.abs(context).mean(-1, keepdims=True)
    return np.where(mean > 0, mean, 1.0)


def filled(entry: DataEntry) -> np.ndarray:
    """The target (T,) with each gap at the value before it (the start of a series at the first value; all gaps: 0)."""
    import pandas as pd

    return pd.Series(np.asarray(entry["target"], dtype=np.float64)).ffill().bfill().fillna(0.0).to_numpy()
