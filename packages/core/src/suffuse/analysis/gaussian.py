r"""The Gaussian in a data set, and how much of a trained denoiser it explains.

At high and moderate noise a learned denoiser is almost the exact denoiser of N(mean, cov) of its training data; what it
explains at noise level kappa is

    EV(kappa) = 1 - E|C(x) - C_linear(x)|^2 / E|C(x)|^2,      C = D - E D,   x = alpha x_0 + sigma eps,

with means taken out, as at high noise D varies less than the mean of a finite sample is off.

Wang, Vastola (2024), "The Unreasonable Effectiveness of Gaussian Score Approximation for Diffusion Models",
arXiv:2412.09726, sec. 4.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..condition import Condition
from ..denoiser import Denoiser
from ..errors import InvalidArgument
from ..exact import Covariance, GaussianDenoiser
from ..schedules import Schedule

__all__ = ["GaussianStatistics", "explained_variance"]


@dataclass(frozen=True)
class GaussianStatistics:
    """Mean and covariance of a data set.

    Attributes:
        mean: (*event), float64.
        cov: one covariance on the flattened event.
    """

    mean: Tensor
    cov: Covariance

    @classmethod
    def fit(
        cls, data: Tensor, kind: Literal["low_rank", "diagonal"] = "low_rank", variance: float = 0.999
    ) -> GaussianStatistics:
        """Estimate from data.

        Args:
            data: (N, *event), N at least 2. For latent models, the latents.
            kind: ``"low_rank"`` keeps the leading principal components that hold a share ``variance`` of the total, and
                spreads the rest evenly over the other directions; with ``variance=1`` it is the full covariance.
                ``"diagonal"`` keeps variances alone, for events too large for principal components.
            variance: in (0, 1].

        Raises:
            InvalidArgument: for fewer than two samples, or values that are not finite.
        """
        if len(data) < 2:
            raise InvalidArgument(f"data has {len(data)} samples; a covariance needs at least 2")
        if not bool(torch.isfinite(data).all()):
            raise InvalidArgument("data has NaN or infinite values; statistics of them would spoil every sample")
        if kind not in ("low_rank", "diagonal"):
            raise InvalidArgument(f"kind must be 'low_rank' or 'diagonal', got {kind!r}")
        if not 0 < variance <= 1:
            raise InvalidArgument(f"variance must lie in (0, 1], got {variance}")
        flat = data.double().reshape(len(data), -1)
        mean = flat.mean(0)
        centred, (n, d) = flat - mean, flat.shape
        if kind == "diagonal":
            return cls(mean.reshape(data.shape[1:]), Covariance.diagonal(centred.square().sum(0) / (n - 1)))
        if d <= n:
            values, basis = torch.linalg.eigh(centred.T @ centred / (n - 1))
        else:  # fewer samples than dimensions: the same spectrum from the smaller Gram matrix
            values, left = torch.linalg.eigh(centred @ centred.T / (n - 1))
            basis = centred.T @ left / (values.clamp(min=1e-300) * (n - 1)).sqrt()
        values, basis = values.flip(-1).clamp(min=0), basis.flip(-1)
        total = values.sum()
        keep = int((values.cumsum(0) < variance * total * (1 - 1e-12)).sum()) + 1
        keep = min(keep, int((values > 1e-12 * values[0]).sum()) or 1)
        floor = float((total - values[:keep].sum()) / (d - keep)) if keep < d else 0.0
        cov = Covariance(values[None, :keep], basis[None, :, :keep].contiguous(), max(floor, 0.0))
        return cls(mean.reshape(data.shape[1:]), cov)

    def denoiser(self, schedule: Schedule) -> GaussianDenoiser:
        """The exact denoiser of this Gaussian."""
        return GaussianDenoiser(self.mean, self.cov, schedule)


@torch.no_grad()
def explained_variance(
    denoiser: Denoiser,
    statistics: GaussianStatistics,
    data: Tensor,
    kappas: Sequence[float],
    cond: Condition | None = None,
    generator: torch.Generator | None = None,
) -> list[float]:
    """EV at each noise level, at most 1.

    Args:
        denoiser: the trained denoiser.
        statistics: of its training data.
        data: clean held-out samples (N, *event); a few hundred are enough.
        kappas: the noise levels sigma / alpha.
        cond: condition of N rows.
        generator: of the noise.
    """
    schedule = denoiser.schedule
    linear = statistics.denoiser(schedule)
    noise = torch.randn(data.shape, generator=generator, device=data.device, dtype=data.dtype)
    result = []
    for kappa in kappas:
        t = schedule.t_of_kappa(float(kappa))
        x = schedule.add_noise(data, t, noise)
        learned, gaussian = (d(x, t, c).double() for d, c in ((denoiser, cond), (linear, None)))
        learned, gaussian = learned - learned.mean(0), gaussian - gaussian.mean(0)
        result.append(float(1 - (learned - gaussian).square().sum() / learned.square().sum()))
    return result
