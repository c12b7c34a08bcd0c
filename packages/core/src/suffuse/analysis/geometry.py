r"""The local geometry of a learned score: is it a gradient, and is it consistent in time?

All in the coordinates y = x / alpha of any schedule, with s(y, kappa) = (D - y) / kappa^2:

    asymmetry        |J - J^T| / |J|,  J = dD/dy: zero for a gradient field (the exact denoiser's J is symmetric)
    Fokker-Planck    ds/dtau - grad(div s + |s|^2),  tau = kappa^2 / 2: zero for the score of a diffused density.

Horvat, Pfister (2024), "On Gauge Freedom, Conservativity and Intrinsic Dimensionality Estimation in Diffusion Models",
arXiv:2402.03845; Deveney et al. (2023), "Closing the ODE-SDE gap in score-based diffusion models", arXiv:2311.15996.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..condition import Condition
from ..denoiser import Denoiser
from ..errors import InvalidArgument

__all__ = ["asymmetry", "fokker_planck_residual", "jacobian", "mean_at", "probe_vectors"]


def mean_at(denoiser: Denoiser, y: Tensor, kappa: float | Tensor, cond: Condition | None = None) -> Tensor:
    """D at y = x / alpha, (B, *event), for one noise level or one for each row, (B,)."""
    schedule = denoiser.schedule
    if not isinstance(kappa, Tensor):
        t = schedule.t_of_kappa(float(kappa))
        return denoiser(schedule.alpha(t) * y, t, cond)
    time = schedule.t_of_kappa(kappa.double())
    alpha = schedule.alpha(time).to(y.dtype).reshape(-1, *(1,) * (y.ndim - 1))
    return denoiser(alpha * y, time, cond)


def probe_vectors(like: Tensor, probes: int | None, generator: torch.Generator | None = None) -> Tensor:
    """Vectors v, (V, *like.shape), with sum_v v^T J v = tr J: the axes, or on average ``probes`` random signs."""
    if probes is None:
        axes = torch.eye(like[0].numel(), dtype=like.dtype, device=like.device)
        return axes.reshape(-1, 1, *like.shape[1:]).expand(-1, *like.shape)
    if probes < 1:
        raise InvalidArgument(f"probes must be at least 1, or None for exact derivatives; got {probes}")
    signs = torch.randint(0, 2, (probes, *like.shape), generator=generator, device=like.device)
    return (2 * signs - 1).to(like.dtype) / probes**0.5


def jacobian(denoiser: Denoiser, y: Tensor, kappa: float, cond: Condition | None = None) -> Tensor:
    """dD/dy at y (B, *event), flattened: (B, d, d), with row i the derivative of output i. d derivatives."""
    with torch.enable_grad():
        at = y.detach().requires_grad_()
        mean = mean_at(denoiser, at, kappa, cond).reshape(len(y), -1)
        rows = [
            torch.autograd.grad(mean[:, i].sum(), at, retain_graph=True)[0].reshape(len(y), -1)
            for i in range(mean.shape[1])
        ]
    return torch.stack(rows, dim=1)


def asymmetry(denoiser: Denoiser, y: Tensor, kappa: float, cond: Condition | None = None) -> Tensor:
    """|J - J^T| / |J| in Frobenius norm, (B,); 0 for a conservative field, at most 2."""
    j = jacobian(denoiser, y, kappa, cond)
    return (j - j.mT).flatten(1).norm(dim=1) / j.flatten(1).norm(dim=1)


def fokker_planck_residual(
    denoiser: Denoiser,
    y: Tensor,
    kappa: Tensor,
    cond: Condition | None = None,
    create_graph: bool = False,
    probes: int | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """kappa^3 (ds/dtau - grad(div s + |s|^2)) at points y with a noise level each; (B, *event).

    The factor makes the residual of order one at every noise level.

    Args:
        denoiser: its operations must be twice differentiable (smooth activations).
        y: points x / alpha, (B, *event).
        kappa: (B,).
        cond: condition of B rows.
        create_graph: keep the graph, to train with the residual.
        probes: None takes the divergence exactly, with d derivatives; a number takes as many random directions
            (Hutchinson), which gives an unbiased estimate of the residual, for d > 3 or so.
        generator: of the directions.
    """
    with torch.enable_grad():
        at, level = y.detach().requires_grad_(), kappa.detach().requires_grad_()
        scale = level.reshape(-1, *(1,) * (y.ndim - 1))
        s = (mean_at(denoiser, at, level, cond) - at) / scale**2
        divergence = torch.zeros((), dtype=y.dtype, device=y.device)
        for v in probe_vectors(y, probes, generator):
            (row,) = torch.autograd.grad((s * v).sum(), at, create_graph=True)
            divergence = divergence + (row * v).sum()
        (space,) = torch.autograd.grad(divergence + s.square().sum(), at, create_graph=True)
        # ds/dkappa for every component at once: the derivative of a vector-Jacobian product with respect to its vector
        v = torch.zeros_like(s, requires_grad=True)
        (along,) = torch.autograd.grad(s, level, v, create_graph=True)
        (time,) = torch.autograd.grad(along.sum(), v, create_graph=True)
        residual = scale**3 * (time / scale - space)
    return residual if create_graph else residual.detach()
