r"""Several streams in one tensor, and what becomes of a joint denoiser when some of them are held.

Streams (an image and its mask, several MR sequences) lie one behind the other along the channels of x. A joint denoiser
is a denoiser that also takes a time for every channel, t of shape (B, C), and answers

    D(x, t) = E[ x_0^1, ..., x_0^S | x^1 at t_1, ..., x^S at t_S ].

One model then answers every question, each by a schedule of times:

    t = (t, t)      the joint distribution
    t = (t, 0)      x^1 given a clean x^2, and the other way round
    t = (t, c)      x^1 given x^2 seen through noise of level c: coarse control
    t = (t, 1)      x^1 alone, whatever x^2

A held stream leaves a plain denoiser of the others, so every sampler, guidance and constraint applies.
Li et al. (2024), "A Simple Approach to Unifying Diffusion-based Conditional Generation" (UniCon), arXiv:2410.11439;
Bao et al. (2023), "One Transformer Fits All Distributions in Multi-Modal Diffusion" (UniDiffuser), arXiv:2303.06555.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from ..condition import Condition
from ..denoiser import Denoiser
from ..errors import InvalidArgument
from ..random import Generators, randn
from ..schedules import Scalar, Schedule

if TYPE_CHECKING:
    from ..samplers import Sampler

__all__ = ["Held", "Joint", "Segment", "Streams", "given", "walk"]


class Streams:
    """Names and channels of the streams, in their order.

    Args:
        channels: name -> number of channels.
    """

    def __init__(self, channels: Mapping[str, int]) -> None:
        if not channels or any(width < 1 for width in channels.values()):
            raise InvalidArgument(f"streams must name at least one stream with at least one channel, got {channels}")
        self.channels = dict(channels)

    @property
    def total(self) -> int:
        return sum(self.channels.values())

    @property
    def first(self) -> list[int]:
        """The first channel of each stream."""
        starts, at = [], 0
        for width in self.channels.values():
            starts.append(at)
            at += width
        return starts

    def split(self, x: Tensor) -> dict[str, Tensor]:
        """(B, C, ...) -> name -> (B, C_k, ...)."""
        if x.shape[1] != self.total:
            raise InvalidArgument(f"x has {x.shape[1]} channels, the streams {self.channels} have {self.total}")
        return dict(zip(self.channels, torch.split(x, list(self.channels.values()), dim=1), strict=True))

    def stack(self, values: Mapping[str, Tensor]) -> Tensor:
        """The inverse of ``split``, for these or some of the streams, in their order."""
        if stray := set(values) - set(self.channels):
            raise InvalidArgument(f"no stream is called {sorted(stray)}; there is {list(self.channels)}")
        for name, value in values.items():
            if value.ndim < 2 or value.shape[1] != self.channels[name]:
                raise InvalidArgument(
                    f"stream {name!r} must be (B, {self.channels[name]}, ...), got {tuple(value.shape)}"
                )
        return torch.cat([values[name] for name in self.channels if name in values], dim=1)

    def times(self, t: Mapping[str, Scalar], batch: int, device: torch.device) -> Tensor:
        """A time per stream -> a time per channel, (B, C) float64 (float32 where there is none)."""
        kind = torch.float32 if device.type == "mps" else torch.float64
        parts = []
        for name, width in self.channels.items():
            value = torch.as_tensor(t[name], dtype=kind, device=device).expand(batch)
            parts.append(value[:, None].expand(batch, width))
        return torch.cat(parts, dim=1)


class Joint(Protocol):
    """A denoiser that takes a time per channel and knows its streams."""

    schedule: Schedule
    streams: Streams

    def __call__(self, x: Tensor, t: Scalar, cond: Condition | None = None) -> Tensor: ...


class Held(Denoiser):
    """The denoiser of the streams that are not held, stacked in their order.

    With ``guidance_scale`` w the posterior mean is D_apart + w (D - D_apart), where D_apart sees pure noise in place of
    what is held: UniCon's condition guidance, with their s = w - 1. It costs a second call, in one doubled batch.

    Args:
        joint: the joint denoiser.
        values: held streams by name, (B, C_k, ...), as they are at their times.
        times: the time of each; 0 is clean.
        guidance_scale: w; 1 is none.
        generator: of the noise that guidance needs.
    """

    def __init__(
        self,
        joint: Joint,
        values: Mapping[str, Tensor],
        times: Mapping[str, float],
        guidance_scale: float = 1.0,
        generator: Generators = None,
    ) -> None:
        super().__init__()
        if set(values) != set(times):
            raise InvalidArgument(f"values and times must name the same streams, got {list(values)} and {list(times)}")
        free = {name: width for name, width in joint.streams.channels.items() if name not in values}
        if not free:
            raise InvalidArgument("all streams are held, so there is nothing left to denoise")
        if values:
            joint.streams.stack(values)  # names and channels
        self.joint, self.schedule, self.free = joint, joint.schedule, Streams(free)
        self.values, self.times, self.guidance_scale = dict(values), dict(times), float(guidance_scale)
        self.noise = {}
        if guidance_scale != 1.0:
            if not values:
                raise InvalidArgument("guidance_scale needs a held stream to be guided by")
            sigma = self.schedule.sigma(1.0)
            self.noise = {k: sigma * randn(v.shape, generator, v.device, v.dtype) for k, v in values.items()}

    def forward(self, x: Tensor, t: Scalar, cond: Condition | None = None) -> Tensor:
        mean = self._mean(x, t, cond, self.values, self.times)
        if self.guidance_scale == 1.0:
            return mean
        apart = self._mean(x, t, cond, self.noise, dict.fromkeys(self.noise, 1.0))
        return apart + self.guidance_scale * (mean - apart)

    def _mean(
        self, x: Tensor, t: Scalar, cond: Condition | None, values: Mapping[str, Tensor], times: Mapping[str, float]
    ) -> Tensor:
        if any(len(value) != len(x) for value in values.values()):
            raise InvalidArgument(f"held streams have {[len(v) for v in values.values()]} rows, x has {len(x)}")
        streams = self.joint.streams
        together = streams.stack({**self.free.split(x), **{k: v.to(x) for k, v in values.items()}})
        levels: dict[str, Scalar] = {**dict.fromkeys(self.free.channels, t), **times}
        mean = streams.split(self.joint(together, streams.times(levels, len(x), x.device), cond))
        return self.free.stack({name: mean[name] for name in self.free.channels})


def given(
    joint: Joint,
    known: Mapping[str, Tensor] | None = None,
    *,
    t: float = 0.0,
    guidance_scale: float = 1.0,
    generator: Generators = None,
) -> Held:
    """The denoiser of all other streams given these; of all streams together when nothing is known.

    Args:
        joint: the joint denoiser.
        known: clean streams by name, (B, C_k, ...).
        t: how much noise they are seen through: 0 all of their detail, 1 nothing of them.
        guidance_scale: see :class:`Held`.
        generator: of that noise.
    """
    known = known or {}
    if not 0 <= t <= 1:
        raise InvalidArgument(f"t must lie in [0, 1], got {t}")
    if t > 0:
        level = joint.schedule.level(t)
        known = {
            name: level.alpha * value + level.sigma * randn(value.shape, generator, value.device, value.dtype)
            for name, value in known.items()
        }
    return Held(joint, known, dict.fromkeys(known, t), guidance_scale, generator)


@dataclass(frozen=True)
class Segment:
    """A piece of a walk: the streams that move, from one time to another, while the others stay where they are."""

    moves: tuple[str, ...]
    start: float
    stop: float


def walk(
    joint: Joint,
    sampler: Sampler,
    shapes: Mapping[str, Sequence[int]],
    segments: Sequence[Segment],
    *,
    cond: Condition | None = None,
    generator: Generators = None,
) -> dict[str, Tensor]:
    """Move the streams from noise along a staircase of times, each segment by the sampler.

    ``[Segment(("mask",), 1, 0), Segment(("image",), 1, 0)]`` draws a mask and then its image;
    ``[Segment(("mask", "image"), 1, 0.5), Segment(("mask",), 0.5, 0), Segment(("image",), 0.5, 0)]`` settles the mask
    once the coarse image is there.

    Args:
        shapes: name -> (B, C_k, ...) of every stream.
        segments: in their order; streams that move together must be at the same time when they start.

    Returns:
        the streams where the walk has left them.
    """
    device = next((p.device for p in getattr(joint, "parameters", lambda: iter(()))()), torch.device("cpu"))
    sigma = joint.schedule.sigma(1.0)
    values = {name: sigma * randn(shape, generator, device) for name, shape in shapes.items()}
    at = dict.fromkeys(values, 1.0)
    if set(values) != set(joint.streams.channels):
        raise InvalidArgument(f"shapes must name every stream, {list(joint.streams.channels)}, got {list(values)}")
    for segment in segments:
        if stray := [name for name in segment.moves if at.get(name) != segment.start]:
            raise InvalidArgument(f"{segment} moves {stray}, which are at {[at.get(name) for name in stray]}")
        held = {name: value for name, value in values.items() if name not in segment.moves}
        denoiser = Held(joint, held, {name: at[name] for name in held})
        moved = sampler(
            denoiser,
            x=denoiser.free.stack({name: values[name] for name in segment.moves}),
            start=segment.start,
            stop=segment.stop,
            cond=cond,
            generator=generator,
        )
        values |= denoiser.free.split(moved)
        at |= dict.fromkeys(segment.moves, segment.stop)
    return values
