"""One module per published claim."""

from suffuse.bench import Benchmark

from .speed_planning import speed_planning

BENCHMARKS: tuple[Benchmark, ...] = (speed_planning,)
