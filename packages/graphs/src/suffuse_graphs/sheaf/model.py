"""Neural sheaf diffusion as a node classifier: encode, diffuse L times along a sheaf learned at every step, decode.

    X_0     = dropout( act( W_in dropout(x, p_in) ), p )     and W_in2 of it, if `second_linear`
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
from torch.utils.checkpoint import checkpoint

from suffuse.errors import InvalidArgument
from suffuse.hub import serializable

from .connection import connection_sheaf
from .conv import SheafConv, activation_of, check_features
from .graph import SheafGraph, end_weights, sheaf_graph
from .laplacian import Sheaf, SheafLaplacian


class SheafClassifier(nn.Module):
    """What the discrete and the continuous model share: the encoder and the decoder."""

    sparse_features = True

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        out_channels: int,
        *,
        input_dropout: float,
        dropout: float,
        activation: str | None,
        second_linear: bool,
    ) -> None:
        super().__init__()
        self.in_channels, self.input_dropout, self.dropout = in_channels, input_dropout, dropout
        self.encoder = nn.Linear(in_channels, hidden_channels)
        self.encoder2 = nn.Linear(hidden_channels, hidden_channels) if second_linear else None
        self.activation = activation_of(activation)
        self.decoder = nn.Linear(hidden_channels, out_channels)

    def encode(self, x: Tensor) -> Tensor:
        """(n, in_channels), dense or sparse CSR, -> (n, hidden_channels)."""
        check_features(x, self.in_channels, raw=True)
        x = drop_features(x, self.input_dropout, self.training)
        x = functional.dropout(self.activation(self.encoder(x)), self.dropout, self.training)
        return x if self.encoder2 is None else self.encoder2(x)


def drop_features(x: Tensor, p: float, training: bool) -> Tensor:
    """Dropout that leaves the zeros of sparse CSR features alone, which is the same."""
    if x.layout != torch.sparse_csr:
        return functional.dropout(x, p, training)
    values = functional.dropout(x.values(), p, training)
    return torch.sparse_csr_tensor(x.crow_indices(), x.col_indices(), values, x.shape, check_invariants=False)


@serializable
class NeuralSheafDiffusion(SheafClassifier):
    """(n, in_channels) -> logits (n, out_channels). Arguments in the order of PyG's `GCN`, `GAT`, ...

    Args:
        in_channels: features per node.
        hidden_channels: width, a multiple of the dimension of the stalk (`stalk_dim` and the fixed rows).
        num_layers: diffusion steps L.
        out_channels: classes.
        stalk_dim: d.
        maps: "orthogonal", "diagonal", "general", "connection" (by local PCA of the raw features) or "identity".
        input_dropout: on the raw features.
        dropout: on the hidden features.
        activation: of the encoder and of every step; None for none.
        second_linear: a second layer in the encoder.
        relearn: learn a sheaf before every step; False: one, before the first (diffusion is then linear in X, but for
            the activation).
        checkpoint: keep only the states between steps and compute the rest again on the way back: depth for time.
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
        activation: str | None = "elu",
        second_linear: bool = False,
        relearn: bool = True,
        checkpoint: bool = False,
        **conv: Any,
    ) -> None:
        super().__init__(
            in_channels, hidden_channels, out_channels, input_dropout=input_dropout, dropout=dropout,
            activation=activation, second_linear=second_linear,
        )  # fmt: skip
        if num_layers < 1:
            raise InvalidArgument(f"num_layers must be at least 1, got {num_layers}")
        self.relearn, self.checkpoint = relearn, checkpoint
        layers = [
            SheafConv(hidden_channels, stalk_dim, maps, dropout=dropout, activation=activation, **conv)
            for _ in range(num_layers)
        ]
        if not relearn:
            for layer in layers[1:]:
                layer.learner = layers[0].learner
        self.convs: Sequence[SheafConv] = nn.ModuleList(layers)  # type: ignore[assignment]

    def reset_parameters(self) -> None:
        for part in (self.encoder, self.encoder2, self.decoder, *self.convs):
            if part is not None:
                part.reset_parameters()

    def forward(
        self, x: Tensor, edge_index: Any, edge_weight: Tensor | None = None, *, sheaf: Sheaf | None = None
    ) -> Tensor:
        """Logits.

        Args:
            x: (n, in_channels); bags of words may be sparse CSR, which is many times faster.
            edge_index: (2, M) tensor, `EdgeIndex`, sparse adjacency tensor or `SheafGraph`.
            edge_weight: (M,) weights >= 0, averaged over the entries of an undirected edge.
            sheaf: a fixed sheaf for all steps, instead of learned ones.
        """
        for x, _ in self.diffusion(x, edge_index, edge_weight, sheaf=sheaf):  # noqa: B007, B020
            pass
        return self.decoder(x)

    def diffusion(
        self, x: Tensor, edge_index: Any, edge_weight: Tensor | None = None, *, sheaf: Sheaf | None = None
    ) -> Iterator[tuple[Tensor, Sheaf | None]]:
        """The hidden state (n, hidden_channels) before and after every step, each with the sheaf that led to it."""
        graph = sheaf_graph(edge_index, len(x))
        weight = end_weights(edge_index, edge_weight, graph)
        first = self.convs[0].learner
        base = connection_sheaf(x, graph, first.stalk_dim) if first.maps == "connection" and sheaf is None else None
        x, given = self.encode(x), sheaf
        yield x, None
        for layer, conv in enumerate(self.convs):
            if given is None and (layer == 0 or self.relearn):
                sheaf = None
            if self.checkpoint and self.training and torch.is_grad_enabled():
                x, sheaf = checkpoint(self._step, conv, x, graph, weight, base, sheaf, layer, use_reentrant=False)
            else:
                x, sheaf = self._step(conv, x, graph, weight, base, sheaf, layer)
            yield x, sheaf

    def _step(
        self,
        conv: SheafConv,
        x: Tensor,
        graph: SheafGraph,
        weight: Tensor | None,
        base: Sheaf | None,
        sheaf: Sheaf | None,
        layer: int,
    ) -> tuple[Tensor, Sheaf]:
        if sheaf is None:
            seen = functional.dropout(x, self.dropout, self.training) if layer else x
            check_features(seen, conv.channels)
            sheaf = conv.learner(seen, graph, weight, base)
        return conv(x, graph, sheaf=sheaf), sheaf

    @property
    def recordable(self) -> bool:
        """Whether a step on a GPU can be recorded as a CUDA graph: torch's linear algebra waits for the device."""
        kinds = {(c.maps, c.learner.orthogonal if c.maps == "orthogonal" else "") for c in self.convs}
        return kinds <= {("diagonal", ""), ("orthogonal", "householder"), ("identity", "")}

    def sheaf_parameters(self) -> list[nn.Parameter]:
        """The parameters of the maps, which the paper decays separately."""
        return list({id(p): p for conv in self.convs for p in conv.learner.parameters()}.values())

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
