"""What a planner is measured against: the same windows, the same requests, no diffusion."""

from .cloning import BehaviourCloning
from .decision_transformer import DecisionTransformer
from .floors import Constant
from .td3bc import TD3BC

__all__ = ["TD3BC", "BehaviourCloning", "Constant", "DecisionTransformer"]
