"""Analysis: numbers and maps computed from a denoiser."""

from .gaussian import GaussianStatistics, explained_variance
from .likelihood import log_likelihood

__all__ = ["GaussianStatistics", "explained_variance", "log_likelihood"]
