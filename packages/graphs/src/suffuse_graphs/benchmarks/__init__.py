"""One module per published claim."""

from .accuracy import accuracy
from .signal_imputation import signal_imputation

BENCHMARKS = (accuracy, signal_imputation)
