"""suffuse: diffusion models as one small algebra.

    schedule = suffuse.schedules.VPCosine()
    denoiser = suffuse.NetworkDenoiser(backbone, schedule, prediction_type="v_prediction")
    denoiser = suffuse.training.fit(denoiser, data, cond=cond, steps=2000)
    guided = suffuse.guidance.ClassifierFree(denoiser, guidance_scale=2.0)
    x0 = suffuse.samplers.DPMSolverPP(steps=10)(guided, shape=(16, 1, 32, 32), cond=cond[:16])

Modules load on first use, so that importing the package, and with it the command line, stays quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .version import __version__

if TYPE_CHECKING:
    from . import analysis as analysis
    from . import bench as bench
    from . import data as data
    from . import discrete as discrete
    from . import distillation as distillation
    from . import errors as errors
    from . import exact as exact
    from . import guidance as guidance
    from . import hub as hub
    from . import joint as joint
    from . import metrics as metrics
    from . import nets as nets
    from . import random as random
    from . import recipes as recipes
    from . import samplers as samplers
    from . import schedules as schedules
    from . import training as training
    from .condition import Condition as Condition
    from .denoiser import Denoiser as Denoiser
    from .denoiser import NetworkDenoiser as NetworkDenoiser
    from .denoiser import as_denoiser as as_denoiser

_MODULES = ("analysis", "bench", "data", "discrete", "distillation", "errors", "exact", "guidance", "hub")
_MODULES += ("joint", "metrics", "nets", "random", "recipes", "samplers", "schedules", "training")  # type: ignore[assignment]
_NAMES = {
    "Condition": "condition",
    "Denoiser": "denoiser",
    "NetworkDenoiser": "denoiser",
    "as_denoiser": "denoiser",
}
__all__ = ["__version__", *_MODULES, *_NAMES]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f".{name}", __name__)
    if name in _NAMES:
        return getattr(importlib.import_module(f".{_NAMES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
