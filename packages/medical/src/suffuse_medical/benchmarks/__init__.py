"""Benchmarks: one module per published claim."""

from .tissue_to_t1 import tissue_to_t1

BENCHMARKS = (tissue_to_t1,)
