"""Analysis: numbers and maps computed from a denoiser."""

from .gaussian import GaussianStatistics, explained_variance
from .geometry import asymmetry, flipd, fokker_planck_residual, intrinsic_dimension, jacobian
from .likelihood import log_likelihood
from .variational import Bound, bits_per_dim, discrete_elbo, elbo

__all__ = [
    "Bound",
    "GaussianStatistics",
    "asymmetry",
    "bits_per_dim",
    "discrete_elbo",
    "elbo",
    "explained_variance",
    "flipd",
    "fokker_planck_residual",
    "intrinsic_dimension",
    "jacobian",
    "log_likelihood",
]
