r"""The joint denoiser in closed form, for Gaussian data: the truth that conditionals are tested against.

D(x, t) = mu + S A (A S A + K)^-1 (x - A mu),   A = diag(alpha(t_c)),  K = diag(sigma(t_c)^2),  c the entry's channel
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..condition import Condition
from ..denoiser import Denoiser
from ..errors import InvalidArgument
from ..schedules import Scalar, Schedule
from .streams import Streams

__all__ = ["JointGaussian"]


class JointGaussian(Denoiser):
    """N(mean, cov) seen through a time per channel.

    Args:
        mean: (C, *spatial), the streams one behind the other.
        cov: (d, d) on the flattened event, positive definite.
        schedule: of every stream.
        streams: name -> channels.
    """

    mean: Tensor
    cov: Tensor

    def __init__(self, mean: Tensor, cov: Tensor, schedule: Schedule, streams: Mapping[str, int]) -> None:
        super().__init__()
        self.streams, self.schedule = Streams(streams), schedule
        if len(mean) != self.streams.total or cov.shape != (mean.numel(), mean.numel()):
            raise InvalidArgument(
                f"mean must be ({self.streams.total}, ...) and cov (d, d), got {tuple(mean.shape)}, {tuple(cov.shape)}"
            )
        self.register_buffer("mean", mean.double())
        self.register_buffer("cov", cov.double())

    def forward(self, x: Tensor, t: Scalar, cond: Condition | None = None) -> Tensor:
        per_channel = torch.as_tensor(t, dtype=torch.float64, device=x.device)
        if per_channel.ndim < 2:
            per_channel = per_channel.reshape(-1, 1).expand(len(x), len(self.mean))
        if bool((per_channel == per_channel[:1]).all()):
            per_channel = per_channel[:1]  # rows at equal times share one solve
        level = self.schedule.level(per_channel)
        alpha, sigma = (self._entries(v) for v in (level.alpha, level.sigma))
        seen = alpha[:, :, None] * self.cov * alpha[:, None, :] + torch.diag_embed(sigma**2)
        gain = torch.linalg.solve(seen, alpha[:, :, None] * self.cov).mT  # S A (A S A + K)^-1
        mu = self.mean.flatten()
        residual = x.double().flatten(1) - alpha * mu
        moved = (gain @ residual[:, :, None])[:, :, 0] if len(gain) > 1 else residual @ gain[0].mT
        return (mu + moved).to(x.dtype).reshape(x.shape)

    def _entries(self, per_channel: Tensor) -> Tensor:
        """(R, C) -> (R, d)."""
        return per_channel.repeat_interleave(self.mean[0].numel(), dim=1)

    def conditional(self, known: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Mean (B, free entries) and covariance of the other streams given these, (B, C_k, *spatial)."""
        names = [name for name, width in self.streams.channels.items() for _ in range(width * self.mean[0].numel())]
        held = torch.tensor([name in known for name in names], device=self.cov.device)
        a, b = (~held).nonzero().flatten(), held.nonzero().flatten()
        y = self.streams.stack(known).double().flatten(1)
        mu, cov = self.mean.flatten(), self.cov
        gain = torch.linalg.solve(cov[b][:, b], cov[b][:, a]).mT
        return mu[a] + (y - mu[b]) @ gain.mT, cov[a][:, a] - gain @ cov[b][:, a]
