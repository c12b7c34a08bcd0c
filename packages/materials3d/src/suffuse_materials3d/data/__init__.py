"""Volumes to learn from: spinodal structures, simulated on the spot."""

from .spinodal import SpinodalVolumes, simulate_spinodal

__all__ = ["SpinodalVolumes", "simulate_spinodal"]
