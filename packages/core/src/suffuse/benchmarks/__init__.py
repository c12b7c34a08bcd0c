"""Benchmarks of the core: a small model of handwritten digits, and samplers on exact denoisers."""

from suffuse.bench import Benchmark
from suffuse.benchmarks.digits import digits
from suffuse.benchmarks.overhead import overhead
from suffuse.benchmarks.samplers_exact import samplers_exact

BENCHMARKS: tuple[Benchmark, ...] = (digits, overhead, samplers_exact)
