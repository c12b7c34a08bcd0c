"""Published claims about forecasting, one module per claim."""

from .forecasting import forecasting
from .guidance import guidance
from .imputation import imputation
from .missing import missing
from .refinement import refinement
from .samplers import samplers
from .speed import speed
from .synthesis import synthesis

__all__ = ["BENCHMARKS"]

BENCHMARKS = (forecasting, missing, imputation, refinement, synthesis, samplers, guidance, speed)
