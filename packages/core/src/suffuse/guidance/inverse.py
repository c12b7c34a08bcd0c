r"""Inverse problems: guidance by a measurement y = A x_0 + s z of a linear operator A.

What a sampler then needs is E[x_0 | x_t, y]. If x_0 given x_t were Gaussian with mean D and covariance V, it would be

    D_y = D + V A^T (A W A^T + s^2)^-1 (y - A D),     W = V,     V = (sigma^2 / alpha) dD/dx    (Tweedie),

which is exact for Gaussian data, and so are then the posterior's samples. The methods differ in W alone:

    jacobian    W = V               moment matching: Rozet et al. (2024), arXiv:2405.13712, eqs. 13-16
    isotropic   W = r_t^2 I         PiGDM: Song et al. (2023), "Pseudoinverse-guided diffusion models", ICLR, eq. 7
    none        W = 0               DPS with the likelihood's own weight: Chung et al. (2023), arXiv:2209.14687, eq. 11

with r_t^2 = sigma^2 / (alpha^2 + sigma^2), which is the spread of white data of variance 1: where the data vary more
than that in some direction, the isotropic correction is too large there and can diverge. :class:`DataConsistency`
replaces D by the point nearest to it that fits y, without derivatives: the proximal step of DDS, Chung et al. (2024),
arXiv:2303.05754.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Protocol, get_args

import torch
from torch import Tensor

from ..condition import Condition
from ..denoiser import Denoiser
from ..errors import InvalidArgument, unknown
from ..schedules import Scalar

__all__ = ["DataConsistency", "LinearOperator", "Measured", "conjugate_gradient"]

Spread = Literal["jacobian", "isotropic", "none"]


class LinearOperator(Protocol):
    """A linear map of real batches, x (B, *event) -> y (B, *measured), with its adjoint: <A x, y> = <x, A^T y>."""

    def __call__(self, x: Tensor, /) -> Tensor: ...

    def adjoint(self, y: Tensor, /) -> Tensor: ...


def conjugate_gradient(
    function: Callable[[Tensor], Tensor], b: Tensor, start: Tensor | None = None, iterations: int = 10
) -> Tensor:
    """The solution of M u = b for every row of a batch, M symmetric and not negative; no row waits for another.

    Args:
        function: u -> M u, on batches like b.
        b: (B, ...).
        start: the first guess; default zero.
        iterations: a fixed number; rows that are solved stay as they are.
    """
    axes = tuple(range(1, b.ndim))
    u = torch.zeros_like(b) if start is None else start
    residual = b if start is None else b - function(u)
    direction, square = residual, residual.square().sum(axes, keepdim=True)
    # below this the residual is rounding, and following it would leave the range of M
    floor = torch.finfo(b.dtype).eps ** 1.5 * b.square().sum(axes, keepdim=True)
    for _ in range(iterations):
        moved = function(direction)
        curvature = (direction * moved).sum(axes, keepdim=True)
        go = (square > floor) & (curvature > 0)
        step = torch.where(go, square / torch.where(go, curvature, 1.0), 0.0)
        u, residual = u + step * direction, residual - step * moved
        last, square = square, residual.square().sum(axes, keepdim=True)
        direction = residual + torch.where(go, square / torch.where(go, last, 1.0), 0.0) * direction
    return u


class Measured(Denoiser):
    """E[x_0 | x_t, y], exact for Gaussian data (``spread="jacobian"``).

    Args:
        denoiser: of the prior; differentiable in x unless the operator is trivial.
        operator: A.
        y: the measurement, one row per sample or one for all.
        noise_std: s, the standard deviation of the measurement's noise; may be 0 except with ``spread="none"``.
        spread: W, see the module.
        iterations: of the conjugate gradients; each costs a derivative of the denoiser with ``"jacobian"``.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        operator: LinearOperator,
        y: Tensor,
        noise_std: float = 0.0,
        spread: Spread = "jacobian",
        iterations: int = 10,
    ) -> None:
        super().__init__()
        if spread not in get_args(Spread):
            raise unknown("spread", spread, get_args(Spread))
        if noise_std < 0 or (spread == "none" and noise_std == 0):
            raise InvalidArgument(f"noise_std must be positive (0 only with a spread), got {noise_std}")
        if not bool(torch.isfinite(y).all()):
            raise InvalidArgument("y has NaN or infinite values; mask them out in the operator instead")
        self.denoiser, self.schedule = denoiser, denoiser.schedule
        self.operator, self.y, self.noise_std = operator, y, noise_std
        self.spread, self.iterations = spread, iterations

    def forward(self, x: Tensor, t: Scalar, cond: Condition | None = None) -> Tensor:
        level = self.schedule.level(t, like=x)
        if torch.is_inference_mode_enabled():
            raise InvalidArgument("guidance here needs gradients; use torch.no_grad(), not torch.inference_mode()")
        with torch.enable_grad():
            at = x.detach().requires_grad_()
            mean = self.denoiser(at, t, cond)

            def covariance(v: Tensor) -> Tensor:
                """V v; the Jacobian of a posterior mean is symmetric."""
                (product,) = torch.autograd.grad(mean, at, v, retain_graph=True)
                return level.sigma**2 / level.alpha * product

            isotropic = level.sigma**2 / (level.alpha**2 + level.sigma**2)

            def gram(u: Tensor) -> Tensor:
                noise = self.noise_std**2 * u
                if self.spread == "none":
                    return noise
                back = self.operator.adjoint(u)
                spread = covariance(back) if self.spread == "jacobian" else isotropic * back
                return self.operator(spread) + noise

            residual = self.y.to(x) - self.operator(mean.detach())
            weights = conjugate_gradient(gram, residual, iterations=self.iterations)
            return mean.detach() + covariance(self.operator.adjoint(weights))


class DataConsistency(Denoiser):
    """The point near the posterior mean D that fits the measurement,

        noise-free:  conjugate gradients on A^T A x = A^T y, from D, a few iterations,
        noisy:       (I + gamma A^T A) x = D + gamma A^T y.

    Args:
        denoiser: of the prior; never differentiated.
        operator: A.
        y: the measurement, one row per sample or one for all.
        gamma: trust in a noisy measurement; None for a noise-free one.
        iterations: of the conjugate gradients.
    """

    def __init__(
        self, denoiser: Denoiser, operator: LinearOperator, y: Tensor, gamma: float | None = None, iterations: int = 5
    ) -> None:
        super().__init__()
        if gamma is not None and gamma <= 0:
            raise InvalidArgument(f"gamma must be positive, got {gamma}; pass None for noise-free measurements")
        if not bool(torch.isfinite(y).all()):
            raise InvalidArgument("y has NaN or infinite values; mask them out in the operator instead")
        self.denoiser, self.schedule = denoiser, denoiser.schedule
        self.operator, self.y, self.gamma, self.iterations = operator, y, gamma, iterations

    def consistent(self, mean: Tensor) -> Tensor:
        """The measurement's correction of a posterior mean."""
        back = self.operator.adjoint(self.y.to(mean)).expand_as(mean)

        def normal(v: Tensor) -> Tensor:
            return self.operator.adjoint(self.operator(v))

        if self.gamma is None:
            return conjugate_gradient(normal, back, mean, self.iterations)
        gamma = self.gamma
        return conjugate_gradient(lambda v: v + gamma * normal(v), mean + gamma * back, mean, self.iterations)

    def forward(self, x: Tensor, t: Scalar, cond: Condition | None = None) -> Tensor:
        return self.consistent(self.denoiser(x, t, cond))
