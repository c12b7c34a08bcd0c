"""Node classifiers by name: the kinds of sheaf, PyG's own models, and the baselines of the field that PyG lacks.

All map features (n, in_channels) and `edge_index` to logits (n, classes).

    MLP, GCN, GAT, GraphSAGE    PyG's models; the MLP ignores the graph
    GCNII     X_{l+1} = relu( ((1-a) A X_l + a X_0) ((1-b_l) I + b_l W_l) ), PyG's GCN2Conv
              Chen et al. (2020), arXiv:2007.02133
    H2GCN     R_k = [ A_1 R_{k-1} || A_2 R_{k-1} ], out = W [ R_0 || ... || R_K ], with A_i the normalised adjacency of
              exactly i hops, no self-loops. Zhu et al. (2020), arXiv:2006.11468, section 3.2
    GPR-GNN   out = sum_k gamma_k A^k MLP(x), gamma learned. Chien et al. (2021), arXiv:2006.07988, equation 1
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from scipy import sparse as sp
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.weak import WeakTensorKeyDictionary
from torch_geometric import nn as pyg
from torch_geometric.nn.conv.gcn_conv import gcn_norm
from torch_geometric.nn.inits import reset
from torch_geometric.utils import remove_self_loops, to_scipy_sparse_matrix

from suffuse.errors import unknown
from suffuse.hub import serializable

from ..sheaf import NeuralSheafDiffusion
from ..sheaf.maps import MAPS


class GCNII(nn.Module):
    """GCN with a link to the first layer and near-identity weights: `num_layers` of PyG's `GCN2Conv`.

    Args:
        alpha: share of the first layer in every step.
        theta: b_l = log(theta / l + 1), how far the weights may be from the identity.
    """

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        num_layers: int,
        out_channels: int,
        dropout: float,
        alpha: float = 0.5,
        theta: float = 0.5,
    ) -> None:
        super().__init__()
        self.dropout = dropout
        self.encoder = nn.Linear(in_channels, hidden_channels)
        layers = [pyg.GCN2Conv(hidden_channels, alpha, theta, layer + 1) for layer in range(num_layers)]
        self.convs: Sequence[pyg.GCN2Conv] = nn.ModuleList(layers)  # type: ignore[assignment]
        self.decoder = nn.Linear(hidden_channels, out_channels)

    def reset_parameters(self) -> None:
        for part in (self.encoder, *self.convs, self.decoder):
            reset(part)

    def forward(self, x: Tensor, edge_index: Any) -> Tensor:
        drop = lambda h: functional.dropout(h, self.dropout, self.training)  # noqa: E731
        first = x = torch.relu(self.encoder(drop(x)))
        for conv in self.convs:
            x = torch.relu(conv(drop(x), first, edge_index))
        return self.decoder(drop(x))


class H2GCN(nn.Module):
    """Neighbours of one and of two hops kept apart, and all rounds kept; linear but for the encoder.

    Args:
        num_layers: rounds K; the width doubles with each.
    """

    def __init__(
        self, in_channels: int, hidden_channels: int, num_layers: int, out_channels: int, dropout: float
    ) -> None:
        super().__init__()
        self.dropout, self.rounds = dropout, num_layers
        self.encoder = nn.Linear(in_channels, hidden_channels, bias=False)
        self.decoder = nn.Linear(hidden_channels * (2 ** (num_layers + 1) - 1), out_channels, bias=False)

    def reset_parameters(self) -> None:
        self.encoder.reset_parameters()
        self.decoder.reset_parameters()

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        one, two = hops(edge_index, len(x))
        rounds = [torch.relu(self.encoder(x))]
        for _ in range(self.rounds):
            rounds.append(torch.cat([one @ rounds[-1], two @ rounds[-1]], dim=1))
        return self.decoder(functional.dropout(torch.cat(rounds, dim=1), self.dropout, self.training))


_HOPS: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def hops(edge_index: Tensor, num_nodes: int) -> tuple[Tensor, Tensor]:
    """D_i^(-1/2) A_i D_i^(-1/2) of the nodes at distance exactly one and exactly two, as sparse (n, n) tensors.

    Made once for an `edge_index`; the second may have many entries where hubs are many.
    """
    if edge_index not in _HOPS or _HOPS[edge_index][0].size(0) != num_nodes:
        one = to_scipy_sparse_matrix(remove_self_loops(edge_index)[0].cpu(), num_nodes=num_nodes).tocsr() > 0
        two = (one @ one) > (one + sp.eye(num_nodes, dtype=bool, format="csr"))
        indices = [torch.from_numpy(np.vstack(hop.nonzero())).long().to(edge_index.device) for hop in (one, two)]
        _HOPS[edge_index] = tuple(_matrix(i, num_nodes, self_loops=False) for i in indices)
    return _HOPS[edge_index]


def _matrix(index: Tensor, n: int, self_loops: bool) -> Tensor:
    """D^(-1/2) A D^(-1/2) with PyG's conventions, as a sparse (n, n) tensor."""
    index, weight = gcn_norm(index, num_nodes=n, add_self_loops=self_loops, dtype=torch.float)
    return torch.sparse_coo_tensor(index.flip(0), weight, (n, n), check_invariants=False).coalesce()


class GPRGNN(nn.Module):
    """A polynomial of the graph with learned coefficients on the outputs of an MLP of `num_layers`.

    Args:
        order: largest power K.
        alpha: coefficients start as those of personalised PageRank, alpha (1 - alpha)^k.
        propagation_dropout: on the outputs of the MLP.
    """

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        num_layers: int,
        out_channels: int,
        dropout: float,
        order: int = 10,
        alpha: float = 0.1,
        propagation_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.alpha, self.dropout, self.propagation_dropout = alpha, dropout, propagation_dropout
        self.layers = _mlp(in_channels, hidden_channels, num_layers, out_channels, dropout)
        self.gamma = nn.Parameter(torch.empty(order + 1))
        self._propagation: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
        self.reset_parameters()

    def reset_parameters(self) -> None:
        reset(self.layers)
        power = torch.arange(len(self.gamma))
        pagerank = self.alpha * (1 - self.alpha) ** power
        pagerank[-1] = (1 - self.alpha) ** power[-1]
        self.gamma.data.copy_(pagerank)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        if edge_index not in self._propagation:
            self._propagation[edge_index] = _matrix(edge_index, len(x), self_loops=True)
        A = self._propagation[edge_index]
        x = functional.dropout(x, self.dropout, self.training)
        z = functional.dropout(self.layers(x), self.propagation_dropout, self.training)
        out = self.gamma[0] * z
        for gamma in self.gamma[1:]:
            z = A @ z
            out = out + gamma * z
        return out


def _mlp(in_channels: int, hidden_channels: int, num_layers: int, out_channels: int, dropout: float) -> nn.Module:
    widths = [in_channels, *[hidden_channels] * (num_layers - 1), out_channels]
    return pyg.MLP(widths, dropout=dropout, norm=None)


BASELINES: dict[str, Callable[..., nn.Module]] = {
    "mlp": _mlp,
    "gcn": partial(pyg.GCN, cached=True),
    "gat": pyg.GAT,
    "sage": pyg.GraphSAGE,
    "gcnii": GCNII,
    "h2gcn": H2GCN,
    "gprgnn": GPRGNN,
}
#: The kinds of sheaf, three learned and one fixed, and the control without which a table of them proves nothing.
SHEAVES = ("orthogonal", "diagonal", "general", "connection")
CONTROL = "identity"
MODELS = (*SHEAVES, CONTROL, *BASELINES)


@serializable
class Baseline(nn.Module):
    """One of `BASELINES` by name, so that checkpoints can hold it; arguments in the order of PyG's models.

    `sparse_features` and `sparse_graph` say whether it takes x, and the graph as an adjacency, as sparse CSR tensors.

    Args:
        model: "mlp", "gcn", "gat", "sage", "gcnii", "h2gcn" or "gprgnn".
        in_channels: features per node.
        hidden_channels: width.
        num_layers: layers, or rounds of H2GCN, or layers of the MLP of GPR-GNN.
        out_channels: classes.
        dropout: of hidden features.
        **settings: further arguments of the model, such as `heads` of GAT.
    """

    def __init__(
        self,
        model: str,
        in_channels: int,
        hidden_channels: int,
        num_layers: int,
        out_channels: int,
        dropout: float = 0.0,
        **settings: Any,
    ) -> None:
        super().__init__()
        if model not in BASELINES:
            raise unknown("model", model, MODELS)
        self.ignores_graph = model == "mlp"
        self.sparse_features, self.sparse_graph = model in ("mlp", "gcn"), model in ("gcn", "sage")
        self.net = BASELINES[model](in_channels, hidden_channels, num_layers, out_channels, dropout=dropout, **settings)
        self._graph: Any = None

    def reset_parameters(self) -> None:
        reset(self.net)

    def forward(self, x: Tensor, edge_index: Any) -> Tensor:
        if self.ignores_graph:
            return self.net(x)  # type: ignore[no-any-return]
        if edge_index is not self._graph:  # its normalisation takes half of an epoch, and is that of one graph
            self._graph = edge_index
            for conv in self.net.convs if isinstance(self.net, pyg.GCN) else ():
                conv._cached_edge_index = conv._cached_adj_t = None
        return self.net(x, edge_index)  # type: ignore[no-any-return]


def classifier(model: str, in_channels: int, classes: int, **settings: Any) -> nn.Module:
    """A node classifier.

    Args:
        model: kind of sheaf maps ("orthogonal", "diagonal", "general", "connection", "identity"), or "mlp", "gcn",
            "gat", "sage", "gcnii", "h2gcn", "gprgnn".
        in_channels: features per node.
        classes: number of classes.
        settings: `hidden_channels`, `num_layers`, `dropout`, and any further argument of the model.
    """
    hidden, layers = settings.pop("hidden_channels"), settings.pop("num_layers")
    if model in MAPS:
        return NeuralSheafDiffusion(in_channels, hidden, layers, classes, maps=model, **settings)
    return Baseline(model, in_channels, hidden, layers, classes, **settings)
