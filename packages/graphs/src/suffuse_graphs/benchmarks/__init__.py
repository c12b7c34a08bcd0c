"""One module per published claim."""

from .accuracy import accuracy
from .scale import scale
from .signal_imputation import signal_imputation
from .speed import speed
from .synthetic import synthetic
from .theory import theory

BENCHMARKS = (accuracy, signal_imputation, speed, scale, theory, synthetic)
