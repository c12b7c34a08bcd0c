"""Can a diffusion model with a sheaf network fill in the nodes of a signal that were not observed?"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from suffuse.bench import Run, benchmark

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

    from suffuse import NetworkDenoiser

    from ..data.signals import GraphSignals

NAMES = {
    "diagonal": "diffusion, sheaf network",
    "identity": "diffusion, identity maps (control)",
    "gcn": "diffusion, GCN",
}


@benchmark(
    "graphs/signal-imputation",
    paper="Sheaf network of Bodnar et al. 2022, arXiv:2202.04579, as the denoiser of a conditional diffusion model "
    "(cf. CSDI, Tashiro et al. 2021, arXiv:2107.03502); no published number",
    claim="Draws of a diffusion model with a sheaf network fill in missing nodes with a lower CRPS than a Laplacian "
    "smoother and than the same model with graph convolutions",
    peers=("Laplacian smoother (Gaussian field)", "full-covariance Gaussian", "GCN denoiser", "identity maps"),
)
def signal_imputation(run: Run) -> None:
    """CRPS and MAE on the missing nodes, 30 % or 60 % of the nodes observed at random.

    The quick profile fills in pixels of handwritten digits, a graph of 64 nodes; the full one also traffic and cases of
    chickenpox where SUFFUSE_DATA has them. Before them comes the exact case, a Gaussian field along a sheaf that flips
    signs, where the ideal denoiser is a rational filter of the sheaf Laplacian: what a filter of the plain graph can
    reach there is known, and the full profile trains both networks on it.

    The full Gaussian knows the covariance of all nodes and no graph: where signals are many and nodes are few it is
    hard to beat.
    """
    import torch

    from .. import imputation
    from ..data.signals import load_signals, random_masks
    from ..metrics import crps, mean_over

    exact_case(run)
    datasets = ["digits"] if run.quick or not run.data else ["los-loop", "chickenpox", "digits"]
    held, draws = (64, 16) if run.quick else (64, 20) if run.device == "cpu" else (200, 50)
    for dataset in datasets:
        signals = load_signals(dataset)
        scale, unit = signals.score_unit
        g = torch.Generator().manual_seed(run.seed)
        x = signals.test[torch.randperm(len(signals.test), generator=g)[:held]]
        masks = {rate: random_masks(len(x), signals.num_nodes, rate, g) for rate in (0.3, 0.6)}
        smooth = imputation.smoother_precision(signals.train, signals.edge_index, signals.edge_weight)
        full = imputation.full_precision(signals.train)
        answers = {
            "Laplacian smoother": partial(imputation.gaussian, smooth),
            "full Gaussian (no graph)": partial(imputation.gaussian, full),
        }
        for conv, name in NAMES.items():
            with run.stage(f"{dataset}, train {name}"):
                denoiser = train(signals, conv, run)
            answers[name] = partial(imputation.diffusion, denoiser)
        found: dict[str, Tensor] = {}
        for name, answer in answers.items():
            for rate, mask in masks.items():
                with run.stage(f"{dataset}, impute with {name}"):
                    filled = answer(x, mask, draws, g)
                missing = (mask == 0).expand_as(x)
                error = (filled.median(0).values - x).abs()
                for metric, value in (("CRPS", crps(filled, x)), ("MAE", error)):
                    run.row(
                        dataset=dataset, method=name, metric=metric, value=scale * mean_over(value, missing),
                        better="lower", unit=unit, n=int(missing.sum()), setting={"observed": rate, "draws": draws},
                    )  # fmt: skip
                if rate == 0.3:
                    found[name] = filled
        _say_what_happened(run, dataset)
        figure = digits_figure if dataset == "digits" else profile_figure
        run.figure(f"imputation-{dataset}", figure(signals, x, masks[0.3], found), CAPTION[dataset == "digits"])


def train(signals: GraphSignals, conv: str, run: Run) -> NetworkDenoiser:
    from ..recipes import train_imputer

    return train_imputer(
        signals, conv=conv, seed=run.seed, accelerator=run.device, progress=False, **_size(run)
    )  # fmt: skip


def _size(run: Run) -> dict[str, int]:
    """Width, depth, steps and batch of the networks, the same for all of them."""
    if run.quick:
        return {"hidden": 32, "depth": 2, "steps": 600, "batch_size": 64}
    if run.device == "cpu":
        return {"hidden": 32, "depth": 2, "steps": 1200, "batch_size": 16}
    return {"hidden": 48, "depth": 4, "steps": 10_000, "batch_size": 64}


def exact_case(run: Run, n: int = 120, edges: int = 480, kappa: float = 0.02) -> None:
    """Mean squared error per node of ideal, of filtering and (full profile) of trained denoisers of a twisted field."""
    import torch

    from suffuse import schedules

    from ..exact import SheafGaussianDenoiser, bayes_error, filter_error
    from ..sheaf import Sheaf, SheafLaplacian
    from ..sheaf.theory import random_graph

    g = torch.Generator().manual_seed(run.seed)
    graph = random_graph(n, edges, g)
    sign = torch.randn(n, 1, dtype=torch.float64, generator=g).sign()
    twisted = SheafLaplacian(Sheaf(graph, sign[graph.edge_index[0]], orthogonal=True), "symmetric")
    plain = SheafLaplacian(Sheaf(graph, torch.ones(2 * graph.num_edges, 1).double(), orthogonal=True), "symmetric")
    schedule = schedules.VPCosine()
    unit = SheafGaussianDenoiser(twisted, schedule, 1.0, kappa).covariance()
    S = unit / unit.diagonal().mean()
    dataset = "sheaf Gaussian field"

    def row(method: str, noise: float, value: float) -> None:
        run.row(dataset=dataset, method=method, metric="squared error", value=value, better="lower",
                setting={"noise": noise})  # fmt: skip

    levels, graph_filter, sheaf_filter = (0.5, 1.0, 2.0), plain.dense(), twisted.dense()
    for noise in levels:
        row("ideal denoiser (floor)", noise, bayes_error(S, noise))
        row("best shrinkage, no graph", noise, filter_error(graph_filter, S, noise, 0))
        row("best filter of the graph, degree 10", noise, filter_error(graph_filter, S, noise, 10))
        for degree in (2, 5):
            row(f"best filter of the sheaf, degree {degree}", noise, filter_error(sheaf_filter, S, noise, degree))
    if run.quick:
        return
    draw = lambda count: torch.randn(count, n, dtype=torch.float64, generator=g) @ torch.linalg.cholesky(S).T  # noqa: E731
    x, test = draw(4000).float()[:, None], draw(500).float()[:, None]
    for conv, name in (("diagonal", "trained, sheaf network"), ("gcn", "trained, GCN")):
        with run.stage(f"{dataset}, {name}"):
            denoiser = train_field(x, graph.edge_index, conv, run)
        for noise in levels:
            level = schedule.level(schedule.t_of_kappa(noise))
            eps = torch.randn(test.shape, generator=torch.Generator().manual_seed(1))
            with torch.no_grad():
                found = denoiser(level.alpha * (test + noise * eps), schedule.t_of_kappa(noise))
            row(name, noise, float((found - test).square().mean()))


def train_field(x: Tensor, edge_index: Tensor, conv: str, run: Run) -> NetworkDenoiser:
    """An unconditional denoiser of the rows of x (N, 1, n)."""
    import torch

    from suffuse import NetworkDenoiser, schedules, training

    from ..nets.signal import GraphSignalNet

    size = _size(run)
    torch.manual_seed(run.seed)
    net = GraphSignalNet(
        edge_index.tolist(), x.size(-1), conv=conv, hidden=size["hidden"], depth=size["depth"], stalk_dim=4
    )
    return training.fit(
        NetworkDenoiser(net, schedules.VPCosine()), x, steps=size["steps"], batch_size=size["batch_size"], lr=5e-3,
        ema_decay=0.99, seed=run.seed, accelerator=run.device, progress=False,
    )  # fmt: skip


def _say_what_happened(run: Run, dataset: str) -> None:
    scores = {
        (r.method, r.setting["observed"]): r.value for r in run.rows if r.dataset == dataset and r.metric == "CRPS"
    }
    sheaf = NAMES["diagonal"]
    for rate in (0.3, 0.6):
        better = [m for (m, at), v in scores.items() if at == rate and v < scores[sheaf, rate]]
        text = "not beaten by any peer" if not better else f"beaten by {', '.join(better)}"
        run.note(f"{dataset}, {rate:.0%} observed: the sheaf network is {text} in CRPS.")


CAPTION = {
    False: "Held-out signals with 30 % of their nodes observed (dots): truth (line), and the range that holds 80 % of "
    "the draws at every missing node.",
    True: "Held-out digits with 30 % of the pixels observed: what is known, two draws of each method, the truth.",
}


def profile_figure(signals: GraphSignals, x: Tensor, mask: Tensor, found: dict[str, Tensor], rows: int = 3) -> Figure:
    """Truth, observed nodes and ranges of two methods, for a few signals, relative to the mean of every node."""
    import torch
    from matplotlib.figure import Figure

    methods = {"Laplacian smoother": "tab:orange", NAMES["diagonal"]: "tab:blue"}
    scale, unit = signals.score_unit
    order = signals.mean.argsort(descending=True)[:40]
    figure = Figure(figsize=(12, 2.7 * rows), layout="constrained")
    axes = figure.subplots(rows, 1, sharex=True)
    at = torch.arange(len(order))
    for row, axis in enumerate(axes):
        for shift, (name, colour) in zip((-0.15, 0.15), methods.items(), strict=True):
            drawn = scale * found[name][:, row, 0, order]
            low, middle, high = drawn.quantile(torch.tensor([0.1, 0.5, 0.9]), dim=0)
            hidden = mask[row, 0, order] == 0
            axis.vlines((at + shift)[hidden], low[hidden], high[hidden], color=colour, lw=5, alpha=0.45, label=name)
            axis.plot((at + shift)[hidden], middle[hidden], "_", color=colour, ms=7)
        truth = scale * x[row, 0, order]
        axis.plot(at, truth, color="black", lw=0.8, label="truth")
        seen = mask[row, 0, order] == 1
        axis.plot(at[seen], truth[seen], "ko", ms=5, label="observed")
        axis.axhline(0, color="lightgrey", lw=0.8, zorder=0)
        axis.set_ylabel(f"from the mean ({unit})")
    axes[-1].set_xticks(at.tolist(), [signals.labels[i] for i in order.tolist()], rotation=60, ha="right", fontsize=8)
    axes[0].set_title(f"{signals.name}: held-out signals, 30 % of the nodes observed; bars hold 80 % of the draws")
    axes[0].legend(frameon=False, ncols=4, fontsize=8)
    return figure


def digits_figure(
    signals: GraphSignals, x: Tensor, mask: Tensor, found: dict[str, Tensor], columns: int = 10
) -> Figure:
    """Rows: observed pixels, two draws of every method, truth."""
    import torch
    from matplotlib.figure import Figure

    observed = torch.where(mask.bool(), x, torch.nan)
    rows = [("observed", observed)]
    rows += [(f"{name}\ndraw {k + 1}", draws[k]) for name, draws in found.items() for k in range(2)]
    rows.append(("truth", x))
    figure = Figure(figsize=(columns, 1.05 * len(rows)), layout="constrained")
    for axes, (title, values) in zip(figure.subplots(len(rows), columns), rows, strict=True):
        for axis, image in zip(axes, signals.raw(values)[:columns], strict=True):
            axis.imshow(image.view(8, 8), cmap="gray_r", vmin=0, vmax=16)
            axis.set_facecolor("#f4d9c6")
            axis.set_xticks([])
            axis.set_yticks([])
        axes[0].set_ylabel(title, rotation=0, ha="right", va="center", fontsize=8)
    return figure
