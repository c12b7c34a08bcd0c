"""Backbones for volumes that repeat."""

from .periodic_unet import PeriodicUNet

__all__ = ["PeriodicUNet"]
