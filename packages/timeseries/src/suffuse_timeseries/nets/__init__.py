"""Backbones that only time series need."""

from .s4d import S4D, S4DBackbone

__all__ = ["S4D", "S4DBackbone"]
