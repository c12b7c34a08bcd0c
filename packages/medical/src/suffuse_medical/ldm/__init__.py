"""Latent diffusion (LDM): an autoencoder (``autoencoder``, ``losses``) and diffusion in its latents (``diffusion``)."""

from .autoencoder import Autoencoder, KLAutoencoder, VQAutoencoder, make_autoencoder
from .diffusion import PUBLISHED, LatentDiffusion, fit, fit_autoencoder, rectified_flow
from .losses import AutoencoderObjective, WithDiscriminator, perceptual_distance

__all__ = [
    "PUBLISHED",
    "Autoencoder",
    "AutoencoderObjective",
    "KLAutoencoder",
    "LatentDiffusion",
    "VQAutoencoder",
    "WithDiscriminator",
    "fit",
    "fit_autoencoder",
    "make_autoencoder",
    "perceptual_distance",
    "rectified_flow",
]
