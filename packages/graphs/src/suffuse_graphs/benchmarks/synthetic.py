"""What diffusion along a learned sheaf tells apart: symmetric against free maps, scalars against the plane."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from suffuse.bench import Run, benchmark

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

TIMES = (0, 1, 4, 16, 64)
PAIR: dict[str, dict[str, Any]] = {"symmetric maps": {"symmetric": True}, "free maps": {}}
RING: dict[str, dict[str, Any]] = {
    "symmetric scalars": {"symmetric": True},
    "free scalars": {},
    "rotations of the plane": {"stalk_dim": 2, "maps": "orthogonal"},
    "diagonal maps of the plane": {"stalk_dim": 2},
    "general maps of the plane": {"stalk_dim": 2, "maps": "general"},
}


@benchmark(
    "graphs/synthetic",
    paper="Bodnar, Di Giovanni, Chamberlain, Lio, Bronstein 2022, Neural Sheaf Diffusion, arXiv:2202.04579, synthetic "
    "experiments; propositions 9-13",
    claim="On a bipartite graph, diffusion with symmetric maps ends near chance, free maps fit, and their transports "
    "become negative",
    peers=("symmetric maps", "the features alone (time 0)"),
)
def synthetic(run: Run) -> None:
    """Train the maps of a heat flow of growing length, half of the nodes labelled.

    First a bipartite graph whose sides are the classes, with overlapping clouds as features; then four classes around
    a ring, every edge leading to the next class but for noise, where one dimension is not enough.
    """
    import torch

    from ..synthetic import HeatClassifier, bipartite_clouds, fit, ring_of_classes

    draws = 2 if run.quick else 10
    curves: dict[str, Tensor] = {}
    transports: dict[str, list[Tensor]] = {}
    for name, options in PAIR.items():
        values = torch.zeros(2, draws, len(TIMES))
        for k in range(draws):
            clouds = bipartite_clouds(generator=torch.Generator().manual_seed(1000 * run.seed + k))
            for i, time in enumerate(TIMES):
                torch.manual_seed(1000 * run.seed + k)
                with run.stage(f"bipartite, {name}"):
                    found = fit(HeatClassifier(2, 2, time, **options), clouds)
                values[:, k, i] = torch.tensor([found.train, found.test])
                if time == TIMES[-1]:
                    transports.setdefault(name, []).append(found.transports.flatten())
        curves[name] = 100 * values
        for i, time in enumerate(TIMES):
            for part, metric in enumerate(("fit", "accuracy")):
                at = curves[name][part, :, i]
                run.row(
                    dataset="bipartite clouds", method=name, metric=metric, value=float(at.mean()), better="higher",
                    unit="%", std=float(at.std(correction=0)), n=draws, setting={"time": time},
                )  # fmt: skip
        negative = 100 * (torch.cat(transports[name]) < 0).float().mean()
        run.row(
            dataset="bipartite clouds", method=name, metric="negative transports", value=float(negative),
            better="higher", unit="%", n=draws, setting={"time": TIMES[-1]},
        )  # fmt: skip
    ring: dict[str, Tensor] = {}
    for name, options in RING.items():
        scores = []
        for k in range(draws):
            clouds = ring_of_classes(generator=torch.Generator().manual_seed(1000 * run.seed + k))
            torch.manual_seed(1000 * run.seed + k)
            with run.stage(f"ring of classes, {name}"):
                found = fit(HeatClassifier(2, clouds.classes, 8, **options), clouds)
            scores.append([100 * found.train, 100 * found.test])
        ring[name] = torch.tensor(scores)
        for part, metric in enumerate(("fit", "accuracy")):
            at = ring[name][:, part]
            run.row(
                dataset="ring of four classes", method=name, metric=metric, value=float(at.mean()), better="higher",
                unit="%", std=float(at.std(correction=0)), n=draws, setting={"time": 8},
            )  # fmt: skip
    run.figure(
        "synthetic", picture(curves, {name: torch.cat(T) for name, T in transports.items()}, ring),
        "Left: accuracy on a bipartite graph against the length of the diffusion; dashed, on the labelled half. "
        "Middle: transports that the longest diffusion learned, one per edge. Right: four classes around a ring.",
    )  # fmt: skip
    ends = {name: float(values[1, :, -1].mean()) for name, values in curves.items()}
    run.note(
        f"Bipartite graph at time {TIMES[-1]}: {ends['symmetric maps']:.0f} % with symmetric maps (chance is 50 %), "
        f"{ends['free maps']:.0f} % with free maps."
    )


def picture(curves: dict[str, Tensor], transports: dict[str, Tensor], ring: dict[str, Tensor]) -> Figure:
    """Accuracy over time, learned transports, and the ring."""
    import torch
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 3.8), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    colours = {"symmetric maps": "tab:red", "free maps": "tab:blue"}
    for name, values in curves.items():
        for part, style in ((1, "o-"), (0, "--")):
            left.plot(range(len(TIMES)), values[part].mean(0), style, color=colours[name], label=name if part else None)
    left.axhline(50, color="grey", lw=0.8, label="chance")
    left.set_xticks(range(len(TIMES)), [str(t) for t in TIMES])
    left.set_xlabel("time of the diffusion")
    left.set_ylabel("accuracy (%)")
    left.set_title("two sides of a bipartite graph")
    left.legend(frameon=False)
    for name, T in transports.items():
        middle.hist(T.numpy(), torch.linspace(-1, 1, 41).numpy(), alpha=0.6, color=colours[name], label=name)
    middle.set_xlabel("transport F_v F_u of an edge")
    middle.set_ylabel("edges")
    middle.set_title("what was learned")
    middle.legend(frameon=False)
    names = list(ring)
    right.barh(names, [float(ring[name][:, 1].mean()) for name in names], color="tab:blue", alpha=0.7)
    right.axvline(25, color="grey", lw=0.8)
    right.invert_yaxis()
    right.set_xlabel("accuracy (%); chance is 25")
    right.set_title("four classes around a ring")
    return figure
