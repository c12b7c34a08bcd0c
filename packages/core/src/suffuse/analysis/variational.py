r"""The variational view: a bound on -log p(x), term by term.

A sample is described from coarse to fine: its noisiest version, then every step towards less noise, then itself,

    -log p(x) <= KL(q(x_1|x) || p(x_1))  +  sum E KL(q(x_s|x_t, x) || p(x_s|x_t))  +  E[-log p(x|x_0)].
                 prior                      diffusion                                 reconstruction

All are Gaussian. With kappa = sigma / alpha and tau = 1 - (kappa_s / kappa_t)^2, q(x_s|x_t, x) has the variance
sigma_s^2 tau; p(x_s|x_t) has D(x_t) in the place of x, and a variance sigma_s^2 tau e^(f L) between the posterior's
(f = 0, "small") and the transition's, sigma_t^2 tau (f = 1, "large"), L = 2 log(sigma_t / sigma_s). Per entry,

    KL = (f L - 1 + e^(-f L) (1 + tau / kappa_s^2 (x - D)^2)) / 2.

With ever more steps f ceases to matter, and the sum becomes an integral over the noise level of the error in eps,

    diffusion = int E|eps - eps_hat|^2 d log kappa;

for the exact denoiser the bound is then an equality, but for what lies outside of the integral's ends. Expectations are
sampled; the same noise is also given to the denoiser of a Gaussian, for which all terms are known, and only the
difference is left to chance.

Sohl-Dickstein et al. (2015), arXiv:1503.03585; Ho et al. (2020), arXiv:2006.11239, eq. 5; Kingma et al. (2021),
"Variational Diffusion Models", arXiv:2107.00630, eqs. 11-18; the learned f: Nichol, Dhariwal (2021), arXiv:2102.09672,
eqs. 15-16; a Gaussian as the control: Kong et al. (2023), "Information-Theoretic Diffusion", arXiv:2302.03792, eq. 8.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, get_args

import torch
from torch import Tensor

from ..condition import Condition
from ..denoiser import Denoiser
from ..errors import InvalidArgument, unknown
from ..exact import Covariance
from ..random import randn
from ..samplers.ddim import StepVariance
from ..samplers.grids import times
from ..schedules import Level, Scalar, Schedule
from .gaussian import GaussianStatistics

__all__ = ["Bound", "bits_per_dim", "discrete_elbo", "elbo", "noise_range", "step_kl"]


#: Above this noise level, data of about unit variance cannot be told from their Gaussian.
KAPPA_MAX = 100.0


@dataclass(frozen=True)
class Bound:
    """The three terms of the bound on -log p(x), in nats, (B,) float64 each.

    Attributes:
        prior: of the noisiest version.
        diffusion: of all steps towards less noise.
        reconstruction: of the sample, given its least noisy version.
    """

    prior: Tensor
    diffusion: Tensor
    reconstruction: Tensor

    @property
    def total(self) -> Tensor:
        """The bound, (B,) nats: minus the ELBO."""
        return self.prior + self.diffusion + self.reconstruction


def bits_per_dim(nats: Tensor, event: Sequence[int], bin_width: float = 1.0) -> Tensor:
    """-log p in nats (B,), as bits for each entry of samples of shape ``event``.

    The density of whole multiples of ``bin_width``, spread by uniform noise of that width, bounds the bits of the
    multiples themselves: Theis et al. (2016), arXiv:1511.01844, sec. 3.1.
    """
    return (nats / math.prod(event) - math.log(bin_width)) / math.log(2)


def noise_range(schedule: Schedule, kappa: tuple[float, float] | None = None) -> tuple[float, float]:
    """The (low, high) noise levels to integrate between; by default the schedule's, at most ``KAPPA_MAX``.

    Raises:
        InvalidArgument: unless 0 < low < high < infinity.
    """
    low, high = kappa or (schedule.kappa(schedule.t_min), min(schedule.kappa(1.0), KAPPA_MAX))
    if not 0 < low < high < math.inf:
        raise InvalidArgument(f"kappa must be (low, high) with 0 < low < high < inf, got {(low, high)}")
    return low, high


def standard_normal(x: Tensor) -> GaussianStatistics:
    """Mean 0 and variance 1 for each entry of samples like x (B, *event)."""
    mean = torch.zeros(x.shape[1:], dtype=torch.float64)
    return GaussianStatistics(mean, Covariance.diagonal(torch.ones(1, mean.numel(), dtype=torch.float64)))


@torch.no_grad()
def elbo(
    denoiser: Denoiser,
    x: Tensor,
    cond: Condition | None = None,
    *,
    samples: int = 64,
    kappa: tuple[float, float] | None = None,
    values: Tensor | None = None,
    statistics: GaussianStatistics | None = None,
    generator: torch.Generator | None = None,
) -> Bound:
    """The bound with infinitely many steps, from ``samples + 1`` evaluations for each sample.

    Args:
        denoiser: any denoiser.
        x: clean samples (B, *event).
        cond: condition of B rows.
        samples: noise levels drawn for each sample, stratified in log kappa.
        kappa: (low, high) noise levels to integrate between; default the schedule's.
        values: (K,) increasing, what an entry can be, when the data are discrete: the bound is then on a probability.
            Otherwise it is on a density.
        statistics: of the data, for the prior and the control; default mean 0 and variance 1 for each entry.
        generator: of levels and noise.
    """
    if samples < 1:
        raise InvalidArgument(f"samples must be at least 1, got {samples}")
    batch, schedule = _Batch(denoiser, x, cond, statistics, generator), denoiser.schedule
    low, high = noise_range(schedule, kappa)
    bottom, span = math.log(low), math.log(high / low)
    excess = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    for k in range(samples):
        where = x.device if generator is None else generator.device
        jitter = torch.rand(len(x), generator=generator, device=where, dtype=torch.float64).to(x.device)
        t = schedule.t_of_log_kappa(bottom + span * (k + jitter) / samples)
        excess += batch.excess(t) / schedule.kappa(t) ** 2 / samples
    t_low, t_high = schedule.t_of_kappa(low), schedule.t_of_kappa(high)
    prior = batch.prior(t_high)
    # the integral of the Gaussian's own error is the difference of its priors
    return Bound(prior, span * excess + batch.prior(t_low) - prior, batch.reconstruction(t_low, values))


@torch.no_grad()
def discrete_elbo(
    denoiser: Denoiser,
    x: Tensor,
    cond: Condition | None = None,
    *,
    steps: int = 100,
    grid: str | Sequence[float] = "time",
    variance: StepVariance = "small",
    samples: int = 1,
    values: Tensor | None = None,
    statistics: GaussianStatistics | None = None,
    generator: torch.Generator | None = None,
) -> Bound:
    """The bound of ancestral sampling (``DDPM``), from ``samples * steps + 1`` evaluations for each sample.

    Args:
        denoiser: any denoiser.
        x: clean samples (B, *event).
        cond: condition of B rows.
        steps, grid: of the sampler; its last step ends at the schedule's lowest noise level.
        variance: of a step: ``"small"``, ``"large"``, or what the denoiser has ``"learned"``.
        samples: noise drawn for each sample and step.
        values, statistics, generator: as for ``elbo``.
    """
    if variance not in get_args(StepVariance):
        raise unknown("variance", variance, get_args(StepVariance))
    if samples < 1:
        raise InvalidArgument(f"samples must be at least 1, got {samples}")
    batch, schedule = _Batch(denoiser, x, cond, statistics, generator), denoiser.schedule
    bottom = schedule.t_min or schedule.t_of_kappa(1.001 * schedule.kappa(0.0))  # 0 would mean the clean end
    nodes = [schedule.level(t) for t in times(schedule, steps, grid, 1.0, bottom)]
    diffusion = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    for t, s in pairwise(nodes):
        weight = step_weight(t, s)
        for _ in range(samples):
            noisy = batch.noised(t.t)
            if variance == "learned":
                mean, fraction = denoiser.with_variance(noisy, t.t, cond)
            else:
                mean = denoiser(noisy, t.t, cond)
                fraction = torch.full_like(mean, float(variance == "large"))
            error, control = batch.square(mean), batch.square(batch.gaussian(noisy, t.t))
            kl = step_kl(error, t, s, fraction.flatten(1).double())
            diffusion += (kl - weight / 2 * control).sum(1) / samples
        diffusion += weight / 2 * batch.expected(t.t)
    return Bound(batch.prior(1.0), diffusion, batch.reconstruction(bottom, values))


def step_weight(t: Level, s: Level) -> Any:
    """tau / kappa_s^2 = 1 / kappa_s^2 - 1 / kappa_t^2 of the step from level t to level s."""
    return 1 / s.kappa**2 - 1 / t.kappa**2


def step_kl(square: Tensor, t: Level, s: Level, fraction: Tensor) -> Tensor:
    """KL(q(x_s|x_t, x) || p(x_s|x_t)) of every entry, in nats.

    Args:
        square: (x - D)^2.
        t, s: the levels of the step, t above s.
        fraction: f, where the variance lies between that of the posterior and that of the transition.
    """
    ratio = t.sigma / s.sigma
    exponent = 2 * fraction * (ratio.log() if isinstance(ratio, Tensor) else math.log(ratio))
    return (exponent + torch.expm1(-exponent) + (-exponent).exp() * step_weight(t, s) * square) / 2


class _Batch:
    """Clean samples, noised for a denoiser and for the denoiser of a Gaussian, for which expectations are known."""

    def __init__(
        self,
        denoiser: Denoiser,
        x: Tensor,
        cond: Condition | None,
        statistics: GaussianStatistics | None,
        generator: torch.Generator | None,
    ) -> None:
        self.denoiser, self.x, self.cond, self.generator = denoiser, x, cond, generator
        self.gaussian = (statistics or standard_normal(x)).denoiser(denoiser.schedule).to(x.device)
        self.clean, self.dim = x.double(), x[0].numel()

    def noised(self, t: Scalar) -> Tensor:
        """x_t, like x."""
        noise = randn(self.x.shape, self.generator, self.x.device, self.x.dtype)
        return self.denoiser.schedule.add_noise(self.x, t, noise)

    def square(self, mean: Tensor) -> Tensor:
        """(x - mean)^2, (B, d) float64."""
        return (self.clean - mean.double()).square().flatten(1)

    def expected(self, t: Scalar) -> Tensor:
        """E|x - D|^2 of the Gaussian's denoiser, over the noise at t: (B,)."""
        level = self._level(t)
        alpha, sigma = level.alpha, level.sigma
        without_noise = self.gaussian(self._scaled(alpha), t)  # D is affine
        spread = self._trace(lambda v: (sigma * alpha * v / (alpha**2 * v + sigma**2)) ** 2)
        return self.square(without_noise).sum(1) + spread

    def prior(self, t: float) -> Tensor:
        """KL(q(x_t|x) || p(x_t)) of the Gaussian: (B,)."""
        level = self._level(t)
        alpha, variance = level.alpha, level.sigma**2
        cross_entropy = self._trace(lambda v: variance / (alpha**2 * v + variance)) / 2
        cross_entropy = cross_entropy - self.gaussian.log_prob(self._scaled(alpha), t)
        return cross_entropy - self.dim / 2 * (1 + (2 * math.pi * variance).log().flatten())

    def reconstruction(self, t: float, values: Tensor | None) -> Tensor:
        """E[-log N(x; D, kappa^2)] at t, or that of the nearest of the values: (B,)."""
        kappa = self.denoiser.schedule.kappa(t)
        if values is None:
            entropy = self.dim / 2 * math.log(2 * math.pi * kappa**2)
            return (self.expected(t) + self.excess(t)) / (2 * kappa**2) + entropy
        mean = self.denoiser(self.noised(t), t, self.cond)
        return -log_bins(self.clean.flatten(1), mean.flatten(1).double(), kappa, values.to(self.clean)).sum(1)

    def excess(self, t: Scalar) -> Tensor:
        """A sample of |x - D|^2, less that of the Gaussian's denoiser at the same noise: (B,)."""
        noisy = self.noised(t)
        mean, control = self.denoiser(noisy, t, self.cond), self.gaussian(noisy, t)
        return (self.square(mean) - self.square(control)).sum(1)

    def _level(self, t: Scalar) -> Level:
        at = t if isinstance(t, Tensor) else torch.tensor(t, dtype=torch.float64, device=self.x.device)
        return self.denoiser.schedule.level(at, like=self.clean.flatten(1))

    def _scaled(self, alpha: Tensor) -> Tensor:
        return (alpha * self.clean.flatten(1)).reshape(self.clean.shape)

    def _trace(self, function: Callable[[Tensor], Tensor]) -> Tensor:
        """tr f(S), (B,) or (1,), with f given on eigenvalues."""
        cov = self.gaussian.cov
        values = cov.eigenvalues.to(self.x.device).reshape(1, -1)
        outside = function(values.new_full((1, 1), cov.floor)).sum(-1)
        return function(values).sum(-1) + (self.dim - values.shape[-1]) * outside


def log_bins(x: Tensor, mean: Tensor, std: float, values: Tensor) -> Tensor:
    """log of the mass that N(mean, std^2) has nearer to x than to any other of the values, entry by entry.

    Ho et al. (2020), arXiv:2006.11239, eq. 13.
    """
    edges = (values[1:] + values[:-1]) / 2
    index = torch.searchsorted(edges, x.contiguous())
    infinite = edges.new_full((1,), math.inf)
    low, high = torch.cat([-infinite, edges])[index], torch.cat([edges, infinite])[index]
    low, high = (low - mean) / std, (high - mean) / std
    # the upper tail is turned into the lower one, where a difference of two small masses keeps its digits
    turned = low + high > 0
    low, high = torch.where(turned, -high, low), torch.where(turned, -low, high)
    top = torch.special.log_ndtr(high)
    return top + torch.log1p(-(torch.special.log_ndtr(low) - top).exp())
