"""The theory of sheaf diffusion as laws: kernels, holonomy, what limits separate, energies. float64, exact numbers."""

import math

import pytest
import torch
from torch import Generator
from torch_geometric.data import Data

from suffuse_graphs import NeuralSheafDiffusion, SheafLaplacian
from suffuse_graphs.sheaf import Sheaf, SheafLearner, sheaf_graph
from suffuse_graphs.sheaf.theory import (
    argmax_separable,
    bipartite_graph,
    class_sheaf,
    contraction,
    cycle_bounds,
    energy_from_nothing,
    energy_ratios,
    flat_sheaf,
    heat_limit,
    homophilic_graph,
    one_versus_rest,
    random_graph,
    random_orthogonal,
    random_sheaf,
    rotation,
    signs_of_bits,
    signs_of_classes,
    spectrum,
    symmetric_sheaf,
    twisted_cycle,
)
from suffuse_graphs.synthetic import HeatClassifier, bipartite_clouds, fit, ring_of_classes

DRAWS = 20


def seeded(k: int) -> Generator:
    return Generator().manual_seed(k)


def features(n: int, d: int, f: int, g: Generator) -> torch.Tensor:
    return torch.randn(n, d, f, dtype=torch.float64, generator=g)


# --- kernels ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_lemma_6_kernel_of_orthogonal_bundles(seed):
    """dim H^0 = d iff transport is path-independent: flat bundles and trees; 0 for generic maps on cycles."""
    g, d = seeded(seed), 3
    graph = random_graph(30, 48, g)
    assert (spectrum(flat_sheaf(graph, d, g)) < 1e-9).sum() == d
    assert (spectrum(random_sheaf(graph, d, generator=g)) < 1e-9).sum() == 0
    assert (spectrum(random_sheaf(random_graph(30, 0, g), d, generator=g)) < 1e-9).sum() == d


@pytest.mark.parametrize("kind", ["general", "diagonal"])
def test_generic_maps_have_no_section_and_sign_balanced_ones_have_all(kind):
    g, d = seeded(0), 2
    graph = random_graph(30, 48, g)
    assert (spectrum(random_sheaf(graph, d, kind, generator=g)) < 1e-9).sum() == 0
    scale = torch.rand(graph.num_edges, d, generator=g).double() + 0.5
    signs = torch.randn(30, d, generator=g).double().sign()
    balanced = Sheaf(graph, torch.cat([scale, scale]) * signs[graph.edge_index[0]])
    assert (spectrum(balanced) < 1e-9).sum() == d


@pytest.mark.parametrize("theta", [0.1, 1.0, 2.5])
def test_holonomy_of_a_cycle_between_the_bounds_of_propositions_3_and_5(theta):
    smallest = float(spectrum(twisted_cycle(12, theta))[0])
    low, high = cycle_bounds(12, theta)
    assert smallest == pytest.approx(1 - math.cos(theta / 12), abs=1e-12)
    assert low <= smallest <= high
    if theta == 0.1:
        assert low == pytest.approx(smallest, rel=2e-3)


# --- what limits separate ---------------------------------------------------------------------------------------


def test_propositions_9_and_10_bipartite_graphs_need_signs():
    """Equal sides: symmetric maps separate them for no features; with signs they do. Kernel dimension 1 in both."""
    apart = {"symmetric": 0, "signed": 0}
    for k in range(DRAWS):
        g = seeded(k)
        graph, y = bipartite_graph(20, generator=g)
        x, scale = features(40, 1, 4, g), torch.rand(graph.num_edges, 1, generator=g) + 0.5
        sheaves = {"symmetric": symmetric_sheaf(graph, scale), "signed": class_sheaf(graph, 1.0 - 2.0 * y[:, None])}
        for name, sheaf in sheaves.items():
            assert (spectrum(sheaf) < 1e-9).sum() == 1
            apart[name] += one_versus_rest(heat_limit(sheaf, x), y)
    assert apart == {"symmetric": 0, "signed": DRAWS}


def test_proposition_8_symmetric_maps_separate_where_classes_have_inner_edges():
    """Weight 100 inside one class and 0.01 elsewhere: the limit is large on that class alone."""
    for k in range(DRAWS):
        g = seeded(k)
        graph, y = homophilic_graph(15, g)
        u, v = graph.edge_index[:, : graph.num_edges]
        weight = torch.where((y[u] == 1) & (y[v] == 1), 100.0, 0.01)[:, None]
        assert one_versus_rest(heat_limit(symmetric_sheaf(graph, weight.sqrt()), features(30, 1, 4, g)), y)


def test_propositions_10_and_11_scalar_sheaves_separate_any_two_classes_and_never_three():
    for k in range(DRAWS):
        g = seeded(k)
        graph = random_graph(30, 60, g)
        y = torch.arange(30) % 3
        two = (y > 0).long()
        x = features(30, 1, 4, g)
        assert one_versus_rest(heat_limit(class_sheaf(graph, 1.0 - 2.0 * two[:, None]), x), two)
        for frames in (torch.randn(30, 1, generator=g), 1.0 - 2.0 * two[:, None], y[:, None] - 0.5):
            assert not one_versus_rest(heat_limit(class_sheaf(graph, frames), x), y)


@pytest.mark.parametrize("C", [3, 4, 5])
def test_proposition_12_diagonal_sheaves_separate_as_many_classes_as_dimensions(C):
    for k in range(3):
        g = seeded(k)
        y = torch.arange(40) % C
        sheaf = class_sheaf(random_graph(40, 90, g), signs_of_classes(y))
        assert one_versus_rest(heat_limit(sheaf, features(40, C, 4, g)), y)


def test_fewer_dimensions_than_classes_may_suffice():
    """Proposition 12's d >= C is sufficient, not necessary: two sign bits code four classes."""
    for k in range(5):
        g = seeded(k)
        y = torch.arange(40) % 4
        assert one_versus_rest(
            heat_limit(class_sheaf(random_graph(40, 90, g), signs_of_bits(y, 2)), features(40, 2, 4, g)), y
        )


@pytest.mark.parametrize(("C", "planes"), [(3, True), (4, True), (6, False), (8, False)])
def test_proposition_13_rotations_of_the_plane(C, planes):
    """C <= 2d classes by planes; by argmax any number, because the classes are rays."""
    for k in range(5):
        g = seeded(k)
        y = torch.arange(48) % C
        limit = heat_limit(
            class_sheaf(random_graph(48, 110, g), rotation(2 * math.pi * y.double() / C)), features(48, 2, 4, g)
        )
        assert one_versus_rest(limit, y) is planes
        assert argmax_separable(limit, y)


def test_five_classes_in_the_plane_are_decided_by_degrees():
    """C = 5 > 2d passes where sqrt(d_max / d_min) < 1 / cos 72 deg = 3.24: the bound is for all degree sequences."""
    node = torch.arange(60)
    y = node % 5
    frames = rotation(2 * math.pi * y.double() / 5)
    regular = torch.stack([node.repeat(2), torch.cat([node.roll(1), node.roll(7)])])
    hubs = torch.cat([regular, *(torch.stack([torch.full((60,), hub), node]) for hub in (1, 4))], dim=1)
    outcome = {}
    for name, index in (("regular", regular), ("hubs on both sides of class 0", hubs)):
        graph = sheaf_graph(index, 60)
        degree = torch.bincount(graph.edge_index[0]).double()
        outcome[name] = one_versus_rest(heat_limit(class_sheaf(graph, frames), features(60, 2, 4, seeded(0))), y)
        assert outcome[name] or (degree.max() / degree.min()).sqrt() >= 1 / math.cos(math.radians(72))
    assert outcome == {"regular": True, "hubs on both sides of class 0": False}


# --- energies ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["positive", "symmetric"])
def test_theorems_15_and_16_relu_layers_of_symmetric_sheaves_contract_the_energy(kind):
    g = seeded(0)
    graph = random_graph(20, 40, g)
    positive = Sheaf(graph, torch.rand(graph.edge_index.size(1), 1, dtype=torch.float64, generator=g) + 0.1)
    same = symmetric_sheaf(graph, random_orthogonal(graph.num_edges, 2, g))
    sheaf = positive if kind == "positive" else same
    assert contraction(sheaf) <= 1
    assert energy_ratios(sheaf, 2000, generator=g).max() <= 1 + 1e-9


def test_proposition_17_outside_symmetric_sheaves_any_small_weight_can_raise_the_energy():
    before, after = energy_from_nothing(random_graph(20, 40, seeded(0)), 0.01, seeded(1))
    assert before < 1e-15
    assert after > 1e-7


def test_proposition_18_the_learner_is_not_symmetric_in_its_ends():
    """Distinct pairs of features give distinct maps at the two ends; tied weights would give the same."""
    graph, x = random_graph(12, 20, seeded(0)), torch.randn(12, 8)
    learner = SheafLearner(8, 2, "general")
    learner.reset_parameters()
    F_u, F_v = learner(x, graph).maps.chunk(2)
    assert (F_u - F_v).flatten(1).norm(dim=1).min() > 1e-3


@pytest.mark.parametrize("maps", ["diagonal", "orthogonal", "general", "identity"])
def test_networks_are_permutation_equivariant_and_every_parameter_learns(maps):
    g = seeded(0)
    graph, x, order = random_graph(12, 20, g), torch.randn(12, 7), torch.randperm(12, generator=g)
    data = Data(x=x, edge_index=graph.edge_index).subgraph(torch.arange(12))
    net = NeuralSheafDiffusion(7, 8, 2, 3, stalk_dim=2, maps=maps)
    with torch.no_grad():  # identity weights and zero gates are special points
        for p in net.parameters():
            p.add_(0.1 * torch.randn_like(p))
    y = net(data.x, data.edge_index)
    at = torch.argsort(order)  # node v becomes node at[v]
    assert torch.allclose(net(x[order], at[data.edge_index]), y[order], atol=1e-5)
    y.square().sum().backward()
    for name, p in net.named_parameters():
        assert p.grad is not None, name
        assert p.grad.abs().max() > 0, name


def test_heat_flow_tends_to_its_limit():
    g = seeded(0)
    sheaf = flat_sheaf(random_graph(12, 24, g), 2, g)
    x = features(12, 2, 3, g)
    Delta = SheafLaplacian(sheaf, "symmetric").dense()
    late = torch.matrix_exp(-400 * Delta) @ x.flatten(0, 1)
    assert torch.allclose(late.view_as(x), heat_limit(sheaf, x), atol=1e-8)


# --- the synthetic experiments ------------------------------------------------------------------------------------


def test_trained_maps_on_a_bipartite_graph_become_negative_if_they_may():
    """Long diffusion: free maps fit and generalise, their transports are negative; symmetric maps stay near chance."""
    clouds = bipartite_clouds(side=60, generator=seeded(0))
    torch.manual_seed(0)
    free = fit(HeatClassifier(2, 2, time=16), clouds, steps=80)
    torch.manual_seed(0)
    symmetric = fit(HeatClassifier(2, 2, time=16, symmetric=True), clouds, steps=80)
    assert free.train == 1
    assert free.test > 0.95
    assert free.negative > 0.9
    assert symmetric.test < 0.65
    assert (symmetric.transports >= 0).all()


def test_classes_around_a_ring_need_the_plane():
    clouds = ring_of_classes(4, 20, noise=0.0, generator=seeded(0))
    scores = []
    for options in ({"stalk_dim": 1}, {"stalk_dim": 2, "maps": "general"}):
        torch.manual_seed(0)
        scores.append(fit(HeatClassifier(2, 4, time=8, **options), clouds, steps=80).train)
    assert scores[0] < 0.75
    assert scores[1] > 0.9


def test_edges_of_the_ring_lead_to_the_next_class():
    clouds = ring_of_classes(4, 20, noise=0.0, generator=seeded(0))
    u, v = clouds.graph.edge_index
    assert (((clouds.y[u] - clouds.y[v]) % 4).remainder(2) == 1).all()
    assert clouds.train.float().mean() == 0.5
