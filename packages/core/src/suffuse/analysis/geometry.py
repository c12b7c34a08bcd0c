r"""The local geometry of a learned score: is it a gradient, is it consistent in time, how many dimensions has the data?

All in the coordinates y = x / alpha of any schedule, with s(y, kappa) = (D - y) / kappa^2:

    asymmetry        |J - J^T| / |J|,  J = dD/dy: zero for a gradient field (the exact denoiser's J is symmetric)
    Fokker-Planck    ds/dtau - grad(div s + |s|^2),  tau = kappa^2 / 2: zero for the score of a diffused density
    dimension        d minus the number of large singular values of scores stacked around a point: those span the
                     normal space of the data manifold
    FLIPD            d + kappa^2 (div s + |s|^2): the rate at which log p falls with the noise.

A field that is not the score may still sample exactly: adding A grad log p, A antisymmetric, leaves the marginals as
they are.
Horvat, Pfister (2024), "On Gauge Freedom, Conservativity and Intrinsic Dimensionality Estimation in Diffusion Models",
arXiv:2402.03845; Deveney et al. (2023), "Closing the ODE-SDE gap in score-based diffusion models", arXiv:2311.15996.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..condition import Condition
from ..denoiser import Denoiser
from ..errors import InvalidArgument

__all__ = ["asymmetry", "flipd", "fokker_planck_residual", "intrinsic_dimension", "jacobian"]


def jacobian(denoiser: Denoiser, y: Tensor, kappa: float, cond: Condition | None = None) -> Tensor:
    """dD/dy at y (B, *event), flattened: (B, d, d), with row i the derivative of output i. d derivatives."""
    with torch.enable_grad():
        at = y.detach().requires_grad_()
        mean = _mean(denoiser, at, kappa, cond).reshape(len(y), -1)
        rows = [
            torch.autograd.grad(mean[:, i].sum(), at, retain_graph=True)[0].reshape(len(y), -1)
            for i in range(mean.shape[1])
        ]
    return torch.stack(rows, dim=1)


def asymmetry(denoiser: Denoiser, y: Tensor, kappa: float, cond: Condition | None = None) -> Tensor:
    """|J - J^T| / |J| in Frobenius norm, (B,); 0 for a conservative field, at most 2."""
    j = jacobian(denoiser, y, kappa, cond)
    return (j - j.mT).flatten(1).norm(dim=1) / j.flatten(1).norm(dim=1)


def flipd(denoiser: Denoiser, y: Tensor, kappa: float, cond: Condition | None = None) -> Tensor:
    """d + kappa^2 (div s + |s|^2), (B,): the local dimension seen at scale kappa. Report it as a curve over kappa."""
    j = jacobian(denoiser, y, kappa, cond)
    d = j.shape[-1]
    with torch.no_grad():
        s = (_mean(denoiser, y, kappa, cond) - y).flatten(1) / kappa**2
    divergence = (j.diagonal(dim1=1, dim2=2).sum(1) - d) / kappa**2
    return d + kappa**2 * (divergence + s.square().sum(1))


@torch.no_grad()
def intrinsic_dimension(
    denoiser: Denoiser,
    x0: Tensor,
    kappa: float,
    samples: int | None = None,
    cond: Condition | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """The dimension of the data around each point, (B,) int64, from the largest gap of singular values of scores.

    Args:
        denoiser: exact or trained.
        x0: points on the data, (B, *event).
        kappa: noise level; well below the curvature of the data and above the noise off it.
        samples: perturbations a point; default 4 d.
        cond: condition of B rows.
        generator: of the perturbations.
    """
    d = x0[0].numel()
    n = samples or 4 * d
    if n < d:
        raise InvalidArgument(f"samples must be at least the dimension {d}, got {n}")
    y = x0.repeat_interleave(n, 0)
    y = y + kappa * torch.randn(y.shape, generator=generator, device=y.device, dtype=y.dtype)
    scores = (_mean(denoiser, y, kappa, None if cond is None else cond.repeat(n)) - y) / kappa
    scores = scores.reshape(len(x0), n, d).double()
    # the score at the point itself is shared by all and may lie along the data: take it out
    values = torch.linalg.svdvals(scores - scores.mean(1, keepdim=True))
    return d - 1 - (values[:, :-1] - values[:, 1:]).argmax(1)


def fokker_planck_residual(
    denoiser: Denoiser,
    y: Tensor,
    kappa: Tensor,
    cond: Condition | None = None,
    create_graph: bool = False,
) -> Tensor:
    """kappa^3 (ds/dtau - grad(div s + |s|^2)) at points y with a noise level each; (B, *event).

    The factor makes the residual of order one at every noise level. d derivatives of second order: for few dimensions.

    Args:
        denoiser: its operations must be twice differentiable (smooth activations).
        y: points x / alpha, (B, *event).
        kappa: (B,).
        cond: condition of B rows.
        create_graph: keep the graph, to train with the residual.
    """
    with torch.enable_grad():
        at, level = y.detach().requires_grad_(), kappa.detach().requires_grad_()
        scale = level.reshape(-1, *(1,) * (y.ndim - 1))
        s = (_mean(denoiser, at, level, cond) - at) / scale**2
        flat = s.reshape(len(y), -1)
        divergence = torch.zeros(len(y), dtype=y.dtype, device=y.device)
        for i in range(flat.shape[1]):
            (row,) = torch.autograd.grad(flat[:, i].sum(), at, create_graph=True)
            divergence = divergence + row.reshape(len(y), -1)[:, i]
        (space,) = torch.autograd.grad((divergence + flat.square().sum(1)).sum(), at, create_graph=True)
        # ds/dkappa for every component at once: the derivative of a vector-Jacobian product with respect to its vector
        v = torch.zeros_like(s, requires_grad=True)
        (along,) = torch.autograd.grad(s, level, v, create_graph=True)
        (time,) = torch.autograd.grad(along.sum(), v, create_graph=True)
        residual = scale**3 * (time / scale - space)
    return residual if create_graph else residual.detach()


def _mean(denoiser: Denoiser, y: Tensor, kappa: float | Tensor, cond: Condition | None) -> Tensor:
    """D at y = x / alpha."""
    schedule = denoiser.schedule
    if not isinstance(kappa, Tensor):
        t = schedule.t_of_kappa(float(kappa))
        return denoiser(schedule.alpha(t) * y, t, cond)
    time = schedule.t_of_kappa(kappa.double())
    alpha = schedule.alpha(time).to(y.dtype).reshape(-1, *(1,) * (y.ndim - 1))
    return denoiser(alpha * y, time, cond)
