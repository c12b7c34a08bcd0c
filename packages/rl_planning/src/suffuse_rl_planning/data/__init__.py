"""Recorded behaviour: Minari and D4RL layouts in, windows and their scales out."""

from .episodes import Episodes, Windows
from .normalise import Normaliser, Scale

__all__ = ["Episodes", "Normaliser", "Scale", "Windows"]
