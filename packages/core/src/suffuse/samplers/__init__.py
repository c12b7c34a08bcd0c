"""Samplers: from a denoiser and a grid of noise levels to samples."""

from collections.abc import Callable
from functools import partial

from ..errors import unknown
from .adams import DEIS, VelocityAB
from .auto import auto
from .base import STOP, Constraint, Inpaint, Sampler, StepState
from .ddim import DDIM, DDPM
from .dpm_solver import DPMSolverPP
from .edm import EDMHeun
from .evodiff import EVODiff
from .fitted import FittedMultistep
from .flow_map import FlowMapSampler
from .grids import GRIDS, times
from .inversion import invert
from .langevin import PredictorCorrector
from .ode import Euler, Heun
from .teleport import Teleport
from .unipc import UniPC

#: Every sampler by the name used on the command line and in benchmark rows.
SAMPLERS: dict[str, Callable[..., Sampler]] = {
    "ddpm": DDPM,
    "ddim": DDIM,
    "euler": Euler,
    "heun": Heun,
    "edm-heun": EDMHeun,
    "dpmpp-2m": DPMSolverPP,
    "dpmpp-3m": partial(DPMSolverPP, order=3),
    "dpmpp-2m-sde": partial(DPMSolverPP, eta=1.0),
    "dpmpp-3m-sde": partial(DPMSolverPP, order=3, eta=1.0),
    "unipc-1": partial(UniPC, order=1),
    "unipc-2": UniPC,
    "unipc-3": partial(UniPC, order=3),
    "deis-2": partial(DEIS, order=2),
    "deis-3": DEIS,
    "vab-2": partial(VelocityAB, order=2),
    "vab-3": VelocityAB,
    "evodiff": EVODiff,
    "predictor-corrector": PredictorCorrector,
}

__all__ = [
    "DDIM",
    "DDPM",
    "DEIS",
    "GRIDS",
    "SAMPLERS",
    "STOP",
    "Constraint",
    "DPMSolverPP",
    "EDMHeun",
    "EVODiff",
    "Euler",
    "FittedMultistep",
    "FlowMapSampler",
    "Heun",
    "Inpaint",
    "PredictorCorrector",
    "Sampler",
    "StepState",
    "Teleport",
    "UniPC",
    "VelocityAB",
    "auto",
    "by_name",
    "invert",
    "times",
]


def by_name(name: str, **fields: object) -> Sampler:
    """A sampler by its name in ``SAMPLERS``. Raises InvalidArgument for an unknown name, listing the known ones."""
    if name not in SAMPLERS:
        raise unknown("sampler", name, SAMPLERS)
    return SAMPLERS[name](**fields)
