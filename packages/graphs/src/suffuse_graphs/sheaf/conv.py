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
from torch.utils.weak import WeakTensorKeyDictionary
from torch_geometric.nn import MessagePassing
from torch_geometric.nn.resolver import activation_resolver

from suffuse.errors import InvalidArgument

from .graph import SheafGraph, end_weights, sheaf_graph, version
from .laplacian import Sheaf, SheafLaplacian
from .maps import SheafLearner
from .propagate import act


class SheafConv(MessagePassing):
    """Sheaf diffusion layer, (n, channels) -> (n, channels); stands between any two PyG layers.

    The sheaf lives on the undirected simple graph of `edge_index` (see `sheaf_graph`): direction and duplicates do not
    matter, self-loops are ignored, isolated nodes only see their residual.

    Args:
        channels: width of input and output; a multiple of the dimension of the stalk, which is `stalk_dim` plus one
            for each of `low_pass` and `high_pass`.
        stalk_dim: d, the part of the stalk on which maps act.
        maps: "orthogonal", "diagonal", "general", "connection" (fixed, by local PCA of x), or "identity" (the control:
            a plain graph Laplacian).
        orthogonal: "householder", "cayley" or "exponential".
        edge_weights: learn a weight per edge (orthogonal, connection and identity maps).
        low_pass, high_pass: add a row to the stalk on which Delta is the fixed filter D + A, or D - A, normalised.
        left_weights, right_weights: use W_1, W_2.
        normalization: "augmented", "symmetric", "degree" or "none".
        activation: name of the activation, or None for a linear step.
        map_activation: "tanh", "elu" or "none", on the numbers that become a map.
        residual: False returns act(Delta ...) alone.
        dropout: on the signal that is diffused, not on the residual.
        chunk: edge ends whose messages may exist at once, on devices that make messages; None for a good default.
    """

    def __init__(
        self,
        channels: int,
        stalk_dim: int,
        maps: str = "orthogonal",
        *,
        orthogonal: str = "householder",
        edge_weights: bool = True,
        low_pass: bool = False,
        high_pass: bool = False,
        left_weights: bool = True,
        right_weights: bool = True,
        normalization: str = "augmented",
        activation: str | None = "elu",
        map_activation: str = "tanh",
        residual: bool = True,
        dropout: float = 0.0,
        chunk: int | None = None,
    ) -> None:
        super().__init__(aggr="add", node_dim=0)
        total = stalk_dim + low_pass + high_pass
        check_stalk(channels, stalk_dim, total)
        self.channels, self.stalk_dim, self.maps = channels, stalk_dim, maps
        self.normalization, self.residual, self.dropout, self.chunk = normalization, residual, dropout, chunk
        width = channels // total
        self.learner = SheafLearner(
            channels, stalk_dim, maps, orthogonal=orthogonal, edge_weights=edge_weights, low_pass=low_pass,
            high_pass=high_pass, activation=map_activation,
        )  # fmt: skip
        self.left = nn.Linear(total, total, bias=False) if left_weights else None
        self.right = nn.Linear(width, width, bias=False) if right_weights else None
        self.epsilon = nn.Parameter(torch.zeros(total)) if residual else None
        self.activation = activation_of(activation)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        super().reset_parameters()
        self.learner.reset_parameters()
        if self.left is not None:
            nn.init.eye_(self.left.weight)
        if self.right is not None:
            nn.init.orthogonal_(self.right.weight)
        if self.epsilon is not None:
            nn.init.zeros_(self.epsilon)

    def sheaf(self, x: Tensor, edge_index: Any, edge_weight: Tensor | None = None) -> Sheaf:
        """The sheaf that this layer learns from x (n, channels)."""
        check_features(x, self.channels)
        graph = sheaf_graph(edge_index, len(x))
        return self.learner(x, graph, end_weights(edge_index, edge_weight, graph))

    def forward(
        self, x: Tensor, edge_index: Any, edge_weight: Tensor | None = None, *, sheaf: Sheaf | None = None
    ) -> Tensor:
        """One diffusion step.

        Args:
            x: (n, channels) node features; several graphs in one PyG `Batch` work as they are.
            edge_index: (2, M) tensor, `EdgeIndex`, sparse adjacency tensor or `SheafGraph`.
            edge_weight: (M,) weights >= 0, averaged over the entries of an undirected edge.
            sheaf: use this sheaf instead of learning one from x.
        """
        sheaf = self.sheaf(x, edge_index, edge_weight) if sheaf is None else sheaf
        laplacian = SheafLaplacian(sheaf, self.normalization, self.chunk)
        X = x.view(len(x), sheaf.stalk_dim, -1)
        step = self.activation(self.diffuse(functional.dropout(X, self.dropout, self.training), laplacian))
        if self.epsilon is None:
            return step.reshape(len(x), self.channels)
        return ((1 + torch.tanh(self.epsilon)).unsqueeze(-1) * X - step).reshape(len(x), self.channels)

    def diffuse(self, X: Tensor, laplacian: SheafLaplacian) -> Tensor:
        """Delta (I (x) W_1) X W_2 for X (n, d, f)."""
        if self.left is not None:
            X = torch.einsum("ij,njf->nif", self.left.weight, X)
        if self.right is not None:
            X = self.right(X)
        if not self.explain:
            return laplacian.matvec(X)
        # PyG's explainers hook into messages: the same operator with its sum over neighbours by `propagate`
        z, graph, (D, _, T) = laplacian.normalize(X), laplacian.sheaf.graph, laplacian.blocks()
        moved = self.propagate(graph.edge_index, z=z, transport=T, graph=graph, size=(len(X), len(X)))
        return laplacian.normalize(act(D, z) - moved)

    def message(self, z_j: Tensor, transport: Tensor) -> Tensor:
        return act(transport, z_j)

    def explain_message(self, inputs: Tensor, graph: SheafGraph) -> Tensor:
        """PyG explainers mask the columns of the given edge_index: both ends of an edge get their mean."""
        mask = self._edge_mask.sigmoid() if self._apply_sigmoid else self._edge_mask
        return inputs * graph.spread(mask).view(-1, 1, 1)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.channels}, stalk_dim={self.stalk_dim}, maps={self.maps})"


def activation_of(name: str | None) -> nn.Module:
    """PyG's activation of that name, or none."""
    if name is None:
        return nn.Identity()
    try:
        return activation_resolver(name)
    except ValueError as error:
        raise InvalidArgument(f"activation must be the name of one of torch.nn, such as 'elu', got {name!r}") from error


def check_stalk(channels: int, stalk_dim: int, total: int) -> None:
    """Whether the channels are so many for every row of the stalk."""
    if stalk_dim < 1 or channels < 1 or channels % total:
        rows = f" (and {total - stalk_dim} fixed rows: {total})" if total != stalk_dim else ""
        raise InvalidArgument(
            f"stalk_dim must divide channels, got channels={channels} and stalk_dim={stalk_dim}{rows}; "
            f"try channels={max(1, channels // max(total, 1)) * max(total, 1)}"
        )


_CHECKED: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def check_features(x: Tensor, channels: int, *, raw: bool = False) -> None:
    """Shape and type of x, and that its values are finite.

    The raw features of a model may be sparse CSR, and are looked at once a tensor. On an accelerator, which would have
    to be waited for, only they are.
    """
    if x.dim() != 2 or x.size(1) != channels or not x.is_floating_point():
        raise InvalidArgument(
            f"x must be (nodes, channels) = (n, {channels}) of floating point, got {tuple(x.shape)} of {x.dtype}"
        )
    if x.layout != torch.strided and not raw:
        raise InvalidArgument("x must be dense here; sparse features are for whole models, which encode them first")
    if torch.compiler.is_compiling() or (x.device.type != "cpu" and not raw):
        return
    if raw and _CHECKED.get(x) == version(x):
        return
    values = x.detach() if x.layout == torch.strided else x.detach().values()
    if not values.sum().isfinite() and not values.isfinite().all():  # the sum alone may overflow
        raise InvalidArgument(
            "x contains NaN or infinite values; clean the node features, or lower the learning rate if this "
            "appeared during training"
        )
    if raw:
        _CHECKED[x] = version(x)
