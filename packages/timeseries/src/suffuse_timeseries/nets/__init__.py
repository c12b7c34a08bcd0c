"""Backbones that only time series need."""

from .covariates import CovariateEncoder
from .s4d import S4D, S4DBackbone
from .two_axis import TwoAxisBackbone

__all__ = ["S4D", "CovariateEncoder", "S4DBackbone", "TwoAxisBackbone"]
