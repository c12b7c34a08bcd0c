"""Planners: a denoiser of plans, its guidance, a sampler, and a director that chooses among what they draw."""

from .aligndiff import AlignDiff
from .base import Memory, Plan, Planner
from .conditional import DiffusionPlanner
from .decision_diffuser import DecisionDiffuser
from .diffuser import Diffuser, ValueGuidance
from .formulations import FORMULATIONS, few_steps
from .keeping import load

__all__ = [
    "FORMULATIONS",
    "AlignDiff",
    "DecisionDiffuser",
    "Diffuser",
    "DiffusionPlanner",
    "Memory",
    "Plan",
    "Planner",
    "ValueGuidance",
    "few_steps",
    "load",
]
