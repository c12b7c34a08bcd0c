"""One module per published claim."""

from .accuracy import accuracy
from .signal_imputation import signal_imputation
from .synthetic import synthetic
from .theory import theory

BENCHMARKS = (accuracy, signal_imputation, synthetic, theory)
