"""Training on batches of graphs by Lightning: several devices, mixed precision, accumulation are the Trainer's flags.

    module = GraphModule(NeuralSheafDiffusion(16, 32, 2, 3, stalk_dim=2))
    data = LightningDataset(graphs, batch_size=32)          # of torch_geometric.data.lightning
    Trainer(devices=2, strategy="ddp", precision="bf16-mixed").fit(module, data)

A batch is PyG's: disjoint graphs in one, or seeds with their neighbourhood (`neighbor_loader`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss
from torch_geometric.nn.resolver import aggregation_resolver

from suffuse.errors import InvalidArgument, TrainingDiverged

LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"cross_entropy": cross_entropy, "mse": mse_loss}


class GraphModule(LightningModule):
    """Trains a model (x, edge_index, edge_weight) -> (n, out) with Adam.

    Args:
        model: such as `NeuralSheafDiffusion`.
        loss: "cross_entropy" or "mse".
        readout: "mean", "sum", "max", ... for a target per graph; None for a target per node.
        mask: name of the node mask that training uses, where batches have it.
        lr: of Adam.
        weight_decay: of all parameters but those of maps.
        sheaf_decay: of the maps; by default the same.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        loss: str = "cross_entropy",
        readout: str | None = None,
        mask: str = "train_mask",
        lr: float = 0.01,
        weight_decay: float = 0.0,
        sheaf_decay: float | None = None,
    ) -> None:
        super().__init__()
        if loss not in LOSSES:
            raise InvalidArgument(f"loss must be one of {', '.join(LOSSES)}; got {loss!r}")
        if not lr > 0:
            raise InvalidArgument(f"lr must be positive, got {lr}")
        self.model, self.mask = model, mask
        self.loss: Callable[[Tensor, Tensor], Tensor] = LOSSES[loss]
        self.readout = aggregation_resolver(readout) if readout else None
        self.lr, self.weight_decay = lr, weight_decay
        self.sheaf_decay = weight_decay if sheaf_decay is None else sheaf_decay

    def forward(self, batch: Any) -> Tensor:
        """A row for each node, for each seed of a sampled neighbourhood, or for each graph."""
        out = self.model(batch.x, batch.edge_index, batch.get("edge_weight"))
        if self.readout is not None:
            return self.readout(out, batch.batch, dim_size=batch.num_graphs)
        return out[: batch.batch_size] if "input_id" in batch else out

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self._step(batch, "loss")

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self._step(batch, "val_loss")

    def _step(self, batch: Any, name: str) -> Tensor:
        out = self(batch)
        y = batch.y[: len(out)]
        if self.readout is None and self.training and self.mask in batch:
            chosen = batch[self.mask][: len(out)]
            out, y = out[chosen], y[chosen]
        loss = self.loss(out.float(), y)
        if self.device.type == "cpu" and not torch.isfinite(loss):
            raise TrainingDiverged(
                f"the loss became {float(loss)} at step {self.global_step}; lower lr (now {self.lr})"
            )
        self.log(name, loss.detach(), prog_bar=True, batch_size=len(out), sync_dist=name != "loss")
        return loss

    def configure_optimizers(self) -> Any:
        of_maps: Callable[[], list[nn.Parameter]] = getattr(self.model, "sheaf_parameters", list)
        maps = of_maps()
        known = {id(p) for p in maps}
        rest = [p for p in self.parameters() if id(p) not in known]
        groups = [{"params": rest, "weight_decay": self.weight_decay}]
        if maps:
            groups.append({"params": maps, "weight_decay": self.sheaf_decay})
        return torch.optim.Adam(groups, lr=self.lr)
