"""The statements about sheaf diffusion in numbers, each beside what the paper says it must be."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING

from suffuse.bench import Run, benchmark

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Generator, Tensor

DEPTHS = (1, 2, 4, 8, 16, 32, 64)


@benchmark(
    "graphs/theory",
    paper="Bodnar, Di Giovanni, Chamberlain, Lio, Bronstein 2022, Neural Sheaf Diffusion, arXiv:2202.04579, lemma 6, "
    "propositions 3, 5, 8-13, 17, theorems 15 and 16",
    claim="What a sheaf network can separate in the limit grows with its class of maps, and its energy need not decay",
    peers=("GCN", "identity maps"),
)
def theory(run: Run) -> None:
    """Kernels, the spectrum of a cycle, what limits separate, energies over depth. Values are computed in float64.

    "Published" is what the statement says. Separation is decided exactly, by linear programmes: one-versus-rest (each
    class cut off by a plane) or argmax (a linear classifier).
    """
    import torch

    draws = 10 if run.quick else 100
    g = torch.Generator().manual_seed(run.seed)
    with run.stage("kernels"):
        for case, dimension, stated in kernels(g):
            run.row(dataset="random graph, 30 nodes, 48 edges", method=case, metric="kernel dimension",
                    value=dimension, better="higher", published=stated)  # fmt: skip
    with run.stage("cycle"):
        cycle = cycle_rows()
        for theta, values in cycle.items():
            for method, value in values.items():
                run.row(dataset="12-cycle, one edge turned", method=method, metric="smallest eigenvalue",
                        value=value, better="lower", setting={"angle": theta})  # fmt: skip
    for dataset, case, notion, share, expected in separations(draws, g, run):
        run.row(dataset=dataset, method=case, metric="separated draws", value=100 * share, better="higher", unit="%",
                n=draws, published=None if expected is None else 100 * expected, setting={"by": notion})  # fmt: skip
    with run.stage("energies"):
        for case, value in energies(g).items():
            run.row(dataset="one layer, 2000 random weights", method=case, metric="largest energy ratio to its bound",
                    value=value, better="lower", published=1.0)  # fmt: skip
    with run.stage("depth"):
        depth = energy_over_depth(g)
        for method, curve in depth.items():
            for at, value in zip(DEPTHS, curve, strict=True):
                run.row(dataset="features of 256 nodes, untrained networks", method=method, metric="x·Δx / x·x",
                        value=value, better="higher", setting={"depth": at})  # fmt: skip
    if depth["GCN"][-1] < 0.01 < depth["identity maps"][-1]:
        run.note(
            "GCN is oversmoothed at depth 64 and no sheaf network is, but neither is the control with identity maps: "
            "with random weights it is the gated residual of the layer that keeps the energy, not the sheaf."
        )
    run.figure(
        "theory", picture(cycle, depth, g),
        "First: smallest eigenvalue of a cycle with one turned edge, between the bounds of propositions 5 and 3. "
        "Second: limits of rotations of the plane for six classes: rays. Third: limits on a bipartite graph, with "
        "symmetric and with signed maps. Fourth: energy of the features along the graph, relative to their size, over "
        "the depth of networks with random weights; 0 is oversmoothed.",
    )  # fmt: skip


def kernels(g: Generator) -> Iterator[tuple[str, int, int]]:
    """(case, dimension found, dimension stated) of the harmonic space for stalks R^3."""
    import torch

    from ..sheaf import Sheaf
    from ..sheaf.theory import flat_sheaf, random_graph, random_sheaf, spectrum

    def dim(sheaf: Sheaf) -> int:
        return int((spectrum(sheaf) < 1e-9).sum())

    d, graph, tree = 3, random_graph(30, 48, g), random_graph(30, 0, g)
    signs = torch.randn(30, d, generator=g).double().sign()
    scale = torch.rand(graph.num_edges, d, generator=g).double() + 0.5
    yield "flat orthogonal bundle (lemma 6)", dim(flat_sheaf(graph, d, g)), d
    yield "random orthogonal maps (lemma 6)", dim(random_sheaf(graph, d, generator=g)), 0
    yield "random orthogonal maps on a tree", dim(random_sheaf(tree, d, generator=g)), d
    yield "random general maps", dim(random_sheaf(graph, d, "general", generator=g)), 0
    yield "random diagonal maps", dim(random_sheaf(graph, d, "diagonal", generator=g)), 0
    balanced = Sheaf(graph, torch.cat([scale, scale]) * signs[graph.edge_index[0]])
    yield "sign-balanced diagonal maps", dim(balanced), d


def cycle_rows(n: int = 12) -> dict[float, dict[str, float]]:
    """Smallest eigenvalue of the twisted cycle beside its closed form and both bounds, per angle."""
    from ..sheaf.theory import cycle_bounds, spectrum, twisted_cycle

    out = {}
    for theta in (0.1, 1.0, 2.0, 3.0):
        low, high = cycle_bounds(n, theta)
        out[theta] = {
            "measured": float(spectrum(twisted_cycle(n, theta))[0]),
            "1 - cos(angle / 12) (reference)": 1 - math.cos(theta / n),
            "proposition 5 (floor)": low,
            "proposition 3 (ceiling)": high,
        }
    return out


def separations(draws: int, g: Generator, run: Run) -> Iterator[tuple[str, str, str, float, float | None]]:
    """(graph, sheaf, notion, share of the draws that are separated, share stated or None where nothing is)."""
    import torch

    from ..sheaf.theory import (
        argmax_separable,
        bipartite_graph,
        class_sheaf,
        heat_limit,
        homophilic_graph,
        one_versus_rest,
        random_graph,
        signs_of_bits,
        signs_of_classes,
        symmetric_sheaf,
    )

    def features(n: int, d: int) -> Tensor:
        return torch.randn(n, d, 4, dtype=torch.float64, generator=g)

    def share(case: str, one: Callable[[], bool]) -> float:
        with run.stage(case):
            return sum(one() for _ in range(draws)) / draws

    def bipartite(signed: bool) -> bool:
        graph, y = bipartite_graph(20, generator=g)
        scale = torch.rand(graph.num_edges, 1, generator=g) + 0.5
        sheaf = class_sheaf(graph, 1.0 - 2.0 * y[:, None]) if signed else symmetric_sheaf(graph, scale)
        return one_versus_rest(heat_limit(sheaf, features(40, 1)), y)

    def homophilic() -> bool:
        graph, y = homophilic_graph(15, g)
        u, v = graph.edge_index[:, : graph.num_edges]
        inner = torch.where((y[u] == 1) & (y[v] == 1), 100.0, 0.01)[:, None]
        return one_versus_rest(heat_limit(symmetric_sheaf(graph, inner.sqrt()), features(30, 1)), y)

    def classes(C: int, frames: Callable[[Tensor], Tensor], d: int, notion: str) -> bool:
        y = torch.arange(40) % C
        limit = heat_limit(class_sheaf(random_graph(40, 90, g), frames(y)), features(40, d))
        return (one_versus_rest if notion == "one-versus-rest" else argmax_separable)(limit, y)

    ovr = "one-versus-rest"
    sides = "balanced bipartite graph, the sides as classes"
    yield sides, "symmetric maps (prop. 9)", ovr, share("bipartite", partial(bipartite, False)), 0
    yield sides, "maps with signs (prop. 10)", ovr, share("bipartite", partial(bipartite, True)), 1
    yield "two homophilic blocks", "symmetric maps (prop. 8)", ovr, share("blocks", homophilic), 1
    any_graph = "random graph, 40 nodes"
    yield (
        any_graph, "3 classes, d = 1 (prop. 11)", ovr,
        share("d = 1", partial(classes, 3, lambda y: y[:, None] - 0.5, 1, ovr)), 0,
    )  # fmt: skip
    for C in (3, 5):
        one = partial(classes, C, signs_of_classes, C, ovr)
        yield any_graph, f"{C} classes, diagonal, d = {C} (prop. 12)", ovr, share("diagonal", one), 1
    one = partial(classes, 4, partial(signs_of_bits, bits=2), 2, ovr)
    yield any_graph, "4 classes, diagonal, d = 2, coded in bits", ovr, share("bits", one), 1
    for C in (4, 6):
        for notion in (ovr, "argmax"):
            one = partial(classes, C, partial(around, C), 2, notion)
            stated = None if C > 4 and notion == ovr else 1
            yield any_graph, f"{C} classes, rotations, d = 2 (prop. 13)", notion, share("rotations", one), stated


def around(C: int, y: Tensor) -> Tensor:
    """(n, 2, 2) rotations by the class: 2 pi y / C."""
    from ..sheaf.theory import rotation

    return rotation(2 * math.pi * y.double() / C)


def energies(g: Generator) -> dict[str, float]:
    """Largest E(Y) / bound of theorems 15 and 16 over random layers."""
    import torch

    from ..sheaf import Sheaf
    from ..sheaf.theory import energy_ratios, random_graph, random_orthogonal, symmetric_sheaf

    graph = random_graph(20, 40, g)
    positive = Sheaf(graph, torch.rand(graph.edge_index.size(1), 1, dtype=torch.float64, generator=g) + 0.1)
    symmetric = symmetric_sheaf(graph, random_orthogonal(graph.num_edges, 2, g))
    return {
        "positive transports, d = 1 (theorem 15)": float(energy_ratios(positive, 2000, generator=g).max()),
        "symmetric O(2) maps (theorem 16)": float(energy_ratios(symmetric, 2000, generator=g).max()),
    }


def energy_over_depth(g: Generator) -> dict[str, list[float]]:
    """Roughness of hidden features at each of `DEPTHS`, per network with random weights, on a random graph."""
    import torch
    from torch_geometric.nn import GCN

    from ..sheaf import NeuralSheafDiffusion
    from ..sheaf.theory import random_graph, roughness

    graph = random_graph(256, 768, g)
    x = torch.randn(256, 24, generator=g)
    out: dict[str, list[float]] = {}
    seed = int(torch.randint(1 << 30, (), generator=g))
    with torch.no_grad():
        torch.manual_seed(seed)
        gcn = GCN(24, 24, max(DEPTHS), 24)
        for conv in gcn.convs:
            torch.nn.init.orthogonal_(conv.lin.weight, gain=2**0.5)
        h, states = x, []
        for conv in gcn.convs:
            h = torch.relu(conv(h, graph.edge_index))
            states.append(roughness(graph, h))
        out["GCN"] = [states[depth - 1] for depth in DEPTHS]
        for maps in ("identity", "orthogonal", "diagonal", "general"):
            torch.manual_seed(seed)
            net = NeuralSheafDiffusion(24, 24, max(DEPTHS), 4, stalk_dim=3, maps=maps, normalization="augmented")
            states = [roughness(graph, h) for h, _ in net.diffusion(x, graph)]
            out["identity maps" if maps == "identity" else f"sheaf, {maps} maps"] = [states[d] for d in DEPTHS]
    return out


def picture(cycle: dict[float, dict[str, float]], depth: dict[str, list[float]], g: Generator) -> Figure:
    """Cycle, rays, sides, depth."""
    import torch
    from matplotlib.figure import Figure

    from ..sheaf.theory import (
        bipartite_graph,
        class_sheaf,
        cycle_bounds,
        heat_limit,
        random_graph,
        symmetric_sheaf,
    )

    figure = Figure(figsize=(17.5, 3.7), layout="constrained")
    first, second, third, fourth = figure.subplots(1, 4)

    theta = torch.linspace(0.02, math.pi, 80).tolist()
    low, high = zip(*(cycle_bounds(12, t) for t in theta), strict=True)
    first.fill_between(theta, low, high, color="tab:blue", alpha=0.12, label="between the bounds")
    first.plot(theta, [1 - math.cos(t / 12) for t in theta], color="tab:blue", label="1 - cos(θ/12)")
    first.plot(list(cycle), [values["measured"] for values in cycle.values()], "ko", label="measured")
    first.set_yscale("log")
    first.set_xlabel("holonomy θ (rad)")
    first.set_title("smallest eigenvalue, 12-cycle")
    first.legend(frameon=False, fontsize=8)

    y = torch.arange(48) % 6
    turned = class_sheaf(random_graph(48, 110, g), around(6, y))
    limit = heat_limit(turned, torch.randn(48, 2, 1, dtype=torch.float64, generator=g))[..., 0]
    second.scatter(*limit.T, c=y, cmap="tab10", vmax=9, s=22)
    second.plot(0, 0, "k+")
    second.set_aspect("equal", "datalim")
    second.set_title("6 classes, rotations of the plane")

    graph, side = bipartite_graph(20, generator=g)
    x = torch.randn(40, 1, 1, dtype=torch.float64, generator=g)
    ones = symmetric_sheaf(graph, torch.rand(graph.num_edges, 1, generator=g) + 0.5)
    for row, (name, sheaf) in enumerate(
        {"symmetric": ones, "signed": class_sheaf(graph, 1.0 - 2.0 * side[:, None])}.items()
    ):
        limit = heat_limit(sheaf, x).flatten()
        jitter = row + 0.12 * torch.randn(40, generator=g)
        third.scatter(limit / limit.abs().max(), jitter, c=side, cmap="coolwarm", s=22, label=name)
    third.axvline(0, color="lightgrey", lw=0.8, zorder=0)
    third.set_yticks([0, 1], ["symmetric", "signed"])
    third.set_xlabel("limit of the heat flow")
    third.set_title("two sides of a bipartite graph")

    for name, values in depth.items():
        style = "s--" if name in ("GCN", "identity maps") else "o-"
        fourth.plot(DEPTHS, values, style, label=name, ms=4)
    fourth.set_xscale("log", base=2)
    fourth.set_ylim(bottom=0)
    fourth.set_xlabel("depth")
    fourth.set_title("energy of the features, random weights")
    fourth.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure
