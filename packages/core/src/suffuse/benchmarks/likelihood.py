"""Likelihoods: against the truth on mixtures, and in bits on held-out digits."""

from __future__ import annotations

from collections.abc import Callable
from statistics import fmean
from typing import TYPE_CHECKING, Any

from suffuse.bench import Run, benchmark
from suffuse.threads import one_thread

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

    from suffuse import NetworkDenoiser
    from suffuse.exact import MixtureDenoiser

DIMS = {"quick": (2, 16, 64), "full": (2, 4, 8, 16, 32, 64)}
BUDGETS = {"quick": (10, 20, 40, 80), "full": (10, 20, 40, 80, 160, 320)}
SAMPLES = {"quick": 64, "full": 1000}
STEPS = {"quick": 1500, "full": 20000}
#: Grey levels of the digits are 1/8 apart on [-1, 1].
BIN = 1 / 8
#: How near the ODE is to be, in nats per dimension, with that many evaluations.
GOAL, ENOUGH = 0.02, 40
LINES = {"ODE, exact trace": "C0-o", "ODE, Hutchinson": "C1-s", "ELBO": "C2-^"}

Errors = dict[str, dict[int, tuple[float, float]]]
"""method -> evaluations -> (of one sample, of the mean over samples)"""


@benchmark(
    "core/likelihood",
    paper="Song et al. 2021, Score-Based Generative Modeling through SDEs, arXiv:2011.13456",
    claim="The probability-flow ODE gives the likelihood: on mixtures within 0.02 nats per dimension of the truth, "
    "sample by sample; and a small trained model needs fewer bits for held-out digits than Gaussians do.",
    peers=("ELBO", "Gaussian", "Gaussian per class"),
    extras=("suffuse[bench]",),
)
@one_thread()
def likelihood(run: Run) -> None:
    """Mixtures of five Gaussians in 2 to 64 dimensions have a known density and an exact denoiser. Three estimates of
    log p of fresh draws are compared with it: the ODE with the exact trace (d derivatives an evaluation), with
    Hutchinson's estimate of it (one), and the variational bound, which for the exact denoiser has no gap, but noise.
    The error is that of one sample, and that of the mean over all samples, where noise averages out.

    Then a small network learns 8 x 8 digits, made continuous by uniform noise as wide as a grey level, so that
    densities bound the bits of the grey levels; it also learns the variance of reverse steps. Held-out digits are
    scored. The bounds of 50 ancestral steps compare that learned variance with the two fixed ones.
    """
    errors: dict[int, Errors] = {}
    for dim in DIMS[run.profile]:
        with run.stage(f"mixture, {dim}-D"):
            errors[dim] = compare(run, dim)
    needed = max(entry["ODE, exact trace"][ENOUGH][0] for entry in errors.values())
    run.note(
        f"On mixtures the claim {'holds' if needed < GOAL else 'does not hold'}: with {ENOUGH} evaluations and the "
        f"exact trace, the error of a sample is at most {needed:.2g} nats per dimension."
    )
    with run.stage("digits: train"):
        train, test, labels = digits(run)
        denoiser = learn(run, train)
    with run.stage("digits: score"):
        bits = score(run, denoiser, train.cpu(), test, labels)
    best = min(bits[method] for method in ("Gaussian", "Gaussian per class"))
    ours = bits["network, ODE"]
    run.note(
        f"On digits the claim {'holds' if ours < best else 'does not hold'}: {ours:.3f} bits per pixel against "
        f"{best:.3f} of the better Gaussian. The learned variance gives a "
        f"{'lower' if bits['learned'] < min(bits['small'], bits['large']) else 'no lower'} bound than the fixed ones."
    )
    caption = "Errors against evaluations (solid: of a sample; dashed: of the mean of all); bits of held-out digits."
    run.figure("likelihood", draw(errors, bits), caption)


def mixture(dim: int) -> MixtureDenoiser:
    """Five modes of unequal weight, with means from N(0, 1) and variances from 0.02 to 0.32."""
    import torch

    from suffuse.exact import Covariance, MixtureDenoiser
    from suffuse.schedules import EDM

    generator = torch.Generator().manual_seed(dim)
    means = torch.randn(5, dim, generator=generator, dtype=torch.float64)
    variances = 0.02 + 0.3 * torch.rand(5, dim, generator=generator, dtype=torch.float64)
    return MixtureDenoiser(torch.arange(1, 6), means, Covariance.diagonal(variances), EDM())


def compare(run: Run, dim: int) -> Errors:
    """All estimates with all budgets on one mixture."""
    import torch

    from suffuse.analysis import GaussianStatistics, elbo, log_likelihood

    denoiser = mixture(dim)
    generator = torch.Generator().manual_seed(run.seed)
    statistics = GaussianStatistics.fit(denoiser.sample(5000, generator))
    x = denoiser.sample(SAMPLES[run.profile], generator)
    truth = denoiser.log_prob(x, 0.0)
    estimates: dict[str, Callable[[int], Tensor]] = {
        "ODE, exact trace": lambda n: log_likelihood(denoiser, x, steps=n // 2, statistics=statistics),
        "ODE, Hutchinson": lambda n: log_likelihood(
            denoiser, x, steps=n // 2, trace="hutchinson", statistics=statistics, generator=generator
        ),
        "ELBO": lambda n: -elbo(denoiser, x, samples=n - 1, statistics=statistics, generator=generator).total,
    }
    errors: Errors = {method: {} for method in estimates}
    for method, estimate in estimates.items():
        for nfe in BUDGETS[run.profile]:
            off = (estimate(nfe) - truth) / dim
            one, mean = float(off.abs().mean()), float(off.mean().abs())
            errors[method][nfe] = one, mean
            for metric, value in (("error of a sample", one), ("error of the mean", mean)):
                run.row(
                    dataset=f"mixture, {dim}-D",
                    method=method,
                    metric=metric,
                    value=value,
                    better="lower",
                    unit="nats/dim",
                    setting={"nfe": nfe},
                    n=len(x),
                )
    return errors


def digits(run: Run, copies: int = 20) -> tuple[Tensor, Tensor, Tensor]:
    """Vectors (N, 64) to learn from, several noisy copies of each; held-out ones; and the labels of the former."""
    import torch

    from suffuse.digits import load_digits

    data, generator = load_digits(), torch.Generator().manual_seed(run.seed)

    def spread(images: Tensor) -> Tensor:
        x = images.flatten(1)
        return x + BIN * (torch.rand(x.shape, generator=generator) - 0.5)

    return spread(data.images.repeat(copies, 1, 1, 1)), spread(data.test_images), data.labels.repeat(copies)


def learn(run: Run, train: Tensor) -> NetworkDenoiser:
    """A residual MLP with a learned variance, on the run's device."""
    import torch

    from suffuse import NetworkDenoiser
    from suffuse.nets import MLP
    from suffuse.schedules import EDM
    from suffuse.training import DenoisingObjective, LogNormalKappa, fit

    torch.manual_seed(run.seed)
    width = train.shape[1]
    denoiser = NetworkDenoiser(
        MLP(width, hidden=256, depth=3, out_dim=2 * width), EDM(), data_std=float(train.std()), learn_variance=True
    )
    trained = fit(
        denoiser,
        train,
        steps=STEPS[run.profile],
        batch_size=256,
        lr=2e-3,
        objective=DenoisingObjective(LogNormalKappa(-1.2, 1.4)),
        ema_decay=0.99,
        seed=run.seed,
        accelerator=run.device,
        progress=run.progress,
    )
    return trained.to(run.device)


def score(run: Run, denoiser: NetworkDenoiser, train: Tensor, test: Tensor, labels: Tensor) -> dict[str, float]:
    """Bits per pixel of the held-out digits, by method."""
    import torch

    from suffuse.analysis import GaussianStatistics, bits_per_dim, discrete_elbo, elbo, log_likelihood

    x, statistics = test.to(run.device), GaussianStatistics.fit(train, variance=1.0)
    options: dict[str, Any] = {"statistics": statistics, "generator": torch.Generator(run.device).manual_seed(run.seed)}
    nats = {
        "Gaussian": -statistics.denoiser(denoiser.schedule).log_prob(test, 0.0),
        "Gaussian per class": -per_class(train, labels, statistics).log_prob(test, 0.0),
        "network, ODE": -log_likelihood(denoiser, x, steps=20, trace="hutchinson", **options),
        "network, ELBO": elbo(denoiser, x, samples=40, **options).total,
    }
    for variance in ("small", "large", "learned"):
        options["generator"] = torch.Generator(run.device).manual_seed(run.seed)
        bound = discrete_elbo(denoiser, x, steps=50, grid="logsnr", variance=variance, **options)
        nats[variance] = bound.total
    bits = {}
    for method, values in nats.items():
        bits[method] = fmean(bits_per_dim(values, test.shape[1:], BIN).tolist())
        discrete = method in ("small", "large", "learned")
        run.row(
            dataset="digits 8 x 8",
            method="network, ELBO of 50 steps" if discrete else method,
            metric="bits per pixel",
            value=bits[method],
            better="lower",
            unit="bits/dim",
            setting={"variance": method} if discrete else {},
            n=len(test),
        )
    return bits


def per_class(train: Tensor, labels: Tensor, statistics: Any, shrinkage: float = 0.1) -> MixtureDenoiser:
    """A Gaussian for each digit, its covariance mixed with a tenth of that of all."""
    import torch

    from suffuse.exact import Covariance, MixtureDenoiser
    from suffuse.schedules import EDM

    groups = [train[labels == label].double() for label in range(int(labels.max()) + 1)]
    common = torch.cov(train.double().T)
    covariances = torch.stack([(1 - shrinkage) * torch.cov(g.T) + shrinkage * common for g in groups])
    means = torch.stack([g.mean(0) for g in groups])
    return MixtureDenoiser([len(g) for g in groups], means, Covariance.full(covariances), EDM())


def draw(errors: dict[int, Errors], bits: dict[str, float]) -> Figure:
    """A panel for each mixture, and bars for the digits."""
    from matplotlib.figure import Figure

    shown = [dim for dim in errors if dim in DIMS["quick"]]
    figure = Figure(figsize=(3.6 * len(shown) + 4.4, 3.6), layout="constrained")
    *panels, last = figure.subplots(1, len(shown) + 1, width_ratios=[1.0] * len(shown) + [1.3])
    for panel, dim in zip(panels, shown, strict=True):
        for method, values in errors[dim].items():
            nfe = list(values)
            panel.plot(nfe, [v[0] for v in values.values()], LINES[method], markersize=4, label=method)
            panel.plot(nfe, [v[1] for v in values.values()], "--", color=LINES[method][:2], linewidth=1)
        panel.axhline(GOAL, color="gray", linewidth=0.8, linestyle=":")
        panel.set(title=f"mixture, {dim}-D", xlabel="evaluations", xscale="log", yscale="log", ylim=(1e-4, 1))
        panel.set_xticks(nfe, [str(n) for n in nfe])
        panel.minorticks_off()
    panels[0].set_ylabel("error, nats per dimension")
    panels[0].legend(fontsize=8)
    named = {"small": "ELBO, 50 steps, small", "large": "ELBO, 50 steps, large", "learned": "ELBO, 50 steps, learned"}
    names = [named.get(method, method) for method in bits]
    colors = ["C7" if method.startswith("Gaussian") else "C0" for method in bits]
    bars = last.barh(names[::-1], list(bits.values())[::-1], color=colors[::-1])
    last.bar_label(bars, fmt="%.2f", padding=3, fontsize=8)
    last.set(title="held-out digits", xlabel="bits per pixel", xlim=(0, 1.15 * max(bits.values())))
    return figure
