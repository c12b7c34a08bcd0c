"""Learned restriction maps: what every node believes its neighbour's stalk should be rotated, scaled or mixed by.

For the end of u at the edge {u, v}

    F_{u<e} = Phi( tanh( V [x_u || x_v] ) ) = Phi( tanh( V_1 x_u + V_2 x_v ) )

with one V for all ends and no bias. V_1 x and V_2 x are computed at the nodes and only then gathered, so no tensor of
shape (2E, 2H) is ever made. Phi turns numbers into a map:

    diagonal     d numbers          diag(a)
    general      d^2 numbers        any matrix
    orthogonal   d(d-1)/2 numbers   a product of d Householder reflections, or the Cayley transform of a skew matrix
    identity     none               F = I: the control without which no result shows anything about sheaves

The learner must not be symmetric in its two arguments: with F_{u<e} = F_{v<e} an orthogonal sheaf has the graph
Laplacian. Heterophily needs transports that flip a sign. With entries bounded by tanh both parametrisations reach 180
degrees (d = 2); the Cayley transform of A / 2, common elsewhere, stops at 106.

Bodnar et al. (2022), arXiv:2202.04579, section 4 and appendix; the weights of orthogonal sheaves follow the official
code.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from suffuse.errors import InvalidArgument

from .graph import SheafGraph
from .laplacian import Sheaf

MAPS = ("diagonal", "orthogonal", "general", "identity")


def _strictly_lower(a: Tensor, d: int) -> Tensor:
    """(..., d(d-1)/2) numbers -> (..., d, d) strictly lower triangular."""
    row, col = torch.tril_indices(d, d, -1, device=a.device)
    out = a.new_zeros(*a.shape[:-1], d, d)
    out[..., row, col] = a
    return out


def householder(a: Tensor, d: int) -> Tensor:
    """Q = H_1 ... H_d, H_k = I - 2 v_k v_k^T / ||v_k||^2, v_k = e_k + entries below; det Q = (-1)^d.

    (..., d(d-1)/2) -> (..., d, d).
    """
    below = _strictly_lower(a, d)
    return torch.linalg.householder_product(below, 2 / (1 + below.square().sum(-2)))


def cayley(a: Tensor, d: int) -> Tensor:
    """Q = (I + A)^(-1) (I - A) for the skew A with entries a below; det Q = 1. (..., d(d-1)/2) -> (..., d, d)."""
    below = _strictly_lower(a, d)
    skew, eye = below - below.mT, torch.eye(d, dtype=a.dtype, device=a.device)
    return torch.linalg.solve(eye + skew, eye - skew)


ORTHOGONAL = {"householder": householder, "cayley": cayley}


class SheafLearner(nn.Module):
    """x (n, H) on a graph -> a `Sheaf` with stalks R^d.

    Args:
        in_channels: H.
        stalk_dim: d.
        maps: "diagonal", "orthogonal", "general" or "identity".
        orthogonal: "householder" or "cayley".
        edge_weights: orthogonal and identity maps carry a learned symmetric weight,
            w_uv = (sigmoid(a . [x_u || x_v]) sigmoid(a . [x_v || x_u]))^2.
    """

    def __init__(
        self,
        in_channels: int,
        stalk_dim: int,
        maps: str = "orthogonal",
        *,
        orthogonal: str = "householder",
        edge_weights: bool = True,
    ) -> None:
        super().__init__()
        if maps not in MAPS:
            raise InvalidArgument(f"maps must be one of {', '.join(MAPS)}; got {maps!r}")
        if orthogonal not in ORTHOGONAL:
            raise InvalidArgument(f"orthogonal must be one of {', '.join(ORTHOGONAL)}; got {orthogonal!r}")
        if stalk_dim < 1:
            raise InvalidArgument(f"stalk_dim must be at least 1, got {stalk_dim}")
        d = stalk_dim
        self.in_channels, self.stalk_dim, self.maps, self.orthogonal = in_channels, d, maps, orthogonal
        numbers = {"diagonal": d, "general": d * d, "orthogonal": d * (d - 1) // 2, "identity": 0}[maps]
        self.lin = nn.Linear(2 * in_channels, numbers, bias=False) if numbers else None
        unit = maps in ("orthogonal", "identity")
        self.lin_weight = nn.Linear(2 * in_channels, 1, bias=False) if unit and edge_weights else None

    def reset_parameters(self) -> None:
        for lin in (self.lin, self.lin_weight):
            if lin is not None:
                lin.reset_parameters()

    def forward(self, x: Tensor, graph: SheafGraph, edge_weight: Tensor | None = None) -> Sheaf:
        """The sheaf that x (n, H) induces; edge_weight: (2E,) given weights, multiplied onto the learned ones."""
        d, ends = self.stalk_dim, graph.edge_index.size(1)
        a = torch.tanh(_at_ends(self.lin, x, graph)) if self.lin is not None else x.new_zeros(ends, 0)
        weight = edge_weight
        if self.lin_weight is not None:
            half = torch.sigmoid(_at_ends(self.lin_weight, x, graph)).squeeze(-1)
            learned = (half * half[graph.reverse]).square()
            weight = learned if edge_weight is None else learned * edge_weight
        if self.maps == "orthogonal":
            return Sheaf(graph, ORTHOGONAL[self.orthogonal](a, d), weight, orthogonal=True)
        if self.maps == "identity":
            return Sheaf(graph, x.new_ones(ends, d), weight, orthogonal=True)
        return Sheaf(graph, a if self.maps == "diagonal" else a.view(ends, d, d), weight)


def _at_ends(lin: nn.Linear, x: Tensor, graph: SheafGraph) -> Tensor:
    """V [x_u || x_v] for every edge end (u, v), as (V_1 x)_u + (V_2 x)_v."""
    own, other = lin.weight.split(x.size(-1), dim=1)
    source, target = graph.edge_index
    return (x @ own.T)[source] + (x @ other.T)[target]
