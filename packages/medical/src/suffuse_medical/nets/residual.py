r"""Denoisers that start from a Gaussian: what the mean and the covariance of images explain need not be learned.

    D(x_t, t, c) = G(x_t, t) - b(t) F(c_in y, G, t, c),      y = x_t - alpha m

G is the posterior mean of a Gaussian with mean m and covariance U diag(lambda) U^T + diag(psi), fitted to the training
images, and b its posterior standard deviation, voxel by voxel. With N = alpha^2 psi + sigma^2, all entry by entry,

    M = diag(lambda)^-1 + U^T (alpha^2 / N) U,      z = M^-1 U^T (alpha / N) y
    G = m + (alpha psi / N) y + (sigma^2 / N) U z
    b^2 = sigma^2 psi / N + (sigma^2 / N)^2 diag(U M^-1 U^T)

This holds as well where channels have noise levels of their own, as the streams of a joint model do.

F is a free function, so nothing is approximated. Without U and with one psi = s^2 these are c_skip and c_out of Karras
et al. (2022), arXiv:2206.00364, table 1: the same preconditioning, a covariance in the place of a variance. Above the
noise level of fine detail the Gaussian is nearly all there is (Wang, Vastola, 2024, arXiv:2412.09726), and scans of one
organ on one grid are nearly all mean; a network of convolutions, which do not know where they are, takes thousands of
steps to learn the two, and images drawn before that are noisy. U and lambda are principal components, psi is the
variance that they leave in each voxel: factor analysis, for which some hundred images suffice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from suffuse import Condition, NetworkDenoiser
from suffuse.denoiser import ESTIMATE, with_estimate
from suffuse.errors import InvalidArgument
from suffuse.hub import serializable
from suffuse.joint import JointNetworkDenoiser
from suffuse.schedules import Level, Scalar, Schedule

__all__ = ["ESTIMATE", "GaussianPart", "JointResidualDenoiser", "ResidualDenoiser", "gaussian_part"]


@serializable
class GaussianPart(nn.Module):
    """The Gaussian; N(0, 1) until it is fitted.

    Args:
        shape: of m, (C, *spatial), or (C, 1, ...) for a mean and a variance of each channel, at any size.
        rank: columns of U.
    """

    mean: Tensor
    psi: Tensor
    basis: Tensor
    variances: Tensor

    def __init__(self, shape: Sequence[int], rank: int = 0) -> None:
        super().__init__()
        self.rank = rank
        self.register_buffer("mean", torch.zeros(tuple(shape)))
        self.register_buffer("psi", torch.ones(tuple(shape)))
        self.register_buffer("basis", torch.zeros(self.mean.numel(), rank))
        self.register_buffer("variances", torch.ones(rank))

    def fit(self, images: Tensor) -> Self:
        """To images (N, C, *spatial), in place."""
        over = [0, *(k for k, size in enumerate(self.mean.shape[1:], 2) if size == 1)]
        self.mean.copy_(images.mean(over, keepdim=True)[0])
        rest = images - self.mean
        if not bool(rest.any()):
            raise InvalidArgument("images are all the same; a model of them has nothing to learn")
        if self.rank:
            # of channels scaled alike: what is measured in one unit and what in another count the same
            scale = rest.square().mean((0, *range(2, rest.ndim)), keepdim=True).sqrt().clamp(min=1e-8)
            flat = (rest / scale).flatten(1)
            _, singular, basis = torch.pca_lowrank(flat, min(self.rank + 8, *flat.shape), center=False, niter=4)
            basis = basis[:, : self.rank]
            self.basis.copy_((scale * basis.T.unflatten(1, self.mean.shape)).flatten(1).T)
            self.variances.copy_(singular[: self.rank].square() / len(flat))
            rest = rest - scale * (flat @ basis @ basis.T).view_as(rest)
        left = rest.square().mean(over, keepdim=True)[0] * len(images) / max(len(images) - self.rank, 1)
        self.psi.copy_(left.clamp(min=max(0.01 * float(left.mean()), 1e-8)))  # what was black may yet be grey
        return self

    @property
    def std(self) -> float:
        """Root mean variance of an entry around m."""
        return float(self.variance.mean()) ** 0.5

    @property
    def variance(self) -> Tensor:
        """Of every entry, like m."""
        return self.psi + (self.basis.square() @ self.variances).view_as(self.psi)

    def deviation(self, x: Tensor, alpha: Any) -> Tensor:
        """y of x_t (B, C, *spatial). Raises InvalidArgument for images of another size."""
        if any(size not in (1, given) for size, given in zip(self.mean.shape, x.shape[1:], strict=True)):
            raise InvalidArgument(
                f"x is {tuple(x.shape[1:])}, but this model starts from a Gaussian of {tuple(self.mean.shape)}; draw "
                f"that size, or train with rank=None"
            )
        return x - alpha * self.mean

    def posterior(self, y: Tensor, alpha: Any, sigma: Any) -> Tensor:
        """G; alpha and sigma are numbers, (B, 1, ...) or (B, C, 1, ...)."""
        noisy = alpha**2 * self.psi + sigma**2
        mean = self.mean + alpha * self.psi / noisy * y
        if self.rank:
            with torch.autocast(y.device.type, enabled=False):  # a factorisation wants its digits
                projected = (alpha * y / noisy).flatten(1) @ self.basis
                z = torch.cholesky_solve(projected[..., None], self._root(alpha, noisy))[..., 0]
                mean = mean + sigma**2 / noisy * (z @ self.basis.T).view_as(y)
        return mean

    def spread(self, alpha: Any, sigma: Any) -> Tensor:
        """b, (C, *spatial) with an axis for the batch in front."""
        noisy = (alpha**2 * self.psi + sigma**2).reshape(-1, *self.psi.shape)
        variance = sigma**2 * self.psi / noisy
        if self.rank:
            with torch.autocast(noisy.device.type, enabled=False):
                root = self._root(alpha, noisy)
                factor = torch.linalg.solve_triangular(root, self.basis.T.expand(len(root), -1, -1), upper=False)
            variance = variance + (sigma**2 / noisy) ** 2 * factor.square().sum(1).view_as(noisy)
        return variance.sqrt()

    def _root(self, alpha: Any, noisy: Tensor) -> Tensor:
        """The Cholesky factor of M, for every noise level, (1 or B, r, r)."""
        weight = (alpha**2 / noisy).reshape(-1, self.mean.numel())
        inner = torch.einsum("dr,bd,ds->brs", self.basis, weight, self.basis)
        return torch.linalg.cholesky((1 / self.variances).diag() + inner)


def gaussian_part(images: Tensor, rank: int | None) -> GaussianPart:
    """The Gaussian that a model of images (N, C, *spatial) starts from.

    Args:
        rank: columns of U, at most an eighth of the number of images; 0 is a mean and a variance in each voxel, None
            in each channel, for images with nothing in common from place to place and for models that are to draw
            other sizes.
    """
    if rank is not None and rank < 0:
        raise InvalidArgument(f"rank must not be negative, got {rank}; 0 is a mean without directions")
    if rank is None:
        return GaussianPart((images.shape[1], *(1,) * (images.ndim - 2))).fit(images)
    rank = min(rank, len(images) // 8, images[0].numel() // 2)
    return GaussianPart(images.shape[1:], rank).fit(images)


class _Residual(NetworkDenoiser):
    """The equation, for networks of one stream and of several."""

    gaussian: GaussianPart

    def forward(self, x: Tensor, t: Scalar, cond: Condition | None = None) -> Tensor:
        level = self.schedule.level(t, like=x)
        y = self.gaussian.deviation(x, level.alpha)
        mean = self.gaussian.posterior(y, level.alpha, level.sigma)
        return mean + super().forward(y, t, with_estimate(cond, mean))

    def coefficients(self, level: Level) -> tuple[Any, Any]:
        """Of what the network adds, -b F."""
        return 0.0, -self.gaussian.spread(level.alpha, level.sigma)


@serializable
class ResidualDenoiser(_Residual):
    """A network beside a Gaussian, which is part of the checkpoint; see the module.

    Args:
        backbone: of the maps ``"estimate"``, which is G, and those of the condition.
        schedule: as of ``NetworkDenoiser``.
        gaussian: from :func:`gaussian_part`.
        data_std: its ``std``.
    """

    def __init__(self, backbone: nn.Module, schedule: Schedule, gaussian: GaussianPart, data_std: float) -> None:
        super().__init__(backbone, schedule, "v_prediction", data_std=data_std)
        self.gaussian = gaussian


@serializable
class JointResidualDenoiser(_Residual, JointNetworkDenoiser):
    """The same of several streams, each at a noise level of its own, beside one Gaussian of all of them.

    The Gaussian knows how the streams go together, linearly: it draws a rough mask for an image before any training.

    Args:
        backbone, schedule, streams, data_std: as of ``JointNetworkDenoiser``.
        gaussian: of the streams side by side.
    """

    def __init__(
        self,
        backbone: nn.Module,
        schedule: Schedule,
        streams: Mapping[str, int],
        gaussian: GaussianPart,
        data_std: Mapping[str, float],
    ) -> None:
        super().__init__(backbone, schedule, streams, data_std=data_std)  # type: ignore[arg-type]
        self.gaussian = gaussian
