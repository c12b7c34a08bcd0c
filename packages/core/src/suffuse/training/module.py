"""The Lightning module around a denoiser and an objective; for those who bring their own Trainer."""

from __future__ import annotations

import math
from typing import Any, Literal, TypeAlias

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from ..condition import Condition
from ..errors import InvalidArgument
from .ema import EMA
from .objective import DenoisingObjective, Objective

__all__ = ["Batch", "DiffusionModule"]

#: What a loader yields: data alone, with a condition, or with a condition (or None) and per-element loss weights.
Batch: TypeAlias = Tensor | tuple[Tensor, Condition | None] | tuple[Tensor, Condition | None, Tensor | None]


class DiffusionModule(LightningModule):
    """Trains ``denoiser`` with AdamW, warm-up, and an exponential moving average in ``ema.model``.

    The randomness of step k is a function of (seed, k, rank) alone, so a resumed run repeats an uninterrupted one.

    Args:
        denoiser: the model, of the kind that the objective trains.
        objective: the loss; default ``DenoisingObjective()``.
        lr: peak learning rate.
        lr_schedule: after the warm-up, ``"cosine"`` to a hundredth over the run, or ``"constant"``.
        warmup: steps of linear warm-up.
        weight_decay: of AdamW.
        ema_decay: see ``EMA``.
        seed: of times, noise and condition dropout.
    """

    def __init__(
        self,
        denoiser: nn.Module,
        objective: Objective | None = None,
        lr: float = 1e-3,
        lr_schedule: Literal["cosine", "constant"] = "cosine",
        warmup: int = 50,
        weight_decay: float = 0.0,
        ema_decay: float = 0.999,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not lr > 0:
            raise InvalidArgument(f"lr must be positive, got {lr}")
        if lr_schedule not in ("cosine", "constant"):
            raise InvalidArgument(f"lr_schedule must be 'cosine' or 'constant', got {lr_schedule!r}")
        self.denoiser = denoiser
        self.objective: Objective = objective or DenoisingObjective()
        self.ema = EMA(denoiser, ema_decay)
        self.lr, self.lr_schedule, self.warmup, self.weight_decay = lr, lr_schedule, warmup, weight_decay
        self.seed = seed

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss = self._loss(self.denoiser, batch, self.global_step)
        self.log("loss", loss.detach(), prog_bar=True)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """The loss of the average weights, at the same times and noise every time."""
        x = batch if isinstance(batch, Tensor) else batch[0]
        self.log("val_loss", self._loss(self.ema.model, batch, -1 - batch_idx), prog_bar=True, batch_size=len(x))

    def _loss(self, denoiser: nn.Module, batch: Batch, step: int) -> Tensor:
        x, cond, weight = (batch, None, None) if isinstance(batch, Tensor) else (*batch, None)[:3]
        # a fixed mix of seed, step and rank: Knuth's multiplier keeps neighbouring seeds and steps apart
        mixed = (self.seed * 6364136223846793005 + step * 1442695040888963407 + self.global_rank) % 2**63
        generator = torch.Generator(self.device).manual_seed(mixed)
        return self.objective(denoiser, x, cond, generator, weight)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        n = self.trainer.global_step
        super().optimizer_step(*args, **kwargs)
        self.ema.update(self.denoiser, n)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        if isinstance(batch, list | tuple):
            return tuple(None if part is None else part.to(device) for part in batch)
        return batch.to(device)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(
            self.denoiser.parameters(), lr=self.lr, betas=(0.9, 0.99), weight_decay=self.weight_decay
        )
        total = max(int(self.trainer.estimated_stepping_batches), 1)
        warmup = max(min(self.warmup, total // 5), 1)

        def factor(step: int) -> float:
            rise = min((step + 1) / warmup, 1.0)
            if self.lr_schedule == "constant":
                return rise
            done = min(max(step - warmup, 0) / max(total - warmup, 1), 1.0)
            return rise * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done)))

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
