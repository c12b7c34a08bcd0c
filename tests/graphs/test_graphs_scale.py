"""Large graphs: chunks, half precision, checkpoints, compilation, mini-batches and several processes change nothing."""

import os
import re
import subprocess
import sys
from itertools import pairwise

import pytest
import torch
from torch_geometric.data import Data

from suffuse.errors import InvalidArgument, MissingExtra
from suffuse_graphs import NeuralSheafDiffusion, SheafConv
from suffuse_graphs.loader import NeighborSampler, neighbor_loader
from suffuse_graphs.sheaf import Sheaf, SheafLaplacian, propagate, sheaf_graph
from suffuse_graphs.sheaf.maps import MAPS
from suffuse_graphs.sheaf.orthogonal import householder, reflections
from suffuse_graphs.sheaf.theory import random_graph, random_sheaf

KINDS = ("diagonal", "orthogonal", "general")


def graph_and_signal(d=3, f=4):
    graph = random_graph(9, 16)
    return graph, torch.randn(9, d, f, dtype=torch.float64)


# --- derivatives in closed form ---------------------------------------------------------------------------------


@pytest.fixture(params=[propagate.SLICE, 2])
def slices(request, monkeypatch):
    """Blocks all at once, and two at a time."""
    monkeypatch.setattr(propagate, "SLICE", request.param)


@pytest.mark.usefixtures("slices")
@pytest.mark.parametrize("normalization", ["augmented", "degree", "none"])
@pytest.mark.parametrize("kind", ["diagonal", "general"])
def test_first_derivatives_of_the_operator(kind, normalization):
    graph = random_graph(4, 5)
    sheaf = random_sheaf(graph, 2, kind, weighted=True)
    half = sheaf.weight[: graph.num_edges].clone().requires_grad_()
    maps, x = sheaf.maps.clone().requires_grad_(), torch.randn(4, 2, 2, dtype=torch.float64, requires_grad=True)

    def apply(maps, half, x):
        return SheafLaplacian(Sheaf(graph, maps, torch.cat([half, half])), normalization) @ x

    assert torch.autograd.gradcheck(apply, (maps, half, x))


@pytest.mark.parametrize("kind", ["diagonal", "general", "scalar"])
def test_second_derivatives_of_the_sum_over_neighbours_and_of_the_blocks(kind):
    graph = random_graph(4, 5)
    shape = {"diagonal": (2,), "general": (2, 2), "scalar": (1,)}[kind]
    T = torch.randn(graph.num_edges, *shape, dtype=torch.float64, requires_grad=True)
    z = torch.randn(4, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda T, z: propagate.neighbours(T, z, graph), (T, z))
    assert torch.autograd.gradgradcheck(lambda T, z: propagate.neighbours(T, z, graph), (T, z))
    maps = torch.randn(2 * graph.num_edges, *shape, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda maps: propagate.blocks(maps, None, graph), maps)
    N = torch.rand(4, 1, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda N, T, z: propagate.laplacian(N, N, T, z, graph), (N, T, z))


@pytest.mark.usefixtures("slices")
@pytest.mark.parametrize("d", [1, 2, 3, 4])
def test_reflections_and_their_derivative_are_those_of_torch(d):
    a = torch.randn(5, d * (d - 1) // 2, dtype=torch.float64, requires_grad=True)
    assert torch.allclose(householder(a, d), reflections(a, d))
    if d > 1:
        assert torch.autograd.gradcheck(lambda a: householder(a, d), a)
        assert torch.autograd.gradgradcheck(lambda a: householder(a, d), a)
    assert householder(torch.randn(2, 3, d * (d - 1) // 2), d).shape == (2, 3, d, d)


# --- three ways to the same sum ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [*KINDS, "scalar"])
def test_compressed_rows_chunks_and_plain_messages_agree(kind, monkeypatch):
    graph, z = graph_and_signal()
    E = graph.num_edges
    T = torch.randn(E, 1).double() if kind == "scalar" else random_sheaf(graph, 3, kind).transports()[:E]
    g = torch.randn_like(z)
    expected, outer = propagate.plain_neighbours(T, z, graph), propagate._plain_outer(T, g, z, graph, None)
    assert torch.allclose(propagate._sum(T, z, graph, None), expected)
    assert torch.allclose(propagate._outer(T, g, z, graph, None), outer)
    monkeypatch.setattr(propagate, "csr_usable", lambda x: False)
    for chunk in (1, 5, 1000):
        assert torch.allclose(propagate._sum(T, z, graph, chunk), expected)
        assert torch.allclose(propagate._outer(T, g, z, graph, chunk), outer)


def test_chunks_cover_every_node_and_edge_once():
    graph = sheaf_graph(torch.tensor([[0, 0, 0, 0, 4], [1, 2, 3, 4, 5]]), 9)
    for ends in (1, 3, 100):
        chunks = graph.chunks(ends)
        assert chunks[0][0] == chunks[0][2] == 0
        assert chunks[-1][1] == 9 and chunks[-1][3] == 10
        assert all(a[1] == b[0] and a[3] == b[2] for a, b in pairwise(chunks))


def test_a_graph_without_edges_is_no_special_case(monkeypatch):
    graph, z = sheaf_graph(torch.empty(2, 0, dtype=torch.long), 3), torch.randn(3, 2, 2)
    empty = torch.empty(0, 2, 2)
    assert (propagate.neighbours(empty, z, graph) == 0).all()
    monkeypatch.setattr(propagate, "csr_usable", lambda x: False)
    assert (propagate._sum(empty, z, graph, None) == 0).all()


@pytest.mark.parametrize("maps", MAPS)
def test_no_matrix_of_all_stalks_and_no_messages_are_kept(maps):
    """What autograd keeps for the way back grows with E d^2 + n d f, not with E d f."""
    n, E, d, f = 40, 300, 2, 64
    x, graph = torch.randn(n, d * f, requires_grad=True), random_graph(n, E)
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
        SheafConv(d * f, d, maps)(x, graph)
    assert max(sizes) <= max(2 * graph.num_edges * d * d, n * d * f, (2 * d * f) * (d * d + 1))


# --- precision, checkpoints, compilation ------------------------------------------------------------------------


@pytest.mark.parametrize("maps", MAPS)
def test_autocast_stays_near_full_precision_and_trains(maps):
    x, graph = torch.randn(30, 10), random_graph(30, 60)
    model = NeuralSheafDiffusion(10, 12, 2, 3, stalk_dim=3, maps=maps)
    exact = model(x, graph)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = model(x, graph)
    assert (half.float() - exact).abs().max() < 0.1 * exact.abs().max()
    half.float().square().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


@pytest.mark.parametrize("maps", ["orthogonal", "general"])
def test_checkpoints_change_no_gradient(maps):
    x, graph = torch.randn(20, 6), random_graph(20, 40)
    model = NeuralSheafDiffusion(6, 12, 3, 2, stalk_dim=3, maps=maps, dropout=0.3).train()
    grads = []
    for model.checkpoint in (False, True):
        model.zero_grad()
        torch.manual_seed(0)
        model(x, graph).square().sum().backward()
        grads.append([p.grad.clone() for p in model.parameters()])
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*grads, strict=True))


@pytest.mark.parametrize("maps", ["orthogonal", "general", "diagonal"])
def test_compiles_as_one_graph_and_computes_the_same(maps):
    x, graph = torch.randn(20, 6), random_graph(20, 40)
    model = NeuralSheafDiffusion(6, 12, 2, 2, stalk_dim=2, maps=maps, low_pass=True)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    a, b = model(x, graph), compiled(x, graph)
    assert torch.allclose(a, b, atol=1e-5)
    grads = [torch.autograd.grad(out.square().sum(), list(model.parameters())) for out in (a, b)]
    assert all(torch.allclose(g, h, atol=1e-4) for g, h in zip(*grads, strict=True))


@pytest.mark.parametrize("maps", MAPS)
def test_training_goes_on_after_inference_on_the_same_graph(maps):
    """What is remembered of a graph during inference, as in Lightning's validation, must be fit for training."""
    data, model = large(20, 40), NeuralSheafDiffusion(5, 9, 2, 3, stalk_dim=2, maps=maps, high_pass=True)
    with torch.inference_mode():
        expected = model(data.x, data.edge_index)
        assert torch.isfinite(model(data.x + 0, data.edge_index + 0)).all()
    out = model(data.x, data.edge_index)
    out.sum().backward()
    assert torch.allclose(out, expected, atol=1e-6)


# --- mini-batches -----------------------------------------------------------------------------------------------


def large(n=60, edges=150):
    graph = random_graph(n, edges)
    y, mask = torch.arange(n) % 3, torch.rand(n) < 0.5
    return Data(x=torch.randn(n, 5), edge_index=graph.edge_index, y=y, train_mask=mask)


def test_all_neighbours_for_twice_as_many_hops_as_steps_give_the_outputs_of_the_whole_graph():
    data, model = large(), NeuralSheafDiffusion(5, 8, 2, 3, stalk_dim=2, maps="general").eval()
    ring = torch.arange(60)
    data.edge_index = torch.stack([ring.repeat(2), torch.cat([(ring + 1) % 60, (ring + 3) % 60])])
    whole = model(data.x, data.edge_index)
    seen = 0
    for batch in neighbor_loader(data, [-1] * 4, batch_size=4, input_nodes=torch.arange(12), shuffle=True):
        out = model(batch.x, batch.edge_index)[: batch.batch_size]
        assert batch.num_nodes < 60
        assert torch.allclose(out, whole[batch.input_id], atol=1e-5)
        assert torch.equal(batch.n_id[: batch.batch_size], batch.input_id)
        assert torch.equal(batch.y, data.y[batch.n_id]) and torch.equal(batch.train_mask, data.train_mask[batch.n_id])
        seen += batch.batch_size
    assert seen == 12


def test_a_sampled_neighbourhood_has_both_directions_and_few_edges_a_node():
    data = large()
    data.edge_weight = torch.rand(data.edge_index.size(1))
    edges = {(u, v): w for u, v, w in zip(*data.edge_index.tolist(), data.edge_weight.tolist(), strict=True)}
    for batch in neighbor_loader(data, [2], batch_size=5, input_nodes=data.train_mask):
        pairs = set(map(tuple, batch.edge_index.T.tolist()))
        assert all((v, u) in pairs for u, v in pairs)
        drawn = (batch.edge_index[1] < batch.batch_size).sum()
        assert len(pairs) / 2 <= 2 * batch.batch_size and drawn > 0
        for (u, v), w in zip(batch.n_id[batch.edge_index].T.tolist(), batch.edge_weight.tolist(), strict=True):
            assert w == pytest.approx((edges[u, v] + edges[v, u]) / 2, rel=1e-5)


def test_every_edge_of_a_node_is_drawn_as_often_as_any_other():
    star = torch.tensor([[0] * 6, [1, 2, 3, 4, 5, 6]])
    sampler = NeighborSampler(Data(edge_index=star, num_nodes=7), [2], torch.Generator().manual_seed(0))
    counts = torch.zeros(6)
    for _ in range(600):
        nodes, drawn = sampler.sample(torch.tensor([0]))
        assert len(nodes) == 3 and len(drawn) == 2
        counts[drawn] += 1
    assert counts.sum() == 1200 and (counts - 200).abs().max() < 60


def test_pyg_loader_is_given_where_compiled_and_refused_clearly_where_not():
    import torch_geometric.typing as compiled

    if compiled.WITH_PYG_LIB or compiled.WITH_TORCH_SPARSE:
        batch = next(iter(neighbor_loader(large(), [3], batch_size=4, backend="pyg")))
        assert sheaf_graph(batch.edge_index, batch.num_nodes).num_edges * 2 == batch.edge_index.size(1)
    else:
        with pytest.raises(MissingExtra, match="pyg-lib or torch-sparse.*backend='torch'"):
            neighbor_loader(large(), [3], backend="pyg")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"input_nodes": torch.tensor([60])}, "input_nodes must lie in 0..59"),
        ({"num_neighbors": [0]}, "num_neighbors must be positive"),
        ({"batch_size": 0}, "batch_size and num_neighbors"),
        ({"backend": "dgl"}, "backend must be"),
    ],
)
def test_bad_loaders_are_refused(options, message):
    with pytest.raises(InvalidArgument, match=message):
        neighbor_loader(large(), **{"num_neighbors": [2], **options})


# --- Lightning --------------------------------------------------------------------------------------------------

SCRIPT = """
import sys
import torch
from lightning.pytorch import Trainer
from torch_geometric.data import Data
from torch_geometric.data.lightning import LightningDataset
from suffuse_graphs import NeuralSheafDiffusion
from suffuse_graphs.lightning import GraphModule
from suffuse_graphs.sheaf.theory import random_graph

if __name__ == "__main__":
    devices = int(sys.argv[1])
    g = torch.Generator().manual_seed(0)
    graphs = [
        Data(x=torch.randn(6, 4, generator=g), edge_index=random_graph(6, 9, g).edge_index, y=torch.tensor([k % 2]))
        for k in range(8)
    ]
    torch.manual_seed(0)
    module = GraphModule(NeuralSheafDiffusion(4, 8, 2, 2, stalk_dim=2), readout="mean", lr=0.01)
    trainer = Trainer(
        max_epochs=3, accelerator="cpu", devices=devices, strategy="ddp" if devices > 1 else "auto", logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, log_every_n_steps=1,
    )
    trainer.fit(module, LightningDataset(graphs, batch_size=8 // devices, shuffle=False))
    print(f"weights {sum(p.abs().sum().item() for p in module.parameters()):.6f}", flush=True)
"""


@pytest.mark.slow
def test_two_processes_with_half_of_the_graphs_each_train_as_one_with_all(tmp_path):
    (tmp_path / "train.py").write_text(SCRIPT)
    weights = {}
    for devices in (1, 2):
        done = subprocess.run(
            [sys.executable, "train.py", str(devices)],
            cwd=tmp_path,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        weights[devices] = [float(s) for s in re.findall(r"weights (\d+\.\d{6})", done.stdout)]  # maybe on one line
    assert len(weights[2]) == 2 and weights[2][0] == weights[2][1]
    assert weights[2][0] == pytest.approx(weights[1][0], rel=1e-5)


def test_the_module_trains_on_sampled_neighbourhoods():
    from lightning.pytorch import Trainer

    from suffuse_graphs.lightning import GraphModule

    data = large(30, 60)
    data.x[torch.arange(30), data.y] += 3.0
    torch.manual_seed(0)
    module = GraphModule(NeuralSheafDiffusion(5, 8, 1, 3, stalk_dim=2), lr=0.05)
    options = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(max_epochs=8, enable_model_summary=False, **options)
    trainer.fit(module, neighbor_loader(data, [4, 4], batch_size=10, input_nodes=data.train_mask, shuffle=True))
    accuracy = (module.model.eval()(data.x, data.edge_index).argmax(1) == data.y)[data.train_mask].float().mean()
    assert accuracy > 0.8
