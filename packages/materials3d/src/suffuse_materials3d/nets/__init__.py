"""Networks for volumes: a U-Net that repeats, an autoencoder whose tiles fit, a predictor of descriptors."""

from .autoencoder import VolumeAutoencoder, VoxelCodec
from .beyond import Beyond
from .periodic_unet import PeriodicUNet
from .predictor import FeaturePredictor

__all__ = ["Beyond", "FeaturePredictor", "PeriodicUNet", "VolumeAutoencoder", "VoxelCodec"]
