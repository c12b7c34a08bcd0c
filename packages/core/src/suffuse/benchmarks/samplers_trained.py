"""Samplers on networks trained on real data: what is left of the truth bench's order when the denoiser is learned.

Two things are measured. How far samples end from where the network's own probability-flow ODE ends from the same noise:
that is the sampler's error alone. And how far they are from held-out data, which the network's error is part of.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from statistics import fmean
from typing import TYPE_CHECKING, Any

from suffuse.bench import Run, Skipped, benchmark

if TYPE_CHECKING:
    from torch import Tensor

    from suffuse.benchmarks.contest import Scored
    from suffuse.benchmarks.models import Model, Split

MODELS = {"quick": ("digits",), "full": ("digits", "ett", "mnist")}
#: Not looked at when ``samplers.auto`` was chosen, and the methods that it is compared with there.
UNSEEN = {"quick": (), "full": ("fashion",)}
AUTO = (
    "deis-3",
    "teleport+deis-3",
    "fitted",
    "teleport+fitted",
    "diffusers/dpmpp-2m-default",
    "diffusers/dpmpp-2m",
    "diffusers/unipc-2-default",
)
BUDGETS = {"quick": (5, 10), "full": (5, 8, 10, 15, 20)}
GRIDS = ("logsnr", "karras-open", "own")
SEEDS = {"quick": 2, "full": 5}
SAMPLES = {"quick": 64, "full": 48}


@benchmark(
    "core/samplers-trained",
    paper="Wang, Vastola 2024, Gaussian score approximation, arXiv:2412.09726",
    claim="On trained networks too, a jump along the Gaussian part of the trajectory and a multistep solver below it "
    "end nearer to the network's own ODE solution than any sampler of the peers with as many evaluations.",
    peers=("diffusers", "k-diffusion", "azula"),
    extras=("suffuse[bench]",),
)
def samplers_trained(run: Run) -> None:
    """Small transformers learn real data, then every sampler draws from them, from the same noise for all: ours, ours
    after a teleport of measured depth, a solver fitted to the network, and those of the peers that are installed, on
    the same grids. Of each method the grid with the smallest error is shown. The error of a sample is its root mean
    square distance, over values, to the end of the network's own ODE (200 evaluations of third order); mean and median
    are over samples. What a teleport saves is how many evaluations fewer a solver needs, below a jump, for the mean
    error that it has without one: the mean over the counts, read from its curve. FID and MMD compare features of a
    classifier, trained in the run on the same data, with those of held-out data; without classes, standardised values.
    Spreads are over seeds of the noise.
    """
    from suffuse.benchmarks.contest import draw
    from suffuse.benchmarks.models import MODELS as CATALOGUE
    from suffuse.benchmarks.peers import missing

    everything: dict[str, dict[int, list[Scored]]] = {}
    for name in (*MODELS[run.profile], *UNSEEN[run.profile]):
        model = CATALOGUE[name]
        try:
            split = model.load(run.data)
        except Skipped as absent:
            run.note(f"{model.title} is left out: {absent}")
            continue
        everything[model.title] = contest(run, model, split, AUTO if name in UNSEEN[run.profile] else None)
    for library in missing():
        run.note(f"{library} is not installed; its rows are missing.")
    caption = "Error against evaluations: the best of ours, with and without teleport, and the best of each peer."
    run.figure("curves", draw(everything, ("mean error", "median error")), caption)


def contest(run: Run, model: Model, split: Split, methods: tuple[str, ...] | None = None) -> dict[int, list[Scored]]:
    """Train one model and run everything on it."""
    import torch

    from suffuse.analysis import GaussianStatistics
    from suffuse.benchmarks.contest import Scored, entries, report
    from suffuse.benchmarks.models import train
    from suffuse.samplers import DEIS

    with run.stage(f"{model.title}: train"):
        denoiser = train(model, split, run)
        statistics = GaussianStatistics.fit(split.train.to(run.device))
        judge = Judge(run, model, split)
    size = SAMPLES[run.profile]
    with run.stage(f"{model.title}: solve the ODE"):
        generators = [torch.Generator().manual_seed(1000 * run.seed + seed) for seed in range(SEEDS[run.profile])]
        noise = torch.cat([torch.randn(size, *split.train.shape[1:], generator=g) for g in generators])
        noise = noise.to(run.device) * denoiser.schedule.sigma(1.0)
        solution = DEIS(steps=200, grid="karras")(denoiser, x=noise)
        report(run, model.title, "the network's ODE (reference)", {}, judge.quality(solution, size))
        judge.fid(solution, "the network's ODE (reference)", {})
    everything: dict[int, list[Scored]] = {}
    for budget in BUDGETS[run.profile]:
        with run.stage(f"{model.title}: {budget} evaluations"):
            everything[budget] = []
            best: dict[str, tuple[Scored, Tensor]] = {}
            for entry in entries(denoiser, budget, GRIDS, statistics, run.seed, methods):
                if entry.stochastic and entry.grid != "karras-open":
                    continue  # what draws noise is compared on one grid
                x = entry.draw(noise)
                distances = (x - solution).square().flatten(1).mean(1).sqrt().split(size)
                errors = (
                    {}
                    if entry.stochastic
                    else {
                        "mean error": [float(part.mean()) for part in distances],
                        "median error": [float(part.median()) for part in distances],
                    }
                )
                result = Scored(entry, errors | judge.quality(x, size))
                everything[budget].append(result)
                if entry.method not in best or result.rank() < best[entry.method][0].rank():
                    best[entry.method] = (result, x)
            for result, x in best.values():
                setting = {"nfe": budget, "grid": result.entry.grid}
                report(run, model.title, result.entry.method, setting, result.scores)
                judge.fid(x, result.entry.method, setting)
    conclude(run, model, everything)
    return everything


def conclude(run: Run, model: Model, everything: dict[int, list[Scored]]) -> None:
    """Notes: who is best, what the jump saves, and how two named claims came out."""
    from suffuse.benchmarks.contest import TELEPORTED, compare, smallest

    for budget, results in everything.items():
        head = f"{model.title}, {budget} evaluations"
        for metric in ("mean error", "median error", "MMD"):
            run.note(f"{head}, {metric}: {compare({r.key: r.scores[metric] for r in results if metric in r.scores})}.")
        pair = (("deis-3", "karras-open"), ("diffusers/dpmpp-2m-default", "own"))
        run.note(f"{head}, auto: {compare({r.key: r.scores['mean error'] for r in results if r.key in pair})}.")
    for method in TELEPORTED:
        plain, jumped = (smallest(everything, "mean error", "method", m) for m in (method, f"teleport+{method}"))
        savings = [100 * (1 - evaluations_for(error, jumped) / budget) for budget, error in plain.items() if jumped]
        if savings:
            run.row(
                dataset=model.title, method=f"teleport+{method}", metric="evaluations saved", value=fmean(savings),
                unit="%", better="higher",
            )  # fmt: skip
            run.note(
                f"{model.title}: to end as near to the ODE as without it, teleported {method} needs "
                f"{fmean(savings):.0f} % fewer evaluations (from {min(savings):.0f} to {max(savings):.0f} %)."
            )
    ratios = {}
    for budget, results in everything.items():
        own = {
            r.entry.method: r.scores["mean error"]
            for r in results
            if r.entry.grid == "logsnr" and not r.entry.stochastic
        }
        if "evodiff" in own:
            ratios[budget] = fmean(own["evodiff"]) / fmean(own["dpmpp-2m"])
    if ratios:
        shown = ", ".join(f"{ratio:.2g} at {budget}" for budget, ratio in ratios.items())
        run.note(
            f"{model.title}: EVODiff's error as a multiple of DPM-Solver++(2M)'s, both on the log-SNR grid: {shown}."
        )


def evaluations_for(error: float, curve: dict[int, float]) -> float:
    """At how many evaluations a curve reaches an error, linear between its points in logarithms; at least the first."""
    import numpy as np

    budgets, errors = np.log(list(curve)), np.log(np.minimum.accumulate(list(curve.values())))
    return float(np.exp(np.interp(-np.log(error), -errors, budgets)))


class Judge:
    """Compares samples with held-out data by features."""

    def __init__(self, run: Run, model: Model, split: Split) -> None:
        import torch

        self.run, self.model = run, model
        if split.train_labels is None:
            mean, std = split.train.mean(0), split.train.std(0)
            self.features: Callable[[Tensor], Tensor] = lambda x: ((x.cpu() - mean) / std).flatten(1)
        else:
            self.features = classifier(run, model, split)
        self.real = self.features(split.test[:2000])
        self.bandwidth = float(torch.pdist(self.real[:1000]).median())

    def quality(self, x: Tensor, size: int) -> dict[str, list[float]]:
        """MMD to held-out data, for each ``size`` samples of x."""
        import torch

        from suffuse.metrics import mmd

        return {"MMD": [mmd(part, self.real, self.bandwidth) for part in torch.split(self.features(x), size)]}

    def fid(self, x: Tensor, method: str, setting: dict[str, Any]) -> None:
        """A row of FID, where there are classes; of all samples together, as a covariance needs many."""
        import torch
        from torchmetrics.image.fid import FrechetInceptionDistance

        if self.model.ndim != 2:
            return
        identity = torch.nn.Identity()  # these are features already
        identity.num_features = torch.tensor(self.real.shape[1])
        fid = FrechetInceptionDistance(feature=identity).set_dtype(torch.float64)
        fid.update(self.real.double(), real=True)
        fid.update(self.features(x).double(), real=False)
        self.run.row(
            dataset=self.model.title, method=method, setting=setting, metric="FID", value=float(fid.compute()),
            n=len(x), better="lower",
        )  # fmt: skip


def classifier(run: Run, model: Model, split: Split, width: int = 32) -> Callable[[Tensor], Tensor]:
    """A small convolutional classifier, trained in the run from a fixed seed, as features (B, ...) -> (B, width) on the
    CPU. Its weights' hash is noted: values of FID and MMD can be compared where the hashes are equal.
    """
    import torch
    from torch import nn

    assert split.train_labels is not None and split.test_labels is not None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        size = split.train.shape[-1] // 4
        body = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.GELU(), nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1), nn.GELU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(32 * size * size, width), nn.GELU(),
        )  # fmt: skip
        head = nn.Linear(width, int(split.train_labels.max()) + 1)
        network = nn.Sequential(body, head)
        steps = 600 if run.profile == "full" else 300
        optimiser = torch.optim.AdamW(network.parameters(), lr=2e-3)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 4e-3, total_steps=steps)
        for _ in range(steps):
            rows = torch.randint(len(split.train), (128,))
            loss = nn.functional.cross_entropy(network(split.train[rows]), split.train_labels[rows])
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
    network.eval().requires_grad_(False)
    accuracy = float((network(split.test).argmax(-1) == split.test_labels).float().mean())
    weights = b"".join(p.numpy().tobytes() for p in network.parameters())
    run.note(
        f"{model.title}: features of a classifier with accuracy {accuracy:.3f} on held-out data, weights "
        f"sha256 {hashlib.sha256(weights).hexdigest()[:12]}."
    )
    return lambda x: body(x.detach().cpu().float())
