"""Connection sheaves: orthogonal maps from the geometry of the features, fixed before any training.

The d strongest directions in which the features of a node's neighbours differ from its own are an orthonormal frame,
and the transport along an edge is the rotation that aligns two frames best (orthogonal Procrustes):

    O_v       first d left singular vectors of [x_u - x_v], u ~ v         local PCA, (H, d)
    T_{u->v}  = P Q^T  for  O_v^T O_u = P S Q^T

A node with fewer than d neighbours borrows the nodes that are nearest to it in feature space. The signs of singular
vectors are arbitrary; here each points towards the mean of the neighbours, so that the order of nodes does not matter.

Barbero, Bodnar, Saez de Ocariz Borde, Bronstein, Velickovic, Lio (2022), "Sheaf Neural Networks with Connection
Laplacians", arXiv:2206.08702; Singer, Wu (2012), "Vector diffusion maps", arXiv:1102.0075.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.utils.weak import WeakTensorKeyDictionary

from suffuse.errors import InvalidArgument

from .graph import SheafGraph, sheaf_graph, version
from .laplacian import Sheaf

NUMBERS_AT_ONCE = 1 << 25
"""Of padded differences x_u - x_v, or of distances: bounds the memory."""


_KNOWN: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


@torch.compiler.disable
@torch.inference_mode(False)
@torch.no_grad()
def connection_sheaf(x: Tensor, edge_index: object, stalk_dim: int) -> Sheaf:
    """The connection sheaf of node features, remembered while the tensor x lives unchanged.

    Args:
        x: (n, H), H >= stalk_dim and n > stalk_dim; dense or sparse.
        edge_index: as of `sheaf_graph`.
        stalk_dim: d.
    """
    graph = sheaf_graph(edge_index, len(x))
    stamp = (version(x), stalk_dim)
    if x in _KNOWN and _KNOWN[x][0] == stamp and _KNOWN[x][1].graph is graph:
        return _KNOWN[x][1]
    frame = frames(x.to_dense(), graph, stalk_dim)
    u, v = graph.edge_index[:, : graph.num_edges]
    P, _, Q = torch.linalg.svd(frame[v].mT @ frame[u])
    eye = torch.eye(stalk_dim, dtype=x.dtype, device=x.device).expand(graph.num_edges, -1, -1)
    sheaf = Sheaf(graph, torch.cat([P @ Q, eye]), orthogonal=True)
    _KNOWN[x] = (stamp, sheaf)
    return sheaf


@torch.no_grad()
def frames(x: Tensor, graph: SheafGraph, stalk_dim: int) -> Tensor:
    """(n, r, d) orthonormal frames by local PCA, in coordinates that keep all distances (r <= min(n, H))."""
    n, d = len(x), stalk_dim
    if x.size(1) < d or n <= d:
        raise InvalidArgument(
            f"stalk_dim={d} needs at least {d} features and {d + 1} nodes for local PCA, got x {tuple(x.shape)}"
        )
    if x.size(1) > n:
        U, S, _ = torch.linalg.svd(x, full_matrices=False)
        x = U * S
    out = x.new_empty(n, x.size(1), d)
    # nodes of like degree together, each group padded to a power of two: the number of groups is logarithmic
    group = graph.degree.clamp_min(d).double().log2().ceil().long()
    for power in group.unique().tolist():
        members, width = (group == power).nonzero().squeeze(1), 2**power
        for part in members.split(max(1, NUMBERS_AT_ONCE // (width * x.size(1)))):
            gap = x[_around(x, graph, part, width, d)] - x[part].unsqueeze(1)
            real = torch.arange(width, device=x.device) < graph.degree[part].clamp_min(d).unsqueeze(1)
            gap = gap * real.unsqueeze(-1)
            axes = torch.linalg.svd(gap.mT, full_matrices=False)[0][..., :d]
            out[part] = axes * torch.where(gap.sum(1, keepdim=True) @ axes < 0, -1, 1)
    return out


def _around(x: Tensor, graph: SheafGraph, nodes: Tensor, width: int, d: int) -> Tensor:
    """(k, width) neighbours of the nodes; where fewer than d, the nearest other nodes; then anything."""
    nth = torch.arange(width, device=x.device)
    neighbours = pad(graph.edge_index[0, graph.at_target], (0, 1))
    around = neighbours[(graph.ptr[nodes].unsqueeze(1) + nth).clamp_max(len(neighbours) - 1)]
    poor = (graph.degree[nodes] < d).nonzero().squeeze(1)
    for rows in poor.split(max(1, NUMBERS_AT_ONCE // len(x))):
        degree = graph.degree[nodes[rows]].unsqueeze(1)
        known = nth < degree
        distance = torch.cdist(x[nodes[rows]], x).scatter(1, nodes[rows].unsqueeze(1), torch.inf)
        distance.scatter_add_(1, around[rows], torch.where(known, torch.inf, 0.0).to(x.dtype))
        nearest = distance.topk(d, largest=False).indices
        around[rows] = torch.where(known, around[rows], nearest.gather(1, (nth - degree).clamp(0, d - 1)))
    return around
