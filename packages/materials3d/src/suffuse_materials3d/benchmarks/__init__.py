"""Published claims, one module each."""

from .volume_fraction import volume_fraction

__all__ = ["BENCHMARKS", "volume_fraction"]

BENCHMARKS = (volume_fraction,)
