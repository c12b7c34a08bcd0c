"""Samplers where the answer is known: error and sample quality against the number of network evaluations.

The posterior mean of the distributions in ``truths`` is known in closed form, so what a sampler gets wrong is its own.
All samplers, ours and the peers', start from the same noise as the converged solution of the probability-flow ODE.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from suffuse.bench import Run, benchmark
from suffuse.errors import SamplingDiverged, require
from suffuse.threads import one_thread

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from suffuse.benchmarks.contest import Entry, Scored, Verdict
    from suffuse.exact import MixtureDenoiser


@dataclass(frozen=True)
class Target:
    """A distribution of ``truths`` and how it is sampled.

    Attributes:
        title: in tables.
        make, options: the function of ``truths`` and its arguments.
        samples: for each seed of the noise.
        grids: names of grids; ``"own"`` stands for the peers that choose their levels themselves.
        budgets: numbers of evaluations.
    """

    title: str
    make: str
    samples: int
    grids: tuple[str, ...]
    budgets: tuple[int, ...]
    options: tuple[tuple[str, Any], ...] = ()

    def denoiser(self) -> MixtureDenoiser:
        from suffuse.benchmarks import truths

        return getattr(truths, self.make)(**dict(self.options))


FEW = ("time", "karras", "karras-open", "own")
MANY = ("logsnr", "quadratic", *FEW)
BUDGETS = (5, 8, 10, 15, 20, 30, 50)
#: The claim is about numbers of evaluations up to this.
FEW_EVALUATIONS = 20
TARGETS = {
    "quick": (
        Target("Gaussian, 32-D", "gaussian", 150, FEW, (5, 10, 20)),
        Target("ring, 2-D", "ring2d", 600, FEW, (5, 10, 20)),
        Target("low-rank mixture, 64-D", "lr64", 150, FEW, (5, 10, 20)),
        Target("image-like mixture, 192-D", "image_mixture", 50, FEW, (5, 10, 20), (("side", 8),)),
    ),
    "full": (
        Target("Gaussian, 32-D", "gaussian", 400, MANY, BUDGETS),
        Target("ring, 2-D", "ring2d", 1000, MANY, BUDGETS),
        Target("low-rank mixture, 64-D", "lr64", 400, MANY, BUDGETS),
        Target("image-like mixture, 768-D", "image_mixture", 50, FEW, BUDGETS, (("side", 16),)),
        Target(
            "image-like mixture, 3072-D",
            "image_mixture",
            60,
            ("time", "karras-open", "own"),
            BUDGETS,
            (("side", 32),),
        ),
    ),
}
SEEDS = {"quick": 3, "full": 5}
#: Draws that the statistics of a teleport are taken from, and the floor of quality.
DRAWS = 4000
#: Metrics of the figure.
DRAWN = ("mean error", "median error")


@benchmark(
    "core/samplers-exact",
    paper="Wang, Vastola 2024, Gaussian score approximation, arXiv:2412.09726",
    claim="With 5 to 20 evaluations, a jump along the Gaussian part of the trajectory and a multistep solver below it "
    "end nearer to the exact solution of the probability-flow ODE than any sampler of the peers.",
    peers=("diffusers", "k-diffusion", "azula"),
    extras=("suffuse[bench,diffusers]",),
)
@one_thread()
def samplers_exact(run: Run) -> None:
    """Every sampler of the core, six of them also after a teleport of measured depth, a solver with fitted
    coefficients with and without one, and those of the peers that are installed, on distributions whose denoiser is
    exact. All are given the same noise and the same grids, and a method is shown with the grid on which its error is
    smallest; "own" are the levels that a scheduler of diffusers chooses when nobody configures it. Every evaluation
    counts, the last one included.

    The error of a sample is its root mean square distance, over values, to the exact solution from the same noise; mean
    and median are over samples. (A root mean square over samples too would be decided by the few that start between two
    modes and end in the other one.) Energy distance, sliced Wasserstein distance and the gap in negative log-likelihood
    per dimension compare with exact draws; two sets of exact draws are their floor, and the exact solution is what a
    perfect sampler has from this noise. On the Gaussian most samplers are affine, so that the distribution of their
    samples is known, and its Kullback-Leibler divergence and Wasserstein distance are in closed form. Spreads are over
    seeds of the noise.
    """
    from suffuse.benchmarks.contest import draw
    from suffuse.benchmarks.peers import missing

    everything = {target: contest(run, target) for target in TARGETS[run.profile]}
    verdicts = [v for target, results in everything.items() for v in conclude(run, target, results)]
    for library in missing():
        run.note(f"{library} is not installed; its rows are missing.")
    compared = [v for v in verdicts if v["mean error"].theirs]
    if compared:
        wins = {m: sum(v[m].outcome == "ours" for v in compared) for m in DRAWN}
        losses = {m: sum(v[m].outcome == "theirs" for v in compared) for m in DRAWN}
        counts = "; ".join(f"by {m} better in {wins[m]}, worse in {losses[m]}" for m in DRAWN)
        run.note(
            f"The claim {'holds' if wins['mean error'] == len(compared) else 'does not hold in full'}. The best of "
            f"ours against the best of all peers, in {len(compared)} comparisons, by more than the spread: {counts}."
        )
    caption = "Error against evaluations: the best of ours, with and without teleport, and the best of each peer."
    run.figure("curves", draw({target.title: results for target, results in everything.items()}, DRAWN), caption)


def contest(run: Run, target: Target) -> dict[int, list[Scored]]:
    """Run everything on one distribution: at each number of evaluations, every method on its best grid."""
    import torch

    from suffuse.analysis import GaussianStatistics
    from suffuse.benchmarks.contest import Scored, entries, report

    denoiser = target.denoiser().to(run.device)
    generator = torch.Generator().manual_seed(1000 * run.seed)
    with run.stage(f"{target.title}: solve the ODE"):
        judge = Judge(denoiser, SEEDS[run.profile], target.samples, generator)
        statistics = GaussianStatistics.fit(denoiser.sample(DRAWS, generator), variance=0.9999)
        bounds = {"exact draws (floor)": judge.draw(generator), "exact solution (reference)": judge.solution}
        for name, x in bounds.items():
            report(run, target.title, name, {}, judge.quality(x))
    everything = {}
    for budget in target.budgets:
        with run.stage(f"{target.title}: {budget} evaluations"):
            best: dict[str, tuple[Scored, Tensor]] = {}
            for entry in entries(denoiser, budget, target.grids, statistics, run.seed):
                if entry.stochastic and entry.grid != "karras-open":
                    continue  # what draws noise is compared on one grid
                try:
                    x = entry.draw(judge.noise)
                except SamplingDiverged:
                    x = judge.noise * float("nan")
                if not torch.isfinite(x).all():
                    run.note(f"{target.title}: {entry.method} diverges on grid {entry.grid!r} at {budget} evaluations.")
                    continue
                result = Scored(entry, judge.quality(x) if entry.stochastic else judge.errors(x))
                if entry.method not in best or result.rank() < best[entry.method][0].rank():
                    best[entry.method] = (result, x)
            for result, x in best.values():
                result.scores.update(judge.quality(x))
                result.scores.update(judge.closed_form(result.entry))
                setting = {"nfe": budget, "grid": result.entry.grid}
                report(run, target.title, result.entry.method, setting, result.scores)
            everything[budget] = [result for result, _ in best.values()]
    return everything


class Judge:
    """Knows the truth: the solution of the ODE from each noise, exact draws, and the entropy.

    Args:
        denoiser: the exact one.
        seeds: sets of noise.
        samples: in each set.
        generator: of noise and draws.
    """

    def __init__(self, denoiser: MixtureDenoiser, seeds: int, samples: int, generator: torch.Generator) -> None:
        import torch

        from suffuse.exact import GaussianDenoiser
        from suffuse.samplers import DEIS

        self.denoiser, self.seeds = denoiser, seeds
        shape = (seeds * samples, *denoiser.event)
        noise = torch.randn(shape, generator=generator, dtype=torch.float64).to(denoiser.means.device)
        self.noise = denoiser.schedule.sigma(1.0) * noise
        if isinstance(denoiser, GaussianDenoiser):  # in closed form, ending as samplers do
            self.solution = denoiser(denoiser.flow(self.noise, 1.0, 0.0), 0.0)
        else:
            self.solution = DEIS(steps=300, grid="karras")(denoiser, x=self.noise, dtype=torch.float64)
        self.truth = self.draw(generator)
        blurred = denoiser.schedule.add_noise(self.truth, 0.0, torch.randn_like(self.truth))
        self.entropy = -float(denoiser.log_prob(blurred, 0.0).mean())

    def draw(self, generator: torch.Generator) -> Tensor:
        """As many exact draws as there are noises."""
        return self.denoiser.sample(len(self.noise), generator)

    def errors(self, x: Tensor) -> dict[str, list[float]]:
        """Distance of samples to the solution from the same noise."""
        squares = (x - self.solution).square().flatten(1).mean(1).reshape(self.seeds, -1)
        return {
            "mean error": squares.sqrt().mean(1).tolist(),
            "median error": squares.median(1).values.sqrt().tolist(),
        }

    def quality(self, x: Tensor) -> dict[str, list[float]]:
        """Distance of samples to the distribution."""
        from suffuse.metrics import energy_distance

        ot = require("ot", extra="bench")
        nats = -self.denoiser.log_prob(x, 0.0).reshape(self.seeds, -1).mean(1)
        pairs = list(zip(x.flatten(1).chunk(self.seeds), self.truth.flatten(1).chunk(self.seeds), strict=True))
        return {
            "energy distance": [energy_distance(a, b) for a, b in pairs],
            "sliced Wasserstein": [
                float(ot.sliced_wasserstein_distance(a.cpu().numpy(), b.cpu().numpy(), n_projections=64, seed=0))
                for a, b in pairs
            ],
            "NLL gap": ((nats - self.entropy) / x[0].numel()).abs().tolist(),
        }

    def closed_form(self, entry: Entry) -> dict[str, list[float]]:
        """On a Gaussian N(mu, S), of an affine method x = b + A z: KL(N(b, A A') || N(mu, S)) and the Wasserstein
        distance. The map is found by sampling from the origin and from each axis.
        """
        import torch

        from suffuse.exact import GaussianDenoiser

        if not isinstance(self.denoiser, GaussianDenoiser) or entry.stochastic:
            return {}
        cov, sigma = self.denoiser.cov, self.denoiser.schedule.sigma(1.0)
        eye = torch.eye(cov.dim).to(self.noise)
        corner = torch.ones_like(eye[:1])
        x = entry.draw(sigma * torch.cat([0 * corner, corner, -corner, eye]))
        b, a = x[0], x[3:] - x[0]  # the rows of a are the columns of A
        if not torch.allclose(torch.stack([b + a.sum(0), b - a.sum(0)]), x[1:3], rtol=1e-3, atol=1e-3):
            return {}  # its coefficients depend on x
        root, full = (cov.apply(f, rows[:, None])[:, 0] for f, rows in ((torch.sqrt, a), (torch.clone, eye)))
        ours = torch.distributions.MultivariateNormal(b, a.T @ a)
        truth = torch.distributions.MultivariateNormal(self.denoiser.means[0], full)
        # |b - mu|^2 + tr(A A') + tr S - 2 tr((S^(1/2) A A' S^(1/2))^(1/2)), the last a sum of singular values
        square = (b - truth.mean).square().sum() + a.square().sum() + full.trace()
        square = square - 2 * torch.linalg.matrix_norm(root, "nuc")
        kl = torch.distributions.kl_divergence(ours, truth)
        return {"KL": [float(kl)], "Wasserstein": [float(square.clamp(min=0).sqrt())]}


def conclude(run: Run, target: Target, everything: dict[int, list[Scored]]) -> list[dict[str, Verdict]]:
    """A note for each number of evaluations: who is best by each metric, and by how much. Those of the claim."""
    from suffuse.benchmarks.contest import compare

    verdicts = []
    for budget, results in everything.items():
        best = {
            metric: compare({r.key: r.scores[metric] for r in results if metric in r.scores})
            for metric in (*DRAWN, "KL")
            if any(metric in r.scores for r in results)
        }
        said = "; ".join(f"{metric}: {verdict}" for metric, verdict in best.items())
        run.note(f"{target.title}, {budget} evaluations. {said}.")
        if budget <= FEW_EVALUATIONS:
            verdicts.append(best)
    return verdicts
