"""Published claims, one module each."""

from .parity import parity
from .process import process
from .simulator import simulator
from .tiling import tiling
from .volume_fraction import volume_fraction

__all__ = ["BENCHMARKS", "parity", "process", "simulator", "tiling", "volume_fraction"]

BENCHMARKS = (volume_fraction, parity, process, simulator, tiling)
