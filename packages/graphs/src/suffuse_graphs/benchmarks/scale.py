"""Does a training step take time in proportion to the edges, up to a million of them, and within 8 GiB?"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

from suffuse.bench import Run, benchmark
from suffuse.memory import keep_freed_memory
from suffuse.threads import one_thread

from .speed import Shape, _clock, _held, _ours, _peak, _task, fresh, gcn_time

if TYPE_CHECKING:
    from matplotlib.figure import Figure

EDGES = (10_000, 30_000, 100_000, 300_000, 1_000_000)
LIMIT = 8.0
STEPS = 5
DATASET = "random graphs, 20 edge ends a node"
GCN = "GCN (PyG), same width (reference)"


@benchmark(
    "graphs/scale",
    paper="Bodnar, Di Giovanni, Chamberlain, Lio, Bronstein 2022, Neural Sheaf Diffusion, arXiv:2202.04579, section 5: "
    "O(n (c^2 + d^3) + m (c d^2 + d^3))",
    claim="The time of a training step is linear in the number of edges from 10,000 to 1,000,000, and a million edges "
    "train within 8 GiB",
    peers=("diagonal maps", "with checkpoints", "GCN (PyG)"),
)
@one_thread()
def scale(run: Run) -> None:
    """Two layers, d = 3, f = 16, 64 features, full-batch steps of Adam on graphs drawn at random; one thread, seconds
    of the processor, each size in a process of its own. Memory is the peak over what the process held with libraries
    loaded; it includes the graph, its plan, the features, and all that is kept for the way back. Processes keep the
    memory that they free, as those of `suffuse train` do.

    The exponent is the slope of log(time) over log(edges) between two sizes: 1 is linear. Operations are, exactly; time
    also depends on how much of the features is in a cache, which the exponent of PyG's GCN on the same graphs shows.
    """
    kinds = ("orthogonal",) if run.quick else ("orthogonal", "general", "diagonal")
    found: dict[str, list[dict[str, float]]] = {}
    for maps in kinds:
        for checkpoints in (False, True):
            name = f"{maps} maps" + (", checkpoints" if checkpoints else "")
            sizes = EDGES if not checkpoints else EDGES[-1:]
            for edges in sizes:
                with run.stage(f"{name}, {edges:,} edges"):
                    numbers = fresh(run.device, train, maps, edges, checkpoints, run.device, run.seed)
                found.setdefault(name, []).append(numbers)
                setting = {"edges": edges}
                for metric, unit in (("train step", "s"), ("set-up", "s"), ("peak memory", "GiB")):
                    run.row(dataset=DATASET, method=name, metric=metric, value=numbers[metric], better="lower",
                            unit=unit, setting=setting)  # fmt: skip
    plain = []
    for edges in EDGES:
        with run.stage(f"GCN, {edges:,} edges"):
            step = fresh(run.device, gcn, edges, run.device, run.seed)
        plain.append({"edges": edges, "train step": step})
        run.row(dataset=DATASET, method=GCN, metric="train step", value=step, better="lower", unit="s",
                setting={"edges": edges})  # fmt: skip
    for name, numbers in [*found.items(), (GCN, plain)]:
        ends = [(numbers[0], numbers[-1])] if len(numbers) > 2 else []
        for a, b in [*pairwise(numbers), *ends]:
            run.row(dataset=DATASET, method=name, metric="exponent", better="lower", value=_slope(a, b),
                    setting={"from edges": int(a["edges"]), "edges": int(b["edges"])})  # fmt: skip
    for name, numbers in found.items():
        last = numbers[-1]
        whole = (
            f"; exponent from {int(numbers[0]['edges']):,} edges: {_slope(numbers[0], last):.2f}"
            if len(numbers) > 1
            else ""
        )
        run.note(
            f"{name}: a million edges take {last['peak memory']:.2f} GiB (wanted: below {LIMIT:g}) and "
            f"{last['train step']:.1f} s a step; the loss went from {last['first loss']:.3f} to "
            f"{last['last loss']:.3f} in {int(last['steps'])} steps{whole}."
        )
    run.note(f"{GCN}: exponent from {EDGES[0]:,} edges: {_slope(plain[0], plain[-1]):.2f}.")
    run.figure("scale", figure(found), "Time of a training step and peak memory against the number of edges.")


def _shape(edges: int) -> Shape:
    return Shape(max(edges // 10, 100), edges, 64, 3, 16, 2)


def train(maps: str, edges: int, checkpoints: bool, device: str, seed: int) -> dict[str, float]:
    """Seconds of set-up and of the fastest step, GiB at the peak, and the first and last loss."""
    import torch
    from torch.nn.functional import cross_entropy

    from ..sheaf import sheaf_graph

    torch.set_num_threads(1)
    keep_freed_memory()  # as `suffuse train` does
    shape = _shape(edges)
    warm_edges, warm_x, _ = _task(Shape(20, 30, 64, 3, 16, 2), device, seed)
    _ours(maps, shape, device)(warm_x, warm_edges).sum().backward()
    before = _held(device)
    edge_index, x, y = _task(shape, device, seed)
    x[torch.arange(len(x)), y] += 2.0  # something to learn
    start = _clock(device)
    graph = sheaf_graph(edge_index, len(x))
    graph.pattern(3, maps != "diagonal")
    set_up = _clock(device) - start
    model = _ours(maps, shape, device, checkpoint=checkpoints)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    losses, best = [], float("inf")
    for _ in range(STEPS + 1):
        start = _clock(device)
        optimizer.zero_grad()
        loss = cross_entropy(model(x, edge_index), y)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
        best = min(best, _clock(device) - start)
    return {
        "edges": edges, "train step": best, "set-up": set_up, "peak memory": (_peak(device) - before) / 2**30,
        "first loss": losses[0], "last loss": losses[-1], "steps": len(losses),
    }  # fmt: skip


def gcn(edges: int, device: str, seed: int) -> float:
    """Seconds of the fastest step of PyG's GCN."""
    keep_freed_memory()
    return gcn_time(_shape(edges), device, seed, STEPS)


def _slope(a: dict[str, float], b: dict[str, float]) -> float:
    import math

    return math.log(b["train step"] / a["train step"]) / math.log(b["edges"] / a["edges"])


def figure(found: dict[str, list[dict[str, float]]]) -> Figure:
    """Time and memory against edges, with the line of proportion."""
    from matplotlib.figure import Figure

    picture = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = picture.subplots(1, 2)
    for name, numbers in found.items():
        edges = [n["edges"] for n in numbers]
        style = "o-" if len(numbers) > 1 else "x"
        left.loglog(edges, [n["train step"] for n in numbers], style, label=name)
        right.loglog(edges, [n["peak memory"] for n in numbers], style, label=name)
    first = next(iter(found.values()))
    edges = [n["edges"] for n in first]
    left.loglog(edges, [first[-1]["train step"] * e / edges[-1] for e in edges], ":", color="grey", label="linear")
    right.axhline(LIMIT, color="black", lw=0.8, ls="--", label=f"{LIMIT:g} GiB")
    for axis, title in ((left, "training step (s)"), (right, "peak memory (GiB)")):
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("edges")
        axis.legend(frameon=False, fontsize=8)
    return picture
