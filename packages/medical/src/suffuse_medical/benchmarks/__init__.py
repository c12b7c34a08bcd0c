"""Benchmarks: one module per published claim."""

from .anomaly import anomaly
from .joint import joint
from .ldm import ldm
from .privacy import privacy
from .reconstruction import reconstruction
from .samplers import samplers
from .segmentation import segmentation
from .stedm import stedm
from .tissue_to_t1 import tissue_to_t1

BENCHMARKS = (
    anomaly,
    joint,
    ldm,
    privacy,
    reconstruction,
    samplers,
    segmentation,
    stedm,
    tissue_to_t1,
)
