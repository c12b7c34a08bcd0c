"""The sheaf Laplacian as an operator: gather, batched product, segment sum; no (nd x nd) matrix.

A cellular sheaf puts a space R^d on every node and edge, and a map F_{v<e}: R^d -> R^d on every end of an edge. With

    coboundary   (delta x)_e = F_{u<e} x_u - F_{v<e} x_v
    Laplacian    L = delta^T W delta,   (L x)_v = D_v x_v - sum_{e = {u,v}} w_e F_{v<e}^T F_{u<e} x_u
                 D_v = sum_{e at v} w_e F_{v<e}^T F_{v<e}
    normalised   Delta = N L N,   N = (D + I)^(-1/2)       "augmented", spectrum in [0, 2)
                                  N = D^(-1/2)             "symmetric", spectrum in [0, 2] (pseudo-inverse of D)
                                  N = (c deg + 1)^(-1/2)   "degree", c = d for general maps and 1 for the others

its kernel is the space of global sections, which heat flow dx/dt = -Delta x converges to. All maps equal to the
identity give the graph Laplacian (times the identity on R^d).

A stalk may have fixed rows beside the maps: the direct sum with line bundles of transport +1 or -1 and no weights.
Delta is then D + A, or D - A, on that row (normalised likewise).

Hansen, Ghrist (2019), "Toward a spectral theory of cellular sheaves", arXiv:1808.01513;
Bodnar, Di Giovanni, Chamberlain, Lio, Bronstein (2022), "Neural Sheaf Diffusion", arXiv:2202.04579, sections 2 and 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from suffuse.errors import InvalidArgument

from .graph import SheafGraph, sheaf_graph
from .propagate import act, blocks, laplacian, neighbours, scale, sum_at

NORMALIZATIONS = ("augmented", "symmetric", "degree", "none")


@dataclass(frozen=True, eq=False)
class Sheaf:
    """A sheaf on a graph: one restriction map for each end of each edge.

    Attributes:
        graph: the undirected graph and its 2E edge ends.
        maps: (2E, d, d), or (2E, d) for diagonal maps; maps[k] = F_{s<e} belongs to the source s = edge_index[0, k].
        weight: (2E,) positive weights w_e of the edges, equal at both ends, or None for ones.
        orthogonal: the maps are orthogonal, so that D_v is the weighted degree times the identity.
        fixed: transports, +1 or -1, of further rows of the stalk, which carry no weights.
    """

    graph: SheafGraph
    maps: Tensor
    weight: Tensor | None = None
    orthogonal: bool = False
    fixed: tuple[int, ...] = ()

    @classmethod
    def on(cls, edge_index: Any, maps: Tensor, num_nodes: int | None = None, **facts: Any) -> Sheaf:
        """From maps in the order of a PyG `edge_index` (2, 2E): maps[k] belongs to the source of its k-th entry.

        Raises:
            InvalidArgument: if an edge lacks its reverse or is given twice, or an entry is a self-loop: which map is
                meant would not be clear (`ToUndirected`, `RemoveSelfLoops` and `coalesce` of PyG mend it).
        """
        graph = sheaf_graph(edge_index, num_nodes)
        source, target = edge_index
        at = graph.origin + graph.num_edges * (source > target)
        if len(at) != 2 * graph.num_edges or len(at.unique()) != len(at) or len(maps) != len(at):
            raise InvalidArgument(
                f"edge_index must hold every edge once in each direction, with a map for each entry; got {len(at)} "
                f"entries and {len(maps)} maps on a graph of {graph.num_edges} undirected edges"
            )
        return cls(graph, maps[at.argsort()], **facts)

    @property
    def stalk_dim(self) -> int:
        return self.maps.size(-1) + len(self.fixed)

    def transports(self) -> Tensor:
        """(2E, d, d) or (2E, d): T_k = F_t^T F_s, which carries the source's stalk to the target's through the edge.

        Of the maps alone, without weights and fixed rows.
        """
        F_u, F_v = self.maps.chunk(2)
        if self.maps.dim() == 2:
            return torch.cat([F_u * F_v] * 2)
        T = F_v.mT @ F_u
        return torch.cat([T, T.mT])

    def transport_along(self, path: Sequence[int]) -> Tensor:
        """(d, d) product of the transports along a path of nodes; along a closed path it is the holonomy.

        Raises:
            InvalidArgument: if two nodes that follow each other are not neighbours.
        """
        n, (source, target) = self.graph.num_nodes, self.graph.edge_index
        nodes = torch.as_tensor(path, device=source.device)
        keys, order = (source * n + target).sort()
        wanted = nodes[:-1] * n + nodes[1:]
        at = torch.searchsorted(keys, wanted).clamp_max(len(keys) - 1)
        if (missing := keys[at] != wanted).any():
            first = int(missing.nonzero()[0])
            raise InvalidArgument(f"path: {int(nodes[first])} and {int(nodes[first + 1])} are not neighbours")
        T = Sheaf(self.graph, self.matrices()).transports()[order[at]]
        total = torch.eye(T.size(-1), dtype=T.dtype, device=T.device)
        for step in T:
            total = step @ total
        return total

    def matrices(self) -> Tensor:
        """(2E, d, d) maps, also for a diagonal sheaf."""
        return torch.diag_embed(self.maps) if self.maps.dim() == 2 else self.maps

    def rows(self) -> Sheaf | None:
        """The fixed rows as a diagonal sheaf of their own: F_u = 1 and F_v = +-1."""
        if not self.fixed:
            return None
        key, known = (self.fixed, self.maps.dtype), self.graph.fixed
        maps = known.get(key)
        if maps is None:
            signs = self.maps.new_tensor(self.fixed).expand(self.graph.num_edges, -1)
            maps = torch.cat([torch.ones_like(signs), signs])
            if not torch.is_inference_mode_enabled():  # what inference made could not be trained with
                known[key] = maps
        return Sheaf(self.graph, maps, orthogonal=True)


class SheafLaplacian:
    """Delta = N L N of a sheaf, applied to signals x of shape (n, d, f): f channels on the stalks R^d of n nodes.

    Computed in float32 or better, also under autocast. Differentiable in the maps, the weights and x, with derivatives
    in closed form (see `propagate`).

    Args:
        sheaf: the maps.
        normalization: "augmented" (the default of the paper's code), "symmetric", "degree", or "none" for L itself.
        chunk: edge ends whose messages may exist at once, where the device needs messages; bounds the memory.
    """

    def __init__(self, sheaf: Sheaf, normalization: str = "augmented", chunk: int | None = None) -> None:
        if normalization not in NORMALIZATIONS:
            raise InvalidArgument(f"normalization must be one of {', '.join(NORMALIZATIONS)}; got {normalization!r}")
        self.sheaf, self.normalization, self.chunk = sheaf, normalization, chunk
        graph, w = sheaf.graph, sheaf.weight
        rows = sheaf.rows()
        self.rows = None if rows is None else SheafLaplacian(rows, normalization, chunk)
        scalar = sheaf.maps.dim() == 2 and sheaf.maps.stride(1) == 0  # one number for the whole stalk, as in a control
        with full_precision(sheaf.maps):
            maps = sheaf.maps[:, :1] if scalar else sheaf.maps
            self.transport, square = blocks(maps, w, graph, degree=not sheaf.orthogonal)
            self.degree = self._weighted_degree() if square is None else square
            self.scale = self._normaliser()

    def _weighted_degree(self) -> Tensor:
        """(n, 1) sum of the weights at each node, which is D for orthogonal maps."""
        graph, w = self.sheaf.graph, self.sheaf.weight
        if w is None:
            return graph.degree.to(self.sheaf.maps.dtype).unsqueeze(-1)
        return sum_at(w.unsqueeze(-1), 0, graph)

    def _normaliser(self) -> Tensor | None:
        """N, as blocks (n, d, d), (n, d) or (n, 1)."""
        if self.normalization == "none":
            return None
        if self.normalization == "degree":
            factor = self.sheaf.maps.size(-1) if self.sheaf.maps.dim() == 3 and not self.sheaf.orthogonal else 1
            return (factor * self._weighted_degree() + 1).rsqrt()
        return _inverse_sqrt(self.degree, self.normalization == "augmented")

    def normalize(self, x: Tensor) -> Tensor:
        """N x."""
        if self.scale is None:
            return x
        part = act(self.scale, self._own(x))
        return part if self.rows is None else torch.cat([part, self.rows.normalize(self._rest(x))], 1)

    def neighbours(self, x: Tensor) -> Tensor:
        """(n, d, f): the transported sum over the neighbours, sum_u w_uv F_v^T F_u x_u."""
        part = neighbours(self.transport, self._own(x), self.sheaf.graph, self.chunk)
        return part if self.rows is None else torch.cat([part, self.rows.neighbours(self._rest(x))], 1)

    def matvec(self, x: Tensor) -> Tensor:
        """Delta x for x (n, d, f)."""
        with full_precision(x):
            precise = self._own(x).to(torch.promote_types(x.dtype, self.degree.dtype))
            part = laplacian(self.scale, self.degree, self.transport, precise, self.sheaf.graph, self.chunk)
            part = part.to(x.dtype)
            return part if self.rows is None else torch.cat([part, self.rows.matvec(self._rest(x))], 1)

    __matmul__ = __call__ = matvec

    def step(self, x: Tensor, dt: float = 1.0) -> Tensor:
        """x - dt Delta x, one explicit step of heat flow; stable for dt <= 1."""
        return x - dt * self.matvec(x)

    def coboundary(self, x: Tensor) -> Tensor:
        """(E, d, f): sqrt(w_e) (F_u z_u - F_v z_v) with z = N x; Delta = coboundary^T coboundary."""
        z, E = self.normalize(x), self.sheaf.graph.num_edges
        ends = act(self.sheaf.maps, self._own(z)[self.sheaf.graph.edge_index[0]])
        gap = ends[:E] - ends[E:]
        gap = gap if self.sheaf.weight is None else scale(self.sheaf.weight[:E].sqrt(), gap)
        return gap if self.rows is None else torch.cat([gap, self.rows.coboundary(self._rest(x))], 1)

    def energy(self, x: Tensor) -> Tensor:
        """Dirichlet energy x^T Delta x = ||coboundary x||^2, summed over channels; a scalar."""
        return self.coboundary(x).square().sum()

    def rayleigh(self, x: Tensor) -> Tensor:
        """x^T Delta x / x^T x: energy without the scale of x; 0 for a global section, at most 2."""
        return self.energy(x) / x.square().sum()

    def dense(self) -> Tensor:
        """(n d, n d) matrix, node-major; for tests and small graphs."""
        n, d = self.sheaf.graph.num_nodes, self.sheaf.stalk_dim
        eye = torch.eye(n * d, dtype=self.sheaf.maps.dtype, device=self.sheaf.maps.device)
        return self.matvec(eye.view(n, d, n * d)).reshape(n * d, n * d)

    def sparse(self) -> Tensor:
        """The same matrix as a sparse COO tensor with (n + 2E) d^2 numbers: for scipy, eigen-solvers, export."""
        n, d, graph = self.sheaf.graph.num_nodes, self.sheaf.stalk_dim, self.sheaf.graph
        source, target = graph.edge_index
        node = torch.arange(n, device=source.device)
        D, N, T = self.blocks()
        T = N[target] @ T @ N[source]
        row, col = torch.cat([node, target]), torch.cat([node, source])
        i = torch.arange(d, device=source.device)
        index = torch.stack(
            torch.broadcast_tensors((row * d).view(-1, 1, 1) + i[:, None], (col * d).view(-1, 1, 1) + i)
        )
        values = torch.cat([N @ D @ N, -T])
        return torch.sparse_coo_tensor(index.reshape(2, -1), values.reshape(-1), (n * d, n * d)).coalesce()

    def blocks(self) -> tuple[Tensor, Tensor, Tensor]:
        """D and N (n, d, d) and the transports (2E, d, d), fixed rows included, as full matrices."""
        n, d = self.sheaf.graph.num_nodes, self.sheaf.maps.size(-1)
        T = self.transport
        square = lambda a: a if a.dim() == 3 else torch.diag_embed(a.expand(-1, d))  # noqa: E731
        own = (
            square(self.degree),
            square(self.degree.new_ones(n, 1) if self.scale is None else self.scale),
            square(torch.cat([T, T.mT if T.dim() == 3 else T])),
        )
        if self.rows is None:
            return own
        return tuple(_direct_sum(a, b) for a, b in zip(own, self.rows.blocks(), strict=True))  # type: ignore[return-value]

    def harmonic_dimension(self, tol: float = 1e-8) -> int:
        """dim ker Delta, the number of independent global sections, by a dense eigen-solve in float64."""
        return int((torch.linalg.eigvalsh(self.dense().double()) < tol).sum())

    def _own(self, x: Tensor) -> Tensor:
        return x if self.rows is None else x[:, : self.sheaf.maps.size(-1)]

    def _rest(self, x: Tensor) -> Tensor:
        return x[:, self.sheaf.maps.size(-1) :]


def full_precision(x: Tensor) -> AbstractContextManager[Any]:
    """Autocast off, where it is on."""
    device = x.device.type
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()


def _direct_sum(a: Tensor, b: Tensor) -> Tensor:
    """Block-diagonal (k, p + q, p + q) of (k, p, p) and (k, q, q)."""
    p, q = a.size(-1), b.size(-1)
    return torch.nn.functional.pad(a, (0, q, 0, q)) + torch.nn.functional.pad(b, (p, 0, p, 0))


def _inverse_sqrt(degree: Tensor, augmented: bool) -> Tensor:
    """(D + I)^(-1/2), or the pseudo-inverse of D^(1/2), for D of shape (n, 1), (n, d) or (n, d, d)."""
    if degree.dim() == 3:
        eye = torch.eye(degree.size(-1), dtype=degree.dtype, device=degree.device)
        return InverseSqrt.apply(degree + eye if augmented else degree)
    if augmented:
        return (degree + 1).rsqrt()
    positive = degree > 0
    return torch.where(positive, torch.where(positive, degree, 1).rsqrt(), 0)


#: cuSOLVER's batched eigensolver takes 0.3 MB for each matrix, and fails beyond some 32,000 of them.
CUSOLVER_BATCH = 2**11


def eigh(A: Tensor, batch: int) -> tuple[Tensor, Tensor]:
    """Eigenvalues and eigenvectors of symmetric blocks (n, d, d), so many at once."""
    if len(A) <= batch:
        return torch.linalg.eigh(A)
    parts = [torch.linalg.eigh(part) for part in A.split(batch)]
    return torch.cat([part.eigenvalues for part in parts]), torch.cat([part.eigenvectors for part in parts])


class InverseSqrt(torch.autograd.Function):
    """A^(-1/2) of symmetric positive semi-definite blocks, with a derivative that is finite at repeated eigenvalues.

    With A = U diag(s^2) U^T and N = A^(-1/2) = U diag(1/s) U^T

        dN = U [K o (U^T dA U)] U^T,   K_ij = -1 / (s_i s_j (s_i + s_j)).

    No difference of eigenvalues is divided by, unlike in the derivative of `eigh` itself. Null directions (s = 0) are
    left at zero, in value and derivative. Differentiable once. Blocks (n, d, d); half precision is computed in
    float32.
    """

    @staticmethod
    def forward(ctx: Any, A: Tensor) -> Tensor:
        A32 = A.float() if A.dtype in (torch.float16, torch.bfloat16) else A
        square, U = eigh(A32, CUSOLVER_BATCH if A32.is_cuda else len(A32))
        tol = square.amax(-1, keepdim=True).clamp_min(0) * A.size(-1) * torch.finfo(A32.dtype).eps
        s = torch.where(square > tol, square, 1).sqrt()
        inverse = torch.where(square > tol, 1 / s, 0)
        ctx.save_for_backward(U, s, inverse)
        return ((U * inverse.unsqueeze(-2)) @ U.mT).to(A.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        U, s, inverse = ctx.saved_tensors
        K = -inverse.unsqueeze(-1) * inverse.unsqueeze(-2) / (s.unsqueeze(-1) + s.unsqueeze(-2))
        g = U.mT @ ((grad + grad.mT) / 2).to(U.dtype) @ U
        return (U @ (K * g) @ U.mT).to(grad.dtype)
