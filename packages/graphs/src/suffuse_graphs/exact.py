"""The exact denoiser of a sheaf Gaussian field: a rational filter of the sheaf Laplacian.

Prior on the stalks of n nodes, smooth along the sheaf: x_0 ~ N(0, c (Delta + kappa I)^(-1)). Seen as
x_t = alpha x_0 + sigma eps,

    E[x_0 | x_t] = alpha c ( alpha^2 c I + sigma^2 (Delta + kappa I) )^(-1) x_t.

The spectrum of the system lies in [alpha^2 c + sigma^2 kappa, alpha^2 c + sigma^2 (kappa + 2)], so Chebyshev
iteration with a fixed number of steps solves it: no matrix, no inner products, no waiting for the device, one product
with Delta per step. All identity maps give the denoiser of an ordinary graph Gaussian field (a Laplacian smoother).

The classical counterpart of the learned denoisers of this package, and a truth for every sampler on graphs.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from suffuse import Condition, Denoiser
from suffuse.errors import InvalidArgument
from suffuse.schedules import Scalar, Schedule

from .sheaf import SheafLaplacian


class SheafGaussianDenoiser(Denoiser):
    """E[x_0 | x_t] for x (B, d, n): a vector of the stalk R^d at each of n nodes.

    Args:
        laplacian: Delta, normalised, of a sheaf that does not depend on x.
        schedule: the noise schedule.
        variance: c > 0.
        kappa: > 0, the inverse of the squared correlation length; small means smooth.
        tol: relative error of the solve, which sets the number of Chebyshev steps.
    """

    def __init__(
        self,
        laplacian: SheafLaplacian,
        schedule: Schedule,
        variance: float = 1.0,
        kappa: float = 0.1,
        tol: float = 1e-6,
    ) -> None:
        super().__init__()
        if variance <= 0 or kappa <= 0:
            raise InvalidArgument(f"variance and kappa must be positive, got {variance} and {kappa}")
        if laplacian.normalization == "none":
            raise InvalidArgument(
                "laplacian must be normalised ('augmented' or 'symmetric'): its spectrum must lie in [0, 2]"
            )
        self.laplacian, self.schedule, self.variance, self.kappa = laplacian, schedule, variance, kappa
        worst = (kappa + 2) / kappa  # condition number at pure noise
        self.iterations = max(1, math.ceil(math.log(2 / tol) * math.sqrt(worst) / 2))

    def forward(self, x: Tensor, t: Scalar, cond: Condition | None = None) -> Tensor:
        n, d = self.laplacian.sheaf.graph.num_nodes, self.laplacian.sheaf.stalk_dim
        if x.dim() != 3 or x.shape[1:] != (d, n):
            raise InvalidArgument(f"x must be (B, d, n) = (B, {d}, {n}), got {tuple(x.shape)}")
        level = self.schedule.level(t, like=x[:, 0, 0])  # per sample: (B,), or numbers
        signal, noise = level.alpha**2 * self.variance, level.sigma**2
        y = x.permute(2, 1, 0).to(self.laplacian.sheaf.maps.dtype)  # (n, d, B): samples are channels of the operator
        system = lambda z: (signal + noise * self.kappa) * z + noise * (self.laplacian @ z)  # noqa: E731
        low, high = signal + noise * self.kappa, signal + noise * (self.kappa + 2)
        mean = level.alpha * self.variance * chebyshev_solve(system, y, low, high, self.iterations)
        return mean.permute(2, 1, 0).to(x.dtype)

    def covariance(self) -> Tensor:
        """(d n, d n) float64 covariance c (Delta + kappa I)^(-1) of x_0.flatten(), for small graphs."""
        n, d = self.laplacian.sheaf.graph.num_nodes, self.laplacian.sheaf.stalk_dim
        dense = self.laplacian.dense().double().view(n, d, n, d).permute(1, 0, 3, 2).reshape(d * n, d * n)
        return self.variance * torch.linalg.inv(dense + self.kappa * torch.eye(d * n, dtype=dense.dtype))


def bayes_error(covariance: Tensor, noise: float) -> float:
    """Smallest mean squared error per number of x ~ N(0, covariance) seen as x + noise eps."""
    values = torch.linalg.eigvalsh(covariance.double())
    return float((values * noise**2 / (values + noise**2)).mean())


def filter_error(L: Tensor, covariance: Tensor, noise: float, degree: int) -> float:
    """Smallest mean squared error per number that any p(L) y, p a polynomial, reaches in the place of the denoiser.

    In the eigenbasis of L (n, n) this is least squares for p at the eigenvalues, weighted by the power of y:

        E ||p(L) y - x||^2 = sum_i (a_i p_i^2 - 2 b_i p_i) + tr S,   b = diag(U^T S U),   a = b + noise^2.

    Degree 0 is shrinkage that knows no graph; what no degree mends is what L does not know about S.
    """
    values, U = torch.linalg.eigh(L.double())
    S = covariance.double()
    b = ((U.mT @ S) * U.mT).sum(1)
    a = b + noise**2
    middle, half = (values[0] + values[-1]) / 2, ((values[-1] - values[0]) / 2).clamp_min(1e-12)
    angle = ((values - middle) / half).clamp(-1, 1).arccos()
    V = torch.cos(angle[:, None] * torch.arange(degree + 1))  # Chebyshev polynomials: a basis that stays well posed
    p = V @ torch.linalg.lstsq(a.sqrt()[:, None] * V, (b / a.sqrt())[:, None], driver="gelsd").solution[:, 0]
    return float(((a * p - 2 * b) * p).sum() + S.trace()) / len(S)


def chebyshev_solve(A: Callable[[Tensor], Tensor], b: Tensor, low: Scalar, high: Scalar, iterations: int) -> Tensor:
    """x with A x = b for a symmetric A whose eigenvalues lie in [low, high]; low and high may differ per column of b.

    Error falls by (sqrt(q) - 1) / (sqrt(q) + 1) per step, q = high / low. Saad (2003), "Iterative Methods for Sparse
    Linear Systems", algorithm 12.1.
    """
    theta, delta = (high + low) / 2, (high - low) / 2
    slope = theta / delta
    rho = 1 / slope
    x, residual = torch.zeros_like(b), b
    step = b / theta
    for _ in range(iterations):
        x = x + step
        residual = residual - A(step)
        rho_next = 1 / (2 * slope - rho)
        step = rho_next * rho * step + 2 * rho_next / delta * residual
        rho = rho_next
    return x + step
