"""The graph under a sheaf: every undirected edge once, and both of its ends.

A cellular sheaf lives on an undirected simple graph. Whatever `edge_index` holds is therefore reduced to that graph:

    direction      (u, v), (v, u) or both are one edge {u, v}
    duplicates     are one edge
    self-loops     are dropped (their coboundary F x_v - F x_v is zero)
    isolated nodes keep their stalk; the Laplacian is zero there

The edges are then listed in both directions, first all (u, v) with u < v, then all (v, u) in the same order, so that
the entry of the other end of edge k is simply k + E or k - E. The construction is one `unique`, O(M log M) and free of
loops, and is remembered for as long as the `edge_index` tensor lives unchanged.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary
from torch_geometric.utils import is_sparse, scatter, to_edge_index

from suffuse.errors import InvalidArgument


@dataclass(frozen=True, eq=False)
class SheafGraph:
    """An undirected simple graph with its 2E edge ends.

    Attributes:
        edge_index: (2, 2E) source and target of every directed entry; k and reverse[k] are the two ends of an edge.
        reverse: (2E,) the entry of the opposite direction.
        origin: (M,) the undirected edge 0..E-1 of every entry of the given `edge_index`, or E for a self-loop.
        num_nodes: n.
    """

    edge_index: Tensor
    reverse: Tensor
    origin: Tensor
    num_nodes: int

    @property
    def num_edges(self) -> int:
        """E, the number of undirected edges."""
        return self.edge_index.size(1) // 2

    def spread(self, value: Tensor) -> Tensor:
        """(M,) numbers on the given entries -> (2E,) on the edge ends: the mean over the entries of an edge."""
        mean = scatter(value, self.origin, dim_size=self.num_edges + 1, reduce="mean")[:-1]
        return torch.cat([mean, mean])


_KNOWN: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def sheaf_graph(edge_index: Any, num_nodes: int | None = None) -> SheafGraph:
    """The undirected simple graph of a PyG `edge_index`.

    Args:
        edge_index: (2, M) integer tensor, `EdgeIndex`, sparse adjacency tensor, or a `SheafGraph` (returned as it is).
        num_nodes: n; by default the largest index + 1.
    """
    if isinstance(edge_index, SheafGraph):
        return edge_index
    if is_sparse(edge_index):
        num_nodes = edge_index.size(0) if num_nodes is None else num_nodes
        edge_index = to_edge_index(edge_index)[0]
    stamp = (edge_index._version, num_nodes) if isinstance(edge_index, Tensor) else None
    if stamp and edge_index in _KNOWN and _KNOWN[edge_index][0] == stamp:
        return _KNOWN[edge_index][1]
    graph = _build(edge_index, num_nodes)
    _KNOWN[edge_index] = (stamp, graph)
    return graph


def _build(edge_index: Tensor, num_nodes: int | None) -> SheafGraph:
    if not isinstance(edge_index, Tensor) or edge_index.dim() != 2 or edge_index.size(0) != 2:
        got = tuple(edge_index.shape) if isinstance(edge_index, Tensor) else type(edge_index).__name__
        raise InvalidArgument(f"edge_index must be an integer tensor of shape (2, edges), got {got}")
    if edge_index.is_floating_point() or edge_index.dtype == torch.bool:
        raise InvalidArgument(f"edge_index must hold integers, got {edge_index.dtype}; convert with edge_index.long()")
    index = edge_index.as_tensor() if hasattr(edge_index, "as_tensor") else edge_index
    index = index.long()
    n = num_nodes if num_nodes is not None else (int(index.max()) + 1 if index.numel() else 0)
    if n == 0:
        raise InvalidArgument("the graph is empty: x has no rows and edge_index no edges; give at least one node")
    if index.numel() and (int(index.min()) < 0 or int(index.max()) >= n):
        raise InvalidArgument(
            f"edge_index holds node {int(index.min())}..{int(index.max())}, but the graph has {n} nodes (0..{n - 1}); "
            "relabel the nodes or give x a row for each"
        )
    low, high = index.amin(0), index.amax(0)
    loop = low == high
    pairs, inverse = torch.unique((low * n + high)[~loop], return_inverse=True)
    origin = torch.full_like(low, pairs.numel()).masked_scatter(~loop, inverse)
    ends = torch.stack([pairs // n, pairs % n])
    edge = torch.arange(pairs.numel(), device=index.device)
    reverse = torch.cat([edge + pairs.numel(), edge])
    return SheafGraph(torch.cat([ends, ends.flip(0)], dim=1), reverse, origin, n)
