"""Low-dimensional data: how many samples a low-rank model needs, and how low-dimensional a trained network is.

Part one draws N samples near each of two subspaces of dimension r in 48 dimensions and looks for the subspaces: by
K-subspaces, and by gradient descent on the diffusion loss; and near one, by principal component analysis. Part two
trains a network on real digits and asks at each noise level for the rank of its Jacobian, and how much of it simple
denoisers explain.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeAlias

from suffuse.bench import Run, benchmark
from suffuse.errors import require
from suffuse.threads import one_thread

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Generator, Tensor

    from suffuse.analysis import Explained
    from suffuse.denoiser import Denoiser

    Finder: TypeAlias = Callable[[Tensor, int, Generator], Tensor]

DIM = 48
NOISE = 0.01
"""Standard deviation off the subspaces."""
SUCCESS = 0.1
"""A subspace counts as found when |U U^T - V V^T|_F is below this share of its largest value, (2 r)^(1/2)."""
TRIALS = {"quick": 10, "full": 50}
RANKS = (2, 3, 4, 5, 6, 7, 8)
COUNTS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 14, 16, 20, 24)
"""Samples of each subspace."""
SHOWN = 4
"""The dimension for which curves are shown, and the diffusion loss is trained."""
DESCENT = {"quick": (150, 500), "full": (150, 3000)}
"""Steps on the diffusion loss, for two subspaces and for one."""
TRAINING = {"quick": 1000, "full": 6000}
"""Steps, on digits."""
TRAINED_COUNTS = {"quick": (2, 4, 6, 8, 16), "full": (2, 3, 4, 5, 6, 8, 10, 12, 16, 24)}


@benchmark(
    "core/subspaces",
    paper="Wang et al. 2024, Diffusion Models Learn Low-Dimensional Distributions via Subspace Clustering, "
    "arXiv:2409.02426",
    claim="Minimising the diffusion loss of a low-rank mixture is subspace clustering, and it finds the subspaces from "
    "about as many samples as they have dimensions and not from fewer.",
    peers=("principal component analysis of scikit-learn", "K-subspaces"),
    extras=("suffuse[bench]",),
)
@one_thread()
def subspaces(run: Run) -> None:
    """Success is the share of draws in which all subspaces are found: the distance of their projections is below a
    tenth of the largest possible. Noise of standard deviation 0.01 lies off the subspaces. For each dimension, the
    samples needed are the fewest with success in nine draws of ten. The explained variance of a trained denoiser,
    1 - E|D - D'|^2 / E|D - E D|^2, is by the Gaussian of the training digits, by 10 Gaussians of their clusters, and by
    the digits themselves (what a network computes that knows them by heart).
    """
    with run.stage("subspaces by clustering"):
        one = success_map(run, 1)
        two = success_map(run, 2)
    with run.stage("subspaces by the diffusion loss"):
        trained = success_of_training(run)
    for method, curve in {
        "PCA, one subspace": one[SHOWN],
        "K-subspaces, two": two[SHOWN],
        "diffusion loss, two": trained,
    }.items():
        for count, value in curve.items():
            run.row(
                dataset=f"subspaces of dimension {SHOWN} in {DIM}",
                method=method,
                setting={"samples of each": count},
                metric="success",
                value=value,
                better="higher",
            )
    needed = {name: {r: samples_needed(table[r]) for r in RANKS} for name, table in (("PCA", one), ("two", two))}
    for name, counts in needed.items():
        for rank, fewest in counts.items():
            if fewest is not None:
                run.row(
                    dataset=f"subspaces in {DIM} dimensions",
                    method="PCA, one subspace" if name == "PCA" else "K-subspaces, two",
                    setting={"dimension": rank},
                    metric="samples needed",
                    value=fewest,
                    better="lower",
                )
    same = loss_against_pca(run)
    run.row(
        dataset="one subspace, 500 samples",
        method="diffusion loss",
        metric="distance to scikit-learn's PCA",
        value=same,
        better="lower",
    )
    below = max(two[r][n] for r in RANKS for n in COUNTS if n < r)
    ratios = [count / rank for rank, count in needed["two"].items() if count is not None]
    holds = below <= 0.1 and len(ratios) == len(RANKS) and max(ratios) <= 2.5
    times = f"{min(ratios):.2g} to {max(ratios):.2g}" if len(ratios) == len(RANKS) else "sometimes more than 3"
    run.note(
        f"The transition is {'seen' if holds else 'not seen in full'}: from fewer samples than dimensions two "
        f"subspaces are found in at most {below:.0%} of draws; K-subspaces needs {times} times as many samples as "
        f"dimensions. One subspace needs about as many as it has dimensions; with two, any halves of 2 r samples lie "
        f"on subspaces, so that r each cannot be enough. Descent on the loss "
        f"succeeds in {trained[SHOWN]:.0%}, {trained[2 * SHOWN]:.0%} and {trained[4 * SHOWN]:.0%} of draws with 1, 2 "
        f"and 4 times as many."
    )
    run.note(
        f"One subspace: the minimum of the loss and PCA differ by {same:.3f}, of at most {(2 * SHOWN) ** 0.5:.2f}."
    )
    ranks, explained = digits(run)
    run.figure(
        "transition",
        draw_transition(two, one[SHOWN], trained),
        "Left: share of draws in which both subspaces are found; on the dotted line, as many samples of each as "
        "dimensions. Right: subspaces of dimension 4.",
    )
    run.figure(
        "digits",
        draw_digits(ranks, explained),
        "A network trained on 8 x 8 digits. Left: how many singular values of its Jacobian hold 99% of the squares. "
        "Middle and right: the share of the posterior mean and of the score that simple denoisers explain.",
    )


Successes = dict[int, dict[int, float]]
"""dimension -> samples of each subspace -> share of draws with success"""


def success_map(run: Run, k: int) -> Successes:
    """By clustering; for one subspace by scikit-learn's principal components."""
    from suffuse.analysis import k_subspaces

    def find(x: Tensor, rank: int, generator: Generator) -> Tensor:
        return pca(x, rank) if k == 1 else k_subspaces(x, k, rank, restarts=10, generator=generator)

    return {r: {n: success(find, k, r, n, TRIALS[run.profile], run.seed) for n in COUNTS} for r in RANKS}


def success_of_training(run: Run) -> dict[int, float]:
    """The same for two subspaces by gradient descent on the diffusion loss."""
    from suffuse.analysis import train_subspaces
    from suffuse.schedules import EDM

    def find(x: Tensor, rank: int, generator: Generator) -> Tensor:
        return train_subspaces(
            x, 2, rank, EDM(), restarts=4, steps=DESCENT[run.profile][0], lr=0.1, generator=generator
        )

    trials = 3 if run.quick else 20
    return {n: success(find, 2, SHOWN, n, trials, run.seed) for n in TRAINED_COUNTS[run.profile]}


def success(find: Finder, k: int, rank: int, count: int, trials: int, seed: int) -> float:
    """The share of draws, of ``count`` samples of each of k subspaces, from which all are found."""
    import torch

    from suffuse.analysis import alignment_error, subspace_mixture
    from suffuse.schedules import EDM

    generator = torch.Generator().manual_seed(1000 * seed + rank)
    wins = 0
    for _ in range(trials):
        truth = torch.linalg.qr(torch.randn(k, DIM, rank, generator=generator, dtype=torch.float64)).Q
        x = torch.cat([subspace_mixture(u[None], EDM(), noise_std=NOISE).sample(count, generator) for u in truth])
        wins += alignment_error(find(x, rank, generator), truth) < SUCCESS * (2 * rank) ** 0.5
    return wins / trials


def samples_needed(curve: dict[int, float], share: float = 0.9) -> int | None:
    """The fewest samples from which on success is at least the share; None if it never is."""
    enough = [count for count in curve if all(value >= share for other, value in curve.items() if other >= count)]
    return min(enough, default=None)


def pca(x: Tensor, rank: int) -> Tensor:
    """Scikit-learn's principal components (1, d, rank), about the origin: of the samples and their mirror images."""
    import torch

    decomposition = require("sklearn.decomposition", extra="bench")
    kept = min(rank, len(x))
    fitted = decomposition.PCA(kept, svd_solver="full").fit(torch.cat([x, -x]).numpy())
    basis = torch.zeros(1, x.shape[1], rank, dtype=x.dtype)
    basis[0, :, :kept] = torch.tensor(fitted.components_.T)
    return basis


def loss_against_pca(run: Run) -> float:
    """|U U^T - V V^T|_F of the minimum of the diffusion loss and of PCA, on samples with a decaying spectrum."""
    import torch

    from suffuse.analysis import alignment_error, train_subspaces
    from suffuse.schedules import EDM

    generator = torch.Generator().manual_seed(run.seed)
    spectrum = torch.cat([torch.linspace(2, 1, SHOWN), torch.full((DIM - SHOWN,), 0.1)]).double()
    turn = torch.linalg.qr(torch.randn(DIM, DIM, generator=generator, dtype=torch.float64)).Q
    x = (torch.randn(500, DIM, generator=generator, dtype=torch.float64) * spectrum) @ turn
    steps = DESCENT[run.profile][1]
    learned = train_subspaces(x, 1, SHOWN, EDM(), noise_std=0.1, steps=steps, generator=generator)
    return alignment_error(learned, pca(x, SHOWN))


Ranks = dict[str, tuple[list[float], list[float]]]
"""of what -> noise levels, mean effective rank of the Jacobian"""


def digits(run: Run) -> tuple[Ranks, list[Explained]]:
    """A network trained on digits: the rank of its Jacobian, and what explains it."""
    import torch

    from suffuse.analysis import approximations, effective_rank, explained_by, jacobian
    from suffuse.benchmarks.models import MODELS

    model = MODELS["digits"]
    split = model.load(run.data)
    with run.stage("train on digits"):
        network = train(split.train, run)
    kappas = torch.logspace(-1.3, 0.7, 9).tolist()
    simple = approximations(split.train, network.schedule)
    with run.stage("rank and explained variance"):
        ranks: Ranks = {}
        some = split.test[:16]
        noise = torch.randn(some.shape, generator=torch.Generator().manual_seed(run.seed))
        for name, denoiser in {"network": network, "mixture": simple["mixture"]}.items():
            values = []
            for kappa in kappas:
                singular = torch.linalg.svdvals(jacobian(denoiser, some + kappa * noise, kappa))
                values.append(float(effective_rank(singular).double().mean()))
            ranks[name] = kappas, values
            for kappa, value in zip(kappas, values, strict=True):
                run.row(
                    dataset=model.title,
                    method=name if name == "network" else "10 Gaussians",
                    setting={"kappa": round(kappa, 3)},
                    metric="rank of the Jacobian",
                    value=value,
                    better="lower",
                )
        explained = explained_by(network, simple, split.test, kappas, generator=torch.Generator().manual_seed(run.seed))
    for entry in explained:
        run.row(
            dataset=model.title,
            method=entry.approximation,
            setting={"kappa": round(entry.kappa, 3)},
            metric=f"explained variance of the {entry.of}",
            value=entry.share,
            better="higher",
        )
    share = {(e.approximation, e.of, e.kappa): e.share for e in explained}
    middle = kappas[4]  # 0.5
    rank = dict(zip(*ranks["network"], strict=True))
    run.note(
        f"Digits: the Jacobian of the network has rank {rank[kappas[0]]:.0f} of 64 at noise level {kappas[0]:.2g} and "
        f"{min(rank.values()):.0f} at the least. At {middle:.2g} the Gaussian explains "
        f"{share['Gaussian', 'mean', middle]:.3f} of its mean, 10 Gaussians {share['mixture', 'mean', middle]:.3f}, "
        f"the digits themselves {share['empirical', 'mean', middle]:.3f}, an isotropic Gaussian "
        f"{share['isotropic', 'mean', middle]:.3f}. At high noise, where the first three agree, what they leave is "
        f"what the network has not learned. Published for a network trained long on CIFAR-10: the Gaussian explains "
        f"0.952 of the mean at 0.5 and 0.913 at 2, the images themselves 0.838 at 1 and 0.603 at 2."
    )
    return ranks, explained


def train(images: Tensor, run: Run) -> Denoiser:
    """A transformer of images, on a schedule that spends as many steps on high noise as on low."""
    import torch

    from suffuse import NetworkDenoiser
    from suffuse.nets import DiT
    from suffuse.schedules import VPCosine
    from suffuse.training import fit

    torch.manual_seed(run.seed)
    backbone = DiT(1, 2, ndim=2, hidden=64, depth=3, heads=4)
    return fit(
        NetworkDenoiser(backbone, VPCosine(), data_std=float(images.std())),
        images,
        steps=TRAINING[run.profile],
        batch_size=64,
        lr=2e-3,
        ema_decay=0.99,
        seed=run.seed,
        accelerator=run.device,
        progress=run.progress,
    )


def draw_transition(two: Successes, one: dict[int, float], trained: dict[int, float]) -> Figure:
    """A map over dimension and number of samples, and the curves for one dimension."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    table = [[two[r][n] for n in COUNTS] for r in RANKS]
    image = left.imshow(table, origin="lower", aspect="auto", vmin=0, vmax=1, cmap="viridis")
    left.set_xticks(range(len(COUNTS)), [str(n) for n in COUNTS])
    left.set_yticks(range(len(RANKS)), [str(r) for r in RANKS])
    left.plot([COUNTS.index(r) for r in RANKS], range(len(RANKS)), "w:", linewidth=2)
    left.set(title="two subspaces by K-subspaces", xlabel="samples of each", ylabel="dimension of a subspace")
    figure.colorbar(image, ax=left, label="success")
    curves = {"PCA, one subspace": one, "K-subspaces, two": two[SHOWN], "diffusion loss, two": trained}
    for (name, curve), style in zip(curves.items(), ("o-", "s-", "^--"), strict=True):
        right.plot(list(curve), list(curve.values()), style, markersize=4, label=name)
    right.axvline(SHOWN, color="black", linestyle=":", linewidth=1)
    right.set(title=f"dimension {SHOWN}", xlabel="samples of each", ylabel="success", ylim=(-0.05, 1.05))
    right.legend(fontsize=8)
    right.grid(alpha=0.3)
    return figure


def draw_digits(ranks: Ranks, explained: Sequence[Explained]) -> Figure:
    """Rank, and explained variance of mean and score, against the noise level."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.6), layout="constrained")
    first, *others = figure.subplots(1, 3)
    for name, (kappas, values) in ranks.items():
        first.plot(kappas, values, "o-" if name == "network" else "s--", label=name)
    first.set(title="rank of the Jacobian", ylabel="singular values that hold 99%", ylim=(0, 66))
    for axes, of in zip(others, ("mean", "score"), strict=True):
        for name in dict.fromkeys(e.approximation for e in explained):
            entries = [e for e in explained if (e.approximation, e.of) == (name, of)]
            axes.plot([e.kappa for e in entries], [e.share for e in entries], "o-", markersize=4, label=name)
        axes.set(title=f"{of} of the network, explained by", ylabel="explained variance", ylim=(-0.5, 1.05))
    for axes in (first, *others):
        axes.set(xscale="log", xlabel="noise level sigma / alpha")
        axes.grid(alpha=0.3)
    first.legend(fontsize=8)
    others[0].legend(fontsize=8)
    return figure
