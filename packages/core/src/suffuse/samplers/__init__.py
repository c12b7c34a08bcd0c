"""Samplers: from a denoiser and a grid of noise levels to samples."""

from .base import STOP, Constraint, Inpaint, Sampler, StepState
from .ddim import DDIM, DDPM
from .dpm_solver import DPMSolverPP
from .grids import GRIDS, times
from .ode import Euler, Heun

#: Every sampler by the name used on the command line and in benchmark rows.
SAMPLERS: dict[str, type[Sampler]] = {
    "ddpm": DDPM,
    "ddim": DDIM,
    "euler": Euler,
    "heun": Heun,
    "dpmpp-2m": DPMSolverPP,
}

__all__ = [
    "DDIM",
    "DDPM",
    "GRIDS",
    "SAMPLERS",
    "STOP",
    "Constraint",
    "DPMSolverPP",
    "Euler",
    "Heun",
    "Inpaint",
    "Sampler",
    "StepState",
    "by_name",
    "times",
]


def by_name(name: str, **fields: object) -> Sampler:
    """A sampler by its name in ``SAMPLERS``. Raises InvalidArgument for an unknown name, listing the known ones."""
    from ..errors import unknown

    if name not in SAMPLERS:
        raise unknown("sampler", name, SAMPLERS)
    return SAMPLERS[name](**fields)  # type: ignore[arg-type]
