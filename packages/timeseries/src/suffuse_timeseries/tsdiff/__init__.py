"""TSDiff: one diffusion model over windows of a series, which forecasts by guidance, by condition, or synthesizes.

Kollovieh, Ansari, Bohlke-Schneider, Zschiegner, Wang, Wang (2023), "Predict, Refine, Synthesize: Self-Guiding Diffusion
Models for Probabilistic Time Series Forecasting", NeurIPS 2023, arXiv:2307.11494.

``TSDiffEstimator`` trains, as any GluonTS estimator does; ``TSDiffPredictor`` forecasts, as any GluonTS predictor does.
"""

from .estimator import TSDiffEstimator
from .module import Forecasting, TSDiffModule
from .predictor import TSDiffPredictor
from .self_guidance import ObservationSelfGuidance, quantile_levels

__all__ = [
    "Forecasting",
    "ObservationSelfGuidance",
    "TSDiffEstimator",
    "TSDiffModule",
    "TSDiffPredictor",
    "quantile_levels",
]
