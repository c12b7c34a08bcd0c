"""Record what a network does on a GPU, forward and backward, and replay it: one launch instead of a thousand.

A step of a small network is not bound there by its arithmetic but by the time that each operation takes to be launched.
A CUDA graph keeps the whole sequence for given shapes: of a network, ``torch.cuda.make_graphed_callables``, or of a
whole step of training, ``torch.cuda.graph``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..condition import Condition
from ..denoiser import NetworkDenoiser

__all__ = ["recorded", "recorded_step"]

#: Shapes of batches that are recorded; each takes the memory of its activations. Further ones go the ordinary way.
SHAPES = 2
#: Steps that run as they are before one is recorded: libraries load, and the optimiser makes its state.
WARM_UP = 3


def recorded_step(step: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """The same step of training, recorded on the GPU at its fourth call and replayed at every later one.

    Args:
        step: everything from ``zero_grad`` to ``optimizer.step()``, and what else is wanted after every step, without
            arguments and always on the same tensors: full-batch training. It reads nothing back from the device, its
            optimiser is ``capturable``, and it returns a tensor on the GPU, which later calls write over.
    """
    stream, graph, calls = torch.cuda.Stream(), torch.cuda.CUDAGraph(), 0  # type: ignore[no-untyped-call]
    out: Tensor | None = None

    def call() -> Tensor:
        nonlocal calls, out
        calls += 1
        if calls <= WARM_UP:
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                warm = step()
            torch.cuda.current_stream().wait_stream(stream)
            return warm
        if out is None:
            with torch.cuda.graph(graph):
                out = step()
        graph.replay()
        return out

    return call


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
