"""Grids: at which noise levels a sampler calls the denoiser.

A grid of n steps has n times for n evaluations, t_0 = start > ... > t_{n-1}, after which the sampler goes to the clean
end; or n + 1 times when it is to stop at a level above it.

    time        equal steps of t
    quadratic   equal steps of t^(1/2): Song et al. (2021), "DDIM", arXiv:2010.02502, app. D.2
    logsnr      equal steps of log kappa: Lu et al. (2022), "DPM-Solver", arXiv:2206.00927
    karras      equal steps of kappa^(1/7): Karras et al. (2022), arXiv:2206.00364, eq. 5
    logsnr-open, karras-open    the same, with the clean end in the place of the lowest level

``logsnr`` and ``karras`` evaluate at the schedule's smallest time and then go to the clean end; the others go there
from one step above. With few evaluations the lowest level is not worth one: its noise is below what can be seen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np

from ..errors import InvalidArgument, unknown
from ..schedules import Schedule

__all__ = ["GRIDS", "times"]

#: Grids in kappa treat what is above alike: x is noise there and the posterior mean the data's mean, to a percent. A
#: rectified flow starts at infinity, a cosine schedule at a thousand, and neither is worth a second evaluation.
KAPPA_MAX = 80.0


def _log_snr(schedule: Schedule, start: float, stop: float, points: int) -> list[float]:
    nodes = np.linspace(schedule.log_kappa(start), schedule.log_kappa(stop), points)
    return [schedule.t_of_log_kappa(float(k)) for k in nodes]


def _karras(schedule: Schedule, start: float, stop: float, points: int, rho: float = 7.0) -> list[float]:
    nodes = np.linspace(schedule.kappa(start) ** (1 / rho), schedule.kappa(stop) ** (1 / rho), points) ** rho
    return [schedule.t_of_kappa(float(k)) for k in nodes]


#: Exponents p of the grids with equal steps of t^(1/p).
POWERS = {"time": 1, "quadratic": 2}
#: Grids in kappa: (schedule, start, stop, points) -> times.
SPACINGS: dict[str, Callable[[Schedule, float, float, int], list[float]]] = {
    "logsnr": _log_snr,
    "karras": _karras,
    "logsnr-open": _log_snr,
    "karras-open": _karras,
}
#: The names of all grids.
GRIDS = (*POWERS, *SPACINGS)


def times(schedule: Schedule, steps: int, grid: str | Sequence[float], start: float, stop: float) -> list[float]:
    """The times of a grid, decreasing.

    Args:
        schedule: what turns t into noise levels.
        steps: n.
        grid: one of ``GRIDS``, or the times themselves, without the end.
        start: where to begin, in (0, 1].
        stop: where to end; 0 is the clean end, which is not itself listed.

    Raises:
        InvalidArgument: for an unknown grid, or times that do not decrease from ``start`` inside [stop, 1].
    """
    if not 0 <= stop < start <= 1:
        raise InvalidArgument(f"need 0 <= stop < start <= 1, got start={start}, stop={stop}")
    points = steps if stop == 0 else steps + 1
    if not isinstance(grid, str):
        given = [float(t) for t in grid]
        if any(a <= b for a, b in pairwise(given)):
            raise InvalidArgument(f"grid must be strictly decreasing times, got {given}")
        if given[0] > 1 or given[-1] <= stop or schedule.sigma(given[-1]) == 0:
            raise InvalidArgument(f"grid must lie in (stop, 1] = ({stop}, 1], got {given}")
        return given if stop == 0 else [*given, stop]
    if grid not in GRIDS:
        raise unknown("grid", grid, GRIDS)
    if grid in POWERS:
        p = POWERS[grid]
        return [start, *(np.linspace(start ** (1 / p), stop ** (1 / p), steps + 1)[1:points] ** p).tolist()]
    low = stop if stop > 0 else schedule.t_min
    if points > 1 and low >= start:
        raise InvalidArgument(f"start={start} lies below the schedule's smallest time {low}; start higher")
    high = min(start, schedule.t_of_kappa(KAPPA_MAX))
    nodes = SPACINGS[grid](schedule, high, low, steps + 1 if grid.endswith("-open") else points)[:points]
    nodes[0] = start
    if stop > 0:
        nodes[-1] = stop
    return nodes
