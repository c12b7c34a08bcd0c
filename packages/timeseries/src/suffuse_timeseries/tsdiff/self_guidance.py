r"""Observation self-guidance: an unconditional diffusion model forecasts, imputes or completes by its own estimate.

With y the observations, m their mask and D(x_t, t) the posterior mean, the model's own one-step estimate of the data
defines how likely the observations are under x_t, log p(y | x_t) = -E(x_t) + const, with

    mean square:  E = sum_m (y - D)^2                                   (Gaussian)
    quantile:     E = sum_m max(kappa (y - D), (kappa - 1) (y - D))     (asymmetric Laplace at level kappa)

and guidance adds s times its gradient to the score. As posterior means (Tweedie) that is

    D' = D - s (sigma_t^2 / alpha_t) dE/dx_t.

Giving sample j of S the level kappa_j = j / (S + 1) makes the samples of one window spread over the quantiles of the
forecast. E is a sum, so s is tied to the number of observed entries: a window of twice the length wants half the s.
Kollovieh et al. (2023), arXiv:2307.11494, eqs. 4-8.

With a constant s this is classifier guidance. The paper's DDPM adds -s beta~_t dE/dx_t to a step from t to the next
level r, beta~ the variance of the step's posterior. A step takes D by a factor of beta~_t alpha_r / sigma_r^2, so this
is the guidance above with

    s_t sigma_t^2 / alpha_t = s sigma_r^2 / alpha_r          (``ancestral``).

On a fine grid that is s, except in the last steps, and nothing at the last. On a coarse one it is less, as if the
gradient were weighted where the step ends and not where it starts, and that serves every solver: with a constant s the
first of five steps is far too long. The official code takes the gradient after the step, at the sample that the step
made but with the noise level before it, which costs a second evaluation (``PostStep``).

All of these need an s that suits the data, the length of the window and the steps: too small and the forecast ignores
what was observed, too large and the steps overshoot and diverge. ``LineSearch`` has none. It goes, in every sample and
at every evaluation, to where E is least along its gradient.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from suffuse import Condition, Denoiser
from suffuse.errors import InvalidArgument
from suffuse.schedules import Level

__all__ = ["Likelihood", "LineSearch", "ObservationSelfGuidance", "PostStep", "ancestral", "quantile_levels"]

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
        guidance_scale: s >= 0, or a function of the noise level, such as ``ancestral``, or a ``LineSearch``; 0 is the
            identity.
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
        guidance_scale: float | Callable[[Level], float] | LineSearch = 1.0,
        levels: Tensor | None = None,
    ) -> None:
        super().__init__()
        if values.shape != observed.shape:
            raise InvalidArgument(
                f"values {tuple(values.shape)} and observed {tuple(observed.shape)} must have one shape"
            )
        if isinstance(guidance_scale, (int, float)) and not guidance_scale >= 0:
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

    def mean_and_gradient(self, x: Tensor, t: float | Tensor, cond: Condition | None = None) -> tuple[Tensor, Tensor]:
        """D and dE/dx at x (B, *event), from one evaluation."""
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
        return mean.detach(), gradient

    def forward(self, x: Tensor, t: float | Tensor, cond: Condition | None = None) -> Tensor:
        level = self.schedule.level(t, like=x)
        scale = self.guidance_scale
        if not isinstance(scale, (int, float)) and isinstance(level.kappa, Tensor):
            raise InvalidArgument("a guidance_scale that depends on the level needs one t for the whole batch")
        if not isinstance(scale, LineSearch):
            scale = scale(level) if callable(scale) else scale
            if not scale:
                return self.denoiser(x, t, cond)
        mean, gradient = self.mean_and_gradient(x, t, cond)
        move = -(level.sigma**2) / level.alpha * gradient
        if isinstance(scale, LineSearch):
            error = (self.values - mean) * self.observed
            return mean + scale(level, error, move * self.observed, self.levels) * move
        return mean + scale * move


class LineSearch:
    """Guidance as far as the energy falls along its gradient, in place of a scale.

    Guidance moves D by s g, g = -(sigma_t^2 / alpha_t) dE/dx. To first order a step from t to r brings the model's
    estimate w = 1 - kappa_r / kappa_t of the way to D', so that with e = m (y - D) the best scale of a sample is

        s = argmin_{a >= 0} E(e - a m g) / w.

    For the mean square a = <e, g> / <g, g>; for a quantile E is piecewise linear in a with a kink at every e_i / g_i,
    and a is the first kink behind which E rises, a weighted quantile of them.

    Args:
        levels: those that the sampler visits (``sampler.levels(schedule)``).
    """

    def __init__(self, levels: Sequence[Level]) -> None:
        self.below = below(levels)

    def __call__(self, level: Level, error: Tensor, move: Tensor, levels: Tensor | None) -> Tensor:
        """s of each sample, (B, 1, ...).

        Args:
            level: of the evaluation.
            error: m (y - D), (B, *event).
            move: m g, (B, *event).
            levels: kappa of each sample, (B, 1, ...), for the quantile energy; None for the mean-square energy.
        """
        e, g = error.flatten(1), move.flatten(1)
        if levels is None:
            a = (e * g).sum(1) / (g * g).sum(1).clamp_min(torch.finfo(g.dtype).tiny)
        else:
            a = least(e, g, levels.flatten(1))
        share = 1 - self.below(level).kappa / level.kappa
        return (a.clamp_min(0) / share).view(-1, *(1,) * (error.ndim - 1)) if share else a.new_zeros(())


def least(e: Tensor, g: Tensor, kappa: Tensor) -> Tensor:
    """argmin over a >= 0 of sum_i pinball_kappa(e_i - a g_i), (B,); e and g are (B, n), kappa (B, 1).

    The slope at a = 0 is -sum_i g_i pinball'(e_i), and rises by abs(g_i) at every kink a = e_i / g_i > 0.
    """
    slope = -(g * torch.where(e > 0, kappa, kappa - 1)).sum(1, keepdim=True)
    kink = torch.where((e * g > 0), e / g, torch.inf)
    kink, order = kink.sort(1)
    rises = slope + torch.where(kink.isfinite(), g.abs().gather(1, order), 0).cumsum(1)
    first = (rises < 0).sum(1, keepdim=True).clamp_max(e.size(1) - 1)
    a = kink.gather(1, first)[:, 0]
    return torch.where((slope[:, 0] < 0) & a.isfinite(), a, 0)


def below(levels: Sequence[Level]) -> Callable[[Level], Level]:
    """The first of the levels a sampler visits that lies below a given one; below the lowest, itself."""
    visited = sorted(levels, key=lambda level: level.kappa)
    kappas = [level.kappa for level in visited]
    # the given level may be one of them, rounded
    return lambda t: visited[max(bisect.bisect_left(kappas, t.kappa * (1 - 1e-9)) - 1, 0)]


def ancestral(scale: float, levels: Sequence[Level]) -> Callable[[Level], float]:
    """The scale of the paper's DDPM by the level t: s_t = s (sigma_r^2 / alpha_r) / (sigma_t^2 / alpha_t).

    Args:
        scale: s.
        levels: those that the sampler visits (``sampler.levels(schedule)``); r is the first of them below t.
    """
    under = below(levels)

    def at(t: Level) -> float:
        r = under(t)
        return scale * (r.sigma**2 / r.alpha) / (t.sigma**2 / t.alpha)

    return at


class PostStep:
    """Guidance after each ancestral step, as the official code has it; a constraint of a DDPM sampler.

    A step from t to r leaves x_r, to which is added -s beta~ dE/dx with the gradient at (x_r, t) and
    beta~ = sigma_r^2 (1 - (kappa_r / kappa_t)^2), the posterior variance of the step.

    Args:
        guidance: the energy and its gradient; its own scale is not used. The sampler is given ``guidance.denoiser``.
        scale: s.
        levels: those that the sampler visits, downwards.
        cond: of the denoiser.
    """

    def __init__(
        self, guidance: ObservationSelfGuidance, scale: float, levels: Sequence[Level], cond: Condition | None = None
    ) -> None:
        self.guidance, self.scale, self.cond = guidance, scale, cond
        self.before = {r.kappa: t for t, r in pairwise(levels)}

    def __call__(self, x: Tensor, level: Level, noise: Callable[[], Tensor]) -> Tensor:
        before = self.before.get(level.kappa)  # the sampler also asks about its start, where no step was made
        if before is None or before.t is None or not level.sigma or not self.scale:
            return x
        variance = level.sigma**2 * (1 - (level.kappa / before.kappa) ** 2)
        _, gradient = self.guidance.mean_and_gradient(x, before.t, self.cond)
        return x - self.scale * variance * gradient
