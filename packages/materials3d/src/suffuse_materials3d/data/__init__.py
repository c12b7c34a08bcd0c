"""Volumes to learn from: simulated in memory or on disk, cut from a tomogram, or read from files."""

from .simulated import SYSTEMS, simulate_dataset
from .spinodal import DATASETS, Augmented, SpinodalVolumes, load, request, simulate_spinodal
from .tomogram import Tomogram, cut_tomogram
from .volumes import Volumes, read_volumes

__all__ = [
    "DATASETS",
    "SYSTEMS",
    "Augmented",
    "SpinodalVolumes",
    "Tomogram",
    "Volumes",
    "cut_tomogram",
    "load",
    "read_volumes",
    "request",
    "simulate_dataset",
    "simulate_spinodal",
]
