"""Neural sheaf diffusion as a node classifier: encode, diffuse L times along a sheaf learned at every step, decode.

    X_0     = dropout( act( W_in dropout(x, p_in) ), p )
    F_l     = learner_l( X_l )                               the sheaf sees its own dropout draw
    X_{l+1} = (1 + tanh eps_l) X_l - act( Delta_{F_l} (I (x) W_1) dropout(X_l, p) W_2 )
    logits  = W_out X_L

Bodnar, Di Giovanni, Chamberlain, Lio, Bronstein (2022), "Neural Sheaf Diffusion: A Topological Perspective on
Heterophily and Oversmoothing in GNNs", arXiv:2202.04579.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch_geometric.nn.resolver import activation_resolver

from suffuse.hub import serializable

from .conv import SheafConv
from .graph import sheaf_graph
from .laplacian import Sheaf, SheafLaplacian


@serializable
class NeuralSheafDiffusion(nn.Module):
    """(n, in_channels) -> logits (n, out_channels). Arguments in the order of PyG's `GCN`, `GAT`, ...

    Args:
        in_channels: features per node.
        hidden_channels: width d f, a multiple of `stalk_dim`.
        num_layers: diffusion steps L.
        out_channels: classes.
        stalk_dim: d.
        maps: "orthogonal", "diagonal", "general" or "identity".
        input_dropout: on the raw features.
        dropout: on the hidden features.
        **conv: further arguments of `SheafConv`.
    """

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        num_layers: int,
        out_channels: int,
        *,
        stalk_dim: int = 3,
        maps: str = "orthogonal",
        input_dropout: float = 0.0,
        dropout: float = 0.0,
        activation: str = "elu",
        **conv: Any,
    ) -> None:
        super().__init__()
        self.input_dropout, self.dropout = input_dropout, dropout
        self.encoder = nn.Linear(in_channels, hidden_channels)
        self.activation = activation_resolver(activation)
        layers = [
            SheafConv(hidden_channels, stalk_dim, maps, dropout=dropout, activation=activation, **conv)
            for _ in range(num_layers)
        ]
        self.convs: Sequence[SheafConv] = nn.ModuleList(layers)  # type: ignore[assignment]
        self.decoder = nn.Linear(hidden_channels, out_channels)

    def reset_parameters(self) -> None:
        self.encoder.reset_parameters()
        self.decoder.reset_parameters()
        for conv in self.convs:
            conv.reset_parameters()

    def forward(self, x: Tensor, edge_index: Any, edge_weight: Tensor | None = None) -> Tensor:
        for x, _ in self.diffusion(x, edge_index, edge_weight):  # noqa: B007, B020
            pass
        return self.decoder(x)

    def diffusion(
        self, x: Tensor, edge_index: Any, edge_weight: Tensor | None = None
    ) -> Iterator[tuple[Tensor, Sheaf | None]]:
        """The hidden state (n, hidden_channels) before and after every step, each with the sheaf that led to it."""
        graph = sheaf_graph(edge_index, len(x))
        weight = None if edge_weight is None else graph.spread(edge_weight)
        x = functional.dropout(x, self.input_dropout, self.training)
        x = functional.dropout(self.activation(self.encoder(x)), self.dropout, self.training)
        yield x, None
        for layer, conv in enumerate(self.convs):
            seen = functional.dropout(x, self.dropout, self.training) if layer else x
            conv._check(seen)
            sheaf = conv.learner(seen, graph, weight)
            x = conv(x, graph, sheaf=sheaf)
            yield x, sheaf

    def sheaf_parameters(self) -> list[nn.Parameter]:
        """The parameters of the maps, which the paper decays separately."""
        return [p for conv in self.convs for p in conv.learner.parameters()]

    @torch.no_grad()
    def energies(self, x: Tensor, edge_index: Any) -> list[float]:
        """Rayleigh quotient x^T Delta x / x^T x of every learned sheaf on the state it was learned from."""
        states = list(self.diffusion(x, edge_index))
        out = []
        for (before, _), (_, sheaf), conv in zip(states, states[1:], self.convs, strict=False):
            assert sheaf is not None
            stalks = before.view(len(before), sheaf.stalk_dim, -1)
            out.append(float(SheafLaplacian(sheaf, conv.normalization).rayleigh(stalks)))
        return out
