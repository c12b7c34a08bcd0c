"""The benchmarks of speed and scale in miniature, and the official code as a witness where a checkout is at hand."""

import os
from itertools import product
from pathlib import Path

import pytest
import torch

from suffuse_graphs import NeuralSheafDiffusion
from suffuse_graphs.benchmarks import official
from suffuse_graphs.benchmarks.scale import _slope, train
from suffuse_graphs.benchmarks.speed import CHECKOUT as VARIABLE
from suffuse_graphs.benchmarks.speed import Shape, random_graph, times
from suffuse_graphs.sheaf.orthogonal import reflections

CHECKOUT = os.environ.get(VARIABLE)
SMALL = Shape(30, 60, 7, 2, 4, 2)


def test_stand_ins_compute_what_the_compiled_packages_do():
    index, value = torch.tensor([[0, 2, 0], [1, 1, 2]]), torch.randn(3)
    x = torch.randn(3, 4)
    dense = torch.zeros(3, 3).index_put(tuple(index), value)
    assert torch.allclose(official._spmm(index, value, 3, 3, x), dense @ x)
    block = torch.randn(4, 2, 2)
    where = torch.tensor([1, 0, 1, 1])
    expected = torch.stack([block[1], block[[0, 2, 3]].sum(0)])
    assert torch.allclose(official._scatter_add(block, where, 0, 2), expected)
    a = torch.randn(5, 3)
    lower = torch.zeros(5, 3, 3)
    lower[:, [1, 2, 2], [0, 0, 1]] = a
    assert torch.allclose(official._orgqr(lower + torch.eye(3)), reflections(a, 3), atol=1e-6)


def test_random_graphs_are_simple_and_undirected():
    edge_index = random_graph(50, 200, 0)
    pairs = set(map(tuple, edge_index.T.tolist()))
    assert edge_index.shape == (2, 400) and len(pairs) == 400
    assert all(u != v and (v, u) in pairs for u, v in pairs)


@pytest.mark.parametrize("maps", ["general", "orthogonal", "diagonal"])
def test_what_is_measured(maps):
    found = times(maps, SMALL, None, "cpu", 0, 2)
    assert set(found) == {"set-up ours", "forward ours", "train step ours"}
    assert all(0 < seconds < 60 for seconds in found.values())


def test_a_size_of_the_scale_benchmark():
    found = train("orthogonal", 400, True, "cpu", 0)
    assert found["last loss"] < found["first loss"]
    assert found["edges"] == 400 and found["peak memory"] >= 0
    assert _slope({"train step": 1.0, "edges": 10}, {"train step": 2.0, "edges": 20}) == pytest.approx(1)


@pytest.mark.skipif(not CHECKOUT, reason=f"{VARIABLE} names no checkout of neural-sheaf-diffusion")
def test_outputs_and_gradients_are_those_of_the_official_code():
    edge_index, x = random_graph(40, 90, 0), torch.randn(40, 7)
    for maps, low, high, d in product(official.CLASSES, (False, True), (False, True), (2, 3)):
        rows = {"low_pass": low, "high_pass": high}
        theirs = official.official(
            Path(CHECKOUT), maps, edge_index, 40, 7, 3, stalk_dim=d, width=4, layers=3, **rows
        ).eval()  # fmt: skip
        ours = NeuralSheafDiffusion(7, 4 * (d + low + high), 3, 3, stalk_dim=d, maps=maps, **rows).eval()
        for p in theirs.parameters():
            p.data.add_(0.1 * torch.randn_like(p))
        official.copy_weights(theirs, ours)
        a, b = theirs(x), ours(x, edge_index).log_softmax(-1)
        assert torch.allclose(a, b, atol=1e-5)
        g, h = (
            torch.autograd.grad(y.square().sum(), lin.weight)[0] for y, lin in ((a, theirs.lin1), (b, ours.encoder))
        )
        assert torch.allclose(g, h, atol=1e-5 * float(g.abs().max()))
