"""How many dimensions have the data? Read from a denoiser, where the answer is known, and then where it is not.

Known manifolds lie in 64 dimensions: low-rank Gaussians, mixtures of subspaces, and flat tori (products of circles),
whose denoisers are exact; and a sphere known by samples alone, through the empirical denoiser of the samples and
through a network trained on them. The classical estimate from the same samples stands beside them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING

from suffuse.bench import Run, benchmark
from suffuse.threads import one_thread

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Generator, Tensor

    from suffuse.denoiser import Denoiser

DIM = 64
KAPPA = 0.05
"""Noise level of the table: above the 0.001 off the manifolds, below their size, which is 1."""
POINTS = {"quick": 16, "full": 100}
SAMPLES = 2000
TRAINING = {"quick": (1500, 600), "full": (10000, 4000)}
"""Steps, on the sphere and on digits."""
METHODS = ("normal bundle", "FLIPD", "MMSE")
CLASSICAL = "Levina-Bickel, 2000 samples"


@dataclass(frozen=True)
class Manifold:
    """Data of known dimension: what denoises them, and clean samples (N, *event)."""

    kind: str
    dimension: int
    denoiser: Denoiser
    samples: Tensor
    kappa: float = KAPPA


@benchmark(
    "core/intrinsic-dimension",
    paper="Horvat, Pfister 2024, On Gauge Freedom, Conservativity and Intrinsic Dimensionality Estimation in Diffusion "
    "Models, arXiv:2402.03845",
    claim="The scores around a point span the normal space of the data, so their singular values tell the dimension, "
    "within a tenth on known manifolds.",
    peers=("FLIPD", "MMSE dimension", "Levina-Bickel maximum likelihood"),
    extras=("suffuse[bench]",),
)
@one_thread()
def intrinsic_dimension(run: Run) -> None:
    """The error is the mean of |estimate - dimension| / dimension over points. All estimates of a manifold are at one
    noise level: sigma / alpha = 0.05 for exact denoisers; 0.15 for the sphere that is known by samples alone, as it has
    to be above their spacing. The Levina-Bickel estimate is from 2000 samples and their 20 nearest neighbours; it is
    known to be low in higher dimensions. Of real digits the dimension is not known: the curves over the noise level
    show what each estimator says at each scale.
    """
    import torch

    points = POINTS[run.profile]
    errors: dict[tuple[str, str, int], float] = {}
    with run.stage("known manifolds"):
        for manifold in [*known(run.seed), *sphere(run)]:
            x = manifold.samples[:points]
            generator = torch.Generator().manual_seed(run.seed)
            estimates = {m: estimate(m, manifold.denoiser, x, manifold.kappa, generator) for m in METHODS}
            if manifold.kappa == KAPPA:
                estimates[CLASSICAL] = levina_bickel(manifold.samples[:SAMPLES]).expand(1)
            for method, values in estimates.items():
                error = float((values.double() / manifold.dimension - 1).abs().mean())
                errors[method, manifold.kind, manifold.dimension] = error
                run.row(
                    dataset=manifold.kind,
                    method=method,
                    setting={"dimension": manifold.dimension, "kappa": manifold.kappa},
                    metric="relative error",
                    value=error,
                    better="lower",
                )
    exact = {(kind, dimension) for _, kind, dimension in errors if not kind.startswith("sphere")}
    for method in (*METHODS, CLASSICAL):
        within = sum(errors[method, kind, dimension] <= 0.1 for kind, dimension in exact)
        run.note(f"{method}: within 10% on {within} of {len(exact)} known manifolds with exact denoisers.")
    learned = {method: errors[method, "sphere, network", 2] for method in METHODS}
    holds = all(errors["normal bundle", kind, dimension] <= 0.1 for kind, dimension in exact)
    run.note(
        f"The claim {'holds' if holds else 'does not hold on all'} for exact denoisers. On the network that is trained "
        f"on 2000 samples of a sphere the errors are "
        f"{', '.join(f'{value:.0%} ({method})' for method, value in learned.items())}."
    )
    panels = scales(run)
    run.figure(
        "curves",
        draw(panels),
        "The dimension that each estimator sees, against the noise level. Known ones: dotted. Where all curves agree "
        "over a range of noise levels there is a manifold; below, the noise off it is seen, and above, it dissolves.",
    )


def known(seed: int) -> list[Manifold]:
    """Manifolds with exact denoisers, of dimension 2, 6 and 16 in 64."""
    import torch

    from suffuse.analysis import subspace_mixture
    from suffuse.exact import Covariance, GaussianDenoiser, MixtureDenoiser
    from suffuse.schedules import EDM

    made = []
    for r in (2, 6, 16):
        g = torch.Generator().manual_seed(1000 * seed + r)
        bases = torch.linalg.qr(torch.randn(5, DIM, r, generator=g, dtype=torch.float64)).Q
        spectrum = torch.linspace(2, 0.5, r, dtype=torch.float64).expand(5, -1)
        flat = GaussianDenoiser(torch.ones(DIM), Covariance.low_rank(bases[:1], spectrum[:1], 1e-6), EDM())
        made.append(Manifold("Gaussian", r, flat, flat.sample(SAMPLES, g)))
        means = 2 * torch.randn(5, DIM, generator=g, dtype=torch.float64)
        mixed = MixtureDenoiser(torch.ones(5), means, Covariance.low_rank(bases, spectrum, 1e-6), EDM())
        made.append(Manifold("5 Gaussians apart", r, mixed, mixed.sample(SAMPLES, g)))
        crossing = subspace_mixture(bases, EDM(), noise_std=1e-3)
        made.append(Manifold("5 subspaces through one point", r, crossing, crossing.sample(SAMPLES, g)))
        curved, x = torus(r, DIM, SAMPLES, g)
        made.append(Manifold("flat torus", r, curved, x))
    return made


def torus(k: int, dim: int, n: int, generator: Generator) -> tuple[Denoiser, Tensor]:
    """k unit circles in 2 k of ``dim`` dimensions, turned at random: the exact denoiser, and n samples (n, dim).

    The posterior mean of a point on a unit circle, seen as y with noise kappa, is y / |y| I_1(|y| / kappa^2) /
    I_0(|y| / kappa^2): the mean of a von Mises distribution.
    """
    import torch

    from suffuse.denoiser import as_denoiser
    from suffuse.schedules import EDM

    frame = torch.linalg.qr(torch.randn(dim, dim, generator=generator, dtype=torch.float64)).Q[:, : 2 * k]

    def mean(x: Tensor, t: object, cond: object) -> Tensor:
        kappa = EDM().level(t, like=x).sigma  # type: ignore[arg-type]
        pairs = (x @ frame).reshape(len(x), k, 2)
        radius = pairs.norm(dim=-1, keepdim=True)
        z = radius / (kappa[..., None] if isinstance(kappa, torch.Tensor) else kappa) ** 2
        ratio = torch.special.i1e(z) / torch.special.i0e(z)
        return (ratio * pairs / radius).flatten(1) @ frame.T

    angle = 2 * math.pi * torch.rand(n, k, generator=generator, dtype=torch.float64)
    x = torch.stack([angle.cos(), angle.sin()], -1).flatten(1) @ frame.T
    return as_denoiser(mean, EDM()), x


def sphere(run: Run) -> list[Manifold]:
    """The unit sphere in three of 16 dimensions, known by 2000 samples: by heart, and to a network."""
    import torch
    from torch import nn

    from suffuse import NetworkDenoiser
    from suffuse.exact import EmpiricalDenoiser
    from suffuse.schedules import EDM
    from suffuse.training import fit

    g = torch.Generator().manual_seed(run.seed)
    frame = torch.linalg.qr(torch.randn(16, 16, generator=g)).Q[:, :3]
    x = torch.randn(SAMPLES + POINTS[run.profile], 3, generator=g)
    x = x / x.norm(dim=1, keepdim=True) @ frame.T
    train, test = x[:SAMPLES], x[SAMPLES:]

    class Perceptron(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            sizes = (17, 128, 128, 128, 16)
            layers = [layer for a, b in pairwise(sizes) for layer in (nn.Linear(a, b), nn.SiLU())]
            self.layers = nn.Sequential(*layers[:-1])

        def forward(self, x: Tensor, c_noise: Tensor, cond: object = None) -> Tensor:
            return self.layers(torch.cat([x, c_noise[:, None]], -1))

    torch.manual_seed(run.seed)
    network = fit(
        NetworkDenoiser(Perceptron(), EDM(0.01, 10.0), data_std=float(train.std())),
        train,
        steps=TRAINING[run.profile][0],
        batch_size=256,
        lr=2e-3,
        seed=run.seed,
        accelerator="cpu",
        progress=run.progress,
    )
    # the empirical denoiser knows its own samples: at a new point the nearest of them would be the answer
    return [
        Manifold("sphere, by heart", 2, EmpiricalDenoiser(train, EDM()), train.double(), 0.15),
        Manifold("sphere, network", 2, network, test, 0.15),
    ]


def estimate(method: str, denoiser: Denoiser, x: Tensor, kappa: float, generator: Generator) -> Tensor:
    """The dimension around each point, (B,)."""
    from suffuse import analysis

    match method:
        case "normal bundle":
            return analysis.intrinsic_dimension(denoiser, x, kappa, generator=generator)
        case "FLIPD":
            return analysis.flipd(denoiser, x, kappa, probes=None if x[0].numel() <= DIM else 16, generator=generator)
        case _:
            return analysis.mmse_dimension(denoiser, x, kappa, 64, generator=generator)


def levina_bickel(x: Tensor, neighbours: int = 20) -> Tensor:
    """The classical estimate from samples (N, *event): the mean over points of log ratios of neighbour distances,

        1 / m = mean_i mean_{j < k} log(T_k(x_i) / T_j(x_i)).

    Levina, Bickel (2004), "Maximum Likelihood Estimation of Intrinsic Dimension", in MacKay and Ghahramani's form.
    """
    import torch

    flat = x.double().flatten(1)
    distance = torch.cdist(flat, flat).topk(neighbours + 1, largest=False).values[:, 1:]
    return 1 / (distance[:, -1:] / distance[:, :-1]).log().mean()


Curves = dict[str, tuple[Sequence[float], Sequence[float]]]


@dataclass(frozen=True)
class Panel:
    title: str
    dimension: int | None
    classical: float
    curves: Curves


def scales(run: Run) -> list[Panel]:
    """Curves over noise levels: a torus, a mixture with noise off its subspaces, and trained models of digits."""
    import torch

    from suffuse.benchmarks.models import MODELS, train
    from suffuse.benchmarks.truths import lr64

    points = POINTS[run.profile]

    def panel(title: str, dimension: int | None, denoiser: Denoiser, x: Tensor, held_out: Tensor) -> Panel:
        generator = torch.Generator().manual_seed(run.seed)
        kappas = torch.logspace(-2, 0.7, 10).tolist()
        curves: Curves = {}
        for method in METHODS:
            values = [float(estimate(method, denoiser, held_out, k, generator).double().mean()) for k in kappas]
            curves[method] = kappas, values
        return Panel(title, dimension, float(levina_bickel(x[:SAMPLES])), curves)

    with run.stage("curves over noise levels"):
        generator = torch.Generator().manual_seed(run.seed)
        curved, x = torus(6, DIM, SAMPLES, generator)
        mixture = lr64()
        y = mixture.sample(SAMPLES, generator)
        panels = [
            panel("torus of dimension 6", 6, curved, x, x[:points]),
            panel("rank 6, noise 0.05 off it", 6, mixture, y, y[:points]),
        ]
    names = ["digits"] if run.quick or run.data is None else ["digits", "mnist"]
    for name in names:
        with run.stage(f"train on {name}"):
            model = MODELS[name]
            split = model.load(run.data)
            network = train(replace(model, steps=(TRAINING[run.profile][1],) * 2), split, run).cpu()
        with run.stage("curves over noise levels"):
            shown = panel(model.title, None, network, split.train, split.test[: points if name == "digits" else 4])
            panels.append(shown)
            text = "; ".join(
                f"{method} {', '.join(f'{v:.3g} at {k:.2g}' for k, v in zip(*shown.curves[method], strict=True))}"
                for method in METHODS
            )
            run.note(f"{model.title}, by noise level: {text}. Levina-Bickel: {shown.classical:.3g}.")
    return panels


def draw(panels: list[Panel]) -> Figure:
    """One panel a data set, both axes logarithmic."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FormatStrFormatter, NullFormatter

    figure = Figure(figsize=(4.2 * len(panels), 3.8), layout="constrained")
    for axes, panel in zip(figure.subplots(1, len(panels)), panels, strict=True):
        for method, (kappas, values) in panel.curves.items():
            axes.plot(kappas, values, marker="o", markersize=4, label=method)
        axes.axhline(panel.classical, color="C3", linestyle="--", linewidth=1, label="Levina-Bickel")
        if panel.dimension is not None:
            axes.axhline(panel.dimension, color="black", linestyle=":", linewidth=1, label="truth")
        axes.set(title=panel.title, xlabel="noise level sigma / alpha", ylabel="dimension", xscale="log", yscale="log")
        axes.set(ylim=(0.5, 80), yticks=(1, 2, 5, 10, 20, 50))
        axes.yaxis.set_major_formatter(FormatStrFormatter("%g"))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.grid(alpha=0.3)
    figure.axes[0].legend(fontsize=8)
    return figure
