r"""The denoising objective: a weighted squared error of the posterior mean,

    L = E_{t, x_0, eps} [ w(t) |D(alpha x_0 + sigma eps, t, c) - x_0|^2 ],

whose minimiser is E[x_0 | x_t, c] whatever the positive weight. Vincent (2011); Ho et al. (2020), arXiv:2006.11239.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from ..condition import Condition
from ..denoiser import Denoiser, NetworkDenoiser
from ..errors import InvalidArgument, unknown
from ..schedules import Level
from .regularisers import Regulariser
from .times import TimeSampler, UniformTime

__all__ = ["DenoisingObjective", "Weighting"]

Weighting = Literal["uniform", "sample", "min_snr", "edm"]


@dataclass(frozen=True)
class DenoisingObjective:
    """The loss of a batch.

    Args:
        time: which noise levels are drawn.
        weighting: w, as a weight on the error of the posterior mean:
            ``"uniform"`` counts the error of the network's own output (the usual loss of each prediction type);
            ``"sample"`` is 1; ``"min_snr"`` is min(1 / kappa^2, gamma) of Hang et al. (2023), arXiv:2303.09556;
            ``"edm"`` is (sigma^2 + alpha^2 s^2) / (sigma s)^2 of Karras et al. (2022), arXiv:2206.00364.
        cond_dropout: probability of replacing the condition of a sample by null, for classifier-free guidance.
        drop_per_name: drop each named condition apart, so that every subset can be asked for.
        cond_noise: strength of the noise added to condition tokens (``Condition.perturb``); 0 for none.
        gamma: of ``"min_snr"``.
        regularisers: further terms of the loss, see ``suffuse.training.regularisers``.
    """

    time: TimeSampler = field(default_factory=UniformTime)
    weighting: Weighting = "uniform"
    cond_dropout: float = 0.1
    drop_per_name: bool = False
    cond_noise: float = 0.0
    gamma: float = 5.0
    regularisers: tuple[Regulariser, ...] = ()

    def __post_init__(self) -> None:
        if self.weighting not in get_args(Weighting):
            raise unknown("weighting", self.weighting, get_args(Weighting))
        if not 0 <= self.cond_dropout <= 1:
            raise InvalidArgument(f"cond_dropout must lie in [0, 1], got {self.cond_dropout}")
        if self.cond_noise < 0:
            raise InvalidArgument(f"cond_noise must not be negative, got {self.cond_noise}")

    def __call__(
        self,
        denoiser: Denoiser,
        x0: Tensor,
        cond: Condition | None = None,
        generator: torch.Generator | None = None,
        weight: Tensor | None = None,
        known: Tensor | None = None,
    ) -> Tensor:
        """The mean loss of a batch.

        Args:
            denoiser: what is trained.
            x0: clean data, (B, *event).
            cond: condition of B rows.
            generator: of times, noise and dropout; on the device of x0.
            weight: extra weights that broadcast against x0, for instance 0 where a value is missing.
            known: bool, broadcasts against x0: entries that are given clean at every noise level, as
                ``samplers.Inpaint(noised=False)`` gives them; they do not count in the loss.
        """
        t = self.time(denoiser.schedule, len(x0), generator, x0.device)
        noise = torch.randn(x0.shape, generator=generator, device=x0.device, dtype=x0.dtype)
        if cond is not None and self.cond_noise:
            cond = cond.perturb(self.cond_noise, generator)
        if cond is not None:
            cond = cond.dropout(self.cond_dropout, generator, per_name=self.drop_per_name)
        x = denoiser.schedule.add_noise(x0, t, noise)
        if known is not None:
            x = torch.where(known, x0, x)
        error = (denoiser(x, t, cond) - x0).square() * self.weight(denoiser, denoiser.schedule.level(t, like=x0))
        if known is not None:
            error = error.masked_fill(known, 0.0)
        loss = error.mean() if weight is None else (error * weight).mean()
        for regulariser in self.regularisers:
            loss = loss + regulariser(denoiser, x0, cond, generator)
        return loss

    def weight(self, denoiser: Denoiser, level: Level) -> Any:
        """w at a level, broadcastable against the batch."""
        match self.weighting:
            case "sample":
                return 1.0
            case "min_snr":
                return (-2 * level.log_kappa).exp().clamp(max=self.gamma)
        if not isinstance(denoiser, NetworkDenoiser):
            raise InvalidArgument(
                f"weighting={self.weighting!r} needs a NetworkDenoiser, got {type(denoiser).__name__}; use 'sample' or "
                f"'min_snr'"
            )
        if self.weighting == "uniform":
            _, out = denoiser.coefficients(level)
            return out**-2
        s = denoiser.data_std
        return (level.sigma**2 + (level.alpha * s) ** 2) / (level.sigma * s) ** 2
