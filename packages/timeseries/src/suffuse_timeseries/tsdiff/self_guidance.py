r"""Observation self-guidance: an unconditional diffusion model forecasts, imputes or completes by its own estimate.

With y the observations, m their mask and D(x_t, t) the posterior mean, the model's own one-step estimate of the data
defines how likely the observations are under x_t, log p(y | x_t) = -E(x_t) + const, with

    mean square:  E = sum_m (y - D)^2                                   (Gaussian)
    quantile:     E = sum_m max(kappa (y - D), (kappa - 1) (y - D))     (asymmetric Laplace at level kappa)

and guidance adds s times its gradient to the score. As posterior means (Tweedie) that is

    D' = D - s (sigma_t^2 / alpha_t) dE/dx_t.

Giving sample j of S the level kappa_j = j / (S + 1) makes the samples of one window spread over the quantiles of the
forecast. E is a sum, so s is tied to the number of observed entries.
Kollovieh et al. (2023), arXiv:2307.11494, eqs. 4-8.

The paper multiplies the gradient in its DDPM step by the posterior variance beta~_t instead; that is the same guidance
with s_t = s sqrt(1 - beta_t) (1 - abar_{t-1}) / (1 - abar_t), which differs from s only in the last steps.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from suffuse import Condition, Denoiser
from suffuse.errors import InvalidArgument

__all__ = ["Likelihood", "ObservationSelfGuidance", "quantile_levels"]

Likelihood = Literal["ms", "q"]


def quantile_levels(samples: int) -> Tensor:
    """kappa_j = j / (S + 1), j = 1..S, whose mean is 1/2 for every S; (S,)."""
    return torch.arange(1, samples + 1) / (samples + 1)


class ObservationSelfGuidance(Denoiser):
    """D' = D - s (sigma^2 / alpha) dE/dx, with E measured between D itself and the observations.

    The gradient flows through the network, inside ``torch.no_grad()`` too; under ``torch.inference_mode()`` it cannot.

    Args:
        denoiser: an unconditional denoiser (or a conditional one, used with its condition).
        values: observations y, (B, *event); ignored where the mask is 0.
        observed: mask m, (B, *event), 1 where there is an observation.
        guidance_scale: s >= 0; 0 is the identity.
        levels: kappa of each sample, (B,), for the quantile energy; None for the mean-square energy.
    """

    values: Tensor
    observed: Tensor
    levels: Tensor | None

    def __init__(
        self,
        denoiser: Denoiser,
        values: Tensor,
        observed: Tensor,
        *,
        guidance_scale: float = 1.0,
        levels: Tensor | None = None,
    ) -> None:
        super().__init__()
        if values.shape != observed.shape:
            raise InvalidArgument(
                f"values {tuple(values.shape)} and observed {tuple(observed.shape)} must have one shape"
            )
        if not guidance_scale >= 0:
            raise InvalidArgument(f"guidance_scale must be a number >= 0, got {guidance_scale}")
        if levels is not None and (levels.shape != values.shape[:1] or not bool(((levels > 0) & (levels < 1)).all())):
            raise InvalidArgument(
                f"levels must be (B,) = ({len(values)},) numbers in (0, 1), got {tuple(levels.shape)}"
            )
        self.denoiser, self.schedule, self.guidance_scale = denoiser, denoiser.schedule, guidance_scale
        self.register_buffer("values", torch.where(observed > 0, values, 0.0))
        self.register_buffer("observed", observed.to(values.dtype))
        self.register_buffer("levels", levels if levels is None else levels.view(-1, *(1,) * (values.ndim - 1)))

    def energy(self, mean: Tensor) -> Tensor:
        """E of a posterior mean (B, *event): the sum over its observed entries, and over the batch."""
        error = (self.values - mean) * self.observed
        if self.levels is None:
            return (error**2).sum()
        return torch.maximum(self.levels * error, (self.levels - 1) * error).sum()

    def forward(self, x: Tensor, t: float | Tensor, cond: Condition | None = None) -> Tensor:
        if not self.guidance_scale:
            return self.denoiser(x, t, cond)
        if torch.is_inference_mode_enabled():
            raise InvalidArgument(
                "self-guidance needs gradients; use torch.no_grad() instead of torch.inference_mode()"
            )
        if x.shape != self.values.shape:
            raise InvalidArgument(f"x is {tuple(x.shape)} but the observations are {tuple(self.values.shape)}")
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            mean = self.denoiser(leaf, t, cond)
            (gradient,) = torch.autograd.grad(self.energy(mean), leaf)
        level = self.schedule.level(t, like=x)
        return mean.detach() - self.guidance_scale * level.sigma**2 / level.alpha * gradient
