"""The sheaf Laplacian as an operator: gather, batched product, segment sum; no (nd x nd) matrix.

A cellular sheaf puts a space R^d on every node and edge, and a map F_{v<e}: R^d -> R^d on every end of an edge. With

    coboundary   (delta x)_e = F_{u<e} x_u - F_{v<e} x_v
    Laplacian    L = delta^T W delta,   (L x)_v = D_v x_v - sum_{e = {u,v}} w_e F_{v<e}^T F_{u<e} x_u
                 D_v = sum_{e at v} w_e F_{v<e}^T F_{v<e}
    normalised   Delta = N L N,   N = (D + I)^(-1/2)  "augmented", spectrum in [0, 2)
                                  N = D^(-1/2)        "symmetric", spectrum in [0, 2] (pseudo-inverse for singular D)

its kernel is the space of global sections, which heat flow dx/dt = -Delta x converges to. All maps equal to the
identity give the graph Laplacian (times the identity on R^d).

Hansen, Ghrist (2019), "Toward a spectral theory of cellular sheaves", arXiv:1808.01513;
Bodnar, Di Giovanni, Chamberlain, Lio, Bronstein (2022), "Neural Sheaf Diffusion", arXiv:2202.04579, sections 2 and 3.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch_geometric.utils import scatter

from suffuse.errors import InvalidArgument

from .graph import SheafGraph

NORMALIZATIONS = ("augmented", "symmetric", "none")


@dataclass(frozen=True, eq=False)
class Sheaf:
    """A sheaf on a graph: one restriction map for each end of each edge.

    Attributes:
        graph: the undirected graph and its 2E edge ends.
        maps: (2E, d, d), or (2E, d) for diagonal maps; maps[k] = F_{s<e} belongs to the source s = edge_index[0, k].
        weight: (2E,) positive weights w_e of the edges, equal at both ends, or None for ones.
        orthogonal: the maps are orthogonal, so that D_v is the weighted degree times the identity.
    """

    graph: SheafGraph
    maps: Tensor
    weight: Tensor | None = None
    orthogonal: bool = False

    @property
    def stalk_dim(self) -> int:
        return self.maps.size(-1)

    def transports(self) -> Tensor:
        """(2E, d, d) or (2E, d): T_k = F_t^T F_s, which carries the source's stalk to the target's through the edge."""
        F_u, F_v = self.maps.chunk(2)
        if self.maps.dim() == 2:
            return torch.cat([F_u * F_v] * 2)
        T = F_v.mT @ F_u
        return torch.cat([T, T.mT])

    def matrices(self) -> Tensor:
        """(2E, d, d) maps, also for a diagonal sheaf."""
        return torch.diag_embed(self.maps) if self.maps.dim() == 2 else self.maps


def act(block: Tensor, x: Tensor) -> Tensor:
    """Apply blocks (k, d, d), diagonal blocks (k, d) or scalar blocks (k, 1) to x (k, d, f)."""
    return block @ x if block.dim() == 3 else block.unsqueeze(-1) * x


class SheafLaplacian:
    """Delta = N L N of a sheaf, applied to signals x of shape (n, d, f): f channels on the stalks R^d of n nodes.

    Args:
        sheaf: the maps.
        normalization: "augmented" (the default of the paper's code), "symmetric", or "none" for L itself.
    """

    def __init__(self, sheaf: Sheaf, normalization: str = "augmented") -> None:
        if normalization not in NORMALIZATIONS:
            raise InvalidArgument(f"normalization must be one of {', '.join(NORMALIZATIONS)}; got {normalization!r}")
        self.sheaf, self.normalization = sheaf, normalization
        F, w = sheaf.maps, sheaf.weight
        self.transport = sheaf.transports() if w is None else _scale(w, sheaf.transports())
        square = F.new_ones(len(F), 1) if sheaf.orthogonal else F * F if F.dim() == 2 else F.mT @ F
        source, n = sheaf.graph.edge_index[0], sheaf.graph.num_nodes
        self.degree = scatter(square if w is None else _scale(w, square), source, dim_size=n, reduce="sum")
        self.scale = None if normalization == "none" else _inverse_sqrt(self.degree, normalization == "augmented")

    def normalize(self, x: Tensor) -> Tensor:
        """N x."""
        return x if self.scale is None else act(self.scale, x)

    def neighbours(self, x: Tensor) -> Tensor:
        """(n, d, f): the transported sum over the neighbours, sum_u w_uv F_v^T F_u x_u."""
        source, target = self.sheaf.graph.edge_index
        return scatter(act(self.transport, x[source]), target, dim_size=len(x), reduce="sum")

    def matvec(self, x: Tensor) -> Tensor:
        """Delta x for x (n, d, f)."""
        z = self.normalize(x)
        return self.normalize(act(self.degree, z) - self.neighbours(z))

    __matmul__ = __call__ = matvec

    def coboundary(self, x: Tensor) -> Tensor:
        """(E, d, f): sqrt(w_e) (F_u z_u - F_v z_v) with z = N x; Delta = coboundary^T coboundary."""
        z, E = self.normalize(x), self.sheaf.graph.num_edges
        ends = act(self.sheaf.maps, z[self.sheaf.graph.edge_index[0]])
        gap = ends[:E] - ends[E:]
        return gap if self.sheaf.weight is None else gap * self.sheaf.weight[:E, None, None].sqrt()

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

    def harmonic_dimension(self, tol: float = 1e-8) -> int:
        """dim ker Delta, the number of independent global sections, by a dense eigen-solve in float64."""
        return int((torch.linalg.eigvalsh(self.dense().double()) < tol).sum())


def _scale(weight: Tensor, block: Tensor) -> Tensor:
    return weight.view(-1, *[1] * (block.dim() - 1)) * block


def _inverse_sqrt(degree: Tensor, augmented: bool) -> Tensor:
    """(D + I)^(-1/2), or the pseudo-inverse of D^(1/2), for D of shape (n, 1), (n, d) or (n, d, d)."""
    if degree.dim() == 3:
        eye = torch.eye(degree.size(-1), dtype=degree.dtype, device=degree.device)
        return InverseSqrt.apply(degree + eye if augmented else degree)
    if augmented:
        return (degree + 1).rsqrt()
    positive = degree > 0
    return torch.where(positive, torch.where(positive, degree, 1).rsqrt(), 0)


class InverseSqrt(torch.autograd.Function):
    """A^(-1/2) of symmetric positive semi-definite blocks, with a derivative that is finite at repeated eigenvalues.

    With A = U diag(s^2) U^T and N = A^(-1/2) = U diag(1/s) U^T

        dN = U [K o (U^T dA U)] U^T,   K_ij = -1 / (s_i s_j (s_i + s_j)).

    No difference of eigenvalues is divided by, unlike in the derivative of `eigh` itself. Null directions (s = 0) are
    left at zero, in value and derivative. Differentiable once. Blocks (..., d, d); half precision is computed in
    float32.
    """

    @staticmethod
    def forward(ctx: Any, A: Tensor) -> Tensor:
        A32 = A.float() if A.dtype in (torch.float16, torch.bfloat16) else A
        square, U = torch.linalg.eigh(A32)
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
