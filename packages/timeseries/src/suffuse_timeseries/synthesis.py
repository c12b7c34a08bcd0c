r"""Synthesis, and how good it is: train on synthetic windows, test on real ones.

Windows of context + horizon steps are drawn from the unconditional model, in the space it was trained in: scaled by
their context. A downstream forecaster that does not scale and does not see the calendar is trained on them, and tested
on real series, cut to their context, brought to the same scale and back again,

    score = CRPS of (train on n synthetic windows, forecast the real test set).

With ridge regression from context to horizon that is the linear predictive score (LPS); a point forecast's CRPS is its
ND. The same forecaster trained on n real windows says what can be reached.
Kollovieh et al. (2023), arXiv:2307.11494, section 4.3; train on synthetic, test on real: Esteban, Hyland, Raetsch
(2017), arXiv:1706.02633.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import torch
from gluonts.dataset import DataEntry, Dataset
from gluonts.model.estimator import Estimator
from gluonts.model.forecast import Forecast, SampleForecast
from gluonts.model.predictor import Predictor

from suffuse.errors import InvalidArgument

from .baselines.ridge import RidgeEstimator
from .metrics import evaluate
from .tsdiff.predictor import TSDiffPredictor
from .tsdiff.refinement import quantile_paths
from .tsdiff.windows import Scaling, draw_cuts, location_and_scale

__all__ = [
    "ScaledPredictor",
    "as_dataset",
    "linear_predictive_score",
    "real_windows",
    "synthetic_windows",
    "train_on_synthetic_test_on_real",
]


def synthetic_windows(model: TSDiffPredictor, n: int = 10_000, seed: int = 0, progress: bool = True) -> np.ndarray:
    """n windows from the unconditional model, scaled: (n, context + horizon), or (n, D, context + horizon).

    Args:
        model: trained with ``condition_dropout`` above 0; its sampler is used.
        n: number of windows.
        seed: of the noise.
        progress: whether to show a bar.
    """
    generator = torch.Generator(model.device).manual_seed(seed)
    return model.prediction_net.synthesize(n, generator, progress).cpu().numpy()


def real_windows(
    dataset: Dataset,
    context_length: int,
    prediction_length: int,
    n: int = 10_000,
    scaling: Scaling | None = "mean",
    seed: int = 0,
) -> np.ndarray:
    """n windows of real univariate series, drawn with replacement and scaled by their context; NaN where missing.

    Args:
        dataset: training series; those shorter than a window are left out.
        context_length, prediction_length: steps before and in the horizon.
        n: number of windows.
        scaling: as of the model they are compared with.
        seed: of the draw.
    """
    length = context_length + prediction_length
    long = []
    for entry in dataset:
        if np.ndim(entry["target"]) != 1:
            raise InvalidArgument(f"targets must be univariate, (T,), got {np.shape(entry['target'])}")
        if len(entry["target"]) >= length:
            long.append(entry)
    if not long:
        raise InvalidArgument(f"no series has the {length} steps of a window; shorten context_length")
    rows = [
        np.asarray(entry["target"], np.float32)[cut - length : cut] for entry, cut in draw_cuts(long, length, n, seed)
    ]
    windows = np.stack(rows)
    loc, scale = scale_of(windows[:, :context_length], scaling)
    return (windows - loc) / scale


def scale_of(contexts: np.ndarray, scaling: Scaling | None) -> tuple[np.ndarray, np.ndarray]:
    """loc and scale of each row, (n, 1) each, from what is observed of it."""
    y = torch.from_numpy(np.asarray(contexts, np.float32))
    loc, scale = location_and_scale(y.nan_to_num(), y.isfinite().float(), y.shape[1], scaling, default_scale=1.0)
    return loc.numpy(), scale.numpy()


def as_dataset(windows: np.ndarray, freq: str) -> list[DataEntry]:
    """Windows as a GluonTS dataset; all start on one day that means nothing."""
    start = pd.Period("2000-01-01", freq=freq)
    return [{"start": start, "target": window, "item_id": f"window-{i}"} for i, window in enumerate(windows)]


class ScaledPredictor(Predictor):
    """A predictor that knows scaled windows only, made one for series: their context is scaled, its forecasts are not.

    Args:
        base: any univariate predictor that was trained on windows of ``real_windows`` or ``synthetic_windows``.
        context_length: the steps it is shown.
        scaling: of those windows.
    """

    def __init__(self, base: Predictor, context_length: int, scaling: Scaling | None = "mean") -> None:
        super().__init__(prediction_length=base.prediction_length)
        self.base, self.context_length, self.scaling = base, context_length, scaling

    def predict(self, dataset: Dataset, num_samples: int = 100, **kwargs: Any) -> Iterator[Forecast]:
        """One ``SampleForecast`` per entry."""
        entries = list(dataset)
        contexts = np.full((len(entries), self.context_length), np.nan, np.float32)
        for row, entry in zip(contexts, entries, strict=True):
            recent = np.asarray(entry["target"], np.float32)[-self.context_length :]
            row[self.context_length - len(recent) :] = recent
        loc, scale = scale_of(contexts, self.scaling)
        freq = entries[0]["start"].freqstr
        forecasts = self.base.predict(as_dataset((contexts - loc) / scale, freq), num_samples=num_samples, **kwargs)
        for entry, a, b, forecast in zip(entries, loc, scale, forecasts, strict=True):
            paths = forecast.samples if isinstance(forecast, SampleForecast) else quantile_paths(forecast, num_samples)
            yield SampleForecast(
                a + b * paths, start_date=entry["start"] + len(entry["target"]), item_id=entry.get("item_id")
            )


def train_on_synthetic_test_on_real(
    estimator: Estimator,
    windows: np.ndarray,
    test: Dataset,
    prediction_length: int,
    scaling: Scaling | None = "mean",
    num_samples: int = 100,
) -> dict[str, float]:
    """Scores on real series of a forecaster that was trained on scaled windows, synthetic or real.

    Args:
        estimator: any GluonTS estimator that neither scales nor sees the calendar; see ``baselines.Problem.scaled``.
        windows: (n, context + horizon).
        test: entries that include the horizon to be predicted.
        prediction_length: horizon.
        scaling: how the windows are scaled.
        num_samples: sample paths per forecast.

    Returns:
        As ``metrics.evaluate``: CRPS, ND, NRMSE, MASE, coverage-80.
    """
    windows = np.asarray(windows)
    if windows.ndim != 2 or windows.shape[1] <= prediction_length:
        raise InvalidArgument(
            f"windows must be (n, context + horizon) with more than prediction_length={prediction_length} steps, got "
            f"{windows.shape}"
        )
    test = list(test)
    predictor = estimator.train(as_dataset(windows, test[0]["start"].freqstr))
    scaled = ScaledPredictor(predictor, windows.shape[1] - prediction_length, scaling)
    return evaluate(scaled, test, num_samples)[0]


def linear_predictive_score(
    windows: np.ndarray, test: Dataset, prediction_length: int, scaling: Scaling | None = "mean", alpha: float = 1.0
) -> float:
    """LPS: the test CRPS of ridge regression from context to horizon, fitted to windows; less is better.

    Args:
        windows, test, prediction_length, scaling: see ``train_on_synthetic_test_on_real``.
        alpha: the ridge penalty.
    """
    context_length = np.shape(windows)[1] - prediction_length
    ridge = RidgeEstimator(prediction_length, context_length, alpha=alpha, windows=len(windows), scaled=False)
    return train_on_synthetic_test_on_real(ridge, windows, test, prediction_length, scaling)["CRPS"]
