"""Simulations of phase separation in three dimensions, batched, on CPU and GPU."""

from .cahn_hilliard import SPINODAL, CahnHilliard
from .explicit import explicit
from .flory_huggins import FloryHuggins, coexistence, double_threshold
from .history import HISTORIES, History, random_history
from .spectral import PhaseField, SimulationDiverged, wave_numbers
from .ternary import Ternary

__all__ = [
    "HISTORIES",
    "SPINODAL",
    "CahnHilliard",
    "FloryHuggins",
    "History",
    "PhaseField",
    "SimulationDiverged",
    "Ternary",
    "coexistence",
    "double_threshold",
    "explicit",
    "random_history",
    "wave_numbers",
]
