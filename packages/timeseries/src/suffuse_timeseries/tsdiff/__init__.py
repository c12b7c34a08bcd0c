"""TSDiff: one diffusion model over windows of a series, which forecasts by guidance, by condition, or synthesizes.

Kollovieh, Ansari, Bohlke-Schneider, Zschiegner, Wang, Wang (2023), "Predict, Refine, Synthesize: Self-Guiding Diffusion
Models for Probabilistic Time Series Forecasting", NeurIPS 2023, arXiv:2307.11494.

``TSDiffEstimator`` trains, as any GluonTS estimator does; ``TSDiffPredictor`` forecasts, as any GluonTS predictor does.
"""

from .anomaly import AnomalyScorer, AnomalyScores
from .estimator import TSDiffEstimator
from .imputation import DiffusionImputation, Imputation, impute
from .module import Forecasting, TSDiffModule
from .predictor import TSDiffPredictor
from .refinement import RefinedPredictor, Refinement, representative_time
from .self_guidance import LineSearch, ObservationSelfGuidance, quantile_levels

__all__ = [
    "AnomalyScorer",
    "AnomalyScores",
    "DiffusionImputation",
    "Forecasting",
    "Imputation",
    "LineSearch",
    "ObservationSelfGuidance",
    "RefinedPredictor",
    "Refinement",
    "TSDiffEstimator",
    "TSDiffModule",
    "TSDiffPredictor",
    "impute",
    "quantile_levels",
    "representative_time",
]
