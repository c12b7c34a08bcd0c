"""Guidance: functions from denoisers to denoisers."""

from .classifier_free import ClassifierFree
from .inverse import DataConsistency, LinearOperator, Measured, conjugate_gradient

__all__ = ["ClassifierFree", "DataConsistency", "LinearOperator", "Measured", "conjugate_gradient"]
