"""Node classification: data as published, training, recipe, and errors that say what to do."""

import copy

import pytest
import torch
from torch_geometric.data import Data
from torch_geometric.utils import homophily

from suffuse.errors import InvalidArgument, MissingExtra
from suffuse_graphs import load_nodes
from suffuse_graphs.classify import build, inputs, train_classifier
from suffuse_graphs.data.nodes import BUNDLED, check_nodes, connectome_folder
from suffuse_graphs.nets.classifiers import MODELS, classifier
from suffuse_graphs.presets import preset
from suffuse_graphs.recipes import RECIPES
from suffuse_graphs.sheaf import SheafConv
from suffuse_graphs.sheaf.model import drop_features

connectome = pytest.mark.skipif(
    connectome_folder() is None, reason="needs the connectome: pip install --no-deps graspologic"
)


@pytest.mark.parametrize("name", ["karate", *(pytest.param(name, marks=connectome) for name in BUNDLED[1:])])
def test_bundled_graphs_are_undirected_with_disjoint_splits(name):
    data = load_nodes(name)
    assert data.is_undirected()
    assert not data.has_self_loops()
    total = data.train_mask.int() + data.val_mask + data.test_mask
    assert (total == 1).all()
    for split in range(10):
        assert len(data.y[data.train_mask[:, split]].unique()) == len(data.y.unique())


def test_a_connectome_that_is_not_installed_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr("suffuse_graphs.data.nodes.connectome_folder", lambda: None)
    with pytest.raises(MissingExtra, match="pip install --no-deps graspologic"):
        load_nodes("drosophila")


@connectome
def test_the_connectome_is_heterophilic():
    data = load_nodes("drosophila")
    assert (data.num_nodes, data.num_edges // 2) == (213, 5625)
    assert homophily(data.edge_index, data.y) < 0.5


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "nodes", "edges", "edge_homophily"),
    [
        ("texas", 183, 279, 0.06),
        ("wisconsin", 251, 450, 0.18),
        ("cornell", 183, 277, 0.12),
        ("cornell-2020", 183, 277, 0.30),
        ("film", 7600, 26659, 0.22),
        ("cora", 2708, 5278, 0.81),
        ("citeseer", 3327, 4552, 0.74),
        ("minesweeper", 10000, 39402, 0.68),
    ],
)
def test_graphs_of_the_paper(name, nodes, edges, edge_homophily):
    data = load_nodes(name)
    assert (data.num_nodes, data.num_edges // 2, data.train_mask.size(1)) == (nodes, edges, 10)
    assert homophily(data.edge_index, data.y) == pytest.approx(edge_homophily, abs=0.01)


def test_filtered_graphs_are_read_from_the_files_of_the_benchmark(tmp_path):
    import numpy as np

    folder = tmp_path / "squirrel_filtered" / "raw"
    folder.mkdir(parents=True)
    masks = {f"{part}_masks": np.eye(10, 6, k=k, dtype=bool) for k, part in enumerate(("train", "val", "test"))}
    np.savez(
        folder / "squirrel_filtered.npz", node_features=np.ones((6, 3)), node_labels=np.arange(6) % 2,
        edges=np.array([[0, 1], [1, 2], [4, 4]]), **masks,
    )  # fmt: skip
    data = load_nodes("squirrel-filtered", tmp_path)
    assert data.num_edges == 4
    assert data.train_mask.shape == (6, 10)
    assert (data.x == 1).all()
    with pytest.raises(InvalidArgument, match="needs chameleon_filtered/raw/chameleon_filtered.npz"):
        load_nodes("chameleon-filtered", tmp_path)


@pytest.mark.data
def test_the_heterophilous_benchmark_brings_its_splits_and_its_score():
    data = load_nodes("minesweeper")
    assert data.metric == "auroc"
    assert data.train_mask.float().mean() == pytest.approx(0.5, abs=0.01)


@pytest.mark.data
def test_the_first_cornell_has_the_features_of_texas():
    assert torch.equal(load_nodes("cornell-2020").x, load_nodes("texas").x)
    assert not torch.equal(load_nodes("cornell").x, load_nodes("texas").x)


@pytest.mark.data
def test_reading_writes_nothing_beside_the_data():
    from suffuse.data import data_root

    load_nodes("texas")
    assert not list((data_root() / "graphs" / "webkb").glob("**/processed"))


@pytest.mark.parametrize("model", MODELS)
def test_every_classifier_trains(model):
    data = load_nodes("karate")
    chosen = preset(model, "karate")
    result = train_classifier(build(model, data, chosen), data, lr=0.02, epochs=5)
    assert result.epochs == 5
    assert 0 <= result.test <= 1


@pytest.mark.parametrize("model", [*MODELS])
def test_sparse_features_and_graphs_give_what_dense_ones_do(model):
    torch.manual_seed(0)
    x = torch.randn(30, 40) * (torch.rand(30, 40) < 0.04)
    one_way = torch.stack([torch.arange(30), (torch.arange(30) * 7 + 1) % 30])
    data = Data(x=x, edge_index=one_way, y=torch.arange(30) % 3)
    net = build(model, data, preset(model, "karate")).eval()
    expected, got = net(x, one_way), net(*inputs(net, data))
    assert torch.allclose(got, expected, atol=1e-5)
    params = [p for p in net.parameters() if p.requires_grad]
    expected, got = (torch.autograd.grad(y.square().sum(), params, allow_unused=True) for y in (expected, got))
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(expected, got, strict=True) if a is not None)


def test_sparse_features_drop_in_training_and_are_checked():
    data = Data(x=torch.eye(30, 40), edge_index=torch.arange(30).repeat(2, 1), y=torch.arange(30) % 3)
    net = build("diagonal", data, preset("diagonal", "karate").with_({"input_dropout": 0.5}))
    x, edge_index = inputs(net, data)
    assert x.layout == torch.sparse_csr
    kept = drop_features(x, 0.5, True).to_dense()
    assert set(kept.unique().tolist()) == {0.0, 2.0}
    x.values()[3] = torch.nan
    with pytest.raises(InvalidArgument, match="x contains NaN"):
        net(x, edge_index)
    with pytest.raises(InvalidArgument, match="x must be dense"):
        SheafConv(40, 2)(x, edge_index)


@connectome
def test_training_learns_the_connectome():
    data = load_nodes("drosophila")
    result = train_classifier(build("diagonal", data, preset("diagonal", "drosophila")), data, lr=0.02, epochs=50)
    assert result.val > 0.75  # the largest class has 0.47


def test_test_labels_do_not_leak():
    """Permuting the labels of the test nodes changes nothing but the score."""
    data = load_nodes("karate")
    other = copy.copy(data)
    test = data.test_mask[:, 0].nonzero().flatten()
    other.y = data.y.clone()
    other.y[test] = (data.y[test] + 1) % 4
    models = []
    for d in (data, other):
        torch.manual_seed(0)
        models.append(train_classifier(build("diagonal", d, preset("diagonal", "karate")), d, epochs=10).model)
    assert torch.equal(*(m(data.x, data.edge_index) for m in models))


def test_early_stopping_counts_epochs_without_improvement():
    data = load_nodes("karate")
    result = train_classifier(
        build("mlp", data, preset("mlp", "karate")), data, lr=0.0, weight_decay=0, epochs=50, patience=3
    )
    assert result.epochs == 4


def test_recipe_trains_and_predicts(tmp_path):
    import pandas as pd

    recipe = {r.name: r for r in RECIPES}["graphs/nsd"]
    folder = recipe.train(
        dataset="karate", model="general", epochs=3, out=tmp_path / "run", device="cpu", progress=False
    )
    (file,) = recipe.sample(folder, out=tmp_path / "out", device="cpu")
    table = pd.read_csv(file)
    assert len(table) == 34
    assert ((table[["p0", "p1", "p2", "p3"]].sum(axis=1) - 1).abs() < 1e-3).all()


def nsd(**kwargs):
    return {r.name: r for r in RECIPES}["graphs/nsd"].train(progress=False, device="cpu", **kwargs)


def broken(**changes):
    data = load_nodes("karate")
    for name, value in changes.items():
        data[name] = value
    return data


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: load_nodes("texsa"), "unknown dataset 'texsa'; did you mean 'texas'"),
        (lambda: nsd(dataset="karate", split="11"), "split must be in 0..9"),
        (lambda: nsd(dataset="karate", split="first"), "split: must be a number or 'all'"),
        (lambda: nsd(dataset="karate", model="unitary"), "unknown model 'unitary'"),
        (lambda: nsd(dataset="karate", search=-1), "search: the number of trials must not be negative"),
        (lambda: nsd(dataset="karate", hidden=15, stalk_dim=2), "stalk_dim must divide"),
        (lambda: nsd(dataset="karate", epochs=0), "epochs must be at least 1"),
        (lambda: classifier("gnc", 3, 2, hidden_channels=4, num_layers=2), "unknown model 'gnc'; did you mean 'gcn'"),
        (lambda: check_nodes(Data(x=torch.empty(0, 3), edge_index=torch.empty(2, 0).long())), "graph is empty"),
        (lambda: check_nodes(broken(x=torch.full((34, 34), torch.nan))), "data.x has NaN .* at nodes \\[0, 1"),
        (
            lambda: check_nodes(broken(edge_index=torch.tensor([[0], [34]]))),
            "data.edge_index names a node outside 0..33",
        ),
        (lambda: check_nodes(broken(y=torch.zeros(3))), "data.y must hold a class for every node"),
        (lambda: check_nodes(broken(val_mask=None)), "data.val_mask is missing"),
    ],
)
def test_bad_input_gets_one_clear_error(call, message):
    with pytest.raises(InvalidArgument, match=message):
        call()


def test_a_dataset_that_needs_files_says_so(monkeypatch):
    monkeypatch.delenv("SUFFUSE_DATA", raising=False)
    for name in ("texas", "roman-empire", "pubmed"):
        with pytest.raises(InvalidArgument, match=f"'{name}' needs files: set SUFFUSE_DATA"):
            load_nodes(name)
