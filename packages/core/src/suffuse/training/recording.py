"""Record what a network does on a GPU, forward and backward, and replay it: one launch instead of a thousand.

A step of a small network is not bound there by its arithmetic but by the time that each operation takes to be launched.
A CUDA graph keeps the whole sequence for given shapes: ``torch.cuda.make_graphed_callables``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..condition import Condition
from ..denoiser import NetworkDenoiser

__all__ = ["recorded"]

#: Shapes of batches that are recorded; each takes the memory of its activations. Further ones go the ordinary way.
SHAPES = 2


def recorded(denoiser: NetworkDenoiser) -> NetworkDenoiser:
    """The same denoiser, of the same parameters, to train with: on a GPU its network is recorded at the first batch.

    Everything else goes through the network itself: batches on a CPU, calls without gradients, under autocast, and of
    further shapes. The network must do the same for every batch of a shape, read nothing back from the device, and
    have its parameters where they will stay.
    """
    return NetworkDenoiser(
        _Recorder(denoiser.backbone), denoiser.schedule, denoiser.prediction_type, denoiser.data_std,
        denoiser.learn_variance, denoiser.self_conditioning,
    )  # fmt: skip


class _Recorder(nn.Module):
    """A backbone and its recordings, by what they were made for."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.recordings: dict[Any, Callable[..., Any]] = {}

    def forward(self, x: Tensor, c_noise: Tensor, cond: Condition | None = None) -> Tensor:
        if not x.is_cuda or not torch.is_grad_enabled() or torch.is_autocast_enabled("cuda"):
            return self.backbone(x, c_noise, cond)
        groups = () if cond is None else (cond.tokens, cond.maps, cond.masks, cond.nulls)
        tensors = (x, c_noise, *(value for group in groups for value in group.values()))
        key = (
            tuple(tuple(group) for group in groups),
            tuple((v.shape, v.dtype, v.device, v.requires_grad) for v in tensors),
            tuple(p.requires_grad for p in self.backbone.parameters()),
            self.backbone.training,
        )
        if key not in self.recordings and len(self.recordings) < SHAPES:
            self.recordings[key] = _record(self.backbone, key[0], tensors)
        replay = self.recordings.get(key)
        return self.backbone(x, c_noise, cond) if replay is None else replay(*tensors)


def _record(backbone: nn.Module, names: tuple[tuple[str, ...], ...], tensors: tuple[Tensor, ...]) -> Callable[..., Any]:
    sample = tuple(v.detach().clone().requires_grad_(v.requires_grad) for v in tensors)  # replays write here
    return torch.cuda.make_graphed_callables(_Flat(backbone, names), sample, allow_unused_input=True)


class _Flat(nn.Module):
    """The network as a function of tensors alone."""

    def __init__(self, backbone: nn.Module, names: tuple[tuple[str, ...], ...]) -> None:
        super().__init__()
        self.backbone, self.names = backbone, names
        self.train(backbone.training)

    def forward(self, x: Tensor, c_noise: Tensor, *values: Tensor) -> Tensor:
        rest = iter(values)
        groups = [{name: next(rest) for name in group} for group in self.names]
        return self.backbone(x, c_noise, Condition(*groups) if groups else None)
