"""Orthogonal matrices from free numbers, a batch at a time: Householder reflections, Cayley transform, exponential.

    householder    Q = H_1 ... H_d, H_k = I - tau_k v_k v_k^T, v_k = e_k + entries below, tau_k = 2 / ||v_k||^2
    cayley         Q = (I + A)^(-1) (I - A)          A skew, entries a below
    exponential    Q = exp(pi/2 A)

With entries inside (-1, 1), as tanh gives them, two maps of each kind differ by up to 180 degrees (d = 2), which the
sign flip of heterophily needs; the usual scalings (I - A/2)^(-1) (I + A/2) and exp(A) stop at 106 and 115.
det Q = (-1)^d for Householder and 1 for the others; the transport between two maps has det 1 for all.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from .propagate import slices


def _strictly_lower(a: Tensor, d: int) -> Tensor:
    """(..., d(d-1)/2) numbers -> (..., d, d) strictly lower triangular."""
    row, col = torch.tril_indices(d, d, -1, device=a.device)
    out = a.new_zeros(*a.shape[:-1], d, d)
    out[..., row, col] = a
    return out


def householder(a: Tensor, d: int) -> Tensor:
    """A product of d reflections, (..., d(d-1)/2) -> (..., d, d); det Q = (-1)^d."""
    if torch.compiler.is_compiling():
        return reflections(a, d)
    Q = _Householder.apply(a.flatten(0, -2), d)
    return Q if a.dim() == 2 else Q.reshape(*a.shape[:-1], d, d)


def reflections(a: Tensor, d: int) -> Tensor:
    """The same with torch's own product of reflections: the reference, and differentiable any number of times."""
    below = _strictly_lower(a, d)
    return torch.linalg.householder_product(below, 2 / (1 + below.square().sum(-2)))


class _Householder(Function):
    """Laid out with the batch last, so that each of the d reflections is a few products over many edges at once: over
    all of them, but on a CPU over so many as stay in its cache.

    With g_k the gradient of Q_k = H_1 ... H_k, and Q_{k-1} = Q_k H_k since a reflection undoes itself, p = g_k v_k and
    q = Q_{k-1} v_k = -Q_k v_k,

        gradient of v_k    -tau (Q_{k-1}^T p + g_k^T q) + tau^2 (q . p) v_k
        g_{k-1}            g_k H_k

    so only Q and the parameters are kept.
    """

    @staticmethod
    def forward(ctx: Any, a: Tensor, d: int) -> Tensor:
        Q = a.new_empty(d, d, len(a))
        for part in slices(a):
            _reflect(a[part], Q[..., part])
        out = Q.permute(2, 0, 1)
        ctx.save_for_backward(a, out)
        ctx.d = d
        return out

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        a, Q = ctx.saved_tensors
        d = ctx.d
        if torch.is_grad_enabled():
            return torch.autograd.grad(reflections(a, d), a, g, create_graph=True)[0], None
        grad, (row, col) = torch.empty_like(a), torch.tril_indices(d, d, -1, device=a.device)
        for part in slices(a):
            grad[part] = _reflect_back(a[part], Q[part], g[part])[row, col].T
        return grad, None


def _reflect(a: Tensor, Q: Tensor) -> None:
    """Q (d, d, K) = H_1 ... H_d."""
    d = len(Q)
    V = _vectors(a, d)
    tau = 2 / V.square().sum(0)
    eye = torch.eye(d, dtype=a.dtype, device=a.device).unsqueeze(-1)
    torch.sub(eye, (tau[0] * V[:, 0]).unsqueeze(1) * V[:, 0], out=Q)
    for k in range(1, d - 1):
        v = V[k:, k]
        Q[:, k:] -= ((Q[:, k:] * v).sum(1) * tau[k]).unsqueeze(1) * v
    if d > 1:
        Q[:, -1].neg_()  # v_d = e_d


def _reflect_back(a: Tensor, out: Tensor, g: Tensor) -> Tensor:
    """The gradient (d, d, K) of the vectors, from out = Q and g, its gradient, both (K, d, d)."""
    d = out.size(-1)
    V, Q, g = _vectors(a, d), out.permute(1, 2, 0).clone(), g.permute(1, 2, 0).clone()
    tau, grad = 2 / V.square().sum(0), torch.empty_like(V)
    Q[:, -1].neg_()
    g[:, -1].neg_()
    for k in reversed(range(d - 1)):
        v = V[k:, k]
        q = -(Q[:, k:] * v).sum(1)
        Q[:, k:] += (q * tau[k]).unsqueeze(1) * v
        p = (g[:, k:] * v).sum(1)
        both = (Q[:, k:] * p.unsqueeze(1)).sum(0) + (g[:, k:] * q.unsqueeze(1)).sum(0)
        grad[k:, k] = tau[k] * (tau[k] * (q * p).sum(0) * v - both)
        g[:, k:] -= (p * tau[k]).unsqueeze(1) * v
    return grad


def _vectors(a: Tensor, d: int) -> Tensor:
    """(K, d(d-1)/2) -> (d, d, K) whose column k is v_k."""
    V = torch.eye(d, dtype=a.dtype, device=a.device).unsqueeze(-1).repeat(1, 1, len(a))
    for number, (row, col) in enumerate(torch.tril_indices(d, d, -1).T.tolist()):
        V[row, col] = a[:, number]
    return V


def cayley(a: Tensor, d: int) -> Tensor:
    """The Cayley transform of a skew matrix, (..., d(d-1)/2) -> (..., d, d); det Q = 1."""
    below = _strictly_lower(a, d)
    skew, eye = below - below.mT, torch.eye(d, dtype=a.dtype, device=a.device)
    return torch.linalg.solve(eye + skew, eye - skew)


def exponential(a: Tensor, d: int) -> Tensor:
    """The exponential of pi/2 times a skew matrix, (..., d(d-1)/2) -> (..., d, d); det Q = 1."""
    below = _strictly_lower(a, d)
    return torch.linalg.matrix_exp(math.pi / 2 * (below - below.mT))


ORTHOGONAL = {"householder": householder, "cayley": cayley, "exponential": exponential}
