"""Descriptors: what a microstructure is, in numbers; see ``registry`` for all names."""

from . import graspi, pores, soft
from .registry import DESCRIPTORS, Descriptor, canonical, measure, measure_all
from .transport import Transport, multiphase_transport, transport

__all__ = [
    "DESCRIPTORS",
    "Descriptor",
    "Transport",
    "canonical",
    "graspi",
    "measure",
    "measure_all",
    "multiphase_transport",
    "pores",
    "soft",
    "transport",
]
