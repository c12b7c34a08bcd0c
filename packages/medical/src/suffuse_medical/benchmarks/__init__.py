"""Benchmarks: one module per published claim."""

from .anomaly import anomaly
from .reconstruction import reconstruction
from .segmentation import segmentation
from .tissue_to_t1 import tissue_to_t1

BENCHMARKS = (
    anomaly,
    reconstruction,
    segmentation,
    tissue_to_t1,
)
