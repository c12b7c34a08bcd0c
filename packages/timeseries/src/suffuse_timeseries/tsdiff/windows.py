r"""From a batch of GluonTS windows to what a diffusion model sees: scaled, lagged, and marked with what is known.

A window has L = context + horizon steps. Channel 0 is the series itself, channel j the series shifted by lag j,

    x[0, i] = (y[i] - loc) / scale,     x[j, i] = (y[i - lag_j] - loc) / scale,

so long history conditions the horizon: at horizon step k a lag channel is known whenever lag_j >= k. All channels are
diffused. Kollovieh et al. (2023), arXiv:2307.11494, section 4 and appendix B.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["Scaling", "Window", "location_and_scale", "window"]

Scaling = Literal["mean", "std"]

#: A scaled value beyond this is treated as missing: its context says nothing about its size (a near-zero stretch
#: before a burst), and one such window would outweigh all others in the loss.
LIMIT = 1e3


@dataclass(frozen=True)
class Window:
    """A batch of windows in model space.

    Attributes:
        values: (B, C, L), scaled; 0 where not observed.
        observed: (B, C, L), 1 where the value is there (in training that includes the horizon).
        known: (B, C, L), 1 where the value is there and lies before the forecast starts.
        loc, scale: (B, 1), y = loc + scale * x.
    """

    values: Tensor
    observed: Tensor
    known: Tensor
    loc: Tensor
    scale: Tensor


def window(
    past: Tensor,
    past_observed: Tensor,
    future: Tensor | None = None,
    future_observed: Tensor | None = None,
    *,
    context_length: int,
    prediction_length: int,
    lags: tuple[int, ...] = (),
    scaling: Scaling | None = "mean",
    default_scale: float = 1.0,
) -> Window:
    """Cut, scale and lag a batch.

    Args:
        past: (B, P) with P = context_length + max(lags); any number where not observed.
        past_observed: (B, P), 1 observed and 0 missing or padding.
        future: (B, H), the horizon, in training.
        future_observed: (B, H).
        context_length: steps before the forecast that lie in the window.
        prediction_length: H.
        lags: shifts of the further channels, in steps.
        scaling: see ``location_and_scale``.
        default_scale: see ``location_and_scale``.
    """
    past = torch.where(past_observed > 0, past, 0.0)
    if future is None or future_observed is None:
        future = future_observed = past.new_zeros(len(past), prediction_length)
    loc, scale = location_and_scale(past, past_observed, context_length, scaling, default_scale)

    seen = torch.cat([past_observed, future_observed], dim=1)
    values = (torch.cat([past, future], dim=1) - loc) / scale
    seen = seen * (values.abs() <= LIMIT)
    values = torch.where(seen > 0, values, 0.0)
    known = F.pad(seen[:, : past.shape[1]], (0, prediction_length))
    length = context_length + prediction_length
    x, observed, known = (lagged(series, lags, length) for series in (values, seen, known))
    return Window(x, observed, known, loc, scale)


def lagged(series: Tensor, lags: tuple[int, ...], length: int) -> Tensor:
    """The last ``length`` steps and their shifts: (B, T) -> (B, 1 + #lags, length)."""
    end = series.shape[1]
    return torch.stack([series[:, end - length - lag : end - lag] for lag in (0, *lags)], dim=1)


def location_and_scale(
    past: Tensor, observed: Tensor, context_length: int, scaling: Scaling | None, default_scale: float
) -> tuple[Tensor, Tensor]:
    """(loc, scale), each (B, 1), from the observed context.

    ``mean`` (the paper's): loc 0, scale the mean |y|. ``std``: loc the mean, scale the standard deviation; for series
    that move little around a level far from zero, such as temperatures. None: 0 and 1.

    Where the context has no scale (nothing observed, all zero, or constant under ``std``) the mean |y| of the whole
    past stands in, and where that is zero too, ``default_scale``, the mean |y| of the training data.
    """
    if scaling is None:
        return past.new_zeros(len(past), 1), past.new_ones(len(past), 1)

    def mean(x: Tensor, weight: Tensor) -> Tensor:
        return (x * weight).sum(1, keepdim=True) / weight.sum(1, keepdim=True).clamp_min(1)

    recent, weight = past[:, -context_length:], observed[:, -context_length:]
    size = mean(past.abs(), observed)
    loc = mean(recent, weight) if scaling == "std" else torch.zeros_like(size)
    scale = mean((recent - loc) ** 2, weight).sqrt() if scaling == "std" else mean(recent.abs(), weight)
    smallest = 1e-6 * loc.abs() + 1e-10  # below it a spread is rounding, not signal
    scale = torch.where(scale > smallest, scale, size)
    return loc, torch.where(scale > 1e-10, scale, default_scale)
