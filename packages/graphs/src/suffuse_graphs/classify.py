"""Training a node classifier the way the tables of the field are made.

Full batch, Adam, cross-entropy on the training nodes; after every step one evaluation. The model of the epoch with the
strictly best validation loss (or accuracy) is kept, and training stops when it has not improved for `patience` epochs.
The test nodes are looked at once, with that model. The maps of a sheaf may have their own weight decay.

Protocol: Pei et al. (2020), "Geom-GCN", arXiv:2002.05287 (ten fixed splits); Bodnar et al. (2022), arXiv:2202.04579.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch_geometric.data import Data
from torch_geometric.utils import to_torch_csr_tensor

from suffuse.errors import InvalidArgument, TrainingDiverged

from .data.nodes import check_nodes, split_of
from .nets.classifiers import classifier
from .presets import Preset
from .sheaf import NeuralSheafDiffusion

#: Share of values other than 0 below which products with a sparse matrix are faster on CPUs and GPUs.
SPARSE = 0.05


@dataclass(frozen=True)
class Result:
    """What training gave: scores in [0, 1] of the kept epoch, the number of epochs run, and seconds."""

    model: nn.Module
    test: float
    val: float
    epochs: int
    seconds: float


def build(model: str, data: Data, preset: Preset) -> nn.Module:
    """The network of a preset for a graph."""
    return classifier(model, data.num_features, int(data.y.max()) + 1, **preset.model)


def train_preset(
    model: str, data: Data, preset: Preset, split: int = 0, *, seed: int = 0, device: str | torch.device = "cpu"
) -> Result:
    """Build and train a model on one split by its preset; each split has a seed of its own."""
    torch.manual_seed(1000 * seed + split)
    return train_classifier(
        build(model, data, preset), data, split, lr=preset.lr, weight_decay=preset.weight_decay,
        sheaf_decay=preset.sheaf_decay, epochs=preset.epochs, patience=preset.patience, stop=preset.stop, device=device,
    )  # fmt: skip


def train_classifier(
    model: nn.Module,
    data: Data,
    split: int = 0,
    *,
    lr: float = 0.01,
    weight_decay: float = 5e-4,
    sheaf_decay: float | None = None,
    epochs: int = 1000,
    patience: int = 200,
    stop: str = "loss",
    device: str | torch.device = "cpu",
) -> Result:
    """Train on one split and keep the model of the best validation epoch.

    Args:
        model: (x, edge_index) -> logits.
        data: as `load_nodes` gives it; `data.metric` may be "auroc" for two unbalanced classes.
        split: column of the masks.
        lr: of Adam.
        weight_decay: of all parameters but those of the maps.
        sheaf_decay: weight decay of the maps; by default the same.
        epochs: at most.
        patience: epochs without improvement before stopping.
        stop: what must improve on the validation nodes, "loss" or "accuracy" (the metric of the dataset).
        device: where to train. On a GPU the epoch of a network that is `recordable` is recorded and replayed.
    """
    if stop not in ("loss", "accuracy"):
        raise InvalidArgument(f"stop must be 'loss' or 'accuracy', got {stop!r}")
    if epochs < 1:
        raise InvalidArgument(f"epochs must be at least 1, got {epochs}")
    train, val, test = (m.nonzero().flatten().to(device) for m in split_of(check_nodes(data), split))
    if not (len(train) and len(val) and len(test)):
        raise InvalidArgument(f"split {split} has an empty training, validation or test mask")
    metric = data.get("metric") or "accuracy"
    model, y = model.to(device), data.y.to(device)
    replayed = y.is_cuda and getattr(model, "recordable", False) and metric == "accuracy"
    x, edge_index = (data.x.to(y.device), data.edge_index.to(y.device)) if replayed else inputs(model, data, device)
    groups = _groups(model, weight_decay, sheaf_decay)
    optimizer = torch.optim.Adam(groups, lr=lr, fused=x.dtype == torch.float32, capturable=replayed)

    def finite(loss: float) -> None:
        if not math.isfinite(loss):
            raise TrainingDiverged(f"the loss became {loss} at epoch {epoch}; lower lr (now {lr})")

    def step() -> Tensor:
        """One epoch: the loss before the step, and what must become smaller after it."""
        optimizer.zero_grad()
        loss = cross_entropy(model.train()(x, edge_index)[train], y[train])
        if not replayed:  # a recording can't look
            finite(loss.item())
        loss.backward()
        optimizer.step()
        logits = evaluate(model, x, edge_index)[val]
        value = cross_entropy(logits, y[val]) if stop == "loss" else -score(logits, y[val], metric)
        return torch.stack([loss.detach(), value.to(loss)])

    run = _recorded(step) if replayed else step
    started, best, kept, since, epoch = time.perf_counter(), float("inf"), copy.deepcopy(model.state_dict()), 0, 0
    for epoch in range(1, epochs + 1):  # noqa: B007 (`finite` tells it)
        loss, value = run().tolist()
        finite(loss)
        if value < best:
            best, kept, since = value, copy.deepcopy(model.state_dict()), 0
        else:
            since += 1
        if since >= patience:
            break
    model.load_state_dict(kept)
    logits = evaluate(model, x, edge_index)
    on_test, on_val = (float(score(logits[part], y[part], metric)) for part in (test, val))
    return Result(model.eval(), on_test, on_val, epoch, time.perf_counter() - started)


def _recorded(step: Callable[[], Tensor]) -> Callable[[], Tensor]:
    from suffuse.training import recorded_step  # Lightning takes seconds to load

    return recorded_step(step)


def inputs(model: nn.Module, data: Data, device: str | torch.device = "cpu") -> tuple[Tensor, Tensor]:
    """x and edge_index, as sparse CSR where the model takes that and it is faster: bags of words, large sums."""
    x, edge_index = data.x.to(device), data.edge_index.to(device)
    if getattr(model, "sparse_features", False) and x.count_nonzero() < SPARSE * x.numel():
        x = x.to_sparse_csr()
    if getattr(model, "sparse_graph", False):
        edge_index = to_torch_csr_tensor(edge_index.flip(0), size=(data.num_nodes, data.num_nodes))  # adj[to, from]
    return x, edge_index


@torch.no_grad()
def evaluate(model: nn.Module, x: Tensor, edge_index: Any) -> Tensor:
    """Logits in evaluation mode."""
    return model.eval()(x, edge_index)


def score(logits: Tensor, y: Tensor, metric: str = "accuracy") -> Tensor:
    """Share of nodes whose largest logit is at their class, or the area under the ROC curve of class 1."""
    if metric == "auroc":
        from torchmetrics.functional.classification import binary_auroc

        return binary_auroc((logits[:, 1] - logits[:, 0]), y)
    return (logits.argmax(-1) == y).float().mean()


def _groups(model: nn.Module, decay: float, sheaf_decay: float | None) -> Iterable[dict[str, Any]]:
    maps = model.sheaf_parameters() if isinstance(model, NeuralSheafDiffusion) else []
    of_maps = {id(p) for p in maps}
    rest = [p for p in model.parameters() if id(p) not in of_maps]
    groups = [
        {"params": rest, "weight_decay": decay},
        {"params": maps, "weight_decay": decay if sheaf_decay is None else sheaf_decay},
    ]
    return [group for group in groups if group["params"]]
