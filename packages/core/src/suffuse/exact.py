r"""Denoisers in closed form: the truth that samplers, guidance and analysis are tested against.

A Gaussian N(mu, S) seen through x_t = alpha x_0 + sigma eps has the posterior mean

    D(x) = mu + alpha S (alpha^2 S + sigma^2 I)^-1 (x - alpha mu),

a mixture averages its components' D by their responsibilities, and the probability-flow ODE of a single Gaussian has a
closed-form solution. All of these are functions of the covariance's spectrum, so a covariance is kept as one:
eigenvectors U (absent when it is diagonal), eigenvalues, and a floor for the directions U leaves out.

Arithmetic is float64 inside. Wang, Vastola (2024), "The Unreasonable Effectiveness of Gaussian Score Approximation for
Diffusion Models", arXiv:2412.09726, eqs. 8-12; Karras et al. (2022), arXiv:2206.00364, app. B.3 for the empirical case.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .condition import Condition
from .denoiser import Denoiser
from .errors import InvalidArgument
from .random import Generators, randn
from .schedules import Level, Scalar, Schedule

__all__ = ["Covariance", "EmpiricalDenoiser", "GaussianDenoiser", "MixtureDenoiser", "StationaryCovariance"]


class Covariance:
    """K covariance matrices by their spectra: S_k = U_k diag(l_k) U_k^T + floor (I - U_k U_k^T).

    Args:
        eigenvalues: (K, r), not negative.
        basis: U, (K, d, r) with orthonormal columns; None for diagonal matrices, r = d.
        floor: variance of the directions outside of the basis.
    """

    def __init__(self, eigenvalues: Tensor, basis: Tensor | None = None, floor: float = 0.0) -> None:
        if not torch.isfinite(eigenvalues).all() or (eigenvalues < 0).any() or floor < 0:
            raise InvalidArgument("cov must be finite with eigenvalues >= 0; is the matrix a covariance?")
        self.eigenvalues, self.floor = eigenvalues.double(), float(floor)
        self.basis = None if basis is None else basis.double()
        self.dim = eigenvalues.shape[-1] if basis is None else basis.shape[-2]
        #: all bases beside one another, (d, K r): products with all of them are one
        self.stacked = None if self.basis is None else self.basis.permute(1, 0, 2).reshape(self.dim, -1)

    @classmethod
    def full(cls, matrix: Tensor) -> Covariance:
        """From symmetric positive semi-definite matrices (d, d) or (K, d, d)."""
        matrix = matrix.double()
        if matrix.ndim < 2 or matrix.shape[-1] != matrix.shape[-2]:
            raise InvalidArgument(f"cov must be (d, d) or (K, d, d), got {tuple(matrix.shape)}")
        if not torch.allclose(matrix, matrix.mT, atol=1e-8 * float(matrix.abs().max()) + 1e-12):
            raise InvalidArgument("cov must be symmetric")
        values, basis = torch.linalg.eigh(matrix.reshape(-1, *matrix.shape[-2:]))
        tolerance = 1e-10 * values.abs().amax()
        return cls(torch.where(values.abs() <= tolerance, values.clamp(min=0), values), basis)

    @classmethod
    def diagonal(cls, variances: Tensor) -> Covariance:
        """From variances (d,) or (K, d)."""
        return cls(variances.reshape(-1, variances.shape[-1]))

    @classmethod
    def low_rank(cls, basis: Tensor, eigenvalues: Tensor, noise_variance: float = 0.0) -> Covariance:
        """U diag(lam) U^T + s0^2 I, from U (K, d, r) orthonormal, lam (K, r) and s0^2."""
        return cls(eigenvalues.double() + noise_variance, basis, noise_variance)

    def apply(self, function: Callable[[Tensor], Tensor], y: Tensor) -> Tensor:
        """f(S_k) y_k for y (B, K, d), with f given on eigenvalues."""
        if self.basis is None:
            return function(self.eigenvalues) * y
        p = torch.einsum("kdr,bkd->bkr", self.basis, y)
        rest = function(y.new_full((), self.floor))
        return torch.einsum("kdr,bkr->bkd", self.basis, (function(self.eigenvalues) - rest) * p) + rest * y

    def project(self, x: Tensor, means: Tensor, alpha: Tensor) -> tuple[Tensor, Tensor]:
        """U_k^T y_k, (B, K, r), and |y_k|^2, (B, K), of y_k = x - alpha mu_k, for x (B, d) and alpha (B, 1, 1).

        With a basis the y_k themselves, (B, K, d), are never made.
        """
        if self.basis is None or self.stacked is None:
            y = x[:, None] - alpha * means
            return y, y.square().sum(-1)
        p = (x @ self.stacked).reshape(len(x), len(self.basis), -1) - alpha * torch.einsum(
            "kdr,kd->kr", self.basis.expand(len(means), -1, -1), means
        )
        scale = alpha[..., 0]
        square = x.square().sum(-1, keepdim=True) - 2 * scale * (x @ means.T) + scale**2 * means.square().sum(-1)
        return p, square

    def combine(self, c: Tensor) -> Tensor:
        """sum_k U_k c_k, (B, d), for c (B, K, r)."""
        if self.basis is None or self.stacked is None:
            return c.sum(1)
        c = c.sum(1, keepdim=True) if len(self.basis) == 1 else c
        return c.flatten(1) @ self.stacked.T

    def log_density(self, y: Tensor, alpha: Tensor, variance: Tensor) -> Tensor:
        """log N(y; 0, alpha^2 S_k + variance I), (B, K), for y (B, K, d) and alpha, variance (B, 1, 1)."""
        p = y if self.basis is None else torch.einsum("kdr,bkd->bkr", self.basis, y)
        return self.log_density_projected(p, y.square().sum(-1), alpha, variance)

    def log_density_projected(self, p: Tensor, square: Tensor, alpha: Tensor, variance: Tensor) -> Tensor:
        """The same from p = U_k^T y, (B, K, r), and |y|^2, (B, K)."""
        v = alpha**2 * self.eigenvalues + variance
        distance, log_det = (p.square() / v).sum(-1), v.log().sum(-1)
        if (left := self.dim - self.eigenvalues.shape[-1]) > 0:
            tail = (alpha**2 * self.floor + variance).squeeze(-1)
            outside = (square - p.square().sum(-1)).clamp(min=0)
            distance, log_det = distance + outside / tail, log_det + left * tail.log()
        return -0.5 * (distance + log_det + self.dim * math.log(2 * math.pi))

    def sqrt_times(self, z: Tensor, component: Tensor) -> Tensor:
        """S_k^(1/2) z for z (B, d) and a component index (B,)."""
        component = component % len(self.eigenvalues)  # one covariance may serve all components
        values = self.eigenvalues.sqrt()
        if self.basis is None or self.stacked is None:
            return values[component] * z
        rest = math.sqrt(self.floor)
        own = torch.nn.functional.one_hot(component, len(values))[..., None]
        p = (z @ self.stacked).reshape(len(z), *values.shape)
        return self.combine(own * (values - rest) * p) + rest * z

    def trace(self) -> Tensor:
        """The total variance of each, (K,)."""
        return self.eigenvalues.sum(-1) + (self.dim - self.eigenvalues.shape[-1]) * self.floor

    def to(self, device: torch.device) -> Covariance:
        if self.eigenvalues.device != device:
            self.eigenvalues = self.eigenvalues.to(device)
            self.basis = None if self.basis is None else self.basis.to(device)
            self.stacked = None if self.stacked is None else self.stacked.to(device)
        return self


class StationaryCovariance(Covariance):
    r"""A covariance that looks the same everywhere on a periodic grid: diagonal over frequencies, of any size.

    The basis is the Hartley transform Re F - Im F (F unitary; real, symmetric and its own inverse) of every channel,
    after a rotation V of the channels. Nothing of the size of a matrix on the event is ever made.

    Args:
        spectrum: variance of every frequency in the order of the FFT, (C, *spatial), not negative, even in frequency.
        rotation: V, (C, C) orthonormal; column c is the direction of spectrum[c].
    """

    def __init__(self, spectrum: Tensor, rotation: Tensor) -> None:
        super().__init__(spectrum.reshape(1, -1))
        self.event, self.rotation = spectrum.shape, rotation.double()

    def _hartley(self, y: Tensor) -> Tensor:
        """Of every channel, (..., C, *spatial)."""
        transformed = torch.fft.fftn(y, dim=tuple(range(1 - len(self.event), 0)), norm="ortho")
        return transformed.real - transformed.imag

    def _rotate(self, y: Tensor, rotation: Tensor) -> Tensor:
        return (rotation @ y.flatten(2)).reshape(y.shape)

    def analyse(self, y: Tensor) -> Tensor:
        """Coefficients U^T y for y (..., d)."""
        fields = y.reshape(-1, *self.event)
        return self._hartley(self._rotate(fields, self.rotation.T)).reshape(y.shape)

    def synthesise(self, p: Tensor) -> Tensor:
        """U p for p (..., d)."""
        return self._rotate(self._hartley(p.reshape(-1, *self.event)), self.rotation).reshape(p.shape)

    def apply(self, function: Callable[[Tensor], Tensor], y: Tensor) -> Tensor:
        return self.synthesise(function(self.eigenvalues) * self.analyse(y))

    def project(self, x: Tensor, means: Tensor, alpha: Tensor) -> tuple[Tensor, Tensor]:
        y, square = super().project(x, means, alpha)
        return self.analyse(y), square

    def combine(self, c: Tensor) -> Tensor:
        return self.synthesise(super().combine(c))

    def log_density(self, y: Tensor, alpha: Tensor, variance: Tensor) -> Tensor:
        return super().log_density(self.analyse(y), alpha, variance)

    def sqrt_times(self, z: Tensor, component: Tensor) -> Tensor:
        return self.synthesise(super().sqrt_times(self.analyse(z), component))

    def to(self, device: torch.device) -> Covariance:
        self.rotation = self.rotation.to(device)
        return super().to(device)


class MixtureDenoiser(Denoiser):
    r"""The exact denoiser of sum_k w_k N(mu_k, S_k):

        D(x) = sum_k r_k(x) D_k(x),   r = softmax_k(log w_k + log N(x; alpha mu_k, alpha^2 S_k + sigma^2 I)).

    Class-conditional when ``classes`` is given: a condition with tokens ``"class"`` (B, 1, C), one-hot (or any
    non-negative weights over classes), keeps only the modes of those classes; a masked token keeps all.

    Args:
        weights: (K,), positive; normalised here.
        means: (K, *event).
        cov: K covariances on the flattened event.
        schedule: the noise schedule.
        classes: (K,) integers, the class of each mode.
    """

    def __init__(
        self,
        weights: Tensor | Sequence[float],
        means: Tensor,
        cov: Covariance,
        schedule: Schedule,
        classes: Tensor | Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        weights = torch.as_tensor(weights, dtype=torch.float64)
        if weights.shape != means.shape[:1] or not (weights > 0).all():
            raise InvalidArgument(
                f"weights must be positive, one per mean; got {tuple(weights.shape)} for {len(means)}"
            )
        if means[0].numel() != cov.dim:
            raise InvalidArgument(f"means have {means[0].numel()} dimensions, cov has {cov.dim}")
        self.schedule, self.cov, self.event = schedule, cov, means.shape[1:]
        self.register_buffer("log_weights", (weights / weights.sum()).log())
        self.register_buffer("means", means.double().reshape(len(means), -1))
        self.membership: Tensor | None
        membership = None
        if classes is not None:
            index = torch.as_tensor(classes)
            membership = torch.nn.functional.one_hot(index, int(index.max()) + 1).double()
        self.register_buffer("membership", membership)

    log_weights: Tensor
    means: Tensor

    def _prior(self, x: Tensor, cond: Condition | None) -> Tensor:
        """log weights of the modes, (1, K) or (B, K)."""
        if cond is None or "class" not in cond.tokens:
            return self.log_weights[None]
        if self.membership is None:
            raise InvalidArgument("cond has a class, but this mixture was built without classes")
        cond.expect(len(x), tokens={"class": self.membership.shape[1]})
        wanted = cond.tokens["class"][:, 0].double() @ self.membership.T
        given = cond.masks["class"][:, :1]
        return self.log_weights + torch.where(given, wanted, torch.ones_like(wanted)).log()

    def _level(self, x: Tensor, t: Scalar) -> Level:
        like = x.double().reshape(len(x), 1, -1)
        level = self.schedule.level(t, like=like)
        if isinstance(level.alpha, Tensor):
            return level
        values = (level.t, level.alpha, level.sigma, level.dalpha, level.dsigma, level.log_kappa)
        return Level(*(like.new_full((1, 1, 1), value) for value in values))  # filled in, a GPU need not wait

    def _flat(self, x: Tensor) -> Tensor:
        if x.shape[1:] != self.event:
            raise InvalidArgument(f"x must be (B, {', '.join(map(str, self.event))}), got {tuple(x.shape)}")
        self.cov.to(x.device)
        return x.double().reshape(len(x), -1)

    def _log_joint(self, x: Tensor, level: Level, cond: Condition | None) -> Tensor:
        p, square = self.cov.project(self._flat(x), self.means, level.alpha)
        return self._prior(x, cond) + self.cov.log_density_projected(p, square, level.alpha, level.sigma**2)

    def responsibilities(self, x: Tensor, t: Scalar, cond: Condition | None = None) -> Tensor:
        """P(mode k | x_t), (B, K)."""
        return self._log_joint(x, self._level(x, t), cond).softmax(-1)

    def log_prob(self, x: Tensor, t: Scalar, cond: Condition | None = None) -> Tensor:
        """log p_t(x) in nats, (B,)."""
        prior = self._prior(x, cond)
        return self._log_joint(x, self._level(x, t), cond).logsumexp(-1) - prior.logsumexp(-1)

    def forward(self, x: Tensor, t: Scalar, cond: Condition | None = None) -> Tensor:
        level = self._level(x, t)
        alpha, variance = level.alpha, level.sigma**2

        def gain(s: Tensor) -> Tensor:
            return alpha * s / (alpha**2 * s + variance)

        flat = self._flat(x)
        p, square = self.cov.project(flat, self.means, alpha)
        r = (self._prior(x, cond) + self.cov.log_density_projected(p, square, alpha, variance)).softmax(-1)
        # D_k = mu_k + rest y_k + U_k (gain - rest) p_k: what lies outside of the basis has the floor's gain, rest
        rest = gain(p.new_full((1, 1, 1), self.cov.floor)) if self.cov.floor else p.new_zeros(1, 1, 1)
        inside = self.cov.combine(r[..., None] * (gain(self.cov.eigenvalues) - rest) * p)
        rest, scale = rest[..., 0], alpha[..., 0]
        mean = inside + rest * flat + (1 - scale * rest) * (r @ self.means)
        return mean.to(x.dtype).reshape(x.shape)

    def sample(self, n: int, generator: Generators = None, cond: Condition | None = None) -> Tensor:
        """n exact draws from the data distribution, (n, *event) float64."""
        prior = self._prior(self.means.new_empty(n, 1), cond).exp().expand(n, -1)
        uniform = torch.special.ndtr(randn((n, 1), generator, self.means.device, torch.float64))
        cumulative = prior.cumsum(-1) / prior.sum(-1, keepdim=True)
        component = torch.searchsorted(cumulative.contiguous(), uniform)[:, 0].clamp(max=prior.shape[1] - 1)
        z = randn((n, self.means.shape[1]), generator, self.means.device, torch.float64)
        x = self.means[component] + self.cov.to(z.device).sqrt_times(z, component)
        return x.reshape(n, *self.event)


class GaussianDenoiser(MixtureDenoiser):
    """The exact denoiser of N(mean, cov), with the exact solution of its probability-flow ODE.

    Args:
        mean: (*event).
        cov: one covariance on the flattened event; a tensor (d, d) is taken as a full matrix and (*event) as variances.
        schedule: the noise schedule.
    """

    def __init__(self, mean: Tensor, cov: Covariance | Tensor, schedule: Schedule) -> None:
        if isinstance(cov, Tensor):
            d = mean.numel()
            diagonal = cov.shape == mean.shape and not (cov.ndim == 2 and cov.shape == (d, d))
            cov = Covariance.diagonal(cov.reshape(1, -1)) if diagonal else Covariance.full(cov)
        super().__init__([1.0], mean[None], cov, schedule)

    def flow(self, x: Tensor, t: Scalar, s: Scalar) -> Tensor:
        """Where the probability-flow ODE carries x_t at level s:

        x_s = alpha_s mu + ((alpha_s^2 S + sigma_s^2)/(alpha_t^2 S + sigma_t^2))^(1/2) (x_t - alpha_t mu).
        """
        here, there = self._level(x, t), self._level(x, s)

        def ratio(v: Tensor) -> Tensor:
            return ((there.alpha**2 * v + there.sigma**2) / (here.alpha**2 * v + here.sigma**2)).sqrt()

        moved = there.alpha * self.means + self.cov.apply(ratio, self._flat(x)[:, None] - here.alpha * self.means)
        return moved.to(x.dtype).reshape(x.shape)


class EmpiricalDenoiser(MixtureDenoiser):
    """The exact denoiser of a finite data set: the optimum of the training loss, which memorises.

    Args:
        data: (N, *event).
        schedule: the noise schedule.
        classes: (N,) integers, for class-conditional denoising.
    """

    def __init__(self, data: Tensor, schedule: Schedule, classes: Tensor | Sequence[int] | None = None) -> None:
        if len(data) == 0:
            raise InvalidArgument("data is empty; give at least one sample (N, *event)")
        dim = data[0].numel()
        super().__init__(torch.ones(len(data)), data, Covariance.diagonal(torch.zeros(1, dim)), schedule, classes)

    def forward(self, x: Tensor, t: Scalar, cond: Condition | None = None) -> Tensor:
        level = self._level(x, t)
        flat = x.double().reshape(len(x), -1)
        alpha, sigma = level.alpha[..., 0], level.sigma[..., 0]
        distance = torch.cdist(flat, alpha * self.means) if alpha.numel() == 1 else None
        if distance is None:  # |x - alpha m|^2 with a time per sample
            square = flat.square().sum(-1, keepdim=True) - 2 * alpha * flat @ self.means.T
            square = square + alpha**2 * self.means.square().sum(-1)
        else:
            square = distance.square()
        r = (self._prior(x, cond) - square / (2 * sigma**2)).softmax(-1)
        return (r @ self.means).to(x.dtype).reshape(x.shape)
