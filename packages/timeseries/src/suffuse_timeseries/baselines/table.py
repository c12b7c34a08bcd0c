"""The baselines by name: what each of them is given is the same, windows, steps and batch size.

``seasonal-naive``, ``ridge`` (the paper's Linear, a point forecast), ``ridge-residuals``
``deepar``       Salinas et al. (2020), arXiv:1704.04110, in GluonTS
``patchtst``     Nie et al. (2023), arXiv:2211.14730, in GluonTS
``tft``          Lim et al. (2021), arXiv:1912.09363, in GluonTS
``tsdiff-cond``  the conditional diffusion of the TSDiff paper: told the past, it denoises the whole window
``csdi``         as Tashiro et al. (2021), arXiv:2107.03502, train: what is known enters clean and is not diffused, only
                 what is hidden is learnt, with masks of forecasting and of random gaps, in 50 steps of quadratic betas;
                 on our backbone, S4D along time and (for several variates) attention across them

GluonTS has no Transformer for torch, which the paper has in its tables; PatchTST stands there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from gluonts.dataset import Dataset
from gluonts.model.estimator import Estimator
from gluonts.model.predictor import Predictor
from gluonts.model.seasonal_naive import SeasonalNaivePredictor
from gluonts.time_feature import get_seasonality

from suffuse.schedules import DiscreteBetas

from ..frequency import normalize
from ..presets import Preset
from .ridge import RidgeEstimator

if TYPE_CHECKING:
    from ..tsdiff import TSDiffEstimator

__all__ = ["BASELINES", "Problem"]


@dataclass(frozen=True)
class Problem:
    """What every method of a comparison is given.

    Args:
        freq: pandas frequency.
        prediction_length: horizon H in steps.
        preset: of the dataset: season, context, lags and scaling.
        steps: optimiser steps.
        batch_size: windows per step.
        width, state: of our networks; the others have the sizes GluonTS gives them.
        lr: learning rate.
        seed: of what is drawn outside torch.
        trainer_kwargs: of ``lightning.Trainer``, such as its device and folder.
        scaled: False where the series have a common scale already; then no model scales, and none sees the calendar.
    """

    freq: str
    prediction_length: int
    preset: Preset = field(default_factory=Preset)
    steps: int = 1000
    batch_size: int = 32
    width: int = 32
    state: int = 32
    lr: float = 1e-3
    seed: int = 0
    trainer_kwargs: dict[str, Any] = field(default_factory=dict)
    scaled: bool = True

    @property
    def context_length(self) -> int:
        return self.preset.context_length or 7 * self.prediction_length

    @property
    def season(self) -> int:
        return self.preset.season or get_seasonality(normalize(self.freq))

    @property
    def budget(self) -> dict[str, Any]:
        """Arguments that all estimators of ``gluonts.torch`` share."""
        epoch = min(self.steps, 100)
        trainer = {"max_epochs": -(-self.steps // epoch), "max_steps": self.steps, **self.trainer_kwargs}
        return {
            "batch_size": self.batch_size,
            "num_batches_per_epoch": epoch,
            "lr": self.lr,
            "trainer_kwargs": trainer,
        }

    def estimator(self, **settings: Any) -> TSDiffEstimator:
        """A TSDiff estimator with this budget and any of its arguments."""
        sizes = {"width": self.width, "state": self.state}
        return self.preset.estimator(self.freq, self.prediction_length, **{**sizes, **self.budget, **settings})


class Fixed(Estimator):
    """An estimator that has nothing to learn."""

    def __init__(self, predictor: Predictor) -> None:
        super().__init__()
        self.predictor = predictor

    def train(self, training_data: Dataset, validation_data: Dataset | None = None) -> Predictor:
        return self.predictor


def seasonal_naive(problem: Problem) -> Estimator:
    return Fixed(SeasonalNaivePredictor(problem.prediction_length, season_length=problem.season))


def ridge(problem: Problem, residuals: bool = False) -> Estimator:
    return RidgeEstimator(
        problem.prediction_length,
        problem.context_length,
        residuals=residuals,
        scaled=problem.scaled,
        seed=problem.seed,
    )


def ridge_residuals(problem: Problem) -> Estimator:
    return ridge(problem, residuals=True)


def deepar(problem: Problem) -> Estimator:
    from gluonts.torch import DeepAREstimator

    more: dict[str, Any] = {} if problem.scaled else {"scaling": False, "time_features": [], "lags_seq": [1]}
    return DeepAREstimator(
        freq=problem.freq,
        prediction_length=problem.prediction_length,
        context_length=problem.context_length,
        **more,
        **problem.budget,
    )


def patchtst(problem: Problem) -> Estimator:
    from gluonts.torch import PatchTSTEstimator

    return PatchTSTEstimator(
        prediction_length=problem.prediction_length,
        context_length=problem.context_length,
        patch_len=min(16, problem.context_length),
        scaling="mean" if problem.scaled else None,
        **problem.budget,
    )


def tft(problem: Problem) -> Estimator:
    from gluonts.torch import TemporalFusionTransformerEstimator

    more: dict[str, Any] = {} if problem.scaled else {"time_features": []}
    return TemporalFusionTransformerEstimator(
        freq=problem.freq,
        prediction_length=problem.prediction_length,
        context_length=problem.context_length,
        **more,
        **problem.budget,
    )


def tsdiff_cond(problem: Problem, **settings: Any) -> Estimator:
    return problem.estimator(condition_dropout=0.0, **settings)


def csdi(problem: Problem) -> Estimator:
    return tsdiff_cond(
        problem,
        schedule=DiscreteBetas.scaled_linear(1e-4, 0.5, steps=50),
        noise_observed=False,
        training_mask="mix",
    )


#: name -> builder of an estimator, whose ``train`` gives a GluonTS predictor
BASELINES: dict[str, Callable[[Problem], Estimator]] = {
    "seasonal-naive": seasonal_naive,
    "ridge": ridge,
    "ridge-residuals": ridge_residuals,
    "deepar": deepar,
    "patchtst": patchtst,
    "tft": tft,
    "tsdiff-cond": tsdiff_cond,
    "csdi": csdi,
}
