"""What a forecaster is compared with: classical and deep models of others, and conditional diffusion of our own."""

from .ridge import RidgeEstimator, RidgePredictor
from .table import BASELINES, Problem

__all__ = ["BASELINES", "Problem", "RidgeEstimator", "RidgePredictor"]
