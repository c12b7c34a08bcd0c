"""Analysis: numbers and maps computed from a denoiser."""

from .approximation import Explained, approximations, explained_by, fit_mixture
from .dimension import flipd, intrinsic_dimension, mmse_dimension
from .directions import edit_directions, effective_rank
from .gap import Gap, ode_sde_gap, wasserstein
from .gauge import Gauge, Gauged, split_gauge
from .gaussian import GaussianStatistics, explained_variance
from .geometry import asymmetry, fokker_planck_residual, jacobian
from .likelihood import log_likelihood
from .subspaces import alignment_error, k_subspaces, subspace_mixture, train_subspaces
from .variational import Bound, bits_per_dim, discrete_elbo, elbo

__all__ = [
    "Bound",
    "Explained",
    "Gap",
    "Gauge",
    "Gauged",
    "GaussianStatistics",
    "alignment_error",
    "approximations",
    "asymmetry",
    "bits_per_dim",
    "discrete_elbo",
    "edit_directions",
    "effective_rank",
    "elbo",
    "explained_by",
    "explained_variance",
    "fit_mixture",
    "flipd",
    "fokker_planck_residual",
    "intrinsic_dimension",
    "jacobian",
    "k_subspaces",
    "log_likelihood",
    "mmse_dimension",
    "ode_sde_gap",
    "split_gauge",
    "subspace_mixture",
    "train_subspaces",
    "wasserstein",
]
