"""Behaviour data with no download: controllers, how they were found, and how they become a Minari dataset."""

from .cpg import CPG, RandomPolicy
from .dataset import DATASET_ID, collect, controllers

__all__ = ["CPG", "DATASET_ID", "RandomPolicy", "collect", "controllers"]
