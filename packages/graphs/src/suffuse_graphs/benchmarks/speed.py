"""How fast is a training step, and how much memory does it take, beside the official code with the same weights?"""

from __future__ import annotations

import os
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from suffuse.bench import Run, benchmark
from suffuse.threads import one_thread

if TYPE_CHECKING:
    from collections.abc import Callable

    from matplotlib.figure import Figure
    from torch import Tensor, nn

CHECKOUT = "SUFFUSE_NSD"
CLASSES = 5


class Shape(NamedTuple):
    """A graph and a model on it."""

    nodes: int
    edges: int
    features: int
    stalk_dim: int
    width: int
    layers: int
    dataset: str = ""

    @property
    def text(self) -> dict[str, int]:
        return {"edges": self.edges, "d": self.stalk_dim, "f": self.width, "layers": self.layers}


LARGE = Shape(10_000, 50_000, 128, 4, 32, 2)
TEXAS = Shape(183, 279, 1703, 3, 20, 4, "texas")
RANDOM = "random graph, 50,000 edges"


@benchmark(
    "graphs/speed",
    paper="Bodnar, Di Giovanni, Chamberlain, Lio, Bronstein 2022, Neural Sheaf Diffusion, arXiv:2202.04579",
    claim="With the same weights and outputs, a training step at 50,000 edges takes at most a fifth of the official "
    "code's time and a third of its memory, a step on Texas less time, and the set-up of a graph at most a fiftieth",
    peers=("official code (twitter-research/neural-sheaf-diffusion)", "GCN (PyG)"),
)
@one_thread()
def speed(run: Run) -> None:
    """Both models get the same weights, graph, features and optimiser, in one process and on one thread, in turns; the
    time is that of the fastest step, in seconds of the processor, which others on the machine disturb little. Memory is
    the peak of a fresh process over two steps, above what it held with the libraries loaded. On a GPU it is the wall
    time between synchronisations, and the allocator's peak; the official graph is set up on the CPU there and moved,
    and our step is recorded and replayed where it can be, as in training.

    The official code is read from the checkout that the variable SUFFUSE_NSD names, which
    `git clone https://github.com/twitter-research/neural-sheaf-diffusion` makes. Its compiled dependencies, which have
    no wheels for this torch, are replaced by plain torch (see `official.py`). Without SUFFUSE_DATA, a random graph of
    the size of Texas stands in for it.
    """
    checkout = os.environ.get(CHECKOUT)
    if checkout and not (Path(checkout) / "models" / "disc_models.py").is_file():
        run.note(f"{CHECKOUT}={checkout} is no checkout of neural-sheaf-diffusion; only our half was run.")
        checkout = None
    elif not checkout:
        run.note(f"{CHECKOUT} does not name a checkout of the official code; only our half was run.")
    kinds = ("general", "orthogonal", "diagonal")
    small = TEXAS if run.data else TEXAS._replace(dataset="")
    found: dict[tuple[str, str], dict[str, float]] = {}
    for shape, name in ((small, "texas" if small.dataset else "random graph, size of texas"), (LARGE, RANDOM)):
        large = shape is LARGE
        for maps in kinds[: 2 if large and run.quick else 3]:
            repeats = (2 if run.quick else 7) if large else 40
            with run.stage(f"{name}, {maps}"):
                numbers = fresh(run.device, times, maps, shape, checkout, run.device, run.seed, repeats)
                for who, where in {"ours": None, "official": checkout}.items() if large else ():
                    if f"memory {who}" not in numbers and (who == "ours" or where):
                        numbers[f"memory {who}"] = fresh(run.device, memory, maps, shape, where, run.device, run.seed)
            found[name, maps] = numbers
            _rows(run, name, maps, shape, numbers)
        with run.stage(f"{name}, GCN"):
            step = 1e3 * fresh(run.device, gcn_time, shape, run.device, run.seed, 5)
        run.row(dataset=name, method="GCN (PyG), same width (reference)", metric="train step", value=step,
                better="lower", unit="ms", setting=shape.text)  # fmt: skip
    if checkout:
        _judge(run, found)
        run.figure("speed", figure(found), "Time of a training step and peak memory, ours as a share of the official.")


def _rows(run: Run, dataset: str, maps: str, shape: Shape, numbers: dict[str, float]) -> None:
    def row(method: str, metric: str, value: float, better: Any = "lower", unit: str = "") -> None:
        run.row(
            dataset=dataset, method=method, metric=metric, value=value, better=better, unit=unit, setting=shape.text
        )

    for who in ("ours", "official"):
        method = f"{'suffuse' if who == 'ours' else 'official code'}, {maps} maps"
        for what in ("train step", "forward", "set-up"):
            if f"{what} {who}" in numbers:
                row(method, what, 1e3 * numbers[f"{what} {who}"], unit="ms")
        if f"memory {who}" in numbers:
            row(method, "peak memory", 1e-6 * numbers[f"memory {who}"], unit="MB")
    if "train step official" in numbers:
        method = f"suffuse, {maps} maps"
        row(method, "ratio-to-official", numbers["train step official"] / numbers["train step ours"], "higher")
        row(method, "set-up ratio-to-official", numbers["set-up official"] / numbers["set-up ours"], "higher")
        row(method, "difference of outputs", numbers["difference"])
        if "memory official" in numbers:
            row(method, "memory ratio-to-official", numbers["memory ours"] / numbers["memory official"])


def _judge(run: Run, found: dict[tuple[str, str], dict[str, float]]) -> None:
    verdicts = []
    for (name, maps), n in found.items():
        large = name == RANDOM
        faster = n["train step official"] / n["train step ours"]
        text = f"{name}, {maps}: {faster:.2g} times as fast ({'wanted: 5' if large else 'wanted: more than 1'})"
        if large:
            text += f", {n['memory ours'] / n['memory official']:.2g} of the memory (wanted: 0.33)"
            text += f", set-up {n['set-up official'] / n['set-up ours']:.3g} times as fast (wanted: 50)"
        verdicts.append(f"{text}, outputs differ by {n['difference']:.1g}")
    run.note("; ".join(verdicts) + ".")


# --- what is measured, each in a process of its own -------------------------------------------------------------


def fresh(device: str, function: Callable[..., Any], *args: Any) -> Any:
    """Call a function of this module in a new process, or in this one for a GPU, whose allocator knows its peaks."""
    if device != "cpu":
        return function(*args)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *args).result()


def random_graph(nodes: int, edges: int, seed: int, device: str = "cpu") -> Tensor:
    """(2, 2 edges) a simple graph drawn at random, every edge in both directions."""
    import torch

    g = torch.Generator().manual_seed(seed)
    pairs = torch.randint(nodes, (2, int(1.1 * edges) + 100), generator=g)
    low, high = pairs.amin(0), pairs.amax(0)
    keys = torch.unique((low * nodes + high)[low != high])
    keys = keys[torch.randperm(len(keys), generator=g)[:edges]]
    ends = torch.stack([keys // nodes, keys % nodes])
    return torch.cat([ends, ends.flip(0)], dim=1).to(device)


def _task(shape: Shape, device: str, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(seed)
    if shape.dataset:
        from ..data.nodes import load_nodes
        from ..sheaf import sheaf_graph

        data = load_nodes(shape.dataset).to(device)
        return sheaf_graph(data.edge_index, len(data.x)).edge_index, data.x, data.y
    edge_index = random_graph(shape.nodes, shape.edges, seed, device)
    x = torch.randn(shape.nodes, shape.features, device=device)
    return edge_index, x, torch.randint(CLASSES, (shape.nodes,), device=device)


def _ours(maps: str, shape: Shape, device: str, **options: Any) -> nn.Module:
    from ..sheaf import NeuralSheafDiffusion

    hidden = shape.stalk_dim * shape.width
    options = {"stalk_dim": shape.stalk_dim, "maps": maps, **options}
    return NeuralSheafDiffusion(shape.features, hidden, shape.layers, CLASSES, **options).to(device)


def _theirs(maps: str, shape: Shape, edge_index: Tensor, checkout: str) -> nn.Module:
    from .official import official

    return official(
        Path(checkout), maps, edge_index.cpu(), shape.nodes, shape.features, CLASSES,
        stalk_dim=shape.stalk_dim, width=shape.width, layers=shape.layers, device=str(edge_index.device),
    )  # fmt: skip


def _step(model: nn.Module, *inputs: Any, y: Tensor) -> Callable[[], Any]:
    """A step of training; of a network that is recordable, on a GPU, as `train_classifier` does it."""
    import torch
    from torch.nn.functional import cross_entropy

    replayed = y.is_cuda and getattr(model, "recordable", False)
    optimizer = torch.optim.Adam(model.parameters(), capturable=replayed)

    def step() -> Tensor:
        optimizer.zero_grad()
        loss = cross_entropy(model(*inputs), y)  # of log-probabilities: the same loss
        loss.backward()
        optimizer.step()
        return loss.detach()

    if not replayed:
        return step
    from suffuse.training import recorded_step

    return recorded_step(step)


def _clock(device: str) -> float:
    if device == "cpu":
        return time.process_time()
    import torch

    torch.cuda.synchronize()
    return time.perf_counter()


def _fastest(device: str, repeats: int, **calls: Callable[[], Any]) -> dict[str, float]:
    """Seconds of the fastest call of each, called in turns after one call to warm up (five on a GPU)."""
    best = dict.fromkeys(calls, float("inf"))
    warm = 1 if device == "cpu" else 5
    for attempt in range(repeats + warm):
        for name, call in calls.items():
            start = _clock(device)
            call()
            if attempt >= warm:
                best[name] = min(best[name], _clock(device) - start)
    return best


def times(maps: str, shape: Shape, checkout: str | None, device: str, seed: int, repeats: int) -> dict[str, float]:
    """Seconds of set-up, forward and training step of both, and the difference of outputs at equal weights."""
    import torch

    from ..sheaf import sheaf_graph

    edge_index, x, y = _task(shape, device, seed)

    def set_up() -> None:
        graph = sheaf_graph(edge_index.clone(), shape.nodes)  # a clone: nothing is remembered of it
        graph.sum_at(0, x.new_zeros(2 * graph.num_edges, 1))
        graph.pattern(shape.stalk_dim, maps != "diagonal")

    found = {"set-up ours": _fastest(device, 3, call=set_up)["call"]}

    def built(who: str, build: Callable[[], nn.Module], *inputs: Tensor) -> tuple[nn.Module, float]:
        """The model and the seconds that took. On a GPU its memory is found on the way, by the allocator."""
        before, start = _held(device) if device != "cpu" else 0.0, _clock(device)
        model = build()
        seconds = _clock(device) - start
        if device != "cpu":
            step = _step(model, *inputs, y=y)
            for _ in range(5):  # the last are replays
                step()
            found[f"memory {who}"] = _peak(device) - before
        return model, seconds

    ours, _ = built("ours", partial(_ours, maps, shape, device), x, edge_index)
    models: dict[str, tuple[nn.Module, tuple[Tensor, ...]]] = {"ours": (ours, (x, edge_index))}
    if checkout:
        from .official import copy_weights

        theirs, found["set-up official"] = built("official", partial(_theirs, maps, shape, edge_index, checkout), x)
        copy_weights(theirs, ours)
        models["official"] = (theirs, (x,))
        with torch.no_grad():
            gap = theirs.eval()(x) - ours.eval()(x, edge_index).log_softmax(-1)
        found["difference"] = float(gap.abs().max())

    for who, (model, inputs) in models.items():
        with torch.no_grad():
            found[f"forward {who}"] = _fastest(device, min(repeats, 3), call=partial(model.eval(), *inputs))["call"]
        model.train()
    steps = {who: _step(model, *inputs, y=y) for who, (model, inputs) in models.items()}
    return found | {f"train step {who}": s for who, s in _fastest(device, repeats, **steps).items()}


def gcn_time(shape: Shape, device: str, seed: int, repeats: int) -> float:
    """Seconds of a training step of PyG's GCN of the same width and depth."""
    from torch_geometric.nn import GCN

    edge_index, x, y = _task(shape, device, seed)
    model = GCN(shape.features, shape.stalk_dim * shape.width, shape.layers, CLASSES).to(device)
    return _fastest(device, repeats, call=_step(model, x, edge_index, y=y))["call"]


def memory(maps: str, shape: Shape, checkout: str | None, device: str, seed: int) -> float:
    """Bytes at the peak of two training steps, over those held with libraries loaded and data made."""
    edge_index, x, y = _task(shape, device, seed)
    small = Shape(20, 30, 8, shape.stalk_dim, 4, 1)
    warm_edges, warm_x, warm_y = _task(small, device, seed)
    for where in {None, checkout}:  # first products load libraries
        model = _theirs(maps, small, warm_edges, where) if where else _ours(maps, small, device)
        _step(model, *((warm_x,) if where else (warm_x, warm_edges)), y=warm_y)()
    before = _held(device)
    model = _theirs(maps, shape, edge_index, checkout) if checkout else _ours(maps, shape, device)
    step = _step(model, *((x,) if checkout else (x, edge_index)), y=y)
    step()
    step()
    return _peak(device) - before


def _held(device: str) -> float:
    """Bytes held now; the peak starts anew."""
    if device != "cpu":
        import torch

        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _peak(device: str) -> float:
    if device != "cpu":
        import torch

        return torch.cuda.max_memory_allocated()
    return _status("VmHWM")


def _status(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * float(next(line.split()[1] for line in lines if line.startswith(name)))


# --- picture ----------------------------------------------------------------------------------------------------


def figure(found: dict[tuple[str, str], dict[str, float]]) -> Figure:
    """Bars: time of a step and memory, as a share of the official code's."""
    from matplotlib.figure import Figure

    picture = Figure(figsize=(9, 3.2), layout="constrained")
    left, right = picture.subplots(1, 2, width_ratios=[2, 1])
    names = [f"{maps}\n{name.removeprefix('random graph, ')}" for name, maps in found]
    shares = [n["train step ours"] / n["train step official"] for n in found.values()]
    left.bar(names, shares, color="tab:blue")
    held = {name: n["memory ours"] / n["memory official"] for name, n in zip(names, found.values(), strict=True)
            if "memory official" in n}  # fmt: skip
    right.bar(list(held), list(held.values()), color="tab:orange")
    for axis, title, goal in ((left, "training step", 0.2), (right, "peak memory", 1 / 3)):
        axis.axhline(1, color="black", lw=0.8)
        axis.axhline(goal, color="grey", lw=0.8, ls=":")
        axis.set_title(f"{title}, share of the official code's", fontsize=10)
        axis.set_ylim(0, max(1.1, 1.05 * axis.get_ylim()[1]))
        axis.tick_params(labelsize=8)
    return picture
