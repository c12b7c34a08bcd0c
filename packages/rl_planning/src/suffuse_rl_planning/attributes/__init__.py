"""Attribute strengths: how fast, how low, how frugal a stretch of behaviour is, learned from pairwise comparisons."""

from .attributes import Attributes, Strengths
from .model import BradleyTerry, StrengthEnsemble, accuracy
from .scale import AttributeScale

__all__ = ["AttributeScale", "Attributes", "BradleyTerry", "StrengthEnsemble", "Strengths", "accuracy"]
