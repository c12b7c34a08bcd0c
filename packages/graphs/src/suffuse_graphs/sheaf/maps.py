"""Learned restriction maps: what every node believes its neighbour's stalk should be rotated, scaled or mixed by.

For the end of u at the edge {u, v}

    F_{u<e} = Phi( tanh( V [x_u || x_v] ) ) = Phi( tanh( V_1 x_u + V_2 x_v ) )

with one V for all ends and no bias. V_1 x and V_2 x are computed at the nodes and only then gathered, so no tensor of
shape (2E, 2H) is ever made. Phi turns numbers into a map:

    diagonal     d numbers          diag(a)
    general      d^2 numbers        any matrix
    orthogonal   d(d-1)/2 numbers   see `orthogonal`
    connection   none               fixed: the frames that local PCA of the features finds, see `connection`
    identity     none               F = I: the control without which no result shows anything about sheaves

The learner must not be symmetric in its two arguments: with F_{u<e} = F_{v<e} an orthogonal sheaf has the graph
Laplacian.

Bodnar et al. (2022), arXiv:2202.04579, section 4 and appendix; the weights of orthogonal sheaves and the fixed rows
follow the official code.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from suffuse.errors import InvalidArgument

from .connection import connection_sheaf
from .graph import SheafGraph
from .laplacian import Sheaf
from .orthogonal import ORTHOGONAL, cayley, householder
from .propagate import at_ends

__all__ = ["ACTIVATIONS", "MAPS", "ORTHOGONAL", "SheafLearner", "cayley", "householder"]

MAPS = ("diagonal", "orthogonal", "general", "connection", "identity")
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"tanh": torch.tanh, "elu": functional.elu, "none": lambda a: a}


class SheafLearner(nn.Module):
    """x (n, H) on a graph -> a `Sheaf` with stalks R^d, and a fixed row for each of `low_pass` and `high_pass`.

    Args:
        in_channels: H.
        stalk_dim: d.
        maps: "diagonal", "orthogonal", "general", "connection" or "identity".
        orthogonal: "householder", "cayley" or "exponential".
        edge_weights: orthogonal, connection and identity maps carry a learned symmetric weight,
            w_uv = (sigmoid(a . [x_u || x_v]) sigmoid(a . [x_v || x_u]))^2.
        low_pass, high_pass: add a row to the stalk on which transport is -1, or +1, and nothing is learned.
        activation: "tanh", "elu" or "none", on the numbers of a map.
    """

    def __init__(
        self,
        in_channels: int,
        stalk_dim: int,
        maps: str = "orthogonal",
        *,
        orthogonal: str = "householder",
        edge_weights: bool = True,
        low_pass: bool = False,
        high_pass: bool = False,
        activation: str = "tanh",
    ) -> None:
        super().__init__()
        for name, value, known in (
            ("maps", maps, MAPS), ("orthogonal", orthogonal, ORTHOGONAL), ("activation", activation, ACTIVATIONS),
        ):  # fmt: skip
            if value not in known:
                raise InvalidArgument(f"{name} must be one of {', '.join(known)}; got {value!r}")
        if stalk_dim < 1:
            raise InvalidArgument(f"stalk_dim must be at least 1, got {stalk_dim}")
        d = stalk_dim
        self.in_channels, self.stalk_dim, self.maps, self.orthogonal = in_channels, d, maps, orthogonal
        self.activation = activation
        self.fixed = (-1,) * low_pass + (1,) * high_pass
        numbers = {"diagonal": d, "general": d * d, "orthogonal": d * (d - 1) // 2}.get(maps, 0)
        self.lin = nn.Linear(2 * in_channels, numbers, bias=False) if numbers else None
        unit = maps in ("orthogonal", "connection", "identity")
        self.lin_weight = nn.Linear(2 * in_channels, 1, bias=False) if unit and edge_weights else None

    def reset_parameters(self) -> None:
        for lin in (self.lin, self.lin_weight):
            if lin is not None:
                lin.reset_parameters()

    def forward(
        self, x: Tensor, graph: SheafGraph, edge_weight: Tensor | None = None, base: Sheaf | None = None
    ) -> Sheaf:
        """The sheaf that x (n, H) induces.

        Args:
            x: (n, H).
            graph: the graph.
            edge_weight: (2E,) given weights, multiplied onto the learned ones.
            base: the fixed sheaf of "connection" maps; by default that of x itself.
        """
        d, ends = self.stalk_dim, graph.edge_index.size(1)
        a, half = self._numbers(x, graph)
        weight = edge_weight
        if half is not None:
            half = torch.sigmoid(half).squeeze(-1)
            learned = (half * half[graph.reverse]).square()
            weight = learned if edge_weight is None else learned * edge_weight
        if a is not None:
            a = ACTIVATIONS[self.activation](a)
        if self.maps == "orthogonal":
            a = x.new_zeros(ends, 0) if a is None else a  # d = 1: nothing to turn
            return Sheaf(graph, ORTHOGONAL[self.orthogonal](a, d), weight, True, self.fixed)
        if self.maps == "connection":
            base = connection_sheaf(x, graph, d) if base is None else base
            return Sheaf(graph, base.maps.to(x.dtype), weight, True, self.fixed)
        if self.maps == "identity":
            return Sheaf(graph, x.new_ones(ends, 1).expand(ends, d), weight, True, self.fixed)
        assert a is not None
        return Sheaf(graph, a if self.maps == "diagonal" else a.view(ends, d, d), weight, False, self.fixed)

    def _numbers(self, x: Tensor, graph: SheafGraph) -> tuple[Tensor | None, Tensor | None]:
        """V [x_u || x_v] for every edge end (u, v), as (V_1 x)_u + (V_2 x)_v, of the maps and of the weights."""
        weights = [lin.weight for lin in (self.lin, self.lin_weight) if lin is not None]
        if not weights:
            return None, None
        V = torch.cat(weights).view(-1, 2, x.size(-1))
        p, q = functional.linear(x, V.transpose(0, 1).reshape(-1, x.size(-1))).chunk(2, dim=1)
        # in full precision from here on: half precision would spoil the inverse square root of the degree
        precise = torch.promote_types(p.dtype, torch.float32)
        numbers = at_ends(p.to(precise), q.to(precise), graph)
        sizes = [0 if lin is None else lin.out_features for lin in (self.lin, self.lin_weight)]
        maps, half = numbers.split(sizes, dim=1)
        return (None if self.lin is None else maps), (None if self.lin_weight is None else half)
