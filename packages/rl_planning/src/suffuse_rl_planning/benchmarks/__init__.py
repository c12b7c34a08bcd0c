"""One module per published claim."""

from suffuse.bench import Benchmark

from .matching import BENCHMARKS as MATCHING
from .speed_planning import speed_planning

BENCHMARKS: tuple[Benchmark, ...] = (speed_planning, *MATCHING)
