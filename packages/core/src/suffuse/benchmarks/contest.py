"""The contest: all samplers, ours, teleported and the peers', on one denoiser within a number of evaluations.

All start from the same x at t = 1. ``entries`` are the methods, ``Scored`` is what one achieved, ``compare`` says who
is best, and whether by more than the spread over seeds: differences are taken seed by seed, as all methods are given
the same noise.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from suffuse.analysis import GaussianStatistics
from suffuse.benchmarks.peers import Peer, peers
from suffuse.denoiser import Denoiser
from suffuse.samplers import DDIM, SAMPLERS, FittedMultistep, Sampler, Teleport, by_name
from suffuse.schedules import Schedule

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from suffuse.bench import Run

__all__ = [
    "FITTED",
    "PEERS",
    "TELEPORTED",
    "Entry",
    "Scored",
    "Verdict",
    "compare",
    "draw",
    "entries",
    "report",
    "smallest",
    "within",
]

#: These draw fresh noise, so they have no distance to the solution of the ODE.
STOCHASTIC = ("ddpm", "dpmpp-2m-sde", "dpmpp-3m-sde", "predictor-corrector")
#: The solvers that are also run after a jump.
TELEPORTED = ("dpmpp-2m", "unipc-2", "unipc-3", "deis-3", "vab-3", "edm-heun")
#: Those whose coefficients are fitted to the denoiser, from the top of the schedule and below a jump.
FITTED = ("fitted", "teleport+fitted")
#: Libraries, as methods of theirs are named.
PEERS = ("diffusers", "k-diffusion", "azula")
#: The sides of a figure, and their lines.
SIDES = {"teleport": "C3-o", "suffuse": "C0-o", "diffusers": "C1--s", "k-diffusion": "C2--^", "azula": "C4--v"}


@dataclass(frozen=True)
class Entry:
    """A method with a grid: from x at t = 1, (B, *event), to samples.

    Attributes:
        method: ``dpmpp-2m``, ``teleport+dpmpp-2m`` or ``diffusers/dpmpp-2m``.
        grid: name of the grid, ``"own"`` where the method chooses its levels.
        nfe: evaluations of the denoiser.
        draw: the method itself.
        stochastic: whether it draws noise on the way.
        kappa: where a teleport jumps to.
    """

    method: str
    grid: str
    nfe: int
    draw: Callable[[Tensor], Tensor]
    stochastic: bool = False
    kappa: float | None = None

    @property
    def side(self) -> str:
        """``suffuse``, ``teleport``, or the peer's library."""
        head = self.method.split("/")[0].split("+")[0]
        return head if head in (*PEERS, "teleport") else "suffuse"


def entries(
    denoiser: Denoiser,
    budget: int,
    grids: Sequence[str],
    statistics: GaussianStatistics | None = None,
    seed: int = 0,
    methods: Collection[str] | None = None,
) -> Iterator[Entry]:
    """All methods with as many steps as the budget of evaluations allows; one step if it allows none.

    Args:
        denoiser: what they call.
        budget: of evaluations.
        grids: names of grids; ``"own"`` stands for the peers that choose their levels themselves.
        statistics: of the data, for teleported and fitted methods; None leaves them out.
        seed: of the noise that methods draw, and of the trajectories that jumps and coefficients are fitted to.
        methods: names of those that take part; default all.
    """
    schedule = denoiser.schedule

    def ours(name: str, sampler: Sampler | Teleport, grid: str) -> Entry:
        def draw(x: Tensor) -> Tensor:
            generator = torch.Generator(x.device).manual_seed(seed)
            samples: Tensor = sampler(denoiser, x=x, dtype=x.dtype, generator=generator)
            return samples

        kappa = sampler.kappa if isinstance(sampler, Teleport) else None
        return Entry(name, grid, sampler.nfe(schedule), draw, name in STOCHASTIC, kappa)

    def theirs(peer: Peer, grid: str) -> Entry:
        steps = peer.steps_within(budget)

        def draw(x: Tensor) -> Tensor:
            torch.manual_seed(seed)  # the only generator they have
            levels = DDIM(steps, grid="logsnr" if grid == "own" else grid).levels(schedule)
            return peer.sample(denoiser, x, levels)

        return Entry(peer.name, grid, peer.evaluations(steps), draw, peer.stochastic)

    def wanted(name: str) -> bool:
        return methods is None or name in methods

    for grid in grids:
        for peer in peers().values():
            if wanted(peer.name) and (peer.own_levels is not None) is (grid == "own"):
                yield theirs(peer, grid)
        if grid == "own":
            continue
        for name in filter(wanted, SAMPLERS):
            yield ours(name, within(budget, name, grid, schedule), grid)
        if statistics is None or grid != "karras-open":  # the best of the grids below a jump
            continue
        event = statistics.mean.shape
        for name in (name for name in TELEPORTED if wanted(f"teleport+{name}")):
            generator = torch.Generator(statistics.mean.device).manual_seed(seed)
            sampler = within(budget, name, grid, schedule)
            teleport = Teleport.fit(sampler, denoiser, statistics, samples=32, generator=generator)
            yield ours(f"teleport+{name}", teleport, grid)
        for name in filter(wanted, FITTED):
            generator = torch.Generator(statistics.mean.device).manual_seed(seed)
            known = statistics if name.startswith("teleport") else None
            yield ours(name, FittedMultistep.fit(denoiser, budget, (64, *event), known, generator=generator), grid)


def within(budget: int, method: str, grid: str, schedule: Schedule) -> Sampler:
    """The sampler with as many steps as the budget of evaluations allows; one step if it allows none."""
    plans = [by_name(method, steps=steps, grid=grid) for steps in range(budget, 0, -1)]
    return next((sampler for sampler in plans if sampler.nfe(schedule) <= budget), plans[-1])


@dataclass(frozen=True)
class Scored:
    """An entry with its scores, metric -> a value per seed, lower better; its rank is the mean of the first."""

    entry: Entry
    scores: dict[str, list[float]]

    def rank(self) -> float:
        return fmean(next(iter(self.scores.values())))

    @property
    def key(self) -> tuple[str, str]:
        return self.entry.method, self.entry.grid


def smallest(everything: Mapping[int, Sequence[Scored]], metric: str, field: str, value: str) -> dict[int, float]:
    """The best mean, at each number of evaluations, among the entries with a field (or property) of that value."""
    best = {}
    for budget, results in everything.items():
        found = [fmean(r.scores[metric]) for r in results if metric in r.scores and getattr(r.entry, field) == value]
        if found:
            best[budget] = min(found)
    return best


def report(
    run: Run, dataset: str, method: str, setting: Mapping[str, Any], scores: Mapping[str, Sequence[float]]
) -> None:
    """Rows with mean and spread over the seeds of the noise; lower is better."""
    for metric, values in scores.items():
        several = len(values) > 1
        run.row(
            dataset=dataset, method=method, setting=setting, metric=metric, value=fmean(values), better="lower",
            std=stdev(values) if several else None, n=len(values) if several else None,
        )  # fmt: skip


def draw(everything: Mapping[str, Mapping[int, Sequence[Scored]]], metrics: Sequence[str]) -> Figure:
    """A column of panels per data set, a row per metric: the best of each side against evaluations."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter, ScalarFormatter

    figure = Figure(figsize=(2.9 * len(everything) + 0.4, 2.7 * len(metrics) + 0.6), layout="constrained")
    panels = figure.subplots(len(metrics), len(everything), squeeze=False)
    for column, (title, results) in zip(panels.T, everything.items(), strict=True):
        for panel, metric in zip(column, metrics, strict=True):
            for side, style in SIDES.items():
                if points := smallest(results, metric, "side", side):
                    panel.plot(list(points), list(points.values()), style, label=side, markersize=4)
            panel.set(xscale="log", yscale="log", xticks=list(results))
            panel.xaxis.set_major_formatter(ScalarFormatter())
            for axis in (panel.xaxis, panel.yaxis):
                axis.set_minor_formatter(NullFormatter())
            panel.tick_params(labelsize=8)
            panel.grid(alpha=0.3, which="both")
        column[0].set_title(title, fontsize=10)
        column[-1].set_xlabel("network evaluations")
    for metric, row in zip(metrics, panels, strict=True):
        row[0].set_ylabel(metric)
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    return figure


@dataclass(frozen=True)
class Verdict:
    """Who is best by a measure where lower is better: one of ours, one of theirs, and by how much.

    Attributes:
        ours, theirs: names of the best methods with their grids; ``theirs`` is empty without peers.
        values: their means over the seeds.
        gap: mean over the seeds of theirs minus ours; positive where ours is better.
        spread: standard deviation of that difference over the seeds; 0 for a single one.
    """

    ours: str
    theirs: str
    values: tuple[float, float]
    gap: float
    spread: float

    @property
    def outcome(self) -> str:
        """``ours``, ``theirs`` or ``neither``: which is better by more than the spread."""
        margin = max(self.spread, 1e-3 * self.values[0])  # one method in two libraries differs by rounding
        return "ours" if self.gap > margin else "theirs" if -self.gap > margin else "neither"

    def __str__(self) -> str:
        if not self.theirs:
            return f"best is {self.ours} with {self.values[0]:.3g}"
        return (
            f"{self.outcome} is better by more than the spread: {self.ours} {self.values[0]:.3g}, {self.theirs} "
            f"{self.values[1]:.3g}, difference {self.gap:.2g} ± {self.spread:.2g}"
        )


def compare(scores: Mapping[tuple[str, str], Sequence[float]]) -> Verdict:
    """From (method, grid) -> one value per seed, lower better. All must have the same seeds in the same order."""
    best = {}
    for side in (False, True):
        group = {key: values for key, values in scores.items() if key[0].startswith(PEERS) is side}
        if group:
            best[side] = min(group.items(), key=lambda item: fmean(item[1]))
    (ours, mine) = best[False]
    if True not in best:
        return Verdict(_named(ours), "", (fmean(mine), float("nan")), float("nan"), 0.0)
    theirs, other = best[True]
    differences = [b - a for a, b in zip(mine, other, strict=True)]
    spread = stdev(differences) if len(differences) > 1 else 0.0
    return Verdict(_named(ours), _named(theirs), (fmean(mine), fmean(other)), fmean(differences), spread)


def _named(key: tuple[str, str]) -> str:
    return f"{key[0]} ({key[1]})"
