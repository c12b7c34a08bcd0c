"""The training loop of networks that are not denoisers: baselines and inverse models."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from suffuse.errors import InvalidArgument, TrainingDiverged


def regress(
    network: nn.Module,
    loss: Callable[[Tensor, torch.Generator], Tensor],
    n: int,
    *,
    steps: int,
    batch_size: int = 64,
    lr: float = 1e-3,
    seed: int = 0,
) -> None:
    """Minimise a loss of random rows by AdamW, with a cosine to zero.

    Args:
        network: trained in place.
        loss: (rows (batch_size,), generator) -> scalar.
        n: rows are drawn from 0 … n - 1.
        steps, batch_size, lr: of the optimiser.
        seed: of the rows, and of what the loss draws.
    """
    if steps < 1:
        raise InvalidArgument(f"steps must be at least 1, got {steps}")
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(network.parameters(), lr=lr, weight_decay=1e-4)
    anneal = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    value = torch.zeros(())
    for _ in range(steps):
        rows = torch.randint(n, (batch_size,), generator=generator)
        value = loss(rows, generator)
        optimiser.zero_grad()
        value.backward()
        optimiser.step()
        anneal.step()
    if not bool(value.isfinite()):
        raise TrainingDiverged(f"the loss became NaN or infinite within {steps} steps; lower lr={lr}")
