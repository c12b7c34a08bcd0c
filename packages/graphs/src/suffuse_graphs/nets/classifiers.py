"""Node classifiers by name: the four kinds of sheaf, and PyG's own GCN, GraphSAGE, GAT and MLP, behind one call.

All map features (n, in_channels) and `edge_index` to logits (n, classes).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch_geometric import nn as pyg

from suffuse.errors import unknown

from ..sheaf import NeuralSheafDiffusion
from ..sheaf.maps import MAPS


class MLP(nn.Module):
    """PyG's MLP, which ignores the graph; arguments as of PyG's `GCN`."""

    def __init__(
        self, in_channels: int, hidden_channels: int, num_layers: int, out_channels: int, dropout: float
    ) -> None:
        super().__init__()
        self.layers = pyg.MLP(
            in_channels=in_channels,
            hidden_channels=hidden_channels,
            out_channels=out_channels,
            num_layers=num_layers,
            dropout=dropout,
            norm=None,
        )

    def reset_parameters(self) -> None:
        self.layers.reset_parameters()

    def forward(self, x: Tensor, edge_index: Any = None) -> Tensor:
        return self.layers(x)


BASELINES: dict[str, type[nn.Module]] = {"gcn": pyg.GCN, "sage": pyg.GraphSAGE, "gat": pyg.GAT, "mlp": MLP}
MODELS = (*MAPS, *BASELINES)


def classifier(model: str, in_channels: int, classes: int, **settings: Any) -> nn.Module:
    """A node classifier.

    Args:
        model: kind of sheaf maps ("orthogonal", "diagonal", "general", "identity"), or "gcn", "sage", "gat", "mlp".
        in_channels: features per node.
        classes: number of classes.
        settings: `hidden_channels`, `num_layers`, `dropout`, and for sheaves any argument of `NeuralSheafDiffusion`.
    """
    hidden, layers = settings.pop("hidden_channels"), settings.pop("num_layers")
    if model in MAPS:
        return NeuralSheafDiffusion(in_channels, hidden, layers, classes, maps=model, **settings)
    if model not in BASELINES:
        raise unknown("model", model, MODELS)
    return BASELINES[model](in_channels, hidden, layers, classes, **settings)
