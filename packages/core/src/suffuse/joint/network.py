r"""Networks with a time per stream, and how they are trained.

The loss is the denoising loss with independent times, t_1, ..., t_S ~ U: a model trained with one shared time has never
seen a clean mask beside a noisy image, and its conditionals are wrong. ``DenoisingObjective`` takes times per channel
as they are; all that is needed is a sampler of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..condition import Condition
from ..denoiser import NetworkDenoiser, output_coefficients
from ..errors import InvalidArgument
from ..hub import serializable
from ..nets import MonaiUNet
from ..schedules import Level, Scalar, Schedule
from ..training import TimeSampler, UniformTime
from .streams import Streams

__all__ = ["IndependentTimes", "JointMonaiUNet", "JointNetworkDenoiser"]


@dataclass(frozen=True)
class IndependentTimes(TimeSampler):
    """A time for every stream, drawn apart: (B, C), equal within a stream.

    Args:
        channels: of the streams, in their order.
        base: the distribution of each.
        clean: how often a stream is shown at the least noise instead, which is what conditionals ask about and what a
            uniform time hardly ever is.
    """

    channels: tuple[int, ...]
    base: TimeSampler = field(default_factory=UniformTime)
    clean: float = 0.0

    def __post_init__(self) -> None:
        if not self.channels or not 0 <= self.clean <= 1:
            raise InvalidArgument(f"channels must not be empty and clean lie in [0, 1], got {self}")

    def __call__(
        self,
        schedule: Schedule,
        batch: int,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        parts = []
        for width in self.channels:
            t = self.base(schedule, batch, generator, device)
            if self.clean:
                shown = torch.rand(batch, generator=generator, device=device) < self.clean
                t = t.masked_fill(shown, max(schedule.t_min, 1e-6))
            parts.append(t[:, None].expand(-1, width))
        return torch.cat(parts, dim=1)

    def quantile(self, u: Tensor, schedule: Schedule) -> Tensor:
        return self.base.quantile(u, schedule)


@serializable
class JointNetworkDenoiser(NetworkDenoiser):
    """A network of several streams, read as in ``NetworkDenoiser``, with a time (and a data_std) for each stream.

    Args:
        backbone: called as ``backbone(c_in * x, c_noise, cond)`` with c_noise (B, S), a noise label per stream.
        schedule: of every stream.
        streams: name -> channels.
        prediction_type: as in ``NetworkDenoiser``.
        data_std: name -> standard deviation of the stream; default 1.
    """

    def __init__(
        self,
        backbone: nn.Module,
        schedule: Schedule,
        streams: Mapping[str, int],
        prediction_type: str = "v_prediction",
        data_std: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__(backbone, schedule, prediction_type)
        self.streams = Streams(streams)
        scales = dict.fromkeys(streams, 1.0) | dict(data_std or {})
        if set(scales) != set(streams) or any(not scale > 0 for scale in scales.values()):
            raise InvalidArgument(
                f"data_std must give a positive number for streams of {list(streams)}, got {data_std}"
            )
        each = [torch.full((width,), scales[name]) for name, width in streams.items()]
        self.register_buffer("scale", torch.cat(each), persistent=False)

    scale: Tensor

    def forward(self, x: Tensor, t: Scalar, cond: Condition | None = None) -> Tensor:
        """As ``Denoiser``; t may also be (B, C), a time for every channel, equal within a stream."""
        if x.shape[1] != self.streams.total:
            raise InvalidArgument(f"x has {x.shape[1]} channels, the streams {self.streams.channels} have others")
        t = torch.as_tensor(t, device=x.device, dtype=torch.float32 if x.device.type == "mps" else torch.float64)
        if t.ndim < 2:
            t = t.reshape(-1, 1).expand(len(x), x.shape[1])
        level = self.schedule.level(t, like=x)
        skip, out = self.coefficients(level)
        # what is clean is labelled as the least noise that training has seen
        low, high = self.LOG_KAPPA
        low = max(low, self.schedule.log_kappa(self.schedule.t_min))
        labels = self.schedule.log_kappa(t[:, self.streams.first]).clamp(low, high).to(x.dtype) / 4
        output = self.backbone(self.input_scale(level) * x, labels, cond).to(x.dtype)
        if output.shape != x.shape:
            raise InvalidArgument(f"the backbone returned {tuple(output.shape)} for an input of {tuple(x.shape)}")
        return skip * x + out * output

    def input_scale(self, level: Level) -> Any:
        s = self._scale(level)
        return (level.alpha**2 * s**2 + level.sigma**2) ** -0.5

    def coefficients(self, level: Level) -> tuple[Any, Any]:
        return output_coefficients(level, self.prediction_type, self._scale(level))

    def _scale(self, level: Level) -> Any:
        return self.scale.to(level.alpha.dtype).view(1, -1, *(1,) * (level.alpha.ndim - 2))


@serializable
class JointMonaiUNet(nn.Module):
    """``MonaiUNet`` with the streams side by side as channels and a noise label for each of them.

    The sinusoids of all labels, one behind the other, enter the UNet's time embedding.

    Args:
        spatial_dims: 2 or 3.
        streams: name -> channels.
        kwargs: of ``MonaiUNet`` (tokens, maps) and of MONAI's ``DiffusionModelUNet``.
    """

    def __init__(self, spatial_dims: int, streams: Mapping[str, int], **kwargs: Any) -> None:
        super().__init__()
        self.count = len(streams)
        self.unet = MonaiUNet(spatial_dims, sum(streams.values()), **kwargs)
        inner: Any = self.unet.unet
        first, _, last = inner.time_embed  # linear, activation, linear
        inner.time_embed = nn.Sequential(
            nn.Unflatten(0, (-1, self.count)),
            nn.Flatten(1),
            nn.Linear(self.count * first.in_features, first.out_features),
            nn.SiLU(),
            nn.Linear(last.in_features, last.out_features),
        )

    def forward(self, x: Tensor, c_noise: Tensor, cond: Condition | None = None) -> Tensor:
        return self.unet(x, c_noise.reshape(-1), cond)
