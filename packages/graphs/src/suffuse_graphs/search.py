"""Settings by a search: a budget of trials, judged by the validation nodes of the first splits and by nothing else.

Optuna proposes (its TPE sampler, the preset of the dataset first) and keeps every trial in a journal file, so that a
search goes on where it stopped and a larger budget adds to a smaller one. What was chosen, its validation accuracy and
the spread over all trials stand in a JSON file beside the journal, in the form of `presets.json`.

The ranges are those of the paper's sweeps: d 2-5 and the fixed rows, L 2-6, f 8-32, decays log-uniform, dropouts 0-0.9.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch_geometric.data import Data

from suffuse.bench.row import write_text
from suffuse.errors import InvalidArgument, require

from .classify import train_preset
from .presets import Preset
from .sheaf.maps import MAPS

SPLITS = (0, 1, 2)
"""The splits whose validation nodes judge a trial."""
ROWS = ("low_pass", "high_pass")


def search(
    model: str,
    data: Data,
    start: Preset,
    trials: int,
    file: Path,
    *,
    splits: tuple[int, ...] = SPLITS,
    seed: int = 0,
    device: str | torch.device = "cpu",
    progress: bool = False,
) -> Preset:
    """The best preset of `trials` trials in all, those of earlier calls with the same file included.

    Args:
        model: name of a classifier.
        data: as `load_nodes` gives it.
        start: tried first; gives what is not searched (epochs, patience, stop).
        trials: how many trials the journal shall hold in the end.
        file: journal of Optuna; the choice is written beside it, with the ending .json.
        splits: judged by their mean validation score.
        seed: of the proposals and of training.
        device: where to train.
        progress: print every trial.
    """
    optuna = require("optuna", extra="search", package="suffuse-graphs")
    if trials < 1:
        raise InvalidArgument(f"trials must be at least 1, got {trials}")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    file.parent.mkdir(parents=True, exist_ok=True)
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(file)))
    study = optuna.create_study(
        study_name=model,
        storage=storage,
        load_if_exists=True,
        direction="maximize",
        sampler=optuna.samplers.TPESampler(seed=seed, n_startup_trials=8, multivariate=True),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=4),
    )
    if not study.trials:
        study.enqueue_trial(_as_parameters(model, start))

    def objective(trial: Any) -> float:
        chosen = propose(trial, model, start)
        values: list[float] = []
        for step, split in enumerate(splits):
            values.append(train_preset(model, data, chosen, split, seed=seed, device=device).val)
            trial.report(sum(values) / len(values), step)
            if step + 1 < len(splits) and trial.should_prune():
                raise optuna.TrialPruned
        return sum(values) / len(values)

    def tell(_: Any, trial: Any) -> None:
        if progress:
            value = "given up" if trial.value is None else f"validation {100 * trial.value:.2f} %"
            print(f"{model}, trial {trial.number}: {value}", flush=True)

    done = lambda: sum(trial.state.is_finished() for trial in study.trials)  # noqa: E731
    if done() < trials:
        study.optimize(objective, n_trials=trials - done(), callbacks=[tell])
    best = propose(optuna.trial.FixedTrial(study.best_params), model, start)
    values = sorted(100 * trial.value for trial in study.trials if trial.state.name == "COMPLETE")
    source = f"search of {done()} trials by validation on splits {', '.join(map(str, splits))}"
    record = {
        "model": best.model,
        "training": {name: value for name, value in best.settings.items() if name != "model"},
        "source": source,
        "validation": {"best": values[-1], "median": values[len(values) // 2], "worst": values[0]},
    }
    write_text(file.with_suffix(".json"), json.dumps(record, indent=1) + "\n")
    return best.with_({}, source=source)


def propose(trial: Any, model: str, start: Preset) -> Preset:
    """The preset that a trial of Optuna names. Ranges are widened to hold the preset that is tried first."""
    first = _as_parameters(model, start)

    def among(name: str, *choices: Any) -> Any:
        return trial.suggest_categorical(name, sorted({*choices, first.get(name, choices[0])}))

    def between(name: str, low: float, high: float, log: bool = False) -> float:
        value = first.get(name, high)
        return trial.suggest_float(name, min(low, value), max(high, value), log=log)

    def count(name: str, low: int, high: int) -> int:
        value = first.get(name, high)
        return trial.suggest_int(name, min(low, value), max(high, value))

    training = {"lr": among("lr", 0.005, 0.01, 0.02), "weight_decay": between("weight_decay", 1e-5, 1e-2, log=True)}
    shape: dict[str, Any] = {"dropout": between("dropout", 0.0, 0.9)}
    if model in MAPS:
        rows = {row: among(row, False, True) for row in ROWS}
        shape |= rows | {"stalk_dim": count("stalk_dim", 2, 5), "num_layers": count("num_layers", 2, 6)}
        shape["hidden_channels"] = (shape["stalk_dim"] + sum(rows.values())) * among("channels", 8, 16, 20, 32)
        shape["input_dropout"] = between("input_dropout", 0.0, 0.9)
        training["sheaf_decay"] = between("sheaf_decay", 1e-5, 1e-2, log=True)
    else:
        shape["hidden_channels"] = among("hidden_channels", 32, 64, 128)
        shape["num_layers"] = among("num_layers", *([8, 16, 32] if model == "gcnii" else [1, 2, 3]))
        if model in ("gcnii", "gprgnn"):
            shape["alpha"] = between("alpha", 0.1, 0.9)
    return start.with_(shape, **training)


def _as_parameters(model: str, start: Preset) -> dict[str, Any]:
    """The preset in the names of `propose`; what it does not say is proposed."""
    known = start.model | {"lr": start.lr, "weight_decay": start.weight_decay}
    if model in MAPS:
        known = dict.fromkeys(ROWS, False) | known
        known["channels"] = known["hidden_channels"] // (known["stalk_dim"] + sum(known[row] for row in ROWS))
        known["sheaf_decay"] = start.weight_decay if start.sheaf_decay is None else start.sheaf_decay
        names: tuple[str, ...] = (
            *ROWS,
            "stalk_dim",
            "channels",
            "num_layers",
            "dropout",
            "input_dropout",
            "sheaf_decay",
            "lr",
            "weight_decay",
        )
    else:
        names = ("hidden_channels", "num_layers", "dropout", "alpha", "lr", "weight_decay")
    return {name: known[name] for name in names if name in known and (known[name] > 0 or "decay" not in name)}
