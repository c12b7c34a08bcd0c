"""Backbones that only this domain needs, and MONAI's diffusion networks as denoisers."""

from .gaussian import ColouredGaussianPart, GaussianPart, gaussian_part
from .monai import MonaiDenoiser, MonaiNetwork, schedule_of
from .residual import ESTIMATE, JointResidualDenoiser, ResidualDenoiser
from .settings import SMALL, unet_settings
from .subpixel import SubpixelUNet, direct_unet

__all__ = [
    "ESTIMATE",
    "SMALL",
    "ColouredGaussianPart",
    "GaussianPart",
    "JointResidualDenoiser",
    "MonaiDenoiser",
    "MonaiNetwork",
    "ResidualDenoiser",
    "SubpixelUNet",
    "direct_unet",
    "gaussian_part",
    "schedule_of",
    "unet_settings",
]
