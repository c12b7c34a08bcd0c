"""What every layer spends its time on, with derivatives in closed form: blocks of the edges, and sums over neighbours.

    at_ends       a_k = p_s + q_t                       at the end k with source s and target t
    blocks        T_e = w F_v^T F_u,   S_v = sum w F_v^T F_v
    neighbours    (A z)_v = sum_{e = {u,v}} T_e z_u,    T_e z_u at v and T_e^T z_v at u
    laplacian     y = N u,   u = D z - A z,   z = N x

All matrices are symmetric. With g the gradient of A z, or of y, and w = N g

    gradient of z     A g                               gradient of x     N (D w - A w)
    gradient of T_e   g_v z_u^T + z_v g_u^T             gradient of T_e   -(w_v z_u^T + z_v w_u^T)
                                                        gradient of D_v   w_v z_v^T
                                                        gradient of N_v   g_v u_v^T + (D w - A w)_v x_v^T

and only the blocks and signals are kept for the way back: O(E d^2 + n d f) numbers instead of messages, O(E d f).

Three ways to compute A z, all equal: on the CPU the numbers of T are put where the plan of the graph says and MKL sums
them row by row, which neither gathers z nor keeps a message; elsewhere, and in half precision, messages of a range of
target nodes at a time are gathered, multiplied and summed per segment, always in the same order; under torch.compile
and for derivatives of derivatives, plain gather, product and scatter.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch_geometric.utils import scatter, segment

from .graph import SheafGraph, csr_usable

#: Edge ends whose messages exist at the same time, where they must exist: small enough for the cache of a CPU.
CHUNK = {"cpu": 1 << 14}
CHUNK_ELSEWHERE = 1 << 20
#: Blocks whose numbers, some of them intermediate, the cache of a CPU holds at once.
SLICE = 1 << 13


def slices(a: Tensor) -> list[slice]:
    """Slices of the first dimension: of `SLICE` blocks on a CPU, elsewhere one."""
    size = SLICE if a.device.type == "cpu" else max(len(a), 1)
    return [slice(first, first + size) for first in range(0, len(a), size)]


def act(block: Tensor, x: Tensor) -> Tensor:
    """Apply blocks (k, d, d), diagonal blocks (k, d) or scalar blocks (k, 1) to x (k, d, f)."""
    return block @ x if block.dim() == 3 else block.unsqueeze(-1) * x


# --- numbers at the ends of the edges ---------------------------------------------------------------------------


def at_ends(p: Tensor, q: Tensor, graph: SheafGraph) -> Tensor:
    """(n, k), (n, k) -> (2E, k): p at the source plus q at the target of every edge end."""
    if torch.compiler.is_compiling():
        source, target = graph.edge_index
        return p[source] + q[target]
    return _AtEnds.apply(p, q, graph)


class _AtEnds(Function):
    @staticmethod
    def forward(ctx: Any, p: Tensor, q: Tensor, graph: SheafGraph) -> Tensor:
        ctx.graph = graph
        source, target = graph.edge_index
        return p.index_select(0, source).add_(q.index_select(0, target))

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor, None]:
        return _SumAt.apply(g, 0, ctx.graph), _SumAt.apply(g, 1, ctx.graph), None


def sum_at(values: Tensor, end: int, graph: SheafGraph) -> Tensor:
    """(2E, ...) -> (n, ...): the sum over the edge ends whose source (end 0) or target (end 1) is the node."""
    if torch.compiler.is_compiling():
        return scatter(values, graph.edge_index[end], dim_size=graph.num_nodes, reduce="sum")
    return _SumAt.apply(values, end, graph)


class _SumAt(Function):
    """`SheafGraph.sum_at`, differentiable."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, end: int, graph: SheafGraph) -> Tensor:
        ctx.end, ctx.graph = end, graph
        return graph.sum_at(end, values)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None]:
        return g.index_select(0, ctx.graph.edge_index[ctx.end]), None, None


# --- blocks of the edges and of the nodes -----------------------------------------------------------------------


def blocks(maps: Tensor, weight: Tensor | None, graph: SheafGraph, degree: bool = True) -> tuple[Tensor, Tensor | None]:
    """T_e = w F_v^T F_u for every edge {u < v}, and S_v = sum w F_v^T F_v for every node if `degree`.

    Args:
        maps: (2E, d, d), or (2E, d) for diagonal maps.
        weight: (2E,), equal at both ends of an edge, or None.
        graph: the graph.
        degree: whether S is needed.

    Returns:
        T (E, d, d) or (E, d), and S (n, d, d) or (n, d), or None.
    """
    if torch.compiler.is_compiling():
        F_u, F_v = maps.chunk(2)
        T, square = (F_u * F_v, maps * maps) if maps.dim() == 2 else (F_v.mT @ F_u, maps.mT @ maps)
        if weight is not None:
            T, square = scale(weight[: len(T)], T), scale(weight, square)
        return T, scatter(square, graph.edge_index[0], dim_size=graph.num_nodes) if degree else None
    T, S = _Blocks.apply(maps, weight, graph, degree)
    return T, S if degree else None


def scale(weight: Tensor, block: Tensor) -> Tensor:
    """(k,) times (k, ...)."""
    return weight.view(-1, *[1] * (block.dim() - 1)) * block


def edges_last(block: Tensor) -> Tensor:
    """The same (k, d, d) blocks, laid out so that the k numbers at one place of all blocks are neighbours in memory."""
    return block if block.dim() == 2 or block.stride(0) == 1 else block.permute(1, 2, 0).contiguous().permute(2, 0, 1)


def product(A: Tensor, B: Tensor) -> Tensor:
    """A^T B of blocks laid out by `edges_last`: d rank-one terms, each over all edges at once; or of diagonal ones."""
    if A.dim() == 2:
        return A * B
    out = A[:, 0, :, None] * B[:, 0, None, :]
    for row in range(1, A.size(1)):
        out.addcmul_(A[:, row, :, None], B[:, row, None, :])
    return out


class _Blocks(Function):
    """With g_T, g_S (symmetric part) the gradients, that of F_u is w (F_v g_T + 2 F_u g_S), that of F_v likewise.

    Both blocks are quadratic in the maps, so the gradient of w_e is half of <gradient of F, F> / w, summed over ends.
    """

    @staticmethod
    def forward(
        ctx: Any, maps: Tensor, weight: Tensor | None, graph: SheafGraph, degree: bool
    ) -> tuple[Tensor, Tensor]:
        F = edges_last(maps)
        ctx.save_for_backward(maps, weight)
        ctx.graph, ctx.degree = graph, degree
        T, square = F.new_empty(len(F) // 2, *F.shape[1:]), F.new_empty(F.shape if degree else 0)
        for out, A, B in ((T, F[len(T) :], F[: len(T)]), (square, F, F)):
            for part in slices(out):
                block = product(A[part], B[part])
                out[part] = block if weight is None else scale(weight[: len(out)][part], block)
        return T, graph.sum_at(0, square) if degree else square

    @staticmethod
    def backward(ctx: Any, g_T: Tensor, g_S: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        maps, weight = ctx.saved_tensors
        if torch.is_grad_enabled():
            return _again(ctx, maps, weight, g_T, g_S)
        F, E = edges_last(maps), len(g_T)
        mT = (lambda a: a) if F.dim() == 2 else (lambda a: a.mT)
        grad, g_w = torch.empty_like(F), torch.empty_like(weight) if ctx.needs_input_grad[1] else None
        for end, F_own, F_other, g in ((0, F[:E], F[E:], g_T), (E, F[E:], F[:E], mT(g_T))):
            for part in slices(g):
                ends = slice(end + part.start, end + min(part.stop, E))
                found = product(mT(F_other[part]), edges_last(g[part]))
                if ctx.degree:
                    both = g_S.index_select(0, ctx.graph.edge_index[0, ends])
                    found += product(mT(F_own[part]), edges_last(both + mT(both)))
                if g_w is not None:
                    g_w[ends] = (found * F_own[part]).flatten(1).sum(1) / 2
                grad[ends] = found if weight is None else scale(weight[ends], found)
        return grad, g_w, None, None


def _again(ctx: Any, F: Tensor, weight: Tensor | None, g_T: Tensor, g_S: Tensor) -> Any:
    """The gradient as a differentiable function, for derivatives of derivatives: plain operations."""
    F_u, F_v = F.chunk(2)
    if F.dim() == 2:
        grad, back = torch.cat([F_v * g_T, F_u * g_T]), lambda g: F * (g + g)
    else:
        grad, back = torch.cat([F_v @ g_T, F_u @ g_T.mT]), lambda g: F @ (g + g.mT)
    if ctx.degree:
        grad = grad + back(g_S[ctx.graph.edge_index[0]])
    if weight is None:
        return grad, None, None, None
    return scale(weight, grad), (grad * F).flatten(1).sum(1) / 2, None, None


# --- the sum over neighbours ------------------------------------------------------------------------------------


def neighbours(transport: Tensor, z: Tensor, graph: SheafGraph, chunk: int | None = None) -> Tensor:
    """(A z)_v = sum_u T_uv z_u over the neighbours u of every node.

    Args:
        transport: T_e of every undirected edge: (E, d, d), diagonal (E, d) or scalar (E, 1).
        z: (n, d, f).
        graph: the graph.
        chunk: edge ends whose messages may exist at the same time, where messages are made at all.

    Returns:
        (n, d, f).
    """
    if torch.compiler.is_compiling():
        return plain_neighbours(transport, z, graph)
    return _Neighbours.apply(transport, z, graph, chunk)


def plain_neighbours(transport: Tensor, z: Tensor, graph: SheafGraph) -> Tensor:
    """The same by gather, product and scatter."""
    source, target = graph.edge_index
    back = transport.mT if transport.dim() == 3 else transport
    return scatter(act(torch.cat([transport, back]), z[source]), target, dim_size=len(z), reduce="sum")


class _Neighbours(Function):
    @staticmethod
    def forward(ctx: Any, transport: Tensor, z: Tensor, graph: SheafGraph, chunk: int | None) -> Tensor:
        ctx.save_for_backward(transport, z)
        ctx.graph, ctx.chunk = graph, chunk
        return _sum(transport, z, graph, chunk)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        transport, z = ctx.saved_tensors
        g_T = g_z = None
        if ctx.needs_input_grad[1]:
            g_z = _Neighbours.apply(transport, g, ctx.graph, ctx.chunk)
        if ctx.needs_input_grad[0]:
            outer = _plain_outer if torch.is_grad_enabled() else _outer
            g_T = outer(transport, g, z, ctx.graph, ctx.chunk)
        return g_T, g_z, None, None


# --- the Laplacian ----------------------------------------------------------------------------------------------


def laplacian(
    N: Tensor | None, D: Tensor, transport: Tensor, x: Tensor, graph: SheafGraph, chunk: int | None = None
) -> Tensor:
    """N (D - A) N x.

    Args:
        N: of every node, (n, d, d), (n, d) or (n, 1), or None for the identity.
        D: likewise.
        transport: as of `neighbours`.
        x: (n, d, f).
        graph: the graph.
        chunk: as of `neighbours`.

    Returns:
        (n, d, f).
    """
    if torch.compiler.is_compiling() or N is None:
        return plain_laplacian(N, D, transport, x, graph, chunk)
    return _Laplacian.apply(N, D, transport, x, graph, chunk)


def plain_laplacian(
    N: Tensor | None, D: Tensor, transport: Tensor, x: Tensor, graph: SheafGraph, chunk: int | None = None
) -> Tensor:
    """The same from its parts."""
    z = x if N is None else act(N, x)
    u = act(D, z) - neighbours(transport, z, graph, chunk)
    return u if N is None else act(N, u)


class _Laplacian(Function):
    @staticmethod
    def forward(
        ctx: Any, N: Tensor, D: Tensor, transport: Tensor, x: Tensor, graph: SheafGraph, chunk: int | None
    ) -> Tensor:
        z = act(N, x)
        u = act(D, z).sub_(_sum(transport, z, graph, chunk))
        ctx.save_for_backward(N, D, transport, x, u)
        ctx.graph, ctx.chunk = graph, chunk
        return act(N, u)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        N, D, transport, x, u = ctx.saved_tensors
        graph, chunk, needed = ctx.graph, ctx.chunk, ctx.needs_input_grad[:4]
        if torch.is_grad_enabled():
            wanted = [a for a, need in zip((N, D, transport, x), needed, strict=True) if need]
            y = plain_laplacian(N, D, transport, x, graph, chunk)
            found = iter(torch.autograd.grad(y, wanted, g, create_graph=True))
            return *(next(found) if need else None for need in needed), None, None
        w = act(N, g)
        back = act(D, w).sub_(_sum(transport, w, graph, chunk))
        g_N = _pair(N, g, u).add_(_pair(N, back, x)) if needed[0] else None
        g_x = act(N, back) if needed[3] else None
        if not (needed[1] or needed[2]):
            return g_N, None, None, g_x, None, None
        z = act(N, x)
        g_D = _pair(D, w, z) if needed[1] else None
        g_T = _outer(transport, w, z, graph, chunk).neg_() if needed[2] else None
        return g_N, g_D, g_T, g_x, None, None


def _pair(block: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """a_v b_v^T of every node, or its diagonal or trace, as the blocks are."""
    if block.dim() == 3:
        return a @ b.mT
    return (a * b).sum(-1) if block.size(-1) > 1 else (a * b).sum((-2, -1)).unsqueeze(-1)


# --- how -------------------------------------------------------------------------------------------------------


def _sum(transport: Tensor, z: Tensor, graph: SheafGraph, chunk: int | None) -> Tensor:
    if csr_usable(z) and transport.numel() < 2**30:
        matrix = graph.pattern(transport.size(-1), transport.dim() == 3).matrix(transport.to(z.dtype))
        return (matrix @ _rows(transport, z)).view_as(z)
    E, sums = graph.num_edges, []
    for first, last, a, b in graph.chunks(chunk or CHUNK.get(z.device.type, CHUNK_ELSEWHERE)):
        ends = graph.at_target[a:b]
        block = transport[ends % E].to(z.dtype)
        if block.dim() == 3:
            block = torch.where((ends >= E).view(-1, 1, 1), block.mT, block)
        messages = act(block, z[graph.edge_index[0, ends]]).flatten(1)
        precise = messages.to(torch.promote_types(z.dtype, torch.float32))
        sums.append(segment(precise, graph.ptr[first : last + 1] - a, reduce="sum"))
    return torch.cat(sums).to(z.dtype).view_as(z)


def _rows(transport: Tensor, z: Tensor) -> Tensor:
    """z as the right factor of a compressed matrix: a row per number of a stalk, or per node for scalar blocks."""
    return z.reshape(-1, z.size(-1)) if transport.size(-1) > 1 else z.reshape(len(z), -1)


def _outer(transport: Tensor, g: Tensor, z: Tensor, graph: SheafGraph, chunk: int | None) -> Tensor:
    """g_v z_u^T + z_v g_u^T for every edge, or the diagonal or the trace of it."""
    if csr_usable(z) and transport.numel() < 2**30:
        pattern = graph.pattern(transport.size(-1), transport.dim() == 3)
        found = z.new_zeros(pattern.col.numel())
        at = torch.sparse_csr_tensor(pattern.crow, pattern.col, found, (pattern.size,) * 2, check_invariants=False)
        torch.sparse.sampled_addmm(at, _rows(transport, g), _rows(transport, z).mT, beta=0.0, out=at)
        both = found.index_select(0, pattern.place[0]).add_(found.index_select(0, pattern.place[1]))
        return both.view_as(transport).to(transport.dtype)
    pairs = graph.edge_index[:, : graph.num_edges].split(chunk or CHUNK.get(z.device.type, CHUNK_ELSEWHERE), dim=1)
    return torch.cat([_outer_of(transport, g, z, u, v) for u, v in pairs])


def _plain_outer(transport: Tensor, g: Tensor, z: Tensor, graph: SheafGraph, chunk: int | None) -> Tensor:
    return _outer_of(transport, g, z, *graph.edge_index[:, : graph.num_edges])


def _outer_of(transport: Tensor, g: Tensor, z: Tensor, u: Tensor, v: Tensor) -> Tensor:
    if transport.dim() == 3:
        return (g[v] @ z[u].mT + z[v] @ g[u].mT).to(transport.dtype)
    dims = -1 if transport.size(-1) > 1 else (-2, -1)
    both = (g[v] * z[u] + z[v] * g[u]).sum(dims)
    return both.view(-1, transport.size(-1)).to(transport.dtype)
