"""What can be trained: a node classifier along a learned sheaf, and a diffusion model that fills in graph signals."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from suffuse.errors import InvalidArgument, unknown
from suffuse.recipes import recipe

if TYPE_CHECKING:
    from suffuse import NetworkDenoiser

    from .classify import Result
    from .data.signals import GraphSignals
    from .protocol import Score, Scores


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
    model: str = "orthogonal",
    split: str = "0",
    out: Path = Path("runs/nsd"),
    search: int = 0,
    control: bool = True,
    epochs: int | None = None,
    patience: int | None = None,
    stalk_dim: int | None = None,
    layers: int | None = None,
    hidden: int | None = None,
    dropout: float | None = None,
    lr: float | None = None,
    weight_decay: float | None = None,
    seed: int = 0,
    device: str = "auto",
    progress: bool = True,
) -> Path:
    """Neural sheaf diffusion and its peers for node classification, by the protocol of the field's tables.

    Scores of splits are kept in the folder `scores` of `out`: a run that was interrupted goes on where it stopped.

    Args:
        dataset: karate, drosophila (inside graspologic); with SUFFUSE_DATA also texas, wisconsin, cornell,
            cornell-2020, film, chameleon, squirrel, cora, citeseer, pubmed, and roman-empire, amazon-ratings,
            minesweeper, tolokers, questions, chameleon-filtered, squirrel-filtered.
        model: orthogonal, diagonal, general (learned sheaves), connection (fixed, by local PCA), identity (the
            control), mlp, gcn, gat, sage, gcnii, h2gcn, gprgnn; or all.
        split: number of the split, or all. The checkpoint is that of the first model and split.
        out: folder of the checkpoint, the scores and the searches.
        search: first look for settings with so many trials of Optuna, by the validation nodes alone; what was tried is
            kept, and more trials may be added later.
        control: with split all, a sheaf is compared with the control that has all maps frozen to the identity.
        epochs: at most so many; this and the following default to the preset of the dataset.
        patience: epochs without improvement before stopping.
        stalk_dim: dimension d of the stalks.
        layers: diffusion steps.
        hidden: width, for sheaves a multiple of stalk_dim.
        dropout: of hidden features.
        lr: learning rate.
        weight_decay: of all parameters, maps included.
        seed: of initialisation and dropout; each split has its own.
        device: cpu, cuda, or auto.
        progress: print the result of every split.
    """
    from suffuse import hub
    from suffuse.bench.runner import resolve_device

    from .classify import build, train_preset
    from .data.nodes import load_nodes, split_of
    from .nets.classifiers import CONTROL, MODELS, SHEAVES
    from .presets import preset
    from .protocol import paired, train_splits

    if model not in (*MODELS, "all"):
        raise unknown("model", model, [*MODELS, "all"])
    if split != "all" and not split.isdigit():
        raise InvalidArgument(f"split: must be a number or 'all', got {split!r}")
    if search < 0:
        raise InvalidArgument(f"search: the number of trials must not be negative, got {search}")
    data, where, out = load_nodes(dataset), resolve_device(device), Path(out)
    numbers = list(range(data.train_mask.size(1))) if split == "all" else [int(split)]
    split_of(data, numbers[-1])
    models = list(MODELS) if model == "all" else [model]
    if control and len(numbers) > 1 and model in SHEAVES:
        models.append(CONTROL)
    shape = {"num_layers": layers, "hidden_channels": hidden, "dropout": dropout}
    training = {
        "epochs": epochs,
        "patience": patience,
        "lr": lr,
        "weight_decay": weight_decay,
        "sheaf_decay": weight_decay,
    }
    presets = {}
    for name in models:
        chosen = preset(name, dataset)
        if search:
            from .search import search as look

            file = out / "search" / f"{dataset}-{name}.log"
            chosen = look(name, data, chosen, search, file, seed=seed, device=where, progress=progress)
        stalks = {"stalk_dim": stalk_dim} if name in (*SHEAVES, CONTROL) else {}
        presets[name] = chosen.with_(_given(shape | stalks), **_given(training))
        build(name, data, presets[name])  # what does not fit is said before anything is trained

    facts = {
        "recipe": "graphs/nsd", "dataset": dataset, "model": models[0], "split": numbers[0],
        "preset": presets[models[0]].settings, "source": presets[models[0]].source,
    }  # fmt: skip

    def keep(fitted: Result) -> None:
        hub.save(fitted.model.cpu(), out, facts | {"test": fitted.test, "validation": fitted.val})

    found: dict[str, Scores] = {}
    for name in models:

        def tell(score: Score, fitted: Result, name: str = name) -> None:
            if name == models[0] and score.split == numbers[0]:
                keep(fitted)
            if progress:
                print(
                    f"{dataset}, {name}, split {score.split}: {100 * score.test:.2f} %, {score.seconds:.1f} s",
                    flush=True,
                )

        record = out / "scores" / f"{dataset}-{name}.jsonl"
        found[name] = train_splits(
            name, data, presets[name], numbers, seed=seed, device=where, record=record, tell=tell
        )
        if progress and len(numbers) > 1:
            print(f"{dataset}, {name}: {found[name]} (test {data.get('metric') or 'accuracy'})", flush=True)
    if progress and len(numbers) > 1 and CONTROL in found:
        for name in found.keys() & set(SHEAVES):
            gap, error = paired(found[name], found[CONTROL])
            print(f"{dataset}, {name} against identity maps, paired: {gap:+.1f} ± {error:.1f} points", flush=True)

    kept = hub.read_config(out)["metadata"] if (out / hub.CONFIG).exists() else {}
    if any(kept.get(key) != value for key, value in facts.items()):  # scores were known, but their model is gone
        keep(train_preset(models[0], data, presets[models[0]], numbers[0], seed=seed, device=where))
    return out


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
        dataset: digits (pixels); with SUFFUSE_DATA also los-loop (traffic), montevideo (buses), chickenpox.
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
