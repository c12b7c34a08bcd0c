"""DDIM and DDPM: one step is a mixture of the posterior mean, the noise it implies, and fresh noise.

With D = E[x_0 | x_t], eps = (x_t - alpha_t D) / sigma_t and kappa = sigma / alpha, DDIM steps from level t to s < t by

    x_s = alpha_s D + sigma_s sqrt(1 - eta^2 tau) eps + sigma_s eta sqrt(tau) z,     tau = 1 - (kappa_s / kappa_t)^2.

eta = 0 is the exponential Euler step of the probability-flow ODE; eta = 1 is DDPM's ancestral step.
Song, Meng, Ermon (2021), "Denoising Diffusion Implicit Models", arXiv:2010.02502, eq. 12.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from torch import Tensor

from ..condition import Condition
from ..denoiser import Denoiser
from ..errors import InvalidArgument, unknown
from ..schedules import Level
from .base import Coefficients, Noise, Sampler, Stage

__all__ = ["DDIM", "DDPM", "StepVariance"]

StepVariance = Literal["small", "large", "learned"]


@dataclass(frozen=True)
class DDIM(Sampler):
    """DDIM with stochasticity ``eta`` in [0, 1]."""

    eta: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.eta <= 1:
            raise InvalidArgument(f"eta must lie in [0, 1], got {self.eta}")

    def coefficients(self, t: Level, s: Level, past: Sequence[Level]) -> Coefficients:
        tau = 1 - (s.kappa / t.kappa) ** 2
        carry = s.sigma * math.sqrt(1 - self.eta**2 * tau) / t.sigma
        return s.alpha - carry * t.alpha, carry, self.eta * s.sigma * math.sqrt(tau)

    def step(self, x: Tensor, mean: Tensor, state: Any, noise: Noise, c: Coefficients) -> tuple[Tensor, Any]:
        x = c[0] * mean + c[1] * x
        return (x + c[2] * noise() if c[2] else x), None


@dataclass(frozen=True)
class DDPM(Sampler):
    """Ancestral sampling from the Gaussian posterior q(x_s | x_t, x_0 = D).

    With alpha_ts = alpha_t / alpha_s and v_ts = sigma_t^2 - alpha_ts^2 sigma_s^2,

        x_s = alpha_ts sigma_s^2 / sigma_t^2 x_t + alpha_s v_ts / sigma_t^2 D + std z.

    Ho, Jain, Abbeel (2020), "Denoising Diffusion Probabilistic Models", arXiv:2006.11239, eqs. 6-7; in the form of
    Kingma et al. (2021), "Variational Diffusion Models", arXiv:2107.00630, app. A. The variance std^2 is that of the
    posterior, ``"small"``: v_ts sigma_s^2 / sigma_t^2; that of the transition, ``"large"``: v_ts; or what the denoiser
    has ``"learned"``, between them on a logarithmic scale: Nichol, Dhariwal (2021), arXiv:2102.09672, eq. 15.
    """

    variance: StepVariance = "small"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.variance not in get_args(StepVariance):
            raise unknown("variance", self.variance, get_args(StepVariance))

    def coefficients(self, t: Level, s: Level, past: Sequence[Level]) -> Coefficients:
        transition = t.alpha / s.alpha
        variance = t.sigma**2 - transition**2 * s.sigma**2
        shrink = (s.sigma / t.sigma) ** 2
        std = math.sqrt(variance * (1 if self.variance == "large" and s.sigma else shrink))
        fixed = s.alpha * variance / t.sigma**2, transition * shrink, std
        return (*fixed, math.log(t.sigma / s.sigma)) if self.variance == "learned" and s.sigma else fixed

    def evaluate(
        self, denoiser: Denoiser, x: Tensor, stage: Stage, cond: Condition | None, state: Any
    ) -> tuple[Tensor, Any]:
        if self.variance != "learned":
            return super().evaluate(denoiser, x, stage, cond, state)
        return denoiser.with_variance(x, stage.t, cond)  # type: ignore[arg-type]

    def step(self, x: Tensor, mean: Tensor, state: Any, noise: Noise, c: Coefficients) -> tuple[Tensor, Any]:
        x = c[0] * mean + c[1] * x
        if not c[2]:
            return x, None
        std = c[2] if len(c) == 3 else c[2] * (c[3] * state).exp()
        return x + std * noise(), None
