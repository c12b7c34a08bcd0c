"""One step of neural sheaf diffusion as a PyG layer.

    X' = (1 + tanh eps) X - act( Delta_{F(X)} (I (x) W_1) X W_2 )

X is (n, d, f): f channels on a stalk R^d, stored as the usual (n, d f) between layers. W_1 (d x d, starts as the
identity) acts on the stalk, W_2 (f x f, starts orthogonal) on the channels, eps in R^d on the residual; Delta is the
sheaf Laplacian of maps learned from X itself, so gradients flow through it.

Bodnar et al. (2022), arXiv:2202.04579, equation 5 (with the residual gate of the official code).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch_geometric.nn import MessagePassing
from torch_geometric.nn.resolver import activation_resolver

from suffuse.errors import InvalidArgument

from .graph import SheafGraph, sheaf_graph
from .laplacian import Sheaf, SheafLaplacian, act
from .maps import SheafLearner


class SheafConv(MessagePassing):
    """Sheaf diffusion layer, (n, channels) -> (n, channels); stands between any two PyG layers.

    The sheaf lives on the undirected simple graph of `edge_index` (see `sheaf_graph`): direction and duplicates do not
    matter, self-loops are ignored, isolated nodes only see their residual.

    Args:
        channels: width d f of input and output; a multiple of `stalk_dim`.
        stalk_dim: d.
        maps: "orthogonal", "diagonal", "general", or "identity" (the control: a plain graph Laplacian).
        orthogonal: "householder" or "cayley".
        edge_weights: learn a weight per edge (orthogonal and identity maps).
        left_weights, right_weights: use W_1, W_2.
        normalization: "augmented", "symmetric" or "none".
        activation: name of the activation, or None for a linear step.
        residual: False returns act(Delta ...) alone.
        dropout: on the signal that is diffused, not on the residual.
    """

    def __init__(
        self,
        channels: int,
        stalk_dim: int,
        maps: str = "orthogonal",
        *,
        orthogonal: str = "householder",
        edge_weights: bool = True,
        left_weights: bool = True,
        right_weights: bool = True,
        normalization: str = "augmented",
        activation: str | None = "elu",
        residual: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(aggr="add", node_dim=0)
        if stalk_dim < 1 or channels < 1 or channels % stalk_dim:
            raise InvalidArgument(
                f"stalk_dim must divide channels, got channels={channels} and stalk_dim={stalk_dim}; "
                f"try channels={max(1, channels // max(stalk_dim, 1)) * max(stalk_dim, 1)}"
            )
        self.channels, self.stalk_dim, self.maps = channels, stalk_dim, maps
        self.normalization, self.residual, self.dropout = normalization, residual, dropout
        width = channels // stalk_dim
        self.learner = SheafLearner(channels, stalk_dim, maps, orthogonal=orthogonal, edge_weights=edge_weights)
        self.left = nn.Linear(stalk_dim, stalk_dim, bias=False) if left_weights else nn.Identity()
        self.right = nn.Linear(width, width, bias=False) if right_weights else nn.Identity()
        self.epsilon = nn.Parameter(torch.zeros(stalk_dim)) if residual else None
        self.activation = activation_resolver(activation) if activation else nn.Identity()
        self.reset_parameters()

    def reset_parameters(self) -> None:
        super().reset_parameters()
        self.learner.reset_parameters()
        if isinstance(self.left, nn.Linear):
            nn.init.eye_(self.left.weight)
        if isinstance(self.right, nn.Linear):
            nn.init.orthogonal_(self.right.weight)
        if self.epsilon is not None:
            nn.init.zeros_(self.epsilon)

    def sheaf(self, x: Tensor, edge_index: Any, edge_weight: Tensor | None = None) -> Sheaf:
        """The sheaf that this layer learns from x (n, channels)."""
        self._check(x)
        graph = sheaf_graph(edge_index, len(x))
        return self.learner(x, graph, None if edge_weight is None else graph.spread(edge_weight))

    def forward(
        self, x: Tensor, edge_index: Any, edge_weight: Tensor | None = None, *, sheaf: Sheaf | None = None
    ) -> Tensor:
        """One diffusion step.

        Args:
            x: (n, channels) node features; several graphs in one PyG `Batch` work as they are.
            edge_index: (2, M) tensor, `EdgeIndex`, sparse adjacency tensor or `SheafGraph`.
            edge_weight: (M,) positive weights, averaged over the entries of an undirected edge.
            sheaf: use this sheaf instead of learning one from x.
        """
        sheaf = self.sheaf(x, edge_index, edge_weight) if sheaf is None else sheaf
        laplacian = SheafLaplacian(sheaf, self.normalization)
        X = x.view(len(x), self.stalk_dim, -1)

        z = functional.dropout(X, self.dropout, self.training)
        z = self.right(self.left(z.mT).mT)
        z = laplacian.normalize(z)
        n, graph = len(x), sheaf.graph
        moved = self.propagate(graph.edge_index, z=z, transport=laplacian.transport, graph=graph, size=(n, n))
        step = self.activation(laplacian.normalize(act(laplacian.degree, z) - moved))

        if self.epsilon is None:
            return step.reshape(n, self.channels)
        return ((1 + torch.tanh(self.epsilon)).unsqueeze(-1) * X - step).reshape(n, self.channels)

    def message(self, z_j: Tensor, transport: Tensor) -> Tensor:
        return act(transport, z_j)

    def explain_message(self, inputs: Tensor, graph: SheafGraph) -> Tensor:
        """PyG explainers mask the columns of the given edge_index: both ends of an edge get their mean."""
        mask = self._edge_mask.sigmoid() if self._apply_sigmoid else self._edge_mask
        return inputs * graph.spread(mask).view(-1, 1, 1)

    def _check(self, x: Tensor) -> None:
        if x.dim() != 2 or x.size(1) != self.channels:
            raise InvalidArgument(f"x must be (nodes, channels) = (n, {self.channels}), got {tuple(x.shape)}")
        if not torch.compiler.is_compiling() and not torch.isfinite(x).all():
            raise InvalidArgument(
                "x contains NaN or infinite values; clean the node features, or lower the learning rate if this "
                "appeared during training"
            )

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.channels}, stalk_dim={self.stalk_dim}, maps={self.maps})"
