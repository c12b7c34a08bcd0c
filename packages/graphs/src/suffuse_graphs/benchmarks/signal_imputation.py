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
    chickenpox where SUFFUSE_DATA has them. The full Gaussian knows the covariance of all nodes and no graph: where
    signals are many and nodes are few it is hard to beat.
    """
    import torch

    from .. import imputation
    from ..data.signals import load_signals, random_masks
    from ..metrics import crps, mean_over

    datasets = ["digits", *(["los-loop", "chickenpox"] if run.data and not run.quick else [])]
    held, draws = (64, 16) if run.quick else (200, 50)
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

    steps = 600 if run.quick else 3_000 if run.device == "cpu" else 10_000
    hidden, depth = (32, 2) if run.quick else (48, 4)
    return train_imputer(
        signals,
        conv=conv,
        hidden=hidden,
        depth=depth,
        steps=steps,
        seed=run.seed,
        accelerator=run.device,
        progress=False,
    )


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
