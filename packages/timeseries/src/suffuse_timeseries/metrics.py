"""Scores of forecasts, all by GluonTS's evaluator.

"CRPS" in the TSDiff paper is the mean weighted quantile loss: with the pinball loss rho_q (times 2) summed over all
series and steps and divided by sum |y|, the mean over q = 0.1, ..., 0.9. For a point forecast it equals ND.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from .quiet import no_bar

if TYPE_CHECKING:
    from gluonts.dataset import DataEntry, Dataset
    from gluonts.model.forecast import Forecast
    from gluonts.model.predictor import Predictor

__all__ = ["QUANTILES", "evaluate", "forecast", "score"]

QUANTILES = tuple(round(0.1 * k, 1) for k in range(1, 10))

#: our name -> the evaluator's
NAMES = {"CRPS": "mean_wQuantileLoss", "ND": "ND", "NRMSE": "NRMSE", "MASE": "MASE", "coverage-80": ""}


def evaluate(predictor: Predictor, test: Dataset, num_samples: int = 100) -> tuple[dict[str, float], list[Forecast]]:
    """Forecast the last ``prediction_length`` steps of every test entry, and score.

    Args:
        predictor: any GluonTS predictor.
        test: entries that include the horizon to be predicted (the old GluonTS convention, which papers used).
        num_samples: sample paths per forecast, for sampling predictors.

    Returns:
        ``score`` of the forecasts, and the forecasts.
    """
    forecasts = forecast(predictor, test, num_samples)
    return score(forecasts, test), forecasts


def forecast(predictor: Predictor, test: Dataset, num_samples: int = 100) -> list[Forecast]:
    """The forecasts of the last ``prediction_length`` steps of every test entry."""
    from gluonts.evaluation import make_evaluation_predictions

    return list(make_evaluation_predictions(test, predictor=predictor, num_samples=num_samples)[0])


def score(forecasts: Sequence[Forecast], test: Iterable[DataEntry]) -> dict[str, float]:
    """Scores of forecasts, one per test entry that includes what was forecast; missing values do not count.

    Returns:
        {"CRPS", "ND", "NRMSE", "MASE", "coverage-80"}; ``coverage-80`` is the share of observations between the 0.1 and
        the 0.9 quantile; 0.8 is calibrated.
    """
    from gluonts.dataset.util import to_pandas
    from gluonts.evaluation import Evaluator

    # one process: the evaluator's default forks a pool after torch has started threads
    evaluator = Evaluator(quantiles=QUANTILES, num_workers=0)
    with warnings.catch_warnings(), no_bar():
        warnings.simplefilter("ignore")  # pandas deprecations, and MAPE's division by zeros that nobody asked for
        series = [to_pandas(entry) for entry in test]
        total, _ = evaluator(iter(series), iter(forecasts), num_series=len(series))
    scores = {ours: float(total[theirs]) for ours, theirs in NAMES.items() if theirs}
    scores["coverage-80"] = float(total["Coverage[0.9]"] - total["Coverage[0.1]"])
    return scores
