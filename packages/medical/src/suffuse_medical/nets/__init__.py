"""Backbones that only this domain needs, and MONAI's diffusion networks as denoisers."""

from .monai import MonaiDenoiser, MonaiNetwork, schedule_of
from .settings import unet_settings
from .subpixel import SubpixelUNet

__all__ = ["MonaiDenoiser", "MonaiNetwork", "SubpixelUNet", "schedule_of", "unet_settings"]
