"""The runner: baselines are what their papers say, scores are kept and resumed, a search looks at validation alone."""

import copy
import json
import math

import pytest
import torch
from torch_geometric.nn import GCN

from suffuse import hub
from suffuse.errors import InvalidArgument, SuffuseError
from suffuse_graphs import load_nodes, protocol
from suffuse_graphs.classify import build, score, train_preset
from suffuse_graphs.nets.classifiers import MODELS, classifier, hops
from suffuse_graphs.presets import Preset, preset, stored
from suffuse_graphs.protocol import Score, Scores, paired, train_splits
from suffuse_graphs.recipes import RECIPES
from suffuse_graphs.sheaf.theory import random_graph

NSD = {r.name: r for r in RECIPES}["graphs/nsd"]
SHORT = Preset({"hidden_channels": 8, "num_layers": 2, "dropout": 0.5}, lr=0.02, epochs=3, patience=3)


@pytest.fixture(scope="module")
def karate():
    return load_nodes("karate")


# --- baselines ----------------------------------------------------------------------------------------------------


def test_hops_are_the_normalised_graphs_of_distance_one_and_two():
    graph = random_graph(30, 40)
    A = torch.zeros(30, 30)
    A[tuple(graph.edge_index)] = 1
    two = ((A @ A > 0) & (A == 0)).float().fill_diagonal_(0)
    for ours, dense in zip(hops(graph.edge_index, 30), (A, two), strict=True):
        scale = dense.sum(1).rsqrt().nan_to_num(posinf=0)
        assert torch.allclose(ours.to_dense(), scale[:, None] * dense * scale, atol=1e-6)


def test_gpr_gnn_is_its_polynomial():
    graph, x = random_graph(12, 20), torch.randn(12, 5)
    net = classifier("gprgnn", 5, 3, hidden_channels=8, num_layers=2, dropout=0.5, order=3).eval()
    net.net.gamma.data = torch.tensor([0.5, -1.0, 2.0, 0.25])
    A = torch.eye(12)
    A[tuple(graph.edge_index)] = 1
    A = A.sum(1).rsqrt()[:, None] * A * A.sum(1).rsqrt()
    z = net.net.layers(x)
    truth = sum(c * torch.linalg.matrix_power(A, k) @ z for k, c in enumerate(net.net.gamma))
    assert torch.allclose(net(x, graph.edge_index), truth, atol=1e-5)


def test_h2gcn_keeps_every_round():
    graph, x = random_graph(12, 20), torch.randn(12, 5)
    net = classifier("h2gcn", 5, 3, hidden_channels=4, num_layers=2, dropout=0.5).eval()
    one, two = (hop.to_dense() for hop in hops(graph.edge_index, 12))
    rounds = [torch.relu(net.net.encoder(x))]
    for _ in range(2):
        rounds.append(torch.cat([one @ rounds[-1], two @ rounds[-1]], 1))
    assert torch.allclose(net(x, graph.edge_index), net.net.decoder(torch.cat(rounds, 1)), atol=1e-5)


def test_the_mlp_ignores_the_graph(karate):
    net = classifier("mlp", 34, 4, hidden_channels=8, num_layers=2, dropout=0.5).eval()
    assert torch.equal(net(karate.x, karate.edge_index), net(karate.x, karate.edge_index[:, :0]))


def test_gcn_sees_the_graph_that_it_is_given():
    """It keeps the normalised graph; another one must not be answered with it."""
    model = classifier("gcn", 8, 3, hidden_channels=16, num_layers=2)
    plain = GCN(8, 16, 2, 3)
    plain.load_state_dict(model.net.state_dict())
    x, graphs = torch.randn(30, 8), [torch.randint(30, (2, 60)) for _ in range(2)]
    for edge_index in (graphs[0], graphs[1], graphs[0]):
        assert torch.equal(model(x, edge_index), plain(x, edge_index))


@pytest.mark.parametrize("model", ["gat", "gcnii", "gprgnn"])
def test_baselines_survive_a_checkpoint(model, karate, tmp_path):
    net = build(model, karate, preset(model, "karate")).eval()
    again = hub.load(hub.save(net, tmp_path / model))
    assert torch.equal(net(karate.x, karate.edge_index), again(karate.x, karate.edge_index))


# --- presets ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dataset", stored())
def test_stored_presets_fit_their_models(dataset, karate):
    assert all(entry["source"] for entry in stored()[dataset].values())
    for model in MODELS:
        build(model, karate, preset(model, dataset))


def test_a_preset_is_changed_by_name():
    assert SHORT.with_({"dropout": 0.1}, lr=0.5).settings["model"]["dropout"] == 0.1
    with pytest.raises(InvalidArgument, match="training has no argument 'learning_rate'"):
        SHORT.with_({}, learning_rate=0.1)


# --- scores -------------------------------------------------------------------------------------------------------


def test_scores_are_kept_and_a_run_goes_on(karate, tmp_path, monkeypatch):
    file, told = tmp_path / "scores.jsonl", []
    train = lambda splits, preset=SHORT: train_splits(  # noqa: E731
        "mlp", karate, preset, splits, record=file, tell=lambda s, _: told.append(s.split)
    )
    train([0, 1])
    full = train([0, 1, 2])
    assert told == [0, 1, 2]
    assert [s.split for s in full.scores] == [0, 1, 2]
    assert full.scores[1].test == train_preset("mlp", karate, SHORT, 1).test  # a split does not see those before it
    train([0], SHORT.with_({"dropout": 0.1}))
    assert told == [0, 1, 2, 0]
    assert len(file.read_text().splitlines()) == 4
    monkeypatch.setattr(protocol, "train_preset", None)
    assert train([0, 1, 2]) == full
    assert train_splits("mlp", karate, SHORT, range(10), record=file, known_only=True) == full


def test_a_record_that_is_none_says_so(karate, tmp_path):
    (tmp_path / "scores.jsonl").write_text('{"split": 0}\n')
    with pytest.raises(SuffuseError, match="is not a record of scores"):
        train_splits("mlp", karate, SHORT, [0], record=tmp_path / "scores.jsonl")


def test_paired_differences_use_the_splits_both_have():
    a, b = (
        Scores(tuple(Score(k, v, 0, 1, 1) for k, v in enumerate(values))) for values in ((0.5, 0.7, 0.9), (0.4, 0.4))
    )
    gap, error = paired(a, b)
    assert gap == pytest.approx(20)
    assert error == pytest.approx(10)
    assert a.std == pytest.approx(100 * math.sqrt(0.08 / 3))


def test_auroc_is_the_share_of_pairs_in_order():
    logits = torch.tensor([[0.0, 1], [0, 2], [0, 3], [0, 0]])
    y = torch.tensor([0, 1, 1, 1])
    assert float(score(logits, y, "auroc")) == pytest.approx(2 / 3)
    assert float(score(logits, y)) == 0.5


# --- recipe -------------------------------------------------------------------------------------------------------


def test_the_recipe_runs_all_splits_with_the_control_and_resumes(tmp_path, capsys):
    run = lambda: NSD.train(dataset="karate", model="diagonal", split="all", epochs=2, out=tmp_path, device="cpu")  # noqa: E731
    run()
    first = capsys.readouterr().out
    assert first.count("split") == 2 * 10 + 2
    assert "diagonal against identity maps, paired" in first
    assert hub.read_config(tmp_path)["metadata"]["model"] == "diagonal"
    weights = (tmp_path / hub.WEIGHTS).read_bytes()
    run()
    assert "split 0" not in capsys.readouterr().out
    (tmp_path / hub.CONFIG).unlink()
    run()
    assert (tmp_path / hub.WEIGHTS).read_bytes() == weights


def test_the_recipe_trains_baselines(tmp_path):
    folder = NSD.train(dataset="karate", model="sage", epochs=2, out=tmp_path, device="cpu", progress=False)
    (file,) = NSD.sample(folder, out=tmp_path / "out", device="cpu")
    assert len(file.read_text().splitlines()) == 35


# --- search -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["diagonal", "gcnii"])
def test_a_search_keeps_to_its_budget_and_goes_on(model, karate, tmp_path):
    pytest.importorskip("optuna")
    from suffuse_graphs.search import search

    start = preset(model, "karate").with_({}, epochs=2)
    search(model, karate, start, 2, tmp_path / "s.log", splits=(0,))
    trials = lambda: sum('"op_code":4' in line for line in (tmp_path / "s.log").read_text().splitlines())  # noqa: E731
    before = trials()
    chosen = search(model, karate, start, 4, tmp_path / "s.log", splits=(0,))
    again = search(model, karate, start, 4, tmp_path / "s.log", splits=(0,))
    assert (before, trials()) == (2, 4)
    assert again == chosen
    record = json.loads((tmp_path / "s.json").read_text())
    assert record["model"] == chosen.model
    assert record["validation"]["best"] >= record["validation"]["median"]
    build(model, karate, chosen)


def test_a_search_does_not_see_test_labels(karate, tmp_path):
    pytest.importorskip("optuna")
    from suffuse_graphs.search import search

    other = copy.copy(karate)
    other.y = torch.where(karate.test_mask[:, 0], (karate.y + 1) % 4, karate.y)
    found = [
        search("mlp", data, SHORT, 3, tmp_path / f"{k}.log", splits=(0,)) for k, data in enumerate((karate, other))
    ]
    assert found[0] == found[1]
