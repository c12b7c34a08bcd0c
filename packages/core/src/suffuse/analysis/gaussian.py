r"""The Gaussian in a data set, and how much of a trained denoiser it explains.

At high and moderate noise a learned denoiser is almost the exact denoiser of N(mean, cov) of its training data; what it
explains at noise level kappa is

    EV(kappa) = 1 - E|C(x) - C_linear(x)|^2 / E|C(x)|^2,      C = D - E D,   x = alpha x_0 + sigma eps,

with means taken out, as at high noise D varies less than the mean of a finite sample is off. The same with scores, or
with another simple denoiser in place of the linear one: ``analysis.approximation``.

Wang, Vastola (2024), "The Unreasonable Effectiveness of Gaussian Score Approximation for Diffusion Models",
arXiv:2412.09726, sec. 4.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from ..condition import Condition
from ..denoiser import Denoiser
from ..errors import InvalidArgument, unknown
from ..exact import Covariance, GaussianDenoiser, StationaryCovariance
from ..schedules import Schedule

__all__ = ["GaussianStatistics", "explained_variance"]


Kind = Literal["low_rank", "diagonal", "stationary"]
#: The most values of an event whose covariance matrix is accumulated over batches: half a gigabyte.
MATRIX = 8192


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
    def fit(cls, data: Tensor | Iterable[Any], kind: Kind = "low_rank", variance: float = 0.999) -> GaussianStatistics:
        """Estimate from data.

        Args:
            data: (N, *event), N at least 2, for latent models the latents; or, for data that do not fit in memory,
                batches of them: a DataLoader, say, whose batches may be tuples that start with the data.
            kind: ``"low_rank"`` keeps the leading principal components that hold a share ``variance`` of the total, and
                spreads the rest evenly over the other directions; with ``variance=1`` it is the full covariance.
                ``"stationary"`` keeps a variance for every frequency, for textures and fields (C, *spatial) that look
                the same everywhere, however large. ``"diagonal"`` keeps variances alone.
            variance: in (0, 1].

        Raises:
            InvalidArgument: for fewer than two samples, values that are not finite, or batches of events that are too
                large for principal components.
        """
        if kind not in get_args(Kind):
            raise unknown("kind", kind, get_args(Kind))
        if not 0 < variance <= 1:
            raise InvalidArgument(f"variance must lie in (0, 1], got {variance}")
        if isinstance(data, Tensor) and kind == "low_rank" and 2 <= len(data) < data[0].numel():
            return cls._from_gram(_checked(data), variance)
        n, total, second = 0, torch.zeros(()), torch.zeros(())
        for batch in [data] if isinstance(data, Tensor) else data:
            x = _checked(batch if isinstance(batch, Tensor) else batch[0])
            n, total = n + len(x), total + x.sum(0)
            if kind == "diagonal":
                second = second + x.square().sum(0)
            elif kind == "low_rank":
                if x[0].numel() > MATRIX:
                    raise InvalidArgument(
                        f"data: events of {x[0].numel()} values are too many for principal components of batches; use "
                        f"kind='stationary' or 'diagonal', or give a tensor of a few hundred samples"
                    )
                second = second + x.flatten(1).T @ x.flatten(1)
            else:
                f = torch.fft.fftn(x, dim=tuple(range(2, x.ndim)), norm="ortho")
                second = second + torch.einsum("bc...,bd...->cd...", f, f.conj()).real
        if n < 2:
            raise InvalidArgument(f"data has {n} samples; a covariance needs at least 2")
        mean = total / n
        if kind == "diagonal":
            return cls(mean, Covariance.diagonal(((second - n * mean.square()) / (n - 1)).clamp(min=0).reshape(1, -1)))
        if kind == "low_rank":
            values, basis = torch.linalg.eigh((second - n * torch.outer(mean.flatten(), mean.flatten())) / (n - 1))
            return cls(mean, _truncated(values, basis, variance))
        f = torch.fft.fftn(mean, dim=tuple(range(1, mean.ndim)), norm="ortho")
        spectrum = (second - n * torch.einsum("c...,d...->cd...", f, f.conj()).real) / (n - 1)
        rotation = torch.linalg.eigh(spectrum.flatten(2).sum(-1)).eigenvectors
        own = torch.einsum("ce,cd...,de->e...", rotation, spectrum, rotation)
        return cls(mean, StationaryCovariance(own.clamp(min=0), rotation))

    @classmethod
    def _from_gram(cls, data: Tensor, variance: float) -> GaussianStatistics:
        """Fewer samples than dimensions: the same spectrum from the smaller Gram matrix."""
        mean, n = data.mean(0), len(data)
        centred = (data - mean).flatten(1)
        values, left = torch.linalg.eigh(centred @ centred.T / (n - 1))
        return cls(mean, _truncated(values, centred.T @ left / (values.clamp(min=1e-300) * (n - 1)).sqrt(), variance))

    def denoiser(self, schedule: Schedule) -> GaussianDenoiser:
        """The exact denoiser of this Gaussian."""
        return GaussianDenoiser(self.mean, self.cov, schedule)


def _checked(data: Tensor) -> Tensor:
    """In float64."""
    if not bool(torch.isfinite(data).all()):
        raise InvalidArgument("data has NaN or infinite values; statistics of them would spoil every sample")
    return data.detach().double()


def _truncated(values: Tensor, basis: Tensor, variance: float) -> Covariance:
    """The leading components with a share ``variance`` of the total, the rest spread evenly."""
    values, basis, d = values.flip(-1).clamp(min=0), basis.flip(-1), len(basis)
    total = values.sum()
    keep = int((values.cumsum(0) < variance * total * (1 - 1e-12)).sum()) + 1
    keep = min(keep, int((values > 1e-12 * values[0]).sum()) or 1)
    floor = float((total - values[:keep].sum()) / (d - keep)) if keep < d else 0.0
    return Covariance(values[None, :keep], basis[None, :, :keep].contiguous(), max(floor, 0.0))


@torch.no_grad()
def explained_variance(
    denoiser: Denoiser,
    statistics: GaussianStatistics | Denoiser,
    data: Tensor,
    kappas: Sequence[float],
    cond: Condition | None = None,
    generator: torch.Generator | None = None,
) -> list[float]:
    """EV at each noise level, at most 1.

    Args:
        denoiser: the trained denoiser.
        statistics: of its training data; or any denoiser that is to explain it.
        data: clean held-out samples (N, *event); a few hundred are enough.
        kappas: the noise levels sigma / alpha.
        cond: condition of N rows.
        generator: of the noise.
    """
    schedule = denoiser.schedule
    simple = statistics.denoiser(schedule) if isinstance(statistics, GaussianStatistics) else statistics
    noise = torch.randn(data.shape, generator=generator, device=data.device, dtype=data.dtype)
    result = []
    for kappa in kappas:
        t = schedule.t_of_kappa(float(kappa))
        x = schedule.add_noise(data, t, noise)
        result.append(share_explained(denoiser(x, t, cond), simple(x, t)))
    return result


def share_explained(learned: Tensor, simple: Tensor) -> float:
    """1 - sum |a - b|^2 / sum |a|^2 of the rows of two (N, *event), each with its mean taken out."""
    a, b = (rows.double() - rows.double().mean(0) for rows in (learned, simple))
    return float(1 - (a - b).square().sum() / a.square().sum())
