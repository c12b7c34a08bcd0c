"""Distances between distributions that are known by samples alone."""

from suffuse.metrics.distances import energy_distance, mmd

__all__ = ["energy_distance", "mmd"]
