"""Sheaves whose spectra are known: what theory and tests compare with.

    random   generic maps: no global section on a graph with cycles, d of them on a tree (orthogonal maps)
    flat     F_{v<e} = A_e O_v with orthogonal A, O: transport does not depend on the path, dim ker = d,
             global sections x_v = O_v^T c (times sqrt(D + I) once normalised)

All in float64. Bodnar et al. (2022), arXiv:2202.04579, lemma 6 and section 3.
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from .graph import SheafGraph, sheaf_graph
from .laplacian import Sheaf


def random_graph(n: int = 12, edges: int = 20, generator: Generator | None = None) -> SheafGraph:
    """A connected simple graph: a random tree on n nodes, and random edges up to about `edges` in all."""
    tree = [(int(torch.randint(v, (), generator=generator)), v) for v in range(1, n)]
    more = [tuple(torch.randperm(n, generator=generator)[:2].tolist()) for _ in range(edges - len(tree))]
    return sheaf_graph(torch.tensor(tree + more).T, n)


def random_orthogonal(k: int, d: int, generator: Generator | None = None) -> Tensor:
    """(k, d, d) orthogonal matrices."""
    return torch.linalg.qr(torch.randn(k, d, d, dtype=torch.float64, generator=generator))[0]


def random_sheaf(
    graph: SheafGraph, d: int, maps: str = "orthogonal", *, weighted: bool = False, generator: Generator | None = None
) -> Sheaf:
    """Gaussian "diagonal" or "general" maps, or random "orthogonal" ones; weighted: edge weights in [0.1, 1.1]."""
    ends = graph.edge_index.size(1)
    half = torch.rand(graph.num_edges, dtype=torch.float64, generator=generator) + 0.1
    weight = torch.cat([half, half]) if weighted else None
    if maps == "orthogonal":
        return Sheaf(graph, random_orthogonal(ends, d, generator), weight, orthogonal=True)
    shape = (ends, d) if maps == "diagonal" else (ends, d, d)
    return Sheaf(graph, torch.randn(shape, dtype=torch.float64, generator=generator), weight)


def flat_sheaf(graph: SheafGraph, d: int, generator: Generator | None = None) -> Sheaf:
    """An O(d) bundle with path-independent transport."""
    A = random_orthogonal(graph.num_edges, d, generator)
    frame = random_orthogonal(graph.num_nodes, d, generator)
    return Sheaf(graph, torch.cat([A, A]) @ frame[graph.edge_index[0]], orthogonal=True)
