"""Backbones that only this domain needs."""

from .subpixel import SubpixelUNet

__all__ = ["SubpixelUNet"]
