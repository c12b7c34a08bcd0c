r"""Inversion: the noise that a deterministic sampler turns into a given sample.

A DDIM step from level t down to s is x_s = a D(x_t, t) + b x_t. Going up, DDIM inversion puts D(x_s, s) in the place of
D(x_t, t), which is off by the change of D over the step; the exact inverse is the fixed point of

    x_t <- (x_s - a D(x_t, t)) / b,

reached in a few iterations where the step is small enough for the map to contract.
Song, Meng, Ermon (2021), arXiv:2010.02502, sec. 4.3; the fixed point: Pan et al. (2023), "AIDI", arXiv:2309.04907.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..condition import Condition
from ..denoiser import Denoiser
from ..errors import InvalidArgument
from .ddim import DDIM

__all__ = ["invert"]


@torch.no_grad()
def invert(
    denoiser: Denoiser,
    x: Tensor,
    cond: Condition | None = None,
    *,
    steps: int = 50,
    grid: str | Sequence[float] = "logsnr",
    start: float = 1.0,
    stop: float | None = None,
    iterations: int = 0,
) -> Tensor:
    """The state at ``start`` from which ``DDIM(steps, grid)`` comes to x at ``stop``.

    Args:
        denoiser: any denoiser; for images of a guided model, guide with scale 1 here.
        x: the state at ``stop``, (B, *event); a clean sample, when ``stop`` is the schedule's lowest level.
        cond: condition of B rows.
        steps, grid: of the DDIM sampler.
        start: where to go up to.
        stop: the level x is at; default the schedule's lowest.
        iterations: fixed-point iterations a step, one evaluation each; 0 is DDIM inversion, 5 to 10 are nearly exact.
    """
    schedule = denoiser.schedule
    if iterations < 0:
        raise InvalidArgument(f"iterations must not be negative, got {iterations}")
    if stop is None:
        stop = schedule.t_min or schedule.t_of_kappa(1.001 * schedule.kappa(0.0))  # stop=0 would mean the clean end
    sampler = DDIM(steps, grid)
    levels = sampler.levels(schedule, start, stop)
    for t, s in zip(levels[-2::-1], levels[:0:-1], strict=True):
        a, b, _ = sampler.coefficients(t, s, ())
        lower, time = x, s.t
        for _ in range(iterations + 1):
            x, time = (lower - a * denoiser(x if time == t.t else lower, time, cond)) / b, t.t
    return x
