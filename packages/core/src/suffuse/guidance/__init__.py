"""Guidance: functions from denoisers to denoisers."""

from .classifier_free import ClassifierFree
from .inverse import DataConsistency, LinearOperator, Measured, conjugate_gradient
from .predicted import Predicted

__all__ = ["ClassifierFree", "DataConsistency", "LinearOperator", "Measured", "Predicted", "conjugate_gradient"]
