"""Published claims about forecasting, one module per claim."""

from .forecasting import forecasting

__all__ = ["BENCHMARKS"]

BENCHMARKS = (forecasting,)
