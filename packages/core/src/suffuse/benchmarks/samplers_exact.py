"""Samplers where the answer is known: error and sample quality against the number of network evaluations.

A Gaussian and a Gaussian mixture have their posterior mean in closed form, so what a sampler gets wrong is its own.
The ODE samplers start from the same noise as the exact solution: the Gaussian's in closed form, the mixture's by Heun's
method with steps so small that halving them changes nothing that is shown.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from suffuse.bench import Run, benchmark

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

    from suffuse.exact import MixtureDenoiser
    from suffuse.samplers import Sampler

BUDGETS = {"quick": (5, 10, 20), "full": (5, 8, 10, 15, 20, 30, 40, 80, 160)}
SAMPLES = {"quick": 1000, "full": 20000}
#: These draw fresh noise, so they have no error against the ODE.
STOCHASTIC = ("ddpm", "dpmpp-2m-sde", "dpmpp-3m-sde", "predictor-corrector")

Curves = dict[str, dict[str, dict[str, list[tuple[int, float]]]]]
"""distribution -> metric -> method -> (NFE, value)"""


@benchmark(
    "core/samplers-exact",
    paper="Lu et al. 2022, DPM-Solver++, arXiv:2211.01095",
    claim="With the same few evaluations, the second-order DPM-Solver++(2M) ends nearer to the exact solution of the "
    "probability-flow ODE than the first-order DDIM.",
    peers=("all other samplers of the core",),
)
def samplers_exact(run: Run) -> None:
    """Every sampler on two distributions with an exact denoiser: a correlated Gaussian in 32 dimensions, and eight
    modes on a circle. The error is the root mean square distance per coordinate to the exact ODE solution from the same
    noise; stochastic samplers have none. Euler's method, written in sigma / alpha, is DDIM: equal numbers are a
    check. The energy distance is to exact draws; zero is perfect, and what two sets of exact draws have is noise.
    """
    import torch

    from suffuse.metrics import energy_distance
    from suffuse.samplers import SAMPLERS

    n = SAMPLES[run.profile]
    curves: Curves = {}
    for name, denoiser in (("Gaussian, 32-D", gaussian()), ("eight modes, 2-D", ring())):
        with run.stage(name):
            generator = torch.Generator().manual_seed(run.seed)
            noise = torch.randn(n, *denoiser.event, generator=generator, dtype=torch.float64)
            exact = solution(denoiser, noise)
            truth = denoiser.sample(n, generator)
            floor = energy_distance(denoiser.sample(n, generator), truth)
            run.row(dataset=name, method="exact draws (floor)", metric="energy distance", value=floor, better="lower")
            curves[name] = {"rms error": {}, "energy distance": {}}
            for method in SAMPLERS:
                for budget in BUDGETS[run.profile]:
                    sampler = within(budget, method, denoiser)
                    nfe = sampler.nfe(denoiser.schedule)
                    x = sampler(denoiser, x=noise, generator=generator, dtype=torch.float64)
                    scores = {"energy distance": energy_distance(x, truth)}
                    if method not in STOCHASTIC:
                        scores["rms error"] = float((x - exact).square().mean().sqrt())
                    for metric, value in scores.items():
                        curves[name][metric].setdefault(method, []).append((nfe, value))
                        run.row(
                            dataset=name,
                            method=method,
                            metric=metric,
                            value=value,
                            better="lower",
                            setting={"nfe": nfe},
                        )
    for name, scores_by_metric in curves.items():
        rms = {method: dict(points) for method, points in scores_by_metric["rms error"].items()}
        ratio = min(rms["ddim"][nfe] / rms["dpmpp-2m"][nfe] for nfe in BUDGETS[run.profile])
        outcome = "holds" if ratio > 1 else "does not hold"
        run.note(f"{name}: the claim {outcome} at every budget; DDIM's error is at least {ratio:.2g} times as large.")
    caption = "Error and sample quality against evaluations. On the left, the slope is the order of the solver."
    run.figure("curves", draw(curves), caption)


def gaussian(dim: int = 32) -> MixtureDenoiser:
    """N(1, S) with eigenvalues 4 / k^2 along random directions: most coordinates are strongly correlated."""
    import torch

    from suffuse.exact import GaussianDenoiser
    from suffuse.schedules import VPLinear

    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(dim, dim, generator=generator, dtype=torch.float64)).Q
    spectrum = 4 / torch.arange(1, dim + 1, dtype=torch.float64) ** 2
    cov = basis @ torch.diag(spectrum) @ basis.T
    return GaussianDenoiser(torch.ones(dim, dtype=torch.float64), (cov + cov.T) / 2, VPLinear())


def ring(modes: int = 8) -> MixtureDenoiser:
    """Modes of standard deviation 0.15 on a circle of radius 1.5, of unequal weight."""
    import torch

    from suffuse.exact import Covariance, MixtureDenoiser
    from suffuse.schedules import VPLinear

    angle = torch.arange(modes, dtype=torch.float64) * 2 * math.pi / modes
    means = 1.5 * torch.stack([angle.cos(), angle.sin()], dim=-1)
    return MixtureDenoiser(
        torch.linspace(1, 2, modes), means, Covariance.diagonal(torch.full((modes, 2), 0.15**2)), VPLinear()
    )


def within(budget: int, method: str, denoiser: MixtureDenoiser) -> Sampler:
    """The sampler with as many steps as the budget of evaluations allows; one step if it allows none."""
    from suffuse.samplers import by_name

    plans = [by_name(method, steps=steps) for steps in range(budget, 0, -1)]
    return next((sampler for sampler in plans if sampler.nfe(denoiser.schedule) <= budget), plans[-1])


def solution(denoiser: MixtureDenoiser, noise: Tensor, steps: int = 400) -> Tensor:
    """Where the probability-flow ODE carries noise (B, *event) at t = 1, at the clean end."""
    import torch

    from suffuse.exact import GaussianDenoiser
    from suffuse.samplers import Heun

    x = denoiser.schedule.level(1.0).sigma * noise
    if isinstance(denoiser, GaussianDenoiser):
        return denoiser.flow(x, 1.0, 0.0)
    return Heun(steps=steps)(denoiser, x=x, dtype=torch.float64)


def draw(curves: Curves) -> Figure:
    """One row of panels per distribution. Energy distances below a thousandth are noise, and drawn there."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter, ScalarFormatter

    figure = Figure(figsize=(10, 3.4 * len(curves)), layout="constrained")
    panels = figure.subplots(len(curves), 2, squeeze=False)
    for row, (name, metrics) in zip(panels, curves.items(), strict=True):
        for panel, (metric, methods) in zip(row, metrics.items(), strict=True):
            for number, method in enumerate(metrics["energy distance"]):
                nfe, values = zip(*methods.get(method, [(math.nan, math.nan)]), strict=True)
                style = "--" if method == "euler" else ("-", ":")[number // 10]
                drawn = [max(value, 1e-3) for value in values]
                panel.plot(nfe, drawn, style, color=f"C{number % 10}", marker="o", markersize=4, label=method)
            panel.set(title=name, xlabel="network evaluations (NFE)", ylabel=metric, xscale="log", yscale="log")
            panel.set_xticks([5, 10, 20])
            panel.xaxis.set_major_formatter(ScalarFormatter())
            panel.xaxis.set_minor_formatter(NullFormatter())
            panel.grid(alpha=0.3)
        row[1].legend(fontsize=8, ncols=2 if len(metrics["energy distance"]) > 8 else 1)
    return figure
