"""What can be trained: a node classifier along a learned sheaf, and a diffusion model that fills in graph signals."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from suffuse.errors import InvalidArgument
from suffuse.recipes import recipe

if TYPE_CHECKING:
    from suffuse import NetworkDenoiser

    from .data.signals import GraphSignals


# --- node classification ----------------------------------------------------------------------------------------


def predict_nodes(checkpoint: Path, *, out: Path, device: str = "auto") -> list[Path]:
    """Predict the class of every node of the graph a classifier was trained on; writes one CSV.

    Args:
        checkpoint: folder that `suffuse train graphs/nsd` wrote.
        out: folder of the table.
        device: cpu, cuda, or auto.
    """
    import pandas as pd

    from suffuse import hub
    from suffuse.bench.runner import resolve_device

    from .classify import evaluate
    from .data.nodes import load_nodes

    facts = hub.read_config(checkpoint)["metadata"]
    data = load_nodes(facts["dataset"]).to(resolve_device(device))
    probabilities = evaluate(hub.load(checkpoint, resolve_device(device)), data.x, data.edge_index).softmax(-1).cpu()
    table = pd.DataFrame(
        {"node": range(len(probabilities)), "class": data.y.cpu(), "predicted": probabilities.argmax(-1)}
    )
    table["test"] = data.test_mask[:, facts["split"]].cpu().numpy()
    for c, column in enumerate(probabilities.T):
        table[f"p{c}"] = column.numpy().round(4)
    file = Path(out) / f"{facts['dataset']}-nodes.csv"
    file.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(file, index=False)
    return [file]


@recipe("graphs/nsd", sample=predict_nodes)
def train_nsd(
    *,
    dataset: str = "karate",
    maps: str = "orthogonal",
    split: str = "0",
    out: Path = Path("runs/nsd"),
    epochs: int | None = None,
    patience: int | None = None,
    stalk_dim: int | None = None,
    layers: int | None = None,
    hidden: int | None = None,
    lr: float | None = None,
    seed: int = 0,
    device: str = "auto",
    progress: bool = True,
) -> Path:
    """Neural sheaf diffusion for node classification, by the protocol of the field's tables.

    Args:
        dataset: karate, drosophila (inside graspologic); with SUFFUSE_DATA also texas, wisconsin, cornell,
            cornell-2020, film, chameleon, squirrel, cora, citeseer, minesweeper.
        maps: orthogonal, diagonal, general, or identity (the control).
        split: number of the split, or all (the checkpoint is that of the first).
        out: folder of the checkpoint.
        epochs: at most so many; this and the following default to the preset of the dataset.
        patience: epochs without improvement before stopping.
        stalk_dim: dimension d of the stalks.
        layers: diffusion steps.
        hidden: width, a multiple of stalk_dim.
        lr: learning rate.
        seed: of initialisation and dropout; each split has its own.
        device: cpu, cuda, or auto.
        progress: print the result of every split.
    """
    from dataclasses import replace

    import torch

    from suffuse import hub
    from suffuse.bench.runner import resolve_device

    from .classify import build, preset, train_classifier
    from .data.nodes import load_nodes, split_of
    from .sheaf.maps import MAPS

    if maps not in MAPS:
        raise InvalidArgument(f"maps: must be one of {', '.join(MAPS)}; got {maps!r}")
    if split != "all" and not split.isdigit():
        raise InvalidArgument(f"split: must be a number or 'all', got {split!r}")
    data, chosen = load_nodes(dataset), preset(maps, dataset)
    shape = {"stalk_dim": stalk_dim, "num_layers": layers, "hidden_channels": hidden}
    rest = {"epochs": epochs, "patience": patience, "lr": lr}
    chosen = replace(chosen, model=chosen.model | _given(shape), **_given(rest))
    numbers = list(range(data.train_mask.size(1))) if split == "all" else [int(split)]
    split_of(data, numbers[-1])

    scores, first = [], None
    for number in numbers:
        torch.manual_seed(1000 * seed + number)
        result = train_classifier(
            build(maps, data, chosen), data, number, lr=chosen.lr, weight_decay=chosen.weight_decay,
            sheaf_decay=chosen.sheaf_decay, epochs=chosen.epochs, patience=chosen.patience, stop=chosen.stop,
            device=resolve_device(device),
        )  # fmt: skip
        first = first or result
        scores.append(100 * result.test)
        if progress:
            print(f"{dataset}, split {number}: test accuracy {scores[-1]:.2f} %, {result.seconds:.1f} s")
    assert first is not None
    values = torch.tensor(scores)
    if progress and len(scores) > 1:
        print(f"{dataset}, {len(scores)} splits: {values.mean():.2f} ± {values.std(correction=0):.2f} %")
    facts = {"recipe": "graphs/nsd", "dataset": dataset, "split": numbers[0], "test_accuracy": scores}
    return hub.save(first.model.cpu(), out, facts)


def _given(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


# --- imputation of signals --------------------------------------------------------------------------------------


def train_imputer(
    signals: GraphSignals,
    *,
    conv: str = "diagonal",
    hidden: int = 32,
    depth: int = 2,
    stalk_dim: int = 4,
    steps: int = 1500,
    batch_size: int = 64,
    lr: float = 5e-3,
    seed: int = 0,
    **fit: Any,
) -> NetworkDenoiser:
    """A denoiser of the signals given any part of their nodes: each is shown under four masks, 5-95 % observed."""
    import torch

    import suffuse
    from suffuse import schedules, training

    from .data.signals import observation, random_masks
    from .nets.signal import GraphSignalNet

    torch.manual_seed(seed)
    backbone = GraphSignalNet(
        signals.edge_index.tolist(), signals.num_nodes, conv=conv, hidden=hidden, depth=depth, stalk_dim=stalk_dim
    )
    x = signals.train.repeat(4, 1, 1)
    masks = random_masks(len(x), signals.num_nodes, (0.05, 0.95), torch.Generator().manual_seed(seed))
    return training.fit(
        suffuse.NetworkDenoiser(backbone, schedules.VPCosine()),
        x,
        cond=observation(x, masks),
        steps=steps,
        batch_size=batch_size,
        lr=lr,
        ema_decay=0.99,
        seed=seed,
        **fit,
    )


def impute(
    checkpoint: Path,
    *,
    out: Path,
    n: int = 4,
    draws: int = 50,
    observed: float = 0.3,
    steps: int = 10,
    seed: int = 0,
    device: str = "auto",
) -> list[Path]:
    """Hide nodes of held-out signals and fill them in; writes one CSV with truth, mean and quantiles per node.

    Args:
        checkpoint: folder that `suffuse train graphs/signal-imputation` wrote.
        out: folder of the table.
        n: how many held-out signals.
        draws: samples per signal.
        observed: share of the nodes that is shown, between 0 and 1.
        steps: evaluations of the network per sample, by DPM-Solver++.
        seed: of masks and noise.
        device: cpu, cuda, or auto.
    """
    import pandas as pd
    import torch

    from suffuse import hub, samplers
    from suffuse.bench.runner import resolve_device

    from .data.signals import load_signals, random_masks
    from .imputation import diffusion

    if not 0 <= observed <= 1:
        raise InvalidArgument(f"observed: must lie between 0 and 1, got {observed}")
    if n < 1 or draws < 1:
        raise InvalidArgument(f"n and draws: must be at least 1, got n={n} and draws={draws}")
    signals = load_signals(hub.read_config(checkpoint)["metadata"]["dataset"])
    where = resolve_device(device)
    g = torch.Generator().manual_seed(seed)
    x = signals.test[torch.randperm(len(signals.test), generator=g)[:n]]
    mask = random_masks(len(x), signals.num_nodes, float(observed), g)
    denoiser = hub.load(checkpoint, where)
    filled = diffusion(denoiser, x.to(where), mask.to(where), draws, g, samplers.DPMSolverPP(steps=steps)).cpu()
    raw = signals.raw(filled[:, :, 0])
    columns = {"truth": signals.raw(x[:, 0]), "mean": raw.mean(0)}
    columns |= {f"q{int(100 * q):02d}": raw.quantile(q, dim=0) for q in (0.1, 0.5, 0.9)}
    table = pd.DataFrame({name: value.flatten().numpy() for name, value in columns.items()}).round(4)
    table.insert(0, "observed", mask.flatten().bool().numpy())
    table.insert(0, "node", list(range(signals.num_nodes)) * len(x))
    table.insert(0, "signal", [i for i in range(len(x)) for _ in range(signals.num_nodes)])
    file = Path(out) / f"{signals.name}-imputed.csv"
    file.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(file, index=False)
    return [file]


@recipe("graphs/signal-imputation", sample=impute)
def train_signal_imputation(
    *,
    dataset: str = "digits",
    conv: str = "diagonal",
    out: Path = Path("runs/signal-imputation"),
    steps: int = 1500,
    batch_size: int = 64,
    hidden: int = 32,
    depth: int = 2,
    stalk_dim: int = 4,
    lr: float = 5e-3,
    seed: int = 0,
    device: str = "auto",
    progress: bool = True,
) -> Path:
    """A diffusion model of signals on a graph that fills in the nodes that were not observed.

    Args:
        dataset: digits (pixels); with SUFFUSE_DATA also los-loop (traffic), chickenpox.
        conv: diagonal, orthogonal, general or identity sheaf layers, or gcn.
        out: folder of the checkpoint and logs.
        steps: optimiser steps.
        batch_size: signals per step.
        hidden: width of the network, a multiple of stalk_dim.
        depth: number of blocks.
        stalk_dim: dimension of the stalks.
        lr: learning rate.
        seed: of all random draws.
        device: cpu, cuda, or auto.
        progress: show a progress bar.
    """
    from .data.signals import load_signals

    train_imputer(
        load_signals(dataset), conv=conv, hidden=hidden, depth=depth, stalk_dim=stalk_dim, steps=steps,
        batch_size=batch_size, lr=lr, seed=seed, accelerator=device, progress=progress, out=out,
        metadata={"recipe": "graphs/signal-imputation", "dataset": dataset},
    )  # fmt: skip
    return Path(out)


RECIPES = (train_nsd, train_signal_imputation)
