r"""The denoising objective: a weighted squared error of the posterior mean,

    L = E_{t, x_0, eps} [ w(t) |D(alpha x_0 + sigma eps, t, c) - x_0|^2 ],

whose minimiser is E[x_0 | x_t, c] whatever the positive weight. The views differ in w alone (' is d/dt, s the standard
deviation of the data, W = alpha sigma' - alpha' sigma):

    sample     1
    epsilon    1 / kappa^2                          the error of eps
    flow       (W / sigma)^2                        the error of the velocity
    elbo       (log kappa)' / kappa^2               with t uniform, minus the ELBO per entry (``analysis.elbo``)
    min_snr    min(1 / kappa^2, gamma)              Hang et al. (2023), arXiv:2303.09556
    edm        1 / kappa^2 + 1 / s^2                Karras et al. (2022), arXiv:2206.00364
    uniform    1 / b^2 where D = a x + b F          the error of the network's own output F: the usual loss

As (log kappa)' dt = d log kappa, "epsilon" with ``UniformLogSNR`` has the expectation of "elbo" with ``UniformTime``,
with far less variance. Vincent (2011); Ho et al. (2020), arXiv:2006.11239; Kingma, Gao (2023), arXiv:2303.00848.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, get_args

import torch
from torch import Tensor

from ..analysis.variational import step_kl
from ..condition import Condition
from ..denoiser import Denoiser, NetworkDenoiser, with_estimate
from ..errors import InvalidArgument, unknown
from ..random import randn
from ..schedules import Level
from .regularisers import Regulariser
from .times import TimeSampler, UniformTime

__all__ = ["DenoisingObjective", "Objective", "Weighting"]

Weighting = Literal["uniform", "sample", "epsilon", "flow", "elbo", "min_snr", "edm"]

#: The weights that are functions of the noise level alone; 1 / kappa^2 is zero, not undefined, where kappa is infinite.
LEVEL_WEIGHTS: dict[str, Callable[[Level], Any]] = {
    "sample": lambda level: 1.0,
    "epsilon": lambda level: (-2 * level.log_kappa).exp(),
    "flow": lambda level: (level.wronskian / level.sigma) ** 2,
    "elbo": lambda level: level.alpha * level.wronskian / level.sigma**3,
}


#: (shape, generator, device, dtype) -> noise of about unit variance.
NoiseFamily = Callable[[Sequence[int], torch.Generator | None, torch.device, torch.dtype], Tensor]


class Objective(Protocol):
    """What ``fit`` minimises: the mean loss of a batch, with arguments as of ``DenoisingObjective``."""

    def __call__(
        self,
        denoiser: Any,
        x0: Tensor,
        cond: Condition | None = None,
        generator: torch.Generator | None = None,
        weight: Tensor | None = None,
        /,
    ) -> Tensor: ...


@dataclass(frozen=True)
class DenoisingObjective:
    """The loss of a batch.

    Args:
        time: which noise levels are drawn.
        weighting: w, a name in the table above.
        cond_dropout: probability of replacing the condition of a sample by null, for classifier-free guidance.
        drop_per_name: drop each named condition apart, so that every subset can be asked for.
        drop_names: drop these only, and keep the others always; default all.
        cond_noise: strength of the noise added to condition tokens (``Condition.perturb``); 0 for none.
        gamma: of ``"min_snr"``.
        variance_weight, variance_steps: where a denoiser learns the variance of reverse steps, weight and number of
            steps T of the hybrid loss L + weight * L_vlb, L_vlb = T E_t KL per entry of steps from t to t - 1/T, which
            does not move the mean: Nichol, Dhariwal (2021), arXiv:2102.09672, eq. 16.
        regularisers: further terms of the loss, see ``suffuse.training.regularisers``.
        noise: another family of noise than the white: ``noise(shape, generator, device, dtype)``. Its covariance is
            what "the posterior mean" then refers to; sample with the same family. A frozen dataclass lets runs resume.
    """

    time: TimeSampler = field(default_factory=UniformTime)
    weighting: Weighting = "uniform"
    cond_dropout: float = 0.1
    drop_per_name: bool = False
    drop_names: tuple[str, ...] | None = None
    cond_noise: float = 0.0
    gamma: float = 5.0
    variance_weight: float = 1e-3
    variance_steps: int = 1000
    regularisers: tuple[Regulariser, ...] = ()
    noise: NoiseFamily | None = None

    def __post_init__(self) -> None:
        if self.weighting not in get_args(Weighting):
            raise unknown("weighting", self.weighting, get_args(Weighting))
        if not 0 <= self.cond_dropout <= 1:
            raise InvalidArgument(f"cond_dropout must lie in [0, 1], got {self.cond_dropout}")
        if self.cond_noise < 0:
            raise InvalidArgument(f"cond_noise must not be negative, got {self.cond_noise}")
        if self.variance_weight < 0 or self.variance_steps < 1:
            raise InvalidArgument(
                f"need variance_weight >= 0 and variance_steps >= 1, got {self.variance_weight}, {self.variance_steps}"
            )

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
        schedule = denoiser.schedule
        network = denoiser if isinstance(denoiser, NetworkDenoiser) else None
        t = self.time(schedule, len(x0), generator, x0.device)
        noise = (self.noise or randn)(x0.shape, generator, x0.device, x0.dtype)
        if cond is not None and self.cond_noise:
            cond = cond.perturb(self.cond_noise, generator)
        if cond is not None:
            cond = cond.dropout(self.cond_dropout, generator, per_name=self.drop_per_name, names=self.drop_names)
        level = schedule.level(t, like=x0)
        x = level.alpha * x0 + level.sigma * noise
        if known is not None:
            x = torch.where(known, x0, x)
        if network is not None and network.self_conditioning:
            cond = self._with_own_estimate(network, x, t, cond)
        if network is not None and network.learn_variance:
            mean, fraction = network.with_variance(x, t, cond)
            rest = self._variance_error((mean.detach() - x0).square(), fraction, network, t)
        else:
            mean, rest = denoiser(x, t, cond), torch.zeros_like(x0)
        error = self.square(mean - x0) * self.weight(denoiser, level) + rest
        if known is not None:
            error = error.masked_fill(known, 0.0)
        loss = error.mean() if weight is None else (error * weight).mean()
        for regulariser in self.regularisers:
            loss = loss + regulariser(denoiser, x0, cond, generator)
        return loss

    def square(self, error: Tensor) -> Tensor:
        """|error|^2, entry by entry. Any other positive quadratic form has the same minimiser; subclasses have some."""
        return error.square()

    def weight(self, denoiser: Denoiser, level: Level) -> Any:
        """w at a level, broadcastable against the batch."""
        if self.weighting in LEVEL_WEIGHTS:
            return LEVEL_WEIGHTS[self.weighting](level)
        if self.weighting == "min_snr":
            return LEVEL_WEIGHTS["epsilon"](level).clamp(max=self.gamma)
        if not isinstance(denoiser, NetworkDenoiser):
            raise InvalidArgument(
                f"weighting={self.weighting!r} needs a NetworkDenoiser, got {type(denoiser).__name__}; use one of "
                f"{[*LEVEL_WEIGHTS, 'min_snr']}"
            )
        if self.weighting == "uniform":
            return denoiser.coefficients(level)[1] ** -2
        return LEVEL_WEIGHTS["epsilon"](level) + denoiser.data_std**-2

    def _with_own_estimate(
        self, denoiser: NetworkDenoiser, x: Tensor, t: Tensor, cond: Condition | None
    ) -> Condition | None:
        """The condition with what the network says without one, for the first half of the rows (times are shuffled)."""
        half = (len(x) + 1) // 2
        with torch.no_grad():
            first = denoiser(x[:half], t[:half], None if cond is None else cond[:half])
        return with_estimate(cond, torch.cat([first, torch.zeros_like(x[half:])]), given=half)

    def _variance_error(self, square: Tensor, fraction: Tensor, denoiser: Denoiser, t: Tensor) -> Tensor:
        """The weighted L_vlb of every entry."""
        schedule = denoiser.schedule
        s = (t - 1 / self.variance_steps).clamp(min=schedule.t_min)
        upper, lower = (schedule.level(time, like=square) for time in (t, s))
        return self.variance_weight * self.variance_steps * step_kl(square, upper, lower, fraction)
