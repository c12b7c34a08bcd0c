"""The theory of sheaf diffusion in numbers: sheaves whose spectra are known, and which classes their limits separate.

Heat flow dx/dt = -Delta x tends to the orthogonal projection of x onto the harmonic space ker Delta. What a class of
sheaves can tell apart is therefore decided by the kernels that it contains:

    random      generic maps: no global section on a graph with cycles, d of them on a tree (orthogonal maps)
    flat        F_{v<e} = A_e O_v with orthogonal A, O: transport does not depend on the path, dim ker = d,
                global sections x_v = D_v^(1/2) O_v^T c
    symmetric   F_u = F_v on every edge: the limit is a multiple of sqrt(degree), whatever x is
    signed      F_u = -F_v where labels differ (d = 1): two classes, no more
    diagonal    one row per class, or per bit of the class
    rotations   O_v = rotation by 2 pi y_v / C in the plane

"Separable" has two meanings here. One-versus-rest: for every class a plane has that class on one side and all others
on the other. Argmax: a linear classifier gives every node its class. The first implies the second.

All in float64. Bodnar, Di Giovanni, Chamberlain, Lio, Bronstein (2022), arXiv:2202.04579, sections 3 and 4.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Generator, Tensor

from .graph import SheafGraph, sheaf_graph
from .laplacian import Sheaf, SheafLaplacian

# --- graphs -----------------------------------------------------------------------------------------------------


def random_graph(n: int = 12, edges: int = 20, generator: Generator | None = None) -> SheafGraph:
    """A connected simple graph: a random tree on n nodes, and random edges up to about `edges` in all."""
    tree = [(int(torch.randint(v, (), generator=generator)), v) for v in range(1, n)]
    more = [tuple(torch.randperm(n, generator=generator)[:2].tolist()) for _ in range(edges - len(tree))]
    return sheaf_graph(torch.tensor(tree + more).T, n)


def cycle_graph(n: int) -> SheafGraph:
    """A ring; its first edge joins nodes 0 and 1."""
    ring = torch.arange(n)
    return sheaf_graph(torch.stack([ring, (ring + 1) % n]), n)


def bipartite_graph(side: int, degree: int = 3, generator: Generator | None = None) -> tuple[SheafGraph, Tensor]:
    """A connected bipartite graph with `side` nodes on each side, and the side (2 side,) of every node.

    A cycle through all nodes keeps it connected; `degree` - 2 random matchings of the sides are added.
    """
    left, right = torch.randperm(side, generator=generator), side + torch.randperm(side, generator=generator)
    pairs = [torch.stack([left, right]), torch.stack([left, right.roll(1)])]
    pairs += [torch.stack([left, right[torch.randperm(side, generator=generator)]]) for _ in range(degree - 2)]
    return sheaf_graph(torch.cat(pairs, dim=1), 2 * side), (torch.arange(2 * side) >= side).long()


def homophilic_graph(side: int, generator: Generator | None = None) -> tuple[SheafGraph, Tensor]:
    """Two random connected blocks of `side` nodes joined by random edges, and the block (2 side,) of every node."""
    blocks = [random_graph(side, 2 * side, generator).edge_index + side * k for k in range(2)]
    across = torch.randint(side, (2, side), generator=generator) + torch.tensor([[0], [side]])
    return sheaf_graph(torch.cat([*blocks, across], dim=1), 2 * side), (torch.arange(2 * side) >= side).long()


# --- sheaves ----------------------------------------------------------------------------------------------------


def random_orthogonal(k: int, d: int, generator: Generator | None = None) -> Tensor:
    """(k, d, d) orthogonal matrices."""
    return torch.linalg.qr(torch.randn(k, d, d, dtype=torch.float64, generator=generator))[0]


def rotation(angle: Tensor) -> Tensor:
    """(...) angles in radians -> (..., 2, 2)."""
    c, s = angle.double().cos(), angle.double().sin()
    return torch.stack([torch.stack([c, -s], -1), torch.stack([s, c], -1)], -2)


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


def twisted_cycle(n: int, theta: float) -> Sheaf:
    """Plane stalks on a ring, all maps the identity but one, which turns by theta: holonomy theta.

    The smallest eigenvalue of its normalised Laplacian is 1 - cos(theta / n).
    """
    graph = cycle_graph(n)
    maps = torch.eye(2, dtype=torch.float64).repeat(2 * n, 1, 1)
    maps[0] = rotation(torch.tensor(theta, dtype=torch.float64))
    return Sheaf(graph, maps, orthogonal=True)


def symmetric_sheaf(graph: SheafGraph, maps: Tensor) -> Sheaf:
    """F_u = F_v = maps[e] on every edge; maps (E, d) or (E, d, d)."""
    return Sheaf(graph, torch.cat([maps, maps]).double())


def class_sheaf(graph: SheafGraph, frames: Tensor) -> Sheaf:
    """F_{v<e} = frames[v] at all edges of v; frames (n, d) or (n, d, d). Flat, with sections x_v = F_v^(-1) c."""
    return Sheaf(graph, frames.double()[graph.edge_index[0]])


def signs_of_classes(y: Tensor) -> Tensor:
    """(n, C): +1 in the row of the own class, -1 in the others (proposition 12)."""
    return 2.0 * torch.nn.functional.one_hot(y) - 1.0


def signs_of_bits(y: Tensor, bits: int) -> Tensor:
    """(n, bits): the class written in signs; C = 2^bits classes in that many dimensions."""
    return 1.0 - 2.0 * (y[:, None] >> torch.arange(bits)).remainder(2)


# --- limits and what they separate ------------------------------------------------------------------------------


def spectrum(sheaf: Sheaf, normalization: str = "symmetric") -> Tensor:
    """(n d,) eigenvalues in ascending order."""
    return torch.linalg.eigvalsh(SheafLaplacian(sheaf, normalization).dense().double())


def heat_limit(sheaf: Sheaf, x: Tensor, normalization: str = "symmetric", tol: float = 1e-9) -> Tensor:
    """lim exp(-t Delta) x for x (n, d, f): the orthogonal projection onto the harmonic space."""
    values, U = torch.linalg.eigh(SheafLaplacian(sheaf, normalization).dense().double())
    kernel = U[:, values < tol]
    return (kernel @ (kernel.T @ x.double().flatten(0, 1))).view_as(x)


def one_versus_rest(x: Tensor, y: Tensor) -> bool:
    """Whether every class of y (n,) can be cut off from all others by a plane in the space of x (n, ...).

    With two classes this is linear separability. Decided exactly, by a linear programme.
    """
    x = _unit(x)
    sides = ((y == c).double() * 2 - 1 for c in y.unique())
    return all(_feasible(side[:, None] * torch.cat([x, torch.ones(len(x), 1)], dim=1)) for side in sides)


def argmax_separable(x: Tensor, y: Tensor) -> bool:
    """Whether some linear classifier argmax_c (w_c . x + b_c) gives every node its class; by a linear programme."""
    x = torch.cat([_unit(x), torch.ones(len(x), 1, dtype=torch.float64)], dim=1)
    classes = y.unique()
    rows = []
    for c in range(len(classes)):
        own = x[y == classes[c]]
        for other in range(len(classes)):
            if other != c:
                row = torch.zeros(len(own), len(classes), x.size(1), dtype=torch.float64)
                row[:, c], row[:, other] = own, -own
                rows.append(row.flatten(1))
    return _feasible(torch.cat(rows))


def _unit(x: Tensor) -> Tensor:
    """(n, features) of norm of order one, as the margin of the linear programme asks for."""
    x = x.double().flatten(1)
    return x / x.norm(dim=1).max().clamp_min(1e-300)


def _feasible(A: Tensor, bound: float = 1e7) -> bool:
    """Whether some w with |w_i| <= bound has A w >= 1: a margin of about 1e-7, far above the errors of a limit."""
    from scipy.optimize import linprog

    done = linprog(np.zeros(A.size(1)), A_ub=-A.numpy(), b_ub=-np.ones(len(A)), bounds=(-bound, bound), method="highs")
    return done.status == 0


# --- bounds -----------------------------------------------------------------------------------------------------


def cycle_bounds(n: int, theta: float) -> tuple[float, float]:
    """Lower bound (proposition 5) and upper bound (proposition 3) of lambda_0 of a `twisted_cycle`.

    All paths between two nodes, and all cycles, differ by the one rotation: r = eps = |1 - exp(i theta)|. With
    diameter n // 2 and degree 2 they say  eps^2 / (2 diam n d_max) <= lambda_0 <= r^2 / 2.
    """
    gap = 2 * abs(math.sin(theta / 2))
    return gap**2 / (2 * (n // 2) * n * 2), gap**2 / 2


def contraction(sheaf: Sheaf) -> float:
    """lambda_* = max (lambda_i - 1)^2 over the non-zero eigenvalues of the augmented Laplacian (theorem 15)."""
    values = spectrum(sheaf, "augmented")
    return float((values[values > 1e-9] - 1).square().max())


def energy_ratios(sheaf: Sheaf, draws: int, channels: int = 4, generator: Generator | None = None) -> Tensor:
    """(draws,) E(Y) / (lambda_* ||W1||^2 ||W2||^2 E(X)) of random layers Y = relu((I - Delta)(I (x) W1) X W2).

    Theorem 15 (d = 1, positive transports) and theorem 16 (symmetric orthogonal maps) say: at most 1.
    """
    n, d, f = sheaf.graph.num_nodes, sheaf.stalk_dim, channels
    laplacian = SheafLaplacian(sheaf, "augmented")
    X, W1, W2 = (
        torch.randn(draws, *shape, dtype=torch.float64, generator=generator) for shape in ((n, d, f), (d, d), (f, f))
    )
    as_channels = lambda x: x.permute(1, 2, 0, 3).reshape(n, d, draws * f)  # noqa: E731
    Z = as_channels(W1[:, None] @ X @ W2[:, None])
    Y = torch.relu(Z - laplacian @ Z)
    energy = lambda x: laplacian.coboundary(x).square().view(-1, d, draws, f).sum((0, 1, 3))  # noqa: E731
    norms = torch.linalg.matrix_norm(W1, 2) * torch.linalg.matrix_norm(W2, 2)
    return energy(Y) / (contraction(sheaf) * norms.square() * energy(as_channels(X)))


def energy_from_nothing(
    graph: SheafGraph, size: float = 0.01, generator: Generator | None = None
) -> tuple[float, float]:
    """Proposition 17: x^T Delta x before and after a nilpotent W1 of norm `size`; x harmonic on a flat O(2) bundle."""
    sheaf = flat_sheaf(graph, 2, generator)
    x = heat_limit(sheaf, torch.randn(graph.num_nodes, 2, 1, dtype=torch.float64, generator=generator))
    x = x / x.norm()
    W1 = torch.tensor([[0.0, size], [0.0, 0.0]], dtype=torch.float64)
    laplacian = SheafLaplacian(sheaf, "symmetric")
    return float(laplacian.energy(x)), float(laplacian.energy(W1 @ x))


# --- oversmoothing ----------------------------------------------------------------------------------------------


def roughness(graph: SheafGraph, x: Tensor) -> float:
    """x^T Delta x / x^T x of features x (n, f) along the plain graph Laplacian: 0 when oversmoothed."""
    ones = torch.ones(graph.edge_index.size(1), 1, dtype=x.dtype, device=x.device)
    return float(SheafLaplacian(Sheaf(graph, ones), "augmented").rayleigh(x.unsqueeze(1)))
