r"""From a batch of GluonTS windows to what a diffusion model sees: scaled, lagged, and marked with what is known.

A window has L = context + horizon steps. Channel 0 is the series itself, channel j the series shifted by lag j,

    x[0, i] = (y[i] - loc) / scale,     x[j, i] = (y[i - lag_j] - loc) / scale,

so long history conditions the horizon: at horizon step k a lag channel is known whenever lag_j >= k. All channels are
diffused. Kollovieh et al. (2023), arXiv:2307.11494, section 4 and appendix B.

Under ``std`` scaling every channel has a loc and a scale of its own. In the unit of the context, what a series was a
year ago may be so far away that it outweighs the series itself in the loss.

Of a multivariate series each variate is scaled and lagged alone, and the D of them are a further axis.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from gluonts.dataset import DataEntry
from torch import Tensor
from torch.nn import functional as F

from suffuse.errors import InvalidArgument

from ..nets.two_axis import unfold

__all__ = ["Masking", "Scaling", "Window", "draw_cuts", "location_and_scale", "training_mask", "window"]

Scaling = Literal["mean", "std"]
Masking = Literal["forecast", "random", "mix"]

#: A scaled value beyond this is treated as missing: its context says nothing about its size (a near-zero stretch
#: before a burst), and one such window would outweigh all others in the loss.
LIMIT = 1e3


@dataclass(frozen=True)
class Window:
    """A batch of windows in model space.

    Attributes:
        values: (B, C, L) or (B, C, D, L), scaled; 0 where not observed.
        observed: 1 where the value is there (in training that includes the horizon).
        known: 1 where the value is there and told; by default, where it lies before the forecast starts.
        loc, scale: (B, 1) or (B, D, 1), y = loc + scale * x.
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
    told: Tensor | None = None,
    *,
    context_length: int,
    prediction_length: int,
    lags: tuple[int, ...] = (),
    scaling: Scaling | None = "mean",
    default_scale: float = 1.0,
) -> Window:
    """Cut, scale and lag a batch.

    Args:
        past: (B, P) or (B, P, D), P = context_length + max(lags); any number where not observed.
        past_observed: like past, 1 observed and 0 missing or padding.
        future: (B, H) or (B, H, D), the horizon, in training.
        future_observed: like future.
        told: past and future in one, 1 where an observation may be told to the model; default: all of the past.
        context_length: steps before the forecast that lie in the window.
        prediction_length: H.
        lags: shifts of the further channels, in steps.
        scaling: see ``location_and_scale``.
        default_scale: see ``location_and_scale``.
    """
    if past.ndim == 3:
        parts = (past, past_observed, future, future_observed, told)
        w = window(
            *(None if part is None else part.mT.flatten(0, 1) for part in parts),  # type: ignore[arg-type]
            context_length=context_length,
            prediction_length=prediction_length,
            lags=lags,
            scaling=scaling,
            default_scale=default_scale,
        )
        variates = past.shape[2]
        maps = (unfold(x, variates) for x in (w.values, w.observed, w.known))
        return Window(*maps, *(x.unflatten(0, (-1, variates)) for x in (w.loc, w.scale)))
    past = torch.where(past_observed > 0, past, 0.0)
    if future is None or future_observed is None:
        future = future_observed = past.new_zeros(len(past), prediction_length)
    told = F.pad(torch.ones_like(past), (0, prediction_length)) if told is None else told
    seen = torch.cat([past_observed, future_observed], dim=1)
    whole = (torch.cat([past, future], dim=1), seen, seen * told)
    x, observed, known = (lagged(series, lags, context_length + prediction_length) for series in whole)
    if scaling == "std":
        values, of = (series[..., :context_length].flatten(0, 1) for series in (x, known))
        units = location_and_scale(values, of, context_length, scaling, default_scale)
        loc, scale = (unit.view(len(x), -1, 1) for unit in units)
    else:
        of = past_observed * told[:, : past.shape[1]]
        units = location_and_scale(past, of, context_length, scaling, default_scale)
        loc, scale = (unit.unsqueeze(1) for unit in units)
    x = (x - loc) / scale
    here = observed * (x.abs() <= LIMIT)
    return Window(torch.where(here > 0, x, 0.0), here, known * here, loc[:, 0], scale[:, 0])


def training_mask(past: Tensor, future: Tensor, masking: Masking) -> Tensor:
    """What may be told of training windows, (B, P + H) or (B, P + H, D): 1 or 0.

    ``forecast``: the past. ``random``: entries drawn alone, each with the same probability, which is uniform in (0, 1)
    from window to window. ``mix``: either, by the toss of a coin for each window.
    The masks of Tashiro et al. (2021), "CSDI", arXiv:2107.03502, section 4.2, for forecasting and for imputation.
    """
    forecast = torch.cat([torch.ones_like(past), torch.zeros_like(future)], dim=1)
    if masking == "forecast":
        return forecast
    per_window = (len(past), *(1,) * (past.ndim - 1))
    random = (torch.rand_like(forecast) < torch.rand(per_window, device=past.device)).to(forecast)
    if masking == "random":
        return random
    return torch.where(torch.rand(per_window, device=past.device) < 0.5, forecast, random)


def draw_cuts(dataset: Iterable[DataEntry], length: int, n: int, seed: int = 0) -> list[tuple[DataEntry, int]]:
    """n pairs of an entry and the step at which a window of it ends, drawn with replacement, all alike likely.

    Windows have ``length`` steps, or as many as the longest series where none is that long.
    """
    entries = list(dataset)
    if not entries:
        raise InvalidArgument("dataset is empty; give at least one series")
    steps = np.array([np.shape(e["target"])[-1] for e in entries])
    ends = np.cumsum(np.maximum(steps - min(length, steps.max()) + 1, 0))
    drawn = np.random.default_rng(seed).integers(ends[-1], size=n)
    which = np.searchsorted(ends, drawn, side="right")
    return [(entries[i], int(steps[i] - (ends[i] - 1 - k))) for i, k in zip(which, drawn, strict=True)]


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
