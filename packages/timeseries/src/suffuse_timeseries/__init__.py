"""Diffusion models for time series, native to GluonTS.

    from suffuse_timeseries import TSDiffEstimator
    predictor = TSDiffEstimator(freq="h", prediction_length=24).train(dataset)
    forecast = next(predictor.predict(dataset))

Modules load on first use: GluonTS takes seconds to import, and the command line only asks for names.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .metrics import evaluate as evaluate
    from .tsdiff import AnomalyScorer as AnomalyScorer
    from .tsdiff import DiffusionImputation as DiffusionImputation
    from .tsdiff import Forecasting as Forecasting
    from .tsdiff import ObservationSelfGuidance as ObservationSelfGuidance
    from .tsdiff import RefinedPredictor as RefinedPredictor
    from .tsdiff import TSDiffEstimator as TSDiffEstimator
    from .tsdiff import TSDiffPredictor as TSDiffPredictor
    from .tsdiff import impute as impute
    from .tsdiff import representative_time as representative_time

__version__ = "0.1.0"

_NAMES = {
    "AnomalyScorer": "tsdiff",
    "DiffusionImputation": "tsdiff",
    "Forecasting": "tsdiff",
    "ObservationSelfGuidance": "tsdiff",
    "RefinedPredictor": "tsdiff",
    "TSDiffEstimator": "tsdiff",
    "TSDiffPredictor": "tsdiff",
    "evaluate": "metrics",
    "impute": "tsdiff",
    "representative_time": "tsdiff",
}
__all__ = ["__version__", *_NAMES]


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        return getattr(importlib.import_module(f".{_NAMES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
