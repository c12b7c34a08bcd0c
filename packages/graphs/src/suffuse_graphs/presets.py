"""Architecture and optimisation of every model on every dataset, as stored in `presets.json`.

    dataset -> model -> {model: arguments of the network, training: arguments of the optimiser, source: where from}

A preset of a model is looked up as that of the model itself, else that of its family ("sheaf" or "baseline"), else the
default of the family. Those whose source is a search were chosen by validation accuracy alone (see `search`); those of
the official launch scripts are the paper's. Baselines have settings of their own: with the regularisation of the sheaf
scripts an MLP would be far worse.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any

from suffuse.errors import InvalidArgument

from .sheaf.maps import MAPS


@dataclass(frozen=True)
class Preset:
    """How one model is built and trained on one dataset.

    Attributes:
        model: arguments of the network (`hidden_channels`, `num_layers`, `dropout`, ...).
        lr: of Adam.
        weight_decay: of all parameters but those of the maps.
        sheaf_decay: weight decay of the maps; None for the same.
        epochs: at most.
        patience: epochs without improvement before stopping.
        stop: what must improve on the validation nodes, "loss" or "accuracy".
        source: where these numbers come from.
    """

    model: dict[str, Any] = field(default_factory=dict)
    lr: float = 0.01
    weight_decay: float = 5e-4
    sheaf_decay: float | None = None
    epochs: int = 1000
    patience: int = 200
    stop: str = "loss"
    source: str = "default"

    def with_(self, model: Mapping[str, Any], **training: Any) -> Preset:
        """The same with some arguments of the network and of training changed."""
        known = asdict(self)
        if wrong := [name for name in training if name not in known or name == "model"]:
            raise InvalidArgument(
                f"training has no argument {wrong[0]!r}; known: {', '.join(sorted(set(known) - {'model'}))}"
            )
        return Preset(**known | training | {"model": self.model | dict(model)})

    @property
    def settings(self) -> dict[str, Any]:
        """All that decides the outcome, JSON-able: everything but the source."""
        return {name: value for name, value in asdict(self).items() if name != "source"}


SHEAF = Preset({"stalk_dim": 3, "num_layers": 2, "hidden_channels": 60, "input_dropout": 0.0, "dropout": 0.5}, lr=0.02)
BASELINE = Preset({"hidden_channels": 64, "num_layers": 2, "dropout": 0.5})
DEFAULTS = {
    "gat": BASELINE.with_({"heads": 8}, lr=0.02, patience=100),
    "gcnii": BASELINE.with_({"num_layers": 8}),
}


@cache
def stored() -> dict[str, Any]:
    """The contents of `presets.json`."""
    return json.loads(files(__package__).joinpath("presets.json").read_text(encoding="utf-8"))


def preset(model: str, dataset: str) -> Preset:
    """Settings of a model on a dataset."""
    family = "sheaf" if model in MAPS else "baseline"
    known = stored().get(dataset, {})
    default = DEFAULTS.get(model, SHEAF if family == "sheaf" else BASELINE)
    found = known.get(model) or known.get(family)
    return default if found is None else default.with_(found["model"], **found["training"], source=found["source"])
