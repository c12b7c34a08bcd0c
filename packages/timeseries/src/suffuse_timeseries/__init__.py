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
    from .tsdiff import Forecasting as Forecasting
    from .tsdiff import ObservationSelfGuidance as ObservationSelfGuidance
    from .tsdiff import TSDiffEstimator as TSDiffEstimator
    from .tsdiff import TSDiffPredictor as TSDiffPredictor

__version__ = "0.1.0"

_NAMES = {
    "Forecasting": "tsdiff",
    "ObservationSelfGuidance": "tsdiff",
    "TSDiffEstimator": "tsdiff",
    "TSDiffPredictor": "tsdiff",
    "evaluate": "metrics",
}
__all__ = ["Forecasting", "ObservationSelfGuidance", "TSDiffEstimator", "TSDiffPredictor", "__version__", "evaluate"]


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        return getattr(importlib.import_module(f".{_NAMES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
