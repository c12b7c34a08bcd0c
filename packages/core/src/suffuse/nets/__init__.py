"""Backbones: networks that a ``NetworkDenoiser`` turns into denoisers.

A backbone is called as ``backbone(x, c_noise, cond)``, with x (B, C, *spatial) scaled to variance one and c_noise (B,)
a function of the noise level, and returns the shape of x.
"""

from .conditioning import MapEncoder, NoiseEmbedding, TokenEncoder
from .dit import DiT
from .mlp import MLP
from .unets import DiffusersUNet, MonaiUNet

__all__ = ["MLP", "DiT", "DiffusersUNet", "MapEncoder", "MonaiUNet", "NoiseEmbedding", "TokenEncoder"]
