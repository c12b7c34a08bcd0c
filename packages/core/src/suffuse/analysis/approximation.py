r"""How simple is a trained denoiser? The share of it that four denoisers in closed form explain, by noise level.

    isotropic    N(mean, v I): knows the centre and the size of the data
    Gaussian     N(mean, S): knows the principal components
    mixture      K Gaussians, one for each cluster of K-means
    empirical    the training samples themselves: what a network that has learned them by heart computes

At high noise all but the first agree with a trained network; where the noise is low, the better of the last two says
whether the network has learned a distribution or its samples.
Wang, Vastola (2024), "The Unreasonable Effectiveness of Gaussian Score Approximation for Diffusion Models",
arXiv:2412.09726, secs. 4-5.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..condition import Condition
from ..denoiser import Denoiser
from ..errors import InvalidArgument, require
from ..exact import Covariance, EmpiricalDenoiser, GaussianDenoiser, MixtureDenoiser
from ..schedules import Schedule
from .gaussian import GaussianStatistics, share_explained
from .geometry import mean_at

__all__ = ["Explained", "approximations", "explained_by", "fit_mixture"]


def fit_mixture(
    data: Tensor, components: int, schedule: Schedule, variance: float = 0.95, seed: int = 0
) -> MixtureDenoiser:
    """A Gaussian for each cluster of K-means, with the cluster's principal components.

    Args:
        data: (N, *event), at least 10 samples a component.
        components: number of clusters; small ones (fewer than three samples) are dropped.
        schedule: of the denoiser.
        variance: share of a cluster's variance in the components that are kept; the rest is spread evenly, so below 1.
        seed: of K-means.

    Raises:
        InvalidArgument: for too few samples.
        MissingExtra: without scikit-learn.
    """
    if components < 1 or len(data) < 10 * components:
        raise InvalidArgument(f"components must lie between 1 and a tenth of the {len(data)} samples, got {components}")
    if not 0 < variance < 1:
        raise InvalidArgument(f"variance must lie in (0, 1), got {variance}")
    cluster = require("sklearn.cluster", extra="bench")
    labels = cluster.KMeans(components, n_init=4, random_state=seed).fit_predict(data.flatten(1).double().cpu().numpy())
    groups = [data[torch.as_tensor(labels == k, device=data.device)] for k in range(components)]
    groups = [group for group in groups if len(group) > 2]
    fitted = [GaussianStatistics.fit(group, variance=variance) for group in groups]
    axes = torch.eye(data[0].numel(), dtype=torch.float64, device=data.device)[:, None]
    matrices = torch.stack([one.cov.apply(lambda s: s, axes)[:, 0] for one in fitted])
    means = torch.stack([one.mean for one in fitted])
    cov = Covariance.full((matrices + matrices.mT) / 2)
    return MixtureDenoiser([float(len(group)) for group in groups], means, cov, schedule)


def approximations(
    data: Tensor, schedule: Schedule, components: int = 10, variance: float = 0.95, seed: int = 0
) -> dict[str, Denoiser]:
    """The four denoisers of the training data (N, *event), by name; the arguments are those of ``fit_mixture``."""
    gaussian = GaussianStatistics.fit(data, variance=1.0)
    flat = data.double().flatten(1)
    size = flat.var(0).mean().expand(flat.shape[1]).reshape(data.shape[1:])
    return {
        "isotropic": GaussianDenoiser(gaussian.mean, size, schedule),
        "Gaussian": gaussian.denoiser(schedule),
        "mixture": fit_mixture(data, components, schedule, variance, seed),
        "empirical": EmpiricalDenoiser(data, schedule),
    }


@dataclass(frozen=True)
class Explained:
    """The share, at most 1, of a denoiser's mean or score that an approximation explains at one noise level."""

    approximation: str
    kappa: float
    of: Literal["mean", "score"]
    share: float


@torch.no_grad()
def explained_by(
    denoiser: Denoiser,
    simple: Mapping[str, Denoiser],
    data: Tensor,
    kappas: Sequence[float],
    cond: Condition | None = None,
    generator: torch.Generator | None = None,
) -> list[Explained]:
    """One entry for every noise level and approximation, of the mean and of the score.

    The score (D - y) / kappa^2 differs from the mean by the noisy sample y = x / alpha itself, so that at high noise
    all explain it.

    Args:
        denoiser: the trained denoiser.
        simple: what is to explain it, for instance ``approximations(train, denoiser.schedule)``.
        data: clean held-out samples (N, *event).
        kappas: noise levels sigma / alpha.
        cond: condition of N rows for ``denoiser``.
        generator: of the noise.
    """
    noise = torch.randn(data.shape, generator=generator, device=data.device, dtype=data.dtype)
    entries = []
    for kappa in map(float, kappas):
        y = data + kappa * noise
        learned = mean_at(denoiser, y, kappa, cond)
        for name, other in simple.items():
            mean = mean_at(other, y, kappa)
            entries.append(Explained(name, kappa, "mean", share_explained(learned, mean)))
            entries.append(Explained(name, kappa, "score", share_explained(learned - y, mean - y)))
    return entries
