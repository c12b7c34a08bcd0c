"""Volumes to learn from: spinodal structures, simulated on the spot; nothing is downloaded."""

from .spinodal import DATASETS, Augmented, SpinodalVolumes, load, request, simulate_spinodal

__all__ = ["DATASETS", "Augmented", "SpinodalVolumes", "load", "request", "simulate_spinodal"]
