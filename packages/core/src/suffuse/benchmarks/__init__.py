"""Benchmarks of the core: samplers on exact denoisers, and a small model of handwritten digits."""

from suffuse.bench import Benchmark

BENCHMARKS: tuple[Benchmark, ...] = ()
