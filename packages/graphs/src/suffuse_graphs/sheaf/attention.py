"""Sheaf attention: how much a neighbour says, times how it is understood.

    Z     = (I (x) W_1) X W_2
    a_uv  = softmax over u in N(v) and v itself of LeakyReLU( b . [z_u || z_v] )
    X'_v  = act( sum_u a_uv T_uv z_u )                        T_vv = I
    X'    = X + act( (A o T - I) Z )                          with `residual`, which stays stable in depth

Attention as in GAT says how much, the transport of a learned sheaf says how: a neighbour of another class can be
listened to with its sign turned. The operator is not symmetric, and not a Laplacian.

Barbero, Bodnar, Saez de Ocariz Borde, Lio (2022), "Sheaf Attention Networks", NeurIPS workshop on Symmetry and
Geometry in Neural Representations, equations 3 and 4.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch_geometric.nn import MessagePassing
from torch_geometric.utils import softmax

from .conv import activation_of, check_features, check_stalk
from .graph import SheafGraph, end_weights, sheaf_graph
from .laplacian import Sheaf
from .maps import SheafLearner
from .propagate import act


class SheafAttentionConv(MessagePassing):
    """Sheaf attention layer, (n, channels) -> (n, channels).

    Args:
        channels: width of input and output, a multiple of `stalk_dim`.
        stalk_dim: d.
        maps: "orthogonal", "diagonal", "general", "connection" or "identity" (the latter is GAT with shared values).
        orthogonal: "householder", "cayley" or "exponential".
        residual: X + act((A o T - I) Z) instead of act((A o T) Z).
        activation: name of the activation, or None.
        negative_slope: of the LeakyReLU.
        dropout: of the attention coefficients.
    """

    def __init__(
        self,
        channels: int,
        stalk_dim: int,
        maps: str = "orthogonal",
        *,
        orthogonal: str = "householder",
        residual: bool = True,
        activation: str | None = "elu",
        negative_slope: float = 0.2,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(aggr="add", node_dim=0)
        check_stalk(channels, stalk_dim, stalk_dim)
        self.channels, self.stalk_dim, self.maps = channels, stalk_dim, maps
        self.residual, self.negative_slope, self.dropout = residual, negative_slope, dropout
        self.learner = SheafLearner(channels, stalk_dim, maps, orthogonal=orthogonal, edge_weights=False)
        self.left = nn.Linear(stalk_dim, stalk_dim, bias=False)
        self.right = nn.Linear(channels // stalk_dim, channels // stalk_dim, bias=False)
        self.attention = nn.Linear(channels, 2, bias=False)  # b = (b_u, b_v), each applied at the nodes
        self.activation = activation_of(activation)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        super().reset_parameters()
        self.learner.reset_parameters()
        self.attention.reset_parameters()
        nn.init.eye_(self.left.weight)
        nn.init.orthogonal_(self.right.weight)

    def forward(
        self, x: Tensor, edge_index: Any, edge_weight: Tensor | None = None, *, sheaf: Sheaf | None = None
    ) -> Tensor:
        """One layer.

        Args:
            x: (n, channels).
            edge_index: (2, M) tensor, `EdgeIndex`, sparse adjacency tensor or `SheafGraph`.
            edge_weight: (M,) weights >= 0; their logarithm is added to the scores, so that 0 removes an edge.
            sheaf: use this sheaf instead of learning one from x.
        """
        check_features(x, self.channels)
        graph = sheaf_graph(edge_index, len(x))
        sheaf = self.learner(x, graph) if sheaf is None else sheaf
        X = x.view(len(x), self.stalk_dim, -1)
        z = self.right(torch.einsum("ij,njf->nif", self.left.weight, X))

        a = self.coefficients(z.reshape(len(x), -1), graph, end_weights(edge_index, edge_weight, graph))
        ends, own = a.split([len(a) - len(x), len(x)])
        size = (len(x), len(x))
        moved = self.propagate(
            graph.edge_index, z=z, transport=sheaf.transports(), attention=ends, graph=graph, size=size
        )
        moved = moved + own.view(-1, 1, 1) * z
        out = X + self.activation(moved - z) if self.residual else self.activation(moved)
        return out.reshape(len(x), self.channels)

    def coefficients(self, z: Tensor, graph: SheafGraph, weight: Tensor | None = None) -> Tensor:
        """(2E + n,) attention of every edge end to its target, and of every node to itself."""
        n = len(z)
        node = torch.arange(n, device=z.device)
        source, target = torch.cat([graph.edge_index, torch.stack([node, node])], dim=1)
        of_source, of_target = self.attention(z).unbind(1)
        score = functional.leaky_relu(of_source[source] + of_target[target], self.negative_slope)
        if weight is not None:
            score = score + functional.pad(weight, (0, n), value=1.0).log()
        return functional.dropout(softmax(score, target, num_nodes=n), self.dropout, self.training)

    def message(self, z_j: Tensor, transport: Tensor, attention: Tensor) -> Tensor:
        return attention.view(-1, 1, 1) * act(transport, z_j)

    def explain_message(self, inputs: Tensor, graph: SheafGraph) -> Tensor:
        """As of `SheafConv`."""
        mask = self._edge_mask.sigmoid() if self._apply_sigmoid else self._edge_mask
        return inputs * graph.spread(mask).view(-1, 1, 1)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.channels}, stalk_dim={self.stalk_dim}, maps={self.maps})"
