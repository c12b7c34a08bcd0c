"""One module per published claim."""

from suffuse.bench import Benchmark

from .covering import covering
from .latency import latency
from .matching import BENCHMARKS as MATCHING
from .robustness import robustness
from .speed import speed
from .speed_planning import speed_planning
from .switching import switching

BENCHMARKS: tuple[Benchmark, ...] = (speed_planning, *MATCHING, switching, covering, robustness, latency, speed)
