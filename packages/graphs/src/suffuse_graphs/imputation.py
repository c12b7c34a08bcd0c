"""Missing values of a signal on a graph: draws from what they could be, given the nodes that were observed.

`diffusion` samples a conditional diffusion model. The classical answers are conditionals of a Gaussian, exact and
quick:

    x ~ N(0, P^(-1)):     x_M | x_O ~ N( -P_MM^(-1) P_MO x_O,  P_MM^(-1) )

with P = (L + kappa I) / c for the Laplacian smoother (c and kappa by maximum likelihood), or the inverse of the
training covariance for the full Gaussian, which ignores the graph and has n^2 / 2 parameters.

Every answer is m draws (m, B, C, n) in which observed nodes hold their values.
"""

from __future__ import annotations

import torch
from torch import Tensor

from suffuse import Denoiser
from suffuse.samplers import DPMSolverPP, Sampler

from .data.signals import observation
from .sheaf import Sheaf, SheafGraph, SheafLaplacian, sheaf_graph

NODES_AT_ONCE = 50_000
"""Nodes of all samples in one call of the network: bounds the memory."""


@torch.no_grad()
def diffusion(
    denoiser: Denoiser,
    x: Tensor,
    mask: Tensor,
    draws: int,
    generator: torch.Generator,
    sampler: Sampler | None = None,
) -> Tensor:
    """Draws from a conditional denoiser of node signals.

    Args:
        denoiser: trained with `observation` conditions.
        x: (B, C, n) signals, of which only the observed nodes are read.
        mask: (B, 1, n), 1 where observed.
        draws: m.
        generator: of the noise.
        sampler: by default DPM-Solver++ with 10 steps.
    """
    sampler = DPMSolverPP(steps=10) if sampler is None else sampler
    cond, total = observation(x, mask).repeat(draws), len(x) * draws
    parts = torch.arange(total).split(max(1, NODES_AT_ONCE // x.size(-1)))
    out = torch.cat([sampler(denoiser, (len(p), *x.shape[1:]), cond=cond[p], generator=generator) for p in parts])
    out = out.view(len(x), draws, *x.shape[1:]).transpose(0, 1)
    return torch.where(mask.bool(), x, out)


def gaussian(precision: Tensor, x: Tensor, mask: Tensor, draws: int, generator: torch.Generator) -> Tensor:
    """Draws from the conditional of N(0, precision^(-1)); precision (n, n), other arguments as of `diffusion`."""
    P, missing = precision.double(), (mask == 0).double()  # (B, 1, n)
    eye = torch.eye(len(P), dtype=P.dtype)
    # rows and columns of observed nodes are replaced by the identity, so that one batched factor serves every mask
    A = missing.mT * P * missing + torch.diag_embed((1 - missing).squeeze(1)) * eye
    L = torch.linalg.cholesky(A)
    known = x.double() * (1 - missing)
    pull = -(missing * (known @ P)).mT  # (B, n, C)
    mean = torch.cholesky_solve(pull, L)
    z = torch.randn(draws, *mean.shape, dtype=P.dtype, generator=generator)
    fluctuation = torch.linalg.solve_triangular(L.mT, z, upper=True)
    return torch.where(mask.bool(), x, (mean + fluctuation).mT.to(x.dtype))


def smoother_precision(train: Tensor, edge_index: Tensor | SheafGraph, edge_weight: Tensor | None = None) -> Tensor:
    """(L + kappa I) / c of the graph Laplacian L = D - W, with c and kappa of greatest likelihood for train (N, 1, n).

    L is not normalised: what costs nothing is a constant signal, not one proportional to the root of the degree.
    In the eigenbasis of L the log-likelihood is -1/2 sum_i [ log(c / (l_i + kappa)) + p_i (l_i + kappa) / c ], p_i
    the mean power of mode i; the best c for a kappa is mean_i p_i (l_i + kappa), and kappa is searched on a grid.
    """
    graph = sheaf_graph(edge_index, train.size(-1))
    ones = torch.ones(graph.edge_index.size(1), 1, dtype=torch.float64)
    weight = None if edge_weight is None else graph.spread(edge_weight.double())
    L = SheafLaplacian(Sheaf(graph, ones, weight, orthogonal=True), "none").dense()
    values, U = torch.linalg.eigh(L)
    power = (train.double().flatten(0, 1) @ U).square().mean(0)
    fits = [_likelihood(power, values, float(kappa)) for kappa in torch.logspace(-5, 2, 141)]
    _, c, kappa = max(fits, key=lambda fit: fit[0])
    return (L + kappa * torch.eye(len(L), dtype=torch.float64)) / c


def _likelihood(power: Tensor, values: Tensor, kappa: float) -> tuple[float, float, float]:
    rate = values.clamp_min(0) + kappa
    c = float((power * rate).mean())
    return float((rate / c).log().sum() - len(rate)) / 2, c, kappa


def full_precision(train: Tensor, shrinkage: float = 1e-2) -> Tensor:
    """Inverse of the training covariance of train (N, 1, n) about zero, shrunk towards its mean variance."""
    x = train.double().flatten(0, 1)
    S = x.T @ x / len(x)
    eye = torch.eye(len(S), dtype=S.dtype)
    return torch.linalg.inv((1 - shrinkage) * S + shrinkage * S.diagonal().mean() * eye)
