"""Joint: one denoiser of several streams, with a time for each; conditionals are what it says when some are held."""

from .exact import JointGaussian
from .network import IndependentTimes, JointMonaiUNet, JointNetworkDenoiser
from .streams import Held, Segment, Streams, given, walk

__all__ = [
    "Held",
    "IndependentTimes",
    "JointGaussian",
    "JointMonaiUNet",
    "JointNetworkDenoiser",
    "Segment",
    "Streams",
    "given",
    "walk",
]
