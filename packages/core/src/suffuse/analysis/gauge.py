r"""Gauge freedom: the part of a learned field that does nothing to the distribution it samples.

At a noise level, with y ~ p and the score s(y) = (D - y) / kappa^2, every field splits orthogonally in L2(p),

    s = grad phi + r,     E_p[r . grad psi] = 0 for every psi,     phi = argmin E_p |s - grad phi|^2.

The remainder r satisfies div(p r) = 0: it stirs p without changing it. So sampling is exact if and only if grad phi is
grad log p, whatever r is; A grad log p with a constant antisymmetric A is such an r for every p.
Horvat, Pfister (2024), "On Gauge Freedom, Conservativity and Intrinsic Dimensionality Estimation in Diffusion Models",
arXiv:2402.03845, sec. 3.

phi is found by two linear solves. Its quadratic part, grad phi = B (y - m) + c with symmetric B, solves B S + S B =
M + M^T with S the covariance of y and M that of (s, y). The rest is a sum of random waves a_j cos(w_j . y + b_j)
(Rahimi, Recht 2007), for which the products of gradients are (w_j . w_k) E[sin_j sin_k].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..condition import Condition
from ..denoiser import Denoiser
from ..errors import InvalidArgument
from ..schedules import Scalar
from .geometry import asymmetry, mean_at

__all__ = ["Gauge", "Gauged", "Potential", "split_gauge"]


class Gauged(Denoiser):
    """The denoiser whose score is s + A s, that is D + A (D - x / alpha): it moves every sample and samples the same p.

    Args:
        denoiser: any denoiser.
        matrix: A, (d, d), antisymmetric, on the flattened event.
    """

    def __init__(self, denoiser: Denoiser, matrix: Tensor) -> None:
        super().__init__()
        if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not torch.allclose(matrix, -matrix.T):
            raise InvalidArgument(
                f"matrix must be antisymmetric, (d, d) with A^T = -A, got {tuple(matrix.shape)}; use a - a.T"
            )
        self.denoiser, self.schedule = denoiser, denoiser.schedule
        self.register_buffer("matrix", matrix)

    matrix: Tensor

    def forward(self, x: Tensor, t: Scalar, cond: Condition | None = None) -> Tensor:
        mean = self.denoiser(x, t, cond)
        pull = (mean - x / self.schedule.level(t, like=x).alpha).reshape(len(x), -1)
        return mean + (pull @ self.matrix.to(x.dtype).T).reshape(x.shape)


@dataclass(frozen=True)
class Potential:
    """grad phi(y) = B (y - m) + c - sum_j a_j sin(w_j . (y - m) + b_j) w_j, a function of y (B, *event)."""

    mean: Tensor
    matrix: Tensor
    constant: Tensor
    waves: Waves
    amplitudes: Tensor

    def __call__(self, y: Tensor) -> Tensor:
        flat = y.double().reshape(len(y), -1) - self.mean
        gradient = flat @ self.matrix + self.constant + self.waves.gradient(flat, self.amplitudes)
        return gradient.to(y.dtype).reshape(y.shape)


@dataclass(frozen=True)
class Waves:
    """psi_j(y) = cos(w_j . y + b_j), whose gradient is -sin(w_j . y + b_j) w_j; frequencies (M, d), phases (M,)."""

    frequencies: Tensor
    phases: Tensor

    @classmethod
    def draw(cls, count: int, scales: tuple[float, float], like: Tensor, generator: torch.Generator | None) -> Waves:
        """Wave lengths spread evenly in the logarithm over ``scales``, in all directions."""
        options: dict[str, Any] = {"generator": generator, "device": like.device, "dtype": like.dtype}
        short, long = scales
        length = short * (long / short) ** torch.rand(count, 1, **options)
        frequencies = torch.randn(count, like.shape[1], **options) / length
        return cls(frequencies, 2 * torch.pi * torch.rand(count, **options))

    def sin(self, y: Tensor) -> Tensor:
        return (y @ self.frequencies.T + self.phases).sin()

    def gradient(self, y: Tensor, amplitudes: Tensor) -> Tensor:
        """grad sum_j a_j psi_j, (B, d)."""
        return -(self.sin(y) * amplitudes) @ self.frequencies

    def products(self, y: Tensor) -> Tensor:
        """E[grad psi_j . grad psi_k], (M, M)."""
        sin = self.sin(y)
        return sin.T @ sin / len(y) * (self.frequencies @ self.frequencies.T)

    def along(self, y: Tensor, field: Tensor) -> Tensor:
        """E[field . grad psi_j], (M,), for a field (B, d)."""
        return -(self.sin(y) * (field @ self.frequencies.T)).mean(0)


@dataclass(frozen=True)
class Gauge:
    """What ``split_gauge`` found; all expectations over points that were not used in the fit.

    Attributes:
        share: E|r|^2 / E|s|^2 in [0, 1]: 0 for a gradient, 1 for a pure gauge. Gradients that the potential cannot
            express count as remainder, so it is an upper bound, tight in few dimensions.
        divergence: the largest correlation |E[r . grad psi]| / (E|r|^2 E|grad psi|^2)^(1/2) with 64 new waves psi; zero
            if r leaves p unchanged.
        noise: what ``divergence`` would be about for a perfect r, from the finite number of points.
        asymmetry: mean of |J - J^T| / |J|.
        conservative: grad phi, a function of y = x / alpha.
    """

    share: float
    divergence: float
    noise: float
    asymmetry: float
    conservative: Potential


@torch.no_grad()
def split_gauge(
    denoiser: Denoiser,
    x0: Tensor,
    kappa: float,
    cond: Condition | None = None,
    waves: int = 512,
    generator: torch.Generator | None = None,
) -> Gauge:
    """Split the score at a noise level into a gradient and a gauge.

    Args:
        denoiser: exact or trained.
        x0: clean data (N, *event), N some thousands: three quarters for the fit, a quarter to judge it.
        kappa: noise level; p is the density of x_0 + kappa eps.
        cond: condition of N rows.
        waves: number of random waves in the potential; more for more structure, fewer than N.
        generator: of noise and waves.

    Raises:
        InvalidArgument: for too few samples.
    """
    if len(x0) < 4 * max(x0[0].numel(), 16):
        raise InvalidArgument(f"x0 has {len(x0)} samples; give at least {4 * max(x0[0].numel(), 16)}")
    if kappa <= 0 or waves < 1:
        raise InvalidArgument(f"need kappa > 0 and waves >= 1, got kappa={kappa}, waves={waves}")
    noisy = x0 + kappa * torch.randn(x0.shape, generator=generator, device=x0.device, dtype=x0.dtype)
    y = noisy.double().reshape(len(x0), -1)
    s = (mean_at(denoiser, noisy, kappa, cond).double().reshape(len(x0), -1) - y) / kappa**2
    half = 3 * len(x0) // 4
    potential = _fit(y[:half], s[:half], waves, kappa, generator)
    y, s = y[half:], s[half:]
    r = s - potential(y)
    spread = float(y.std(0).norm())
    probes = Waves.draw(64, (kappa, 2 * spread), y, generator)
    size = (r.square().sum(1).mean() * probes.products(y).diagonal()).sqrt()
    correlation = probes.along(y, r).abs() / size
    some = slice(half, half + 64)
    tilt = asymmetry(denoiser, noisy[some], kappa, None if cond is None else cond[some])
    return Gauge(
        share=float(r.square().sum() / s.square().sum()),
        divergence=float(correlation.max()),
        noise=(2 * torch.tensor(64.0).log().item() / len(y)) ** 0.5,  # the largest of 64 normal deviates
        asymmetry=float(tilt.mean()),
        conservative=potential,
    )


def _fit(y: Tensor, s: Tensor, count: int, kappa: float, generator: torch.Generator | None) -> Potential:
    """The potential that minimises E|s - grad phi|^2 over rows of y and s, (N, d) float64.

    Two thirds of them give the equations; the ridge is the one that is best on the others.
    """
    n = 2 * len(y) // 3
    mean, constant = y[:n].mean(0), s[:n].mean(0)
    y = y - mean
    values, basis = torch.linalg.eigh(y[:n].T @ y[:n] / n)
    moment = basis.T @ (s[:n] - constant).T @ y[:n] @ basis / n
    # in the basis of S the equation B S + S B = M + M^T holds entry by entry
    matrix = basis @ ((moment + moment.T) / (values[:, None] + values)) @ basis.T
    rest = s - constant - y @ matrix
    waves = Waves.draw(count, (kappa, 2 * float(values.sum().sqrt())), y, generator)
    scale, modes = torch.linalg.eigh(waves.products(y[:n]))
    along = modes.T @ waves.along(y[:n], rest[:n])
    trials = [modes @ (along / (scale.clamp(min=0) + ridge * scale[-1])) for ridge in torch.logspace(-9, 0, 19)]
    errors = [(rest[n:] - waves.gradient(y[n:], a)).square().sum() for a in trials]
    return Potential(mean, matrix, constant, waves, trials[int(torch.stack(errors).argmin())])
