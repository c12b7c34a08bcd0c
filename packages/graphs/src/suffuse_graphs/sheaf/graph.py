"""The graph under a sheaf: every undirected edge once, both of its ends, and the plan that sums over neighbours.

A cellular sheaf lives on an undirected simple graph. Whatever `edge_index` holds is therefore reduced to that graph:

    direction      (u, v), (v, u) or both are one edge {u, v}
    duplicates     are one edge
    self-loops     are dropped (their coboundary F x_v - F x_v is zero)
    isolated nodes keep their stalk; the Laplacian is zero there

The edges are then listed in both directions, first all (u, v) with u < v, then all (v, u) in the same order, so that
the entry of the other end of edge k is simply k + E or k - E. The construction is one `unique`, O(M log M) and free of
loops, and is remembered for as long as the `edge_index` tensor lives unchanged. So is all that depends on the graph
alone: which ends meet at a node, and where the numbers of a block stand in a compressed row.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary
from torch_geometric.utils import is_sparse, scatter, segment, to_edge_index

from suffuse.errors import InvalidArgument


class Pattern(NamedTuple):
    """Where the numbers of the blocks of all edge ends stand in a compressed sparse row (CSR) matrix.

    Attributes:
        crow, col: int32 row pointers and columns.
        place: int32 (2, numbers) for the blocks (E, ...) flattened: their place as T_e and as its transpose.
        number: int32 of every place, which of the flattened numbers stands there.
        size: rows, which is also columns.
    """

    crow: Tensor
    col: Tensor
    place: Tensor
    number: Tensor
    size: int

    def matrix(self, transport: Tensor) -> Tensor:
        """The CSR matrix of the blocks (E, ...), and of their transposes for the opposite direction."""
        values = transport.reshape(-1).index_select(0, self.number)  # several times faster than to scatter them
        return torch.sparse_csr_tensor(self.crow, self.col, values, (self.size, self.size), check_invariants=False)


@dataclass(frozen=True, eq=False)
class SheafGraph:
    """An undirected simple graph with its 2E edge ends.

    Attributes:
        edge_index: (2, 2E) source and target of every directed entry; k and reverse[k] are the two ends of an edge.
        reverse: (2E,) the entry of the opposite direction.
        origin: (M,) the undirected edge 0..E-1 of every entry of the given `edge_index`, or E for a self-loop.
        degree: (n,) number of neighbours.
        num_nodes: n.
        fixed: maps (2E, rows) of fixed rows of the stalk, once made.
    """

    edge_index: Tensor
    reverse: Tensor
    origin: Tensor
    degree: Tensor
    num_nodes: int
    fixed: dict[tuple[tuple[int, ...], torch.dtype], Tensor] = field(default_factory=dict, repr=False)
    _patterns: dict[tuple[int, bool], Pattern] = field(default_factory=dict, repr=False)
    _incidences: dict[tuple[int, torch.dtype], Tensor] = field(default_factory=dict, repr=False)
    _chunks: dict[int, list[tuple[int, int, int, int]]] = field(default_factory=dict, repr=False)

    @property
    def num_edges(self) -> int:
        """E, the number of undirected edges."""
        return self.edge_index.size(1) // 2

    def spread(self, value: Tensor) -> Tensor:
        """(M,) numbers on the given entries -> (2E,) on the edge ends: the mean over the entries of an edge."""
        mean = scatter(value, self.origin, dim_size=self.num_edges + 1, reduce="mean")[:-1]
        return torch.cat([mean, mean])

    @cached_property
    def at_target(self) -> Tensor:
        """(2E,) the edge ends in the order of their targets."""
        return self.edge_index[1].argsort(stable=True)

    @cached_property
    def at_source(self) -> Tensor:
        """(2E,) the edge ends in the order of their sources."""
        return self.reverse[self.at_target]

    @cached_property
    def ptr(self) -> Tensor:
        """(n + 1,) the ends that meet at node v are entries ptr[v]..ptr[v + 1] of `at_target` and of `at_source`."""
        return torch.nn.functional.pad(self.degree.cumsum(0), (1, 0))

    def _incidence(self, end: int, dtype: torch.dtype) -> Tensor:
        """(n, 2E) matrix of ones where an edge end has its source (end 0) or target (end 1) at the node."""
        if (end, dtype) not in self._incidences:
            col = (self.at_target if end else self.at_source).int()
            ones, size = torch.ones(len(col), dtype=dtype), (self.num_nodes, len(col))
            self._incidences[end, dtype] = torch.sparse_csr_tensor(
                self.ptr.int(), col, ones, size, check_invariants=False
            )
        return self._incidences[end, dtype]

    def sum_at(self, end: int, values: Tensor) -> Tensor:
        """(2E, ...) -> (n, ...), the sum over the edge ends whose source (end 0) or target (end 1) is the node.

        Not differentiable; the derivative is a gather.
        """
        flat = values.flatten(1)
        if csr_usable(flat) and self.num_edges < 2**30:
            total = self._incidence(end, flat.dtype) @ flat
        else:
            total = segment(flat[self.at_source if end == 0 else self.at_target], self.ptr, reduce="sum")
        return total.view(self.num_nodes, *values.shape[1:])

    def pattern(self, d: int, full: bool) -> Pattern:
        """The plan of blocks (E, d, d) if `full`, else of diagonal or scalar blocks (E, d)."""
        if (d, full) not in self._patterns:
            self._patterns[d, full] = self._build_pattern(d, full)
        return self._patterns[d, full]

    def _build_pattern(self, d: int, full: bool) -> Pattern:
        """Row (v, i) holds, end after end at v, the numbers T[i, 0], ..., T[i, d - 1] (or T[i, i] alone)."""
        order, width, device, E = self.at_target, d if full else 1, self.edge_index.device, self.num_edges
        source, target = self.edge_index
        nth = torch.empty_like(order)
        nth[order] = torch.arange(len(order), device=device)  # among all ends, in the order of their targets
        first = self.ptr[target]
        start = (first * (d * width) + (nth - first) * width).view(-1, 1, 1)  # of an end in the first row of its target
        i = torch.arange(d, device=device).view(1, d, 1)
        j = torch.arange(width, device=device).view(1, 1, width)
        start = start + i * (self.degree[target] * width).view(-1, 1, 1)
        place = torch.empty(2, E, d, width, dtype=torch.long, device=device)
        torch.add(start[:E], j, out=place[0])
        torch.add(start[E:], j, out=place[1].mT if full else place[1])
        place = place.view(2, -1)
        column = (source * d).int().view(-1, 1, 1)
        col = torch.empty(2 * E * d * width, dtype=torch.int32, device=device)
        col.scatter_(0, place[0], (column[:E] + (j if full else i).int()).expand(E, d, width).reshape(-1))
        col.scatter_(0, place[1], (column[E:] + i.int()).expand(E, d, width).reshape(-1))
        crow = torch.nn.functional.pad((self.degree * width).repeat_interleave(d).cumsum(0), (1, 0)).int()
        number, numbers = torch.empty_like(col), torch.arange(place.size(1), dtype=torch.int32, device=device)
        number.scatter_(0, place[0], numbers).scatter_(0, place[1], numbers)
        return Pattern(crow, col, place.int(), number, self.num_nodes * d)

    def chunks(self, ends: int) -> list[tuple[int, int, int, int]]:
        """Ranges of nodes (first, last) with about `ends` edge ends each, and the range of these in `at_target`."""
        if ends not in self._chunks:
            total = 2 * self.num_edges
            goals = torch.arange(ends, total + ends, ends, device=self.ptr.device).clamp_max(total)
            nodes = [0, *torch.searchsorted(self.ptr, goals).unique().tolist()[:-1], self.num_nodes]
            at = self.ptr[torch.tensor(nodes, device=self.ptr.device)].tolist()
            self._chunks[ends] = list(zip(nodes[:-1], nodes[1:], at[:-1], at[1:], strict=True))
        return self._chunks[ends]


with warnings.catch_warnings():  # that compressed rows are a beta feature of torch is said once, and not to our users
    warnings.simplefilter("ignore")
    torch.sparse_csr_tensor([0, 0], [], [], (1, 1))


def csr_usable(x: Tensor) -> bool:
    """Whether products with compressed rows run in MKL, many times faster than gather, product and sum."""
    return x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64) and torch.backends.mkl.is_available()


_KNOWN: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def sheaf_graph(edge_index: Any, num_nodes: int | None = None) -> SheafGraph:
    """The undirected simple graph of a PyG `edge_index`, remembered while that tensor lives unchanged.

    Args:
        edge_index: (2, M) integer tensor, `EdgeIndex`, sparse adjacency tensor, or a `SheafGraph` (returned as it is;
            with it, models compile without a break).
        num_nodes: n; by default the largest index + 1.
    """
    if not isinstance(edge_index, SheafGraph):
        return _known(edge_index, num_nodes)
    if num_nodes is not None and num_nodes != edge_index.num_nodes:
        raise InvalidArgument(f"edge_index is a graph of {edge_index.num_nodes} nodes, but x has {num_nodes} rows")
    return edge_index


@torch.compiler.disable
def _known(edge_index: Any, num_nodes: int | None) -> SheafGraph:
    if is_sparse(edge_index) and num_nodes is None:
        num_nodes = edge_index.size(0)
    stamp = (version(edge_index), num_nodes) if isinstance(edge_index, Tensor) else None
    if stamp and edge_index in _KNOWN and _KNOWN[edge_index][0] == stamp:
        return _KNOWN[edge_index][1]
    with torch.inference_mode(False):  # what inference makes could not be trained with
        graph = _build(to_edge_index(edge_index)[0] if is_sparse(edge_index) else edge_index, num_nodes)
    if stamp:
        _KNOWN[edge_index] = (stamp, graph)
    return graph


def version(x: Tensor) -> int:
    """How often x was changed in place; tensors made by inference do not count."""
    return 0 if x.is_inference() else x._version


def end_weights(edge_index: Any, edge_weight: Tensor | None, graph: SheafGraph) -> Tensor | None:
    """(2E,) weights of the edge ends: the given ones (M,), else those that a sparse adjacency holds, else None."""
    if edge_weight is None and not isinstance(edge_index, SheafGraph) and is_sparse(edge_index):
        edge_weight = to_edge_index(edge_index)[1]
    if edge_weight is None:
        return None
    given = graph.origin.numel()
    if edge_weight.dim() == 2 and edge_weight.size(1) == 1:
        edge_weight = edge_weight.squeeze(1)
    if edge_weight.shape != (given,):
        raise InvalidArgument(
            f"edge_weight must hold one number per entry of edge_index, ({given},), got {tuple(edge_weight.shape)}"
        )
    looked_at = edge_weight.device.type == "cpu" and not torch.compiler.is_compiling()
    if looked_at and not bool((edge_weight >= 0).all() & edge_weight.isfinite().all()):
        raise InvalidArgument("edge_weight must be finite and not negative: it scales the energy of an edge")
    return graph.spread(edge_weight)


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
    low, high = torch.minimum(*index), torch.maximum(*index)
    none = n * n  # the number of a self-loop, larger than that of any edge
    pairs, origin = torch.unique(torch.where(low == high, none, low * n + high), return_inverse=True)
    pairs = pairs[: -1 if pairs.numel() and int(pairs[-1]) == none else None]
    ends = torch.stack([pairs // n, pairs % n])
    edge = torch.arange(pairs.numel(), device=index.device)
    reverse = torch.cat([edge + pairs.numel(), edge])
    degree = torch.bincount(ends.reshape(-1), minlength=n)
    return SheafGraph(torch.cat([ends, ends.flip(0)], dim=1), reverse, origin, degree, n)
