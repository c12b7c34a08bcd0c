"""The exponential moving average of a model's weights, which is what is sampled from."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from ..errors import InvalidArgument

__all__ = ["EMA"]


class EMA(nn.Module):
    """avg <- decay avg + (1 - decay) weights, with decay warmed up as min(decay, (1 + n) / (10 + n)) after n updates.

    Args:
        model: copied at once; the copy, ``.model``, is in evaluation mode and without gradients.
        decay: in [0, 1); 0 follows the weights exactly.
    """

    def __init__(self, model: nn.Module, decay: float = 0.999) -> None:
        super().__init__()
        if not 0 <= decay < 1:
            raise InvalidArgument(f"ema_decay must lie in [0, 1), got {decay}")
        self.model, self.decay = copy.deepcopy(model).eval().requires_grad_(False), decay

    def train(self, mode: bool = True) -> EMA:
        return self  # the average is never in training mode

    @torch.no_grad()
    def update(self, model: nn.Module, n: int) -> None:
        """The n-th update, n = 0, 1, ... (the caller counts, so that nothing is read back from the device)."""
        decay = min(self.decay, (1 + n) / (10 + n))
        averages: list[Tensor] = list(self.model.parameters())
        weights: list[Tensor] = list(model.parameters())
        torch._foreach_lerp_(averages, weights, 1 - decay)
        for mine, theirs in zip(self.model.buffers(), model.buffers(), strict=True):
            mine.copy_(theirs)
