"""Distillation: from denoisers to models that need fewer evaluations."""

from .flow_maps import FlowMap, FlowMapNetwork, GaussianFlowMap
from .objective import FlowMapObjective

__all__ = ["FlowMap", "FlowMapNetwork", "FlowMapObjective", "GaussianFlowMap"]
