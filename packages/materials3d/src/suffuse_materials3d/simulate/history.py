"""Process histories: how a control (chi, mobility) is driven in time, piecewise linear, one course per volume.

A family of courses such as a laboratory drives: holding, a ramp, a quench, an anneal in two steps, and smooth random
ones. They are stored with the simulated data, so that structure and history can be learned together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from suffuse.errors import InvalidArgument, unknown

__all__ = ["HISTORIES", "History", "random_history"]


@dataclass(frozen=True)
class History:
    """Values at nodes in time, straight lines between them, constant beyond.

    Args:
        times: (T,), ascending.
        values: (B, T), a course per volume.
    """

    times: Tensor
    values: Tensor

    def __post_init__(self) -> None:
        times = torch.as_tensor(self.times, dtype=torch.float64)
        values = torch.as_tensor(self.values, dtype=torch.float64)
        if times.ndim != 1 or values.ndim != 2 or values.shape[1] != len(times):
            raise InvalidArgument(
                f"a history needs times (T,) and values (B, T), got {tuple(times.shape)} and {tuple(values.shape)}"
            )
        if bool((times.diff() <= 0).any()):
            raise InvalidArgument("the times of a history must ascend")
        object.__setattr__(self, "times", times)
        object.__setattr__(self, "values", values)

    def __len__(self) -> int:
        return len(self.values)

    def at(self, t: Tensor) -> Tensor:
        """(n,) times -> (n, B) values."""
        t = t.double().clamp(self.times[0], self.times[-1])
        right = torch.searchsorted(self.times, t).clamp(1, max(len(self.times) - 1, 1))
        if len(self.times) == 1:
            return self.values.T.expand(len(t), -1)
        a, b = self.times[right - 1], self.times[right]
        share = ((t - a) / (b - a))[:, None]
        return torch.lerp(self.values.T[right - 1], self.values.T[right], share)


def _hold(n: int, low: float, high: float, random: Callable[[], float]) -> Tensor:
    return torch.full((n,), low + (high - low) * random())


def _ramp(n: int, low: float, high: float, random: Callable[[], float]) -> Tensor:
    a, b = (low + (high - low) * random() for _ in range(2))
    return torch.linspace(a, b, n)


def _quench(n: int, low: float, high: float, random: Callable[[], float]) -> Tensor:
    """From a low to a high level, at once."""
    a, b = sorted(low + (high - low) * random() for _ in range(2))
    at = int(n * (0.1 + 0.6 * random()))
    return torch.where(torch.arange(n) < at, a, b)


def _two_step(n: int, low: float, high: float, random: Callable[[], float]) -> Tensor:
    """An anneal in the middle: high, low, high."""
    a, b = sorted(low + (high - low) * random() for _ in range(2))
    first, second = sorted(random() for _ in range(2))
    x = torch.arange(n) / n
    return torch.where((x >= first) & (x < second), a, b)


def _spline(n: int, low: float, high: float, random: Callable[[], float]) -> Tensor:
    """A cubic through five random levels."""
    from scipy.interpolate import PchipInterpolator

    levels = [low + (high - low) * random() for _ in range(5)]
    return torch.from_numpy(PchipInterpolator(range(5), levels)(torch.linspace(0, 4, n).double().numpy()))


#: Families by name: (nodes, low, high, source of uniform numbers) -> (nodes,).
HISTORIES: dict[str, Callable[[int, float, float, Callable[[], float]], Tensor]] = {
    "hold": _hold,
    "ramp": _ramp,
    "quench": _quench,
    "two-step": _two_step,
    "spline": _spline,
}


def random_history(
    duration: float,
    low: float,
    high: float,
    kinds: Sequence[str] = tuple(HISTORIES),
    generator: torch.Generator | None = None,
    nodes: int = 33,
) -> tuple[str, History]:
    """One course of a random family, over [0, duration], with values in [low, high].

    Returns:
        the family, and the history of one volume.
    """
    for kind in kinds:
        if kind not in HISTORIES:
            raise unknown("history", kind, HISTORIES)
    if not low < high or not duration > 0 or not kinds:
        raise InvalidArgument(f"need low < high, a duration and a kind, got {low}, {high}, {duration}, {tuple(kinds)}")

    def random() -> float:
        return float(torch.rand((), generator=generator))

    kind = kinds[int(random() * len(kinds))]
    values = HISTORIES[kind](nodes, low, high, random).double().clamp(low, high)
    return kind, History(torch.linspace(0, duration, nodes), values[None])
