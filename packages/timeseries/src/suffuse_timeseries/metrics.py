"""Scores of forecasts, all by GluonTS's evaluator.

"CRPS" in the TSDiff paper is the mean weighted quantile loss: with the pinball loss rho_q (times 2) summed over all
series and steps and divided by sum |y|, the mean over q = 0.1, ..., 0.9. For a point forecast it equals ND.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

from .quiet import no_bar

if TYPE_CHECKING:
    from gluonts.dataset import Dataset
    from gluonts.model.forecast import Forecast
    from gluonts.model.predictor import Predictor

__all__ = ["QUANTILES", "evaluate"]

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
        {"CRPS", "ND", "NRMSE", "MASE", "coverage-80"} and the forecasts. ``coverage-80`` is the share of observations
        between the 0.1 and the 0.9 quantile; 0.8 is calibrated.
    """
    from gluonts.evaluation import Evaluator, make_evaluation_predictions

    iterator, truth = make_evaluation_predictions(test, predictor=predictor, num_samples=num_samples)
    forecasts, series = list(iterator), list(truth)
    # one process: the evaluator's default forks a pool after torch has started threads
    evaluator = Evaluator(quantiles=QUANTILES, num_workers=0)
    with warnings.catch_warnings(), no_bar():
        warnings.simplefilter("ignore")  # pandas deprecations, and MAPE's division by zeros that nobody asked for
        total, _ = evaluator(iter(series), iter(forecasts), num_series=len(series))
    scores = {ours: float(total[theirs]) for ours, theirs in NAMES.items() if theirs}
    scores["coverage-80"] = float(total["Coverage[0.9]"] - total["Coverage[0.1]"])
    return scores, forecasts
