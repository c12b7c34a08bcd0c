"""Analysis: numbers and maps computed from a denoiser."""

from .gaussian import GaussianStatistics, explained_variance
from .geometry import asymmetry, flipd, fokker_planck_residual, intrinsic_dimension, jacobian
from .likelihood import log_likelihood

__all__ = [
    "GaussianStatistics",
    "asymmetry",
    "explained_variance",
    "flipd",
    "fokker_planck_residual",
    "intrinsic_dimension",
    "jacobian",
    "log_likelihood",
]
