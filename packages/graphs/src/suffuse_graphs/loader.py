"""Mini-batches of a large graph, from plain wheels.

A sheaf needs both directions of every edge, which samplers of directed edges lose. Here the edges are undirected from
the start: hop by hop, a node draws at most k of its edges without replacement, and a drawn edge comes whole. Sampling
is a few tensor operations a hop, on the device of the graph.

The maps at the border of a batch see fewer neighbours than in the whole graph, and so does D. A step reaches two hops
far, since D of a neighbour counts all of its edges: with all neighbours (-1) for twice as many hops as the model has
steps, the outputs at the seeds are those of the whole graph.

Hamilton, Ying, Leskovec (2017), "Inductive representation learning on large graphs", arXiv:1706.02216.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch_geometric.typing
from torch import Generator, Tensor
from torch.utils.data import DataLoader
from torch_geometric.data import Data

from suffuse.errors import InvalidArgument, MissingExtra

from .sheaf.graph import SheafGraph, end_weights, sheaf_graph


def neighbor_loader(
    data: Data,
    num_neighbors: Sequence[int],
    batch_size: int = 1,
    input_nodes: Tensor | None = None,
    *,
    backend: Literal["torch", "pyg"] = "torch",
    generator: Generator | None = None,
    **loader: Any,
) -> Any:
    """Batches of seed nodes with their sampled neighbourhoods, as PyG's `NeighborLoader` gives them.

    A batch is a `Data` with the node attributes of its nodes, seeds first, `edge_index` in both directions, `n_id` (the
    nodes in the whole graph), `input_id` and `batch_size` (the number of seeds).

    Args:
        data: with `x`, `edge_index`, and what else there is per node; `edge_weight` is kept, other edge attributes not.
        num_neighbors: at most so many edges a node and hop; -1 for all.
        batch_size: seeds.
        input_nodes: seeds, as indices or as a mask; by default all nodes.
        backend: "torch" needs nothing; "pyg" is PyG's own loader with `subgraph_type="bidirectional"`, which needs
            pyg-lib or torch-sparse.
        generator: of the draws; by default torch's.
        **loader: of `torch.utils.data.DataLoader`: `shuffle`, `num_workers`, ...

    Raises:
        InvalidArgument: nodes out of range, or a backend that does not exist.
        MissingExtra: for "pyg" without a compiled extra.
    """
    n = data.num_nodes
    nodes = torch.arange(n) if input_nodes is None else input_nodes
    nodes = nodes.nonzero().squeeze(1) if nodes.dtype == torch.bool else nodes
    if nodes.numel() and (int(nodes.min()) < 0 or int(nodes.max()) >= n):
        raise InvalidArgument(f"input_nodes must lie in 0..{n - 1}, got {int(nodes.min())}..{int(nodes.max())}")
    if batch_size < 1 or not num_neighbors or any(k < -1 or k == 0 for k in num_neighbors):
        raise InvalidArgument(
            f"batch_size and num_neighbors must be positive (or -1 for all neighbours), got {batch_size} and "
            f"{list(num_neighbors)}"
        )
    if backend == "pyg":
        return _pyg(data, num_neighbors, batch_size, nodes, loader)
    if backend != "torch":
        raise InvalidArgument(f"backend must be 'torch' or 'pyg', got {backend!r}")
    sampler = NeighborSampler(data, num_neighbors, generator)
    seeds: Any = nodes.tolist()
    return DataLoader(seeds, batch_size=batch_size, collate_fn=sampler, generator=generator, **loader)


class NeighborSampler:
    """Seeds -> `Data` of the sampled neighbourhood; see `neighbor_loader`."""

    def __init__(self, data: Data, num_neighbors: Sequence[int], generator: Generator | None = None) -> None:
        self.data, self.num_neighbors, self.generator = data, list(num_neighbors), generator
        self.graph: SheafGraph = sheaf_graph(data.edge_index, data.num_nodes)
        self.weight = end_weights(data.edge_index, data.get("edge_weight"), self.graph)
        self.place = torch.full((data.num_nodes,), -1, device=data.edge_index.device)  # of a node in the batch

    def __call__(self, seeds: Sequence[int] | Tensor) -> Data:
        input_id = torch.as_tensor(seeds, device=self.place.device)
        nodes, edges = self.sample(input_id)
        ends = torch.cat([edges, edges + self.graph.num_edges])
        self.place[nodes] = torch.arange(len(nodes), device=nodes.device)
        edge_index = self.place[self.graph.edge_index[:, ends]]
        self.place[nodes] = -1
        batch = Data(edge_index=edge_index, n_id=nodes, input_id=input_id, batch_size=len(input_id))
        for key, value in self.data.to_dict().items():
            if key not in batch and isinstance(value, Tensor) and self.data.is_node_attr(key):
                batch[key] = value[nodes]
        if self.weight is not None:
            batch.edge_weight = self.weight[ends]
        return batch

    def sample(self, seeds: Tensor) -> tuple[Tensor, Tensor]:
        """Nodes, seeds first, and the undirected edges 0..E-1 that were drawn."""
        graph, found, frontier, drawn = self.graph, seeds, seeds, []
        self.place[seeds] = 0
        for k in self.num_neighbors:
            ends = self._draw(frontier, k)
            drawn.append(ends % graph.num_edges)
            reached = graph.edge_index[0, ends].unique()
            frontier = reached[self.place[reached] < 0]
            self.place[frontier] = 0
            found = torch.cat([found, frontier])
        self.place[found] = -1
        return found, torch.cat(drawn).unique()

    def _draw(self, nodes: Tensor, k: int) -> Tensor:
        """At most k of the edge ends that meet at each node, without replacement."""
        degree = self.graph.degree[nodes]
        owner = torch.arange(len(nodes), device=nodes.device).repeat_interleave(degree)
        start = degree.cumsum(0) - degree
        nth = torch.arange(len(owner), device=nodes.device) - start[owner]
        ends = self.graph.at_target[self.graph.ptr[nodes][owner] + nth]
        if k < 0 or not len(ends):
            return ends
        lot = torch.rand(len(ends), dtype=torch.float64, device=ends.device, generator=self.generator)
        return ends[(owner + lot).argsort()][nth < k]  # in the order of lots within each node, the first k


def _pyg(data: Data, num_neighbors: Sequence[int], batch_size: int, nodes: Tensor, loader: dict[str, Any]) -> Any:
    if not (torch_geometric.typing.WITH_PYG_LIB or torch_geometric.typing.WITH_TORCH_SPARSE):
        raise MissingExtra(
            "backend='pyg' needs a compiled extra of PyG, pyg-lib or torch-sparse, and neither is installed; "
            "backend='torch' samples the same neighbourhoods without one"
        )
    from torch_geometric.loader import NeighborLoader

    return NeighborLoader(
        data, list(num_neighbors), input_nodes=nodes, batch_size=batch_size, subgraph_type="bidirectional", **loader
    )
