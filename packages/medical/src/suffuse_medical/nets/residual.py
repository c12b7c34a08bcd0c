r"""Denoisers that start from a Gaussian: what the mean and the covariance of images explain need not be learned.

    D(x_t, t, c) = G(x_t, t) - b(t) F(c_in y, G, t, c),      y = x_t - alpha m

G is the posterior mean of a Gaussian that is fitted to the training images (:mod:`.gaussian`), and b its posterior
standard deviation, voxel by voxel.

F is a free function, so nothing is approximated. With one variance s^2 of every voxel these are c_skip and c_out of
Karras et al. (2022), arXiv:2206.00364, table 1: the same preconditioning, a covariance in the place of a variance.
Above the noise level of fine detail the Gaussian is nearly all there is (Wang, Vastola, 2024, arXiv:2412.09726), and
scans of one organ on one grid are nearly all mean; a network of convolutions, which do not know where they are, takes
thousands of steps to learn the two, and images drawn before that are noisy.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from suffuse import Condition, NetworkDenoiser
from suffuse.denoiser import ESTIMATE, with_estimate
from suffuse.hub import serializable
from suffuse.joint import JointNetworkDenoiser
from suffuse.schedules import Level, Scalar, Schedule

from .gaussian import GaussianPart

__all__ = ["ESTIMATE", "JointResidualDenoiser", "ResidualDenoiser"]


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
        gaussian: from :func:`.gaussian_part`.
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
