"""Training: the denoising objective, its Lightning module, and ``fit``, which runs it."""

from .ema import EMA
from .fit import fit
from .module import DiffusionModule
from .objective import DenoisingObjective
from .recording import recorded, recorded_step
from .regularisers import FokkerPlanck
from .times import LogitNormalTime, LogNormalKappa, TimeSampler, UniformLogSNR, UniformTime

__all__ = [
    "EMA",
    "DenoisingObjective",
    "DiffusionModule",
    "FokkerPlanck",
    "LogNormalKappa",
    "LogitNormalTime",
    "TimeSampler",
    "UniformLogSNR",
    "UniformTime",
    "fit",
    "recorded",
    "recorded_step",
]
