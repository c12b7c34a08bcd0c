"""A backbone for signals on a fixed graph: sheaf layers with a noise level, a place of each node, and observed values.

    h_v   = W [ x_v, observed_v, mask_v ] + place_v                            place is learned, one per node
    h     = h + MLP( (1 + a) norm(conv(h)) + b, mean_u h_u )                   L times, (a, b) = affine(c_noise)
    out_v = W norm(h_v)                                                        zero at the start

The convolution is a sheaf layer or, for comparison, PyG's GCN. The mean over nodes carries what the neighbours cannot.
What is known of a signal enters as the condition maps "observed" (values, zero where missing) and "mask" (1 where
observed); an absent condition is one with nothing observed.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch_geometric.nn import GCNConv

from suffuse import Condition
from suffuse.errors import InvalidArgument
from suffuse.hub import serializable
from suffuse.nets import NoiseEmbedding

from ..sheaf import SheafConv, SheafGraph, sheaf_graph
from ..sheaf.maps import MAPS


@serializable
class GraphSignalNet(nn.Module):
    """x (B, C, n) at noise labels (B,) -> (B, C, n).

    Args:
        edge_index: (2, edges) as nested lists; directions and duplicates do not matter.
        num_nodes: n.
        channels: C.
        conv: "orthogonal", "diagonal", "general", "identity" (sheaf layers) or "gcn".
        hidden: width, a multiple of stalk_dim.
        depth: number of blocks L.
        stalk_dim: d of the sheaf layers.
    """

    def __init__(
        self,
        edge_index: Sequence[Sequence[int]],
        num_nodes: int,
        channels: int = 1,
        conv: str = "diagonal",
        hidden: int = 48,
        depth: int = 4,
        stalk_dim: int = 4,
    ) -> None:
        super().__init__()
        if conv not in (*MAPS, "gcn"):
            raise InvalidArgument(f"conv must be one of {', '.join((*MAPS, 'gcn'))}; got {conv!r}")
        self.num_nodes, self.channels = num_nodes, channels
        graph = sheaf_graph(torch.tensor(edge_index, dtype=torch.long).view(2, -1), num_nodes)
        self.register_buffer("edge_index", graph.edge_index, persistent=False)
        self.encode = nn.Linear(2 * channels + 1, hidden)
        self.place = nn.Parameter(0.02 * torch.randn(num_nodes, hidden))
        self.noise = NoiseEmbedding(hidden)
        self.blocks = nn.ModuleList(Block(conv, hidden, stalk_dim) for _ in range(depth))
        self.norm = nn.LayerNorm(hidden)
        self.decode = nn.Linear(hidden, channels)
        nn.init.zeros_(self.decode.weight)
        nn.init.zeros_(self.decode.bias)
        self._graphs: dict[tuple[int, torch.device], SheafGraph] = {}

    edge_index: Tensor

    def forward(self, x: Tensor, c_noise: Tensor, cond: Condition | None = None) -> Tensor:
        if x.dim() != 3 or x.shape[1:] != (self.channels, self.num_nodes):
            raise InvalidArgument(f"x must be (B, {self.channels}, {self.num_nodes}), got {tuple(x.shape)}")
        known = self._known(x, cond)
        h = self.encode(torch.cat([x, known], dim=1).mT) + self.place  # (B, n, hidden)
        noise = self.noise(c_noise)
        graph = self._copies(len(x), x.device)
        for block in self.blocks:
            h = block(h, noise, graph)
        return self.decode(self.norm(h)).mT

    def _known(self, x: Tensor, cond: Condition | None) -> Tensor:
        """(B, C + 1, n): observed values and mask, zero where a row has no condition."""
        if cond is None or not len(cond):
            return x.new_zeros(len(x), self.channels + 1, self.num_nodes)
        cond.expect(len(x), maps={"observed": self.channels, "mask": 1})
        mask = cond.maps["mask"] * (cond.masks["mask"] & cond.masks["observed"])[:, None, None]
        return torch.cat([cond.maps["observed"] * mask, mask], dim=1).to(x.dtype)

    def _copies(self, batch: int, device: torch.device) -> SheafGraph:
        """The graph of `batch` disjoint copies, as PyG batches it."""
        if (batch, device) not in self._graphs:
            if len(self._graphs) > 8:
                self._graphs.clear()
            offset = self.num_nodes * torch.arange(batch, device=device).repeat_interleave(self.edge_index.size(1))
            self._graphs[batch, device] = sheaf_graph(self.edge_index.repeat(1, batch) + offset, batch * self.num_nodes)
        return self._graphs[batch, device]


class Block(nn.Module):
    """Residual graph convolution with a noise level."""

    def __init__(self, conv: str, hidden: int, stalk_dim: int) -> None:
        super().__init__()
        self.gcn = conv == "gcn"
        self.conv = GCNConv(hidden, hidden) if self.gcn else SheafConv(hidden, stalk_dim, conv)
        self.norm = nn.LayerNorm(hidden)
        self.affine = nn.Linear(hidden, 2 * hidden)
        self.mlp = nn.Sequential(nn.Linear(2 * hidden, 2 * hidden), nn.SiLU(), nn.Linear(2 * hidden, hidden))

    def forward(self, h: Tensor, noise: Tensor, graph: SheafGraph) -> Tensor:
        flat = h.reshape(-1, h.size(-1))
        moved = (self.conv(flat, graph.edge_index if self.gcn else graph)).view_as(h)
        a, b = self.affine(noise)[:, None].chunk(2, dim=-1)
        local = (1 + a) * self.norm(moved) + b
        return h + self.mlp(torch.cat([local, h.mean(1, keepdim=True).expand_as(h)], dim=-1))
