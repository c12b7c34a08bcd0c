"""Laws of sheaves: the operator is the definition, spectrum and kernel obey the theory, the layer is a PyG layer."""

import math
from dataclasses import replace
from itertools import product

import pytest
import torch
from torch import Tensor
from torch_geometric.data import Batch, Data
from torch_geometric.nn.conv.gcn_conv import gcn_norm
from torch_geometric.utils import to_undirected

from suffuse.errors import InvalidArgument, MissingExtra
from suffuse_graphs import NeuralSheafDiffusion, SheafConv, SheafLaplacian
from suffuse_graphs.sheaf import ContinuousSheafDiffusion, Sheaf, SheafAttentionConv, connection_sheaf, sheaf_graph
from suffuse_graphs.sheaf.connection import frames
from suffuse_graphs.sheaf.laplacian import NORMALIZATIONS, InverseSqrt, eigh
from suffuse_graphs.sheaf.maps import MAPS
from suffuse_graphs.sheaf.orthogonal import ORTHOGONAL, householder
from suffuse_graphs.sheaf.theory import flat_sheaf, random_graph, random_orthogonal, random_sheaf

KINDS = ("diagonal", "orthogonal", "general")


def dense_laplacian(sheaf: Sheaf, normalization: str) -> Tensor:
    """By the definition, with loops: L = delta^T W delta, then N L N with N from an eigen-solve of each block of L."""
    n, p, E = sheaf.graph.num_nodes, sheaf.maps.size(-1), sheaf.graph.num_edges
    d = p + len(sheaf.fixed)
    delta = torch.zeros(E * d, n * d, dtype=torch.float64)
    F = sheaf.matrices()
    for e in range(E):
        u, v = sheaf.graph.edge_index[:, e].tolist()
        scale = 1.0 if sheaf.weight is None else float(sheaf.weight[e]) ** 0.5
        delta[e * d : e * d + p, u * d : u * d + p] = scale * F[e]
        delta[e * d : e * d + p, v * d : v * d + p] = -scale * F[e + E]
        for row, sign in enumerate(sheaf.fixed, start=p):
            delta[e * d + row, u * d + row], delta[e * d + row, v * d + row] = 1, -sign
    L = delta.T @ delta
    if normalization == "none":
        return L
    N = torch.zeros_like(L)
    for v in range(n):
        block = slice(v * d, (v + 1) * d)
        D = L[block, block]
        if normalization == "degree":
            at = sheaf.graph.edge_index[0] == v
            factor = p if sheaf.maps.dim() == 3 and not sheaf.orthogonal else 1
            weighted = float(at.sum() if sheaf.weight is None else sheaf.weight[at].sum())
            numbers = [factor * weighted + 1] * p + [float(at.sum()) + 1] * len(sheaf.fixed)
            N[block, block] = torch.diag(torch.tensor(numbers, dtype=torch.float64) ** -0.5)
            continue
        values, U = torch.linalg.eigh(D + (torch.eye(d) if normalization == "augmented" else 0))
        N[block, block] = U @ torch.diag(torch.where(values > 1e-12, values, torch.inf) ** -0.5) @ U.T
    return N @ L @ N


# --- the operator is the definition -----------------------------------------------------------------------------


@pytest.mark.parametrize("d", [1, 2, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_operator_equals_the_dense_construction(kind, d):
    graph = random_graph(7, 11)
    for weighted, fixed, normalization in product((False, True), ((), (-1,), (1,), (-1, 1)), NORMALIZATIONS):
        sheaf = replace(random_sheaf(graph, d, kind, weighted=weighted), fixed=fixed)
        laplacian, expected = SheafLaplacian(sheaf, normalization), dense_laplacian(sheaf, normalization)
        assert torch.allclose(laplacian.dense(), expected, atol=1e-10)
        assert torch.allclose(laplacian.sparse().to_dense(), expected, atol=1e-10)
        x = torch.randn(7, sheaf.stalk_dim, 4, dtype=torch.float64)
        assert torch.allclose(laplacian.energy(x), (x * (laplacian @ x)).sum())
        assert torch.allclose(laplacian.step(x, 0.3), x - 0.3 * (laplacian @ x))


@pytest.mark.parametrize("kind", KINDS)
def test_symmetric_positive_with_spectrum_in_0_2(kind):
    for normalization in ("augmented", "symmetric"):
        dense = SheafLaplacian(random_sheaf(random_graph(), 3, kind), normalization).dense()
        values = torch.linalg.eigvalsh(dense)
        assert torch.allclose(dense, dense.T, atol=1e-12)
        assert values.min() > -1e-12
        assert values.max() <= 2 + 1e-12


def test_identity_maps_of_dimension_one_are_the_gcn_propagation():
    graph = random_graph()
    sheaf = Sheaf(graph, torch.ones(graph.edge_index.size(1), 1, dtype=torch.float64))
    index, weight = gcn_norm(graph.edge_index, num_nodes=12, dtype=torch.float64)
    gcn = torch.zeros(12, 12, dtype=torch.float64).index_put((index[1], index[0]), weight, accumulate=True)
    assert torch.allclose(torch.eye(12) - SheafLaplacian(sheaf).dense(), gcn)


def test_isolated_nodes_are_left_alone_and_never_give_nan():
    graph = sheaf_graph(torch.tensor([[0], [1]]), 4)
    for normalization in NORMALIZATIONS:
        for kind in KINDS:
            y = SheafLaplacian(random_sheaf(graph, 2, kind), normalization) @ torch.randn(4, 2, 3, dtype=torch.float64)
            assert torch.isfinite(y).all()
            assert (y[2:] == 0).all()


# --- kernels, holonomy, energies: numbers that are known exactly -------------------------------------------------


def test_kernel_dimensions():
    """Lemma 6: dim H^0 = d iff transport is path-independent; 0 for generic maps on cycles; d on any tree."""
    d, cyclic, tree = 3, random_graph(30, 48), random_graph(15, 0)
    for normalization in NORMALIZATIONS:
        assert SheafLaplacian(flat_sheaf(cyclic, d), normalization).harmonic_dimension() == d
        for kind in KINDS:
            assert SheafLaplacian(random_sheaf(cyclic, d, kind), normalization).harmonic_dimension() == 0
        assert SheafLaplacian(random_sheaf(tree, d), normalization).harmonic_dimension() == d


def test_sign_balanced_diagonal_sheaf_has_full_kernel():
    graph = random_graph(30, 48)
    source, E = graph.edge_index[0], graph.num_edges
    sign = torch.randn(30, 2, dtype=torch.float64).sign()
    scale = torch.rand(E, 2, dtype=torch.float64) + 0.5
    assert SheafLaplacian(Sheaf(graph, torch.cat([scale, scale]) * sign[source])).harmonic_dimension() == 2


@pytest.mark.parametrize("theta", [0.1, 1.0, 3.0])
def test_one_twisted_edge_of_a_cycle_lifts_the_spectrum_by_its_holonomy(theta):
    """12-cycle, d = 2, one edge turned by theta: lambda_0 = 1 - cos(theta / 12)."""
    ring = torch.arange(12)
    graph = sheaf_graph(torch.stack([ring, (ring + 1) % 12]), 12)
    maps = torch.eye(2, dtype=torch.float64).repeat(24, 1, 1)
    c, s = math.cos(theta), math.sin(theta)
    maps[0] = torch.tensor([[c, -s], [s, c]], dtype=torch.float64)
    values = torch.linalg.eigvalsh(SheafLaplacian(Sheaf(graph, maps, orthogonal=True), "symmetric").dense())
    assert values[0] == pytest.approx(1 - math.cos(theta / 12), abs=1e-12)


def test_symmetric_maps_see_the_plain_graph():
    """F_u = F_v on every edge of an orthogonal sheaf gives the graph Laplacian: a learner must not be symmetric."""
    graph = random_graph()
    Q = random_orthogonal(graph.num_edges, 3)
    twisted = SheafLaplacian(Sheaf(graph, torch.cat([Q, Q]), orthogonal=True)).dense()
    plain = SheafLaplacian(Sheaf(graph, torch.eye(3, dtype=torch.float64).repeat(2 * len(Q), 1, 1), orthogonal=True))
    assert torch.allclose(twisted, plain.dense(), atol=1e-12)


def test_positive_scalar_sheaves_cannot_raise_the_energy():
    """Theorem 15: d = 1, T > 0, Y = relu((I - Delta) w X W2): E(Y) <= lambda_* w^2 ||W2||^2 E(X)."""
    graph = random_graph(20, 40)
    laplacian = SheafLaplacian(Sheaf(graph, torch.rand(graph.edge_index.size(1), 1, dtype=torch.float64) + 0.1))
    values = torch.linalg.eigvalsh(laplacian.dense())
    largest = (values[values > 1e-9] - 1).square().max()
    for _ in range(200):
        X, W, w = torch.randn(20, 1, 4, dtype=torch.float64), torch.randn(4, 4, dtype=torch.float64), torch.randn(())
        Y = torch.relu((X - laplacian @ X) * w @ W)
        assert laplacian.energy(Y) <= largest * w**2 * torch.linalg.matrix_norm(W, 2) ** 2 * laplacian.energy(X) + 1e-9


def test_negative_transport_separates_a_bipartite_graph():
    """Propositions 9 and 10: heat flow on a balanced bipartite graph separates the sides iff signs are allowed."""
    n = 20
    index = torch.stack([torch.arange(n).repeat(3), torch.cat([n + torch.randperm(n) for _ in range(3)])])
    graph = sheaf_graph(index, 2 * n)
    E = graph.num_edges
    label = torch.arange(2 * n) >= n
    separated = {}
    for name, sign in (("symmetric", 1.0), ("signed", -1.0)):
        maps = torch.cat([torch.ones(E, 1), sign * torch.ones(E, 1)]).double()
        harmonic = torch.linalg.eigh(SheafLaplacian(Sheaf(graph, maps), "symmetric").dense())[1][:, 0]
        separated[name] = bool((harmonic[label].sign() != harmonic[~label].sign()).all())
    assert separated == {"symmetric": False, "signed": True}


# --- maps and normaliser ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("build", ORTHOGONAL.values(), ids=list(ORTHOGONAL))
@pytest.mark.parametrize("d", [1, 2, 3, 5])
def test_orthogonal_maps_are_orthogonal(build, d):
    a = torch.randn(7, d * (d - 1) // 2, dtype=torch.float64)
    Q = build(a, d)
    assert torch.allclose(Q.mT @ Q, torch.eye(d, dtype=torch.float64).expand(7, d, d), atol=1e-12)
    expected = (-1.0) ** d if build is householder else 1.0
    assert torch.allclose(torch.linalg.det(Q), torch.full((7,), expected, dtype=torch.float64))


@pytest.mark.parametrize("build", ORTHOGONAL.values(), ids=list(ORTHOGONAL))
def test_bounded_parameters_reach_the_sign_flip(build):
    """Two maps with entries inside (-1, 1) can transport by any angle up to 180 degrees: heterophily needs -1."""
    a = torch.linspace(-0.9999, 0.9999, 201, dtype=torch.float64).unsqueeze(-1)
    Q = build(a, 2)
    trace = torch.einsum("aji,bji->ab", Q, Q)  # trace of Q_a^T Q_b = 2 cos(angle)
    assert trace.min() < -1.9999


def test_eigenvectors_in_parts_are_those_of_the_whole():
    """What a GPU needs, whose solver takes only so many blocks at once."""
    a = torch.randn(10, 3, 3, dtype=torch.float64)
    a = a + a.mT
    for whole, parts in zip(torch.linalg.eigh(a), eigh(a, batch=4), strict=True):
        torch.testing.assert_close(parts, whole)


def test_inverse_square_root_has_a_finite_exact_gradient_at_repeated_eigenvalues():
    B = torch.randn(4, 3, 3, dtype=torch.float64)
    A = (B @ B.mT + torch.eye(3, dtype=torch.float64)).requires_grad_()
    N = InverseSqrt.apply(A)
    assert torch.allclose(N @ A @ N, torch.eye(3, dtype=torch.float64).expand(4, 3, 3), atol=1e-10)
    symmetric = lambda A: InverseSqrt.apply((A + A.mT) / 2)  # noqa: E731
    assert torch.autograd.gradcheck(symmetric, A)
    repeated = (2 * torch.eye(3, dtype=torch.float64)).expand(2, 3, 3).clone().requires_grad_()
    assert torch.autograd.gradcheck(symmetric, repeated)


# --- the layer --------------------------------------------------------------------------------------------------


def example(n=12, channels=12):
    return torch.randn(n, channels), random_graph(n).edge_index


@pytest.mark.parametrize("maps", MAPS)
def test_every_parameter_gets_a_gradient(maps):
    x, edge_index = example()
    conv = SheafConv(12, 3, maps)
    conv(x, edge_index).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in conv.parameters())


@pytest.mark.parametrize("maps", MAPS)
def test_gradients_through_the_laplacian_are_exact(maps):
    graph = random_graph(5, 6)
    conv = SheafConv(4, 2, maps).double()
    x = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: conv(x, graph), x)


@pytest.mark.parametrize("maps", MAPS)
def test_layer_is_the_formula_with_the_dense_laplacian(maps):
    x, edge_index = example()
    conv = SheafConv(12, 3, maps).double()
    x = x.double()
    torch.nn.init.normal_(conv.left.weight)
    torch.nn.init.normal_(conv.epsilon)
    X = x.view(12, 3, 4)
    Z = torch.einsum("ij,njf->nif", conv.left.weight, X) @ conv.right.weight.T
    with torch.no_grad():
        Delta = dense_laplacian(conv.sheaf(x, edge_index), "augmented")
    step = torch.nn.functional.elu((Delta @ Z.reshape(36, 4)).view(12, 3, 4))
    expected = (1 + torch.tanh(conv.epsilon))[:, None] * X - step
    assert torch.allclose(conv(x, edge_index), expected.reshape(12, 12), atol=1e-10)


@pytest.mark.parametrize("maps", MAPS)
def test_permutation_equivariance(maps):
    x, edge_index = example()
    order = torch.randperm(12)
    place = torch.argsort(order)
    for conv in (SheafConv(12, 3, maps), SheafConv(12, 2, maps, high_pass=True), SheafAttentionConv(12, 3, maps)):
        assert torch.allclose(conv(x[order], place[edge_index]), conv(x, edge_index)[order], atol=1e-5)


def test_direction_duplicates_and_self_loops_of_edge_index_do_not_matter():
    x = torch.randn(5, 6)
    conv = SheafConv(6, 2)
    clean = torch.tensor([[0, 1, 2], [1, 2, 3]])
    messy = torch.tensor([[1, 0, 2, 2, 3, 4], [0, 1, 1, 3, 2, 4]])
    assert torch.equal(conv(x, clean), conv(x, to_undirected(clean)))
    assert torch.equal(conv(x, clean), conv(x, messy))


def test_edge_weights_scale_the_energy_of_an_edge_and_zero_removes_it():
    x = torch.randn(5, 6)
    conv = SheafConv(6, 2, "general")
    index = torch.tensor([[0, 1, 2], [1, 2, 3]])
    assert torch.allclose(conv(x, index, torch.ones(3)), conv(x, index))
    assert torch.allclose(conv(x, index, torch.tensor([1.0, 1.0, 0.0])), conv(x, index[:, :2]), atol=1e-6)


def test_isolated_nodes_only_see_their_residual():
    x = torch.randn(5, 6)
    conv = SheafConv(6, 2)
    y = conv(x, torch.tensor([[0], [1]]))
    assert torch.isfinite(y).all()
    assert torch.equal(y[2:], x[2:])
    assert torch.equal(conv(x, torch.empty(2, 0, dtype=torch.long)), x)


def test_sparse_adjacency_and_edge_index_objects_are_accepted():
    from torch_geometric import EdgeIndex

    x, edge_index = example()
    conv = SheafConv(12, 3)
    expected = conv(x, edge_index)
    dense = torch.zeros(12, 12).index_put((edge_index[0], edge_index[1]), torch.ones(edge_index.size(1)))
    assert torch.allclose(conv(x, dense.to_sparse_csr()), expected, atol=1e-6)
    assert torch.allclose(conv(x, dense.to_sparse_coo()), expected, atol=1e-6)
    assert torch.allclose(conv(x, EdgeIndex(edge_index, sparse_size=(12, 12))), expected, atol=1e-6)


def test_a_batch_of_graphs_gives_what_the_graphs_give_alone():
    graphs = [Data(x=torch.randn(n, 6), edge_index=random_graph(n, n + 3).edge_index) for n in (4, 7, 5)]
    batch = Batch.from_data_list(graphs)
    model = NeuralSheafDiffusion(6, 8, 2, 3, stalk_dim=2).eval()
    alone = torch.cat([model(g.x, g.edge_index) for g in graphs])
    assert torch.allclose(model(batch.x, batch.edge_index), alone, atol=1e-6)


def test_layers_stand_in_a_pyg_sequential_and_under_its_explainer():
    from torch_geometric.explain import Explainer, GNNExplainer
    from torch_geometric.nn import GCNConv, Sequential

    x, edge_index = example(channels=8)
    edge_index = edge_index[:, torch.randperm(edge_index.size(1))]
    layers = [
        (GCNConv(8, 12), "x, e -> x"),
        (SheafConv(12, 3), "x, e -> x"),
        (SheafAttentionConv(12, 3), "x, e -> x"),
        (GCNConv(12, 3), "x, e -> x"),
    ]
    model = Sequential("x, e", layers)
    explainer = Explainer(
        model,
        GNNExplainer(epochs=3),
        "model",
        node_mask_type="attributes",
        edge_mask_type="object",
        model_config={"mode": "multiclass_classification", "task_level": "node", "return_type": "raw"},
    )
    mask = explainer(x, edge_index).edge_mask
    assert mask.shape == (edge_index.size(1),)
    assert mask.max() > 0


@pytest.mark.parametrize("low_pass,high_pass", [(True, False), (False, True), (True, True)])
def test_fixed_rows_are_the_filters_of_the_plain_graph(low_pass, high_pass):
    """low_pass: D + A of the row, high_pass: D - A, normalised by the degree plus one, whatever is learned."""
    x, edge_index = example()
    rows = low_pass + high_pass
    conv = SheafConv(12, 4 - rows, "general", low_pass=low_pass, high_pass=high_pass)
    Delta = SheafLaplacian(conv.sheaf(x, edge_index)).dense().detach().view(12, 4, 12, 4)
    graph = sheaf_graph(edge_index)
    A = torch.zeros(12, 12).index_put(tuple(graph.edge_index), torch.ones(()))
    N = torch.diag((A.sum(0) + 1) ** -0.5)
    for row, sign in enumerate((1,) * low_pass + (-1,) * high_pass, start=4 - rows):
        assert torch.allclose(Delta[:, row, :, row], N @ (torch.diag(A.sum(0)) + sign * A) @ N, atol=1e-6)
        assert (Delta[:, row, :, :row] == 0).all()


@pytest.mark.parametrize("maps", MAPS)
def test_what_an_explainer_sees_is_what_the_layer_computes(maps):
    """PyG masks messages, which the fast path does not make: with all of them let through, both are one function."""
    from torch_geometric.explain.algorithm.utils import clear_masks, set_masks

    x, edge_index = example()
    for conv in (SheafConv(12, 3, maps), SheafConv(12, 2, maps, high_pass=True), SheafAttentionConv(12, 3, maps)):
        expected = conv(x, edge_index)
        set_masks(conv, torch.ones(edge_index.size(1)), edge_index, apply_sigmoid=False)
        assert torch.allclose(conv(x, edge_index), expected, atol=1e-5)
        mask = torch.ones(edge_index.size(1), requires_grad=True)
        set_masks(conv, mask, edge_index, apply_sigmoid=False)
        (grad,) = torch.autograd.grad(conv(x, edge_index).square().sum(), mask)
        assert grad.abs().sum() > 0
        clear_masks(conv)


def test_a_sheaf_learned_once_serves_all_steps_and_has_one_learner():
    x, edge_index = example(channels=5)
    model = NeuralSheafDiffusion(5, 8, 3, 2, stalk_dim=2, relearn=False, second_linear=True)
    sheaves = [sheaf for _, sheaf in model.diffusion(x, edge_index)][1:]
    assert sheaves[0] is sheaves[1] is sheaves[2]
    assert len(model.sheaf_parameters()) == len(list(model.convs[0].learner.parameters()))
    model(x, edge_index).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_a_given_sheaf_is_used_in_every_step():
    x, edge_index = example(channels=5)
    model = NeuralSheafDiffusion(5, 8, 2, 2, stalk_dim=2)
    given = random_sheaf(sheaf_graph(edge_index, 12), 2)
    given = replace(given, maps=given.maps.float())
    assert all(sheaf in (None, given) for _, sheaf in model.diffusion(x, edge_index, sheaf=given))
    assert torch.isfinite(model(x, edge_index, sheaf=given)).all()


def test_values_of_a_sparse_adjacency_are_weights():
    x, edge_index = example()
    weight = torch.rand(edge_index.size(1))
    dense = torch.zeros(12, 12).index_put((edge_index[0], edge_index[1]), weight)
    conv = SheafConv(12, 3)
    assert torch.allclose(conv(x, dense.to_sparse_csr()), conv(x, edge_index, weight), atol=1e-6)


def test_maps_in_the_order_of_edge_index():
    index = torch.tensor([[2, 0, 1, 1], [1, 1, 2, 0]])
    maps = torch.arange(4.0).view(4, 1)
    sheaf = Sheaf.on(index, maps)
    pairs = {tuple(pair): float(m) for pair, m in zip(sheaf.graph.edge_index.T.tolist(), sheaf.maps, strict=True)}
    assert pairs == {(2, 1): 0, (0, 1): 1, (1, 2): 2, (1, 0): 3}
    for bad in (index[:, :3], torch.tensor([[0, 0, 1, 1], [1, 1, 0, 0]]), torch.tensor([[0, 1, 2, 2], [1, 0, 2, 2]])):
        with pytest.raises(InvalidArgument, match="every edge once in each direction"):
            Sheaf.on(bad, torch.ones(bad.size(1), 1))


def test_transport_along_a_path_and_around_a_cycle():
    graph = random_graph(8, 14)
    flat = flat_sheaf(graph, 3)
    T = flat.transports()
    u, v = graph.edge_index[:, 0].tolist()
    assert torch.allclose(flat.transport_along([u, v]), T[0])
    assert torch.allclose(flat.transport_along([u, v, u]), torch.eye(3, dtype=torch.float64))
    ring = torch.arange(5)
    cycle = [0, 1, 2, 3, 4, 0]
    for build, trivial in ((flat_sheaf, True), (random_sheaf, False)):
        sheaf = build(sheaf_graph(torch.stack([ring, (ring + 1) % 5])), 3)
        holonomy = sheaf.transport_along(cycle)
        assert torch.allclose(holonomy, torch.eye(3, dtype=torch.float64), atol=1e-10) == trivial
        back = sheaf.transport_along(cycle[::-1])
        assert torch.allclose(back, holonomy.mT)
    with pytest.raises(InvalidArgument, match="0 and 2 are not neighbours"):
        sheaf.transport_along([1, 0, 2])


# --- connection sheaves, attention, continuous time -------------------------------------------------------------


def test_local_pca_on_a_linear_subspace_is_a_flat_bundle():
    """All frames span the subspace, so transport does not depend on the path: as many global sections as dimensions."""
    graph = random_graph(20, 45)
    x = torch.randn(20, 3, dtype=torch.float64) @ torch.randn(3, 8, dtype=torch.float64)
    assert SheafLaplacian(connection_sheaf(x, graph, 3)).harmonic_dimension() == 3
    assert SheafLaplacian(connection_sheaf(torch.randn_like(x), graph, 3)).harmonic_dimension() == 0


def test_frames_are_orthonormal_and_span_what_neighbours_differ_in():
    x = torch.randn(12, 30, dtype=torch.float64)
    graph = sheaf_graph(torch.tensor([[0, 0, 0, 1, 4], [1, 2, 3, 2, 5]]), 12)  # degrees from 0 to 3
    for d in (1, 2, 3):
        O = frames(x, graph, d)  # noqa: E741
        assert torch.allclose(O.mT @ O, torch.eye(d, dtype=torch.float64).expand(12, d, d))
    U, S, _ = torch.linalg.svd(x, full_matrices=False)  # the coordinates of the frames
    y = U * S
    for node, others in ((0, [1, 2, 3]), (1, [0, 2])):
        gap = y[others] - y[node]
        O = frames(x, graph, len(others))[node]  # noqa: E741
        assert torch.allclose(gap @ O @ O.mT, gap)
    borrowed = frames(x, graph, 2)[7]  # an isolated node: its two nearest
    gap = y[(y - y[7]).norm(dim=1).argsort()[1:3]] - y[7]
    assert torch.allclose(gap @ borrowed @ borrowed.mT, gap)


def test_connection_maps_are_fixed_and_remembered_until_features_change():
    x, edge_index = example(channels=5)
    model = NeuralSheafDiffusion(5, 8, 2, 2, stalk_dim=2, maps="connection")
    first, second = [sheaf for _, sheaf in model.diffusion(x, edge_index)][1:]
    assert torch.equal(first.maps, second.maps) and not first.maps.requires_grad
    assert connection_sheaf(x, edge_index, 2) is connection_sheaf(x, edge_index, 2)
    x[0] += 1
    assert not torch.equal(connection_sheaf(x, edge_index, 2).maps, first.maps)


@pytest.mark.parametrize("maps", MAPS)
def test_sheaf_attention_is_its_formula(maps):
    x, edge_index = example()
    conv = SheafAttentionConv(12, 3, maps, residual=False, activation=None).double()
    x, graph = x.double(), sheaf_graph(edge_index, 12)
    torch.nn.init.normal_(conv.left.weight)
    z = torch.einsum("ij,njf->nif", conv.left.weight, x.view(12, 3, 4)) @ conv.right.weight.T
    a = conv.coefficients(z.reshape(12, 12), graph)
    T = Sheaf(graph, conv.learner(x, graph).matrices()).transports()
    expected = a[-12:, None, None] * z
    for k, (u, v) in enumerate(graph.edge_index.T.tolist()):
        expected[v] = expected[v] + a[k] * T[k] @ z[u]
    assert torch.allclose(conv(x, edge_index), expected.reshape(12, 12))
    targets = torch.cat([graph.edge_index[1], torch.arange(12)])
    assert torch.allclose(torch.zeros(12).double().index_add(0, targets, a), torch.ones(12).double())


def test_sheaf_attention_with_equal_stalks_and_identity_maps_stands_still():
    _, edge_index = example()
    x = torch.ones(12, 12)
    assert torch.allclose(SheafAttentionConv(12, 3, "identity")(x, edge_index), x, atol=1e-6)


def test_sheaf_attention_trains_and_weight_zero_removes_an_edge():
    x = torch.randn(5, 6)
    conv, index = SheafAttentionConv(6, 2), torch.tensor([[0, 1, 2], [1, 2, 3]])
    without = conv(x, index[:, :2])
    assert torch.allclose(conv(x, index, torch.tensor([1.0, 1.0, 0.0])), without, atol=1e-6)
    without.sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in conv.parameters())
    conv.reset_parameters()
    assert torch.equal(conv.left.weight, torch.eye(2))


def heat(**options):
    plain = {"left_weights": False, "right_weights": False, "edge_weights": False}
    return ContinuousSheafDiffusion(5, 8, 1.5, 3, stalk_dim=2, **plain, **options)


def test_continuous_diffusion_without_weights_is_the_heat_kernel():
    pytest.importorskip("torchdiffeq")
    x, edge_index = example(channels=5)
    model = heat(relearn=False, activation=None, tol=1.0).double()
    path = model.trajectory(x.double(), edge_index, points=3)
    Delta = SheafLaplacian(model.flow.laplacian.sheaf).dense()
    start = path[0].reshape(24, 4)
    for X, t in zip(path, (0, 0.75, 1.5), strict=True):
        assert torch.allclose(X.reshape(24, 4), torch.linalg.matrix_exp(-t * Delta) @ start, atol=1e-6)


def test_the_adjoint_gives_the_gradient():
    pytest.importorskip("torchdiffeq")
    x, edge_index = example(channels=5)
    grads = []
    for adjoint in (False, True):
        torch.manual_seed(0)
        model = ContinuousSheafDiffusion(5, 8, 0.7, 2, stalk_dim=2, adjoint=adjoint, method="rk4", step_size=0.1)
        model.double().train()(x.double(), edge_index).square().sum().backward()
        assert model.flow.nfe >= 28
        grads.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert torch.allclose(grads[0], grads[1], rtol=1e-2, atol=1e-3 * float(grads[0].abs().max()))


def test_continuous_models_of_every_kind_train_and_survive_saving(tmp_path):
    pytest.importorskip("torchdiffeq")
    from suffuse import hub

    x, edge_index = example(channels=5)
    for maps in MAPS:
        options = {"maps": maps, "method": "euler", "step_size": 0.5, "low_pass": True}
        model = ContinuousSheafDiffusion(5, 9, 1.0, 2, stalk_dim=2, **options)
        model(x, edge_index).sum().backward()
        assert all(p.grad is not None for p in model.parameters())
    hub.save(model.eval(), tmp_path / "m")
    assert torch.equal(hub.load(tmp_path / "m")(x, edge_index), model(x, edge_index))


def test_without_torchdiffeq_the_error_says_what_to_install(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "torchdiffeq", None)
    with pytest.raises(MissingExtra, match=r"suffuse-graphs\[ode\]"):
        heat()


# --- PyG again --------------------------------------------------------------------------------------------------


def test_a_graph_changed_in_place_is_not_confused_with_the_old_one():
    index = torch.tensor([[0, 1], [1, 2]])
    before = sheaf_graph(index, 4)
    assert sheaf_graph(index, 4) is before
    index[1, 1] = 3
    assert 3 in sheaf_graph(index, 4).edge_index


def test_reset_parameters_starts_anew():
    conv = SheafConv(12, 3)
    with torch.no_grad():
        for p in conv.parameters():
            p.fill_(7.0)
    conv.reset_parameters()
    assert torch.equal(conv.left.weight, torch.eye(3))
    assert all((p != 7).any() for p in conv.parameters())
    assert repr(conv) == "SheafConv(12, stalk_dim=3, maps=orthogonal)"


def test_a_model_survives_saving(tmp_path):
    from suffuse import hub

    x, edge_index = example(channels=5)
    model = NeuralSheafDiffusion(5, 8, 2, 3, stalk_dim=2, maps="general", dropout=0.5).eval()
    hub.save(model, tmp_path / "m")
    assert torch.equal(hub.load(tmp_path / "m")(x, edge_index), model(x, edge_index))


# --- bad input --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: SheafConv(64, 3), "stalk_dim must divide channels.*try channels=63"),
        (lambda: SheafConv(6, 0), "stalk_dim"),
        (lambda: SheafConv(6, 3, low_pass=True), r"and 1 fixed rows: 4.*try channels=4"),
        (lambda: SheafAttentionConv(7, 2), "stalk_dim must divide channels"),
        (lambda: SheafConv(6, 2, map_activation="relu"), "activation must be one of"),
        (lambda: SheafConv(6, 2, activation="elou"), "activation must be the name of one of torch.nn"),
        (lambda: NeuralSheafDiffusion(4, 6, 0, 2), "num_layers"),
        (lambda: heat(method="euler", adjoint=True, relearn=False), "adjoint=True needs relearn=True"),
        (lambda: connection_sheaf(torch.randn(5, 2), torch.tensor([[0], [1]]), 3), "stalk_dim=3 needs at least 3"),
        (lambda: SheafConv(6, 2)(torch.ones(3, 6).long(), torch.tensor([[0], [1]])), "x must be .* floating point"),
        (
            lambda: SheafConv(6, 2)(torch.randn(3, 6), torch.tensor([[0], [1]]), torch.tensor([-1.0])),
            "edge_weight must be finite and not negative",
        ),
        (
            lambda: SheafConv(6, 2)(torch.randn(3, 6), torch.tensor([[0], [1]]), torch.tensor([1.0, 2.0])),
            "edge_weight must hold one number per entry",
        ),
        (lambda: SheafConv(6, 2)(torch.randn(3, 6), random_graph(4, 5)), "graph of 4 nodes, but x has 3 rows"),
        (lambda: SheafConv(6, 2, "unitary"), "maps must be one of"),
        (lambda: SheafConv(6, 2, orthogonal="euler"), "orthogonal must be one of"),
        (
            lambda: SheafConv(6, 2)(torch.randn(3, 6), torch.tensor([[0], [3]])),
            "edge_index holds node 0..3, .* 3 nodes",
        ),
        (lambda: SheafConv(6, 2)(torch.randn(3, 6), torch.tensor([[0], [-1]])), "edge_index holds node -1"),
        (lambda: SheafConv(6, 2)(torch.randn(3, 6), torch.tensor([[0.0], [1.0]])), "edge_index must hold integers"),
        (lambda: SheafConv(6, 2)(torch.randn(3, 6), torch.tensor([0, 1])), r"edge_index must be .* \(2, edges\)"),
        (lambda: SheafConv(6, 2)(torch.randn(3, 5), torch.tensor([[0], [1]])), r"x must be .* \(n, 6\)"),
        (lambda: SheafConv(6, 2)(torch.full((3, 6), torch.nan), torch.tensor([[0], [1]])), "x contains NaN"),
        (lambda: SheafConv(6, 2)(torch.randn(0, 6), torch.empty(2, 0, dtype=torch.long)), "graph is empty"),
        (lambda: SheafLaplacian(random_sheaf(random_graph(), 2), "row"), "normalization must be one of"),
    ],
)
def test_bad_input_gets_one_clear_error(call, message):
    with pytest.raises(InvalidArgument, match=message):
        call()


@pytest.mark.parametrize(
    ("options", "recordable"),
    [
        ({"maps": "diagonal"}, True),
        ({"maps": "orthogonal"}, True),
        ({"maps": "identity"}, True),
        ({"maps": "orthogonal", "orthogonal": "cayley"}, False),
        ({"maps": "general"}, False),
        ({"maps": "connection"}, False),
    ],
)
def test_networks_say_whether_an_epoch_can_be_recorded(options, recordable):
    """Linear algebra of torch waits for the GPU, which a recording cannot hold."""
    assert NeuralSheafDiffusion(4, 12, 2, 3, **options).recordable is recordable
