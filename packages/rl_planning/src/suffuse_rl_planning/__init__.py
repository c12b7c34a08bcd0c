"""Behaviour planning with trajectory diffusion, on gymnasium's MuJoCo robots and Minari datasets.

    dataset = collect.collect("suffuse/halfcheetah/cpg-v0", episodes=120)
    windows = Episodes.from_minari(dataset).windows(8, measure=50)
    planner = DiffusionPlanner.fit(windows, env_id="HalfCheetah-v5", steps=3000)
    action, state = planner.request(speed=2.0).predict(observation)

Names load on first use, so that listing recipes and benchmarks stays quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .attributes import Attributes as Attributes
    from .baselines import BehaviourCloning as BehaviourCloning
    from .data import Episodes as Episodes
    from .envs import make as make
    from .envs import make_vec as make_vec
    from .envs import rollout as rollout
    from .evaluate import track as track
    from .planners import AlignDiff as AlignDiff
    from .planners import DecisionDiffuser as DecisionDiffuser
    from .planners import Diffuser as Diffuser
    from .planners import DiffusionPlanner as DiffusionPlanner

__version__ = "0.1.0"

_NAMES = {
    "BehaviourCloning": "baselines",
    "AlignDiff": "planners",
    "Attributes": "attributes",
    "DecisionDiffuser": "planners",
    "Diffuser": "planners",
    "DiffusionPlanner": "planners",
    "Episodes": "data",
    "make": "envs",
    "make_vec": "envs",
    "rollout": "envs",
    "track": "evaluate",
}
__all__ = ["__version__", *_NAMES]


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        return getattr(importlib.import_module(f".{_NAMES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
