"""The sampler: a plan of stages, each one evaluation of the denoiser and one update.

    for stage in plan:
        mean = denoiser(x, stage.t, cond)
        x, state = step(x, mean, state, noise, stage.coefficients)

A subclass says which coefficients (Python floats, from float64 arithmetic, before the loop starts) and which ``step``
(a pure function of tensors and those floats, so it never waits for the device). The base class owns the rest, once:
grid, generators, start from partial noise, constraints, callback, progress and the count of evaluations.
"""

from __future__ import annotations

import dataclasses
import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor

from ..condition import Condition
from ..denoiser import Denoiser, is_self_conditioned, with_estimate
from ..errors import InvalidArgument, SamplingDiverged, unknown
from ..random import Generators, check, randn
from ..schedules import CLEAN, Level, Schedule
from .grids import GRIDS, times

__all__ = ["STOP", "Constraint", "Inpaint", "Noise", "Sampler", "Stage", "StepState"]

Noise: TypeAlias = Callable[[], Tensor]
Coefficients: TypeAlias = tuple[Any, ...]

#: Returned by a callback to end the sampling early.
STOP = object()


@dataclass(frozen=True)
class Stage:
    """One evaluation of the denoiser: at time t, with the update's coefficients, and the level it leads to.

    ``t`` is None where x is only moved (noise raised), with no evaluation and no mean. ``lands`` is False where x is
    only an intermediate point of a step (a predictor).
    """

    t: float | None
    coefficients: Coefficients
    level: Level
    lands: bool = True


@dataclass(frozen=True)
class StepState:
    """What a callback sees after step i = 1 .. n: x at ``level``, the last posterior mean, the evaluations so far.

    ``iterate`` also yields the start, i = 0, where there is no mean yet.
    """

    i: int
    level: Level
    x: Tensor
    mean: Tensor | None
    nfe: int


class Constraint(Protocol):
    """Called on x after every step (and at the start) with the level reached and a source of noise."""

    def __call__(self, x: Tensor, level: Level, noise: Noise) -> Tensor: ...


@dataclass(frozen=True)
class Inpaint:
    """Keep known values: x = mask * (alpha known + sigma noise) + (1 - mask) * x at every level.

    Song et al. (2021), arXiv:2011.13456, app. I.2. With ``noised=False`` the clean value is written at every level, as
    planners do with the current state: Janner et al. (2022), "Planning with Diffusion", arXiv:2205.09991.

    Args:
        known: clean values, (B, *event) or broadcastable.
        mask: bool, True where known, broadcastable against x.
        noised: whether the known values are noised to the current level.
    """

    known: Tensor
    mask: Tensor
    noised: bool = True

    def __call__(self, x: Tensor, level: Level, noise: Noise) -> Tensor:
        known = self.known.to(x)
        if self.noised and level.sigma:
            known = level.alpha * known + level.sigma * noise()
        return torch.where(self.mask.to(x.device), known, x)


@dataclass(frozen=True)
class Sampler(ABC):
    """Base of all samplers.

    Args:
        steps: number of steps n; the evaluations are n for one-stage samplers.
        grid: one of ``GRIDS``, or the times themselves (then ``steps`` is their number).
    """

    steps: int = 20
    grid: str | Sequence[float] = "logsnr"

    def __post_init__(self) -> None:
        if not isinstance(self.grid, str):
            object.__setattr__(self, "grid", tuple(float(t) for t in self.grid))
            object.__setattr__(self, "steps", len(self.grid))
        elif self.grid not in GRIDS:
            raise unknown("grid", self.grid, GRIDS)
        if isinstance(self.steps, bool) or int(self.steps) != self.steps or self.steps < 1:
            raise InvalidArgument(f"steps must be a whole number of at least 1, got {self.steps}")

    # --- what a subclass supplies -------------------------------------------------------------------------------
    @abstractmethod
    def coefficients(self, t: Level, s: Level, past: Sequence[Level]) -> Coefficients:
        """The floats of the step from level t to level s < t; ``past`` has the levels before t, the last one first."""

    @abstractmethod
    def step(self, x: Tensor, mean: Tensor, state: Any, noise: Noise, c: Coefficients) -> tuple[Tensor, Any]:
        """The update: x at the next level, and what the step after it needs to remember."""

    def evaluate(
        self, denoiser: Denoiser, x: Tensor, stage: Stage, cond: Condition | None, state: Any
    ) -> tuple[Tensor, Any]:
        """The posterior mean at a stage, and the state; for samplers that ask a denoiser for more than its mean."""
        return denoiser(x, stage.t, cond), state  # type: ignore[arg-type]

    def plan(self, levels: Sequence[Level], schedule: Schedule) -> list[Stage]:
        """The stages from levels[0] to levels[-1]; one per step unless a solver evaluates more often."""
        return [Stage(t.t, self.coefficients(t, s, levels[:i][::-1]), s) for i, (t, s) in enumerate(pairwise(levels))]

    # --- what a user calls --------------------------------------------------------------------------------------
    def __call__(
        self,
        denoiser: Denoiser,
        shape: Sequence[int] | None = None,
        *,
        x: Tensor | None = None,
        init: Tensor | None = None,
        cond: Condition | None = None,
        generator: Generators = None,
        start: float = 1.0,
        stop: float = 0.0,
        constraint: Constraint | None = None,
        callback: Callable[[StepState], Any] | None = None,
        progress: bool = False,
        return_trajectory: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
        grad: bool = False,
    ) -> Any:
        """Draw samples.

        Args:
            denoiser: any denoiser, guided or not.
            shape: (B, *event) of samples that start from noise; or give one of the next two.
            x: the noisy batch at time ``start``, (B, *event).
            init: a clean batch that is noised to time ``start`` first (SDEdit), (B, *event).
            cond: the condition of B rows.
            generator: one for the batch, or one per sample.
            start: the time to start from, in (0, 1].
            stop: the time to stop at; 0 ends with the posterior mean at the clean end.
            constraint: applied at every level, for instance ``Inpaint``.
            callback: called after each step; may return a replacement of x, or ``STOP``.
            progress: show a progress bar.
            return_trajectory: also return x at every level, (steps + 1, B, *event).
            device: where to sample; default the denoiser's.
            dtype: of the state.
            grad: keep the graph, to differentiate through sampling.

        Returns:
            samples (B, *event), or (samples, trajectory).

        Raises:
            InvalidArgument: for arguments that do not fit together.
            SamplingDiverged: when the result is not finite.
        """
        loop = self.iterate(
            denoiser, shape, x=x, init=init, cond=cond, generator=generator, start=start, stop=stop,
            constraint=constraint, device=device, dtype=dtype, grad=grad,
        )  # fmt: skip
        trajectory: list[Tensor] = []
        with _Bar(type(self).__name__, self.steps, progress) as bar:
            state, answer = next(loop), None
            while True:
                if callback is not None and state.i > 0:
                    answer = callback(state)
                    if isinstance(answer, Tensor):
                        state = dataclasses.replace(state, x=answer)
                if return_trajectory:
                    trajectory.append(state.x)
                bar.move(state.i)
                if answer is STOP:
                    break
                try:
                    state = loop.send(answer)
                except StopIteration:
                    break
        if not bool(torch.isfinite(state.x).all()):
            raise SamplingDiverged(
                f"samples are not finite at t={state.level.t:.4g} (kappa={state.level.kappa:.4g}); the denoiser "
                f"returned NaN or infinity: check its weights, its input scale, and the guidance scale"
            )
        return (state.x, torch.stack(trajectory)) if return_trajectory else state.x

    def iterate(
        self,
        denoiser: Denoiser,
        shape: Sequence[int] | None = None,
        *,
        x: Tensor | None = None,
        init: Tensor | None = None,
        cond: Condition | None = None,
        generator: Generators = None,
        start: float = 1.0,
        stop: float = 0.0,
        constraint: Constraint | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
        grad: bool = False,
    ) -> Generator[StepState, Any, None]:
        """The loop itself, one state at a time, the start first; ``send`` a tensor to replace x. Arguments as above."""
        levels, plan = _planned(self, denoiser.schedule, start, stop)
        x = first_state(denoiser, levels[0], shape, x, init, generator, device, dtype)
        if cond is not None and len(cond) not in (0, len(x)):
            raise InvalidArgument(f"cond has batch size {len(cond)}, the samples {len(x)}; use cond.repeat or index it")
        event = x

        def noise() -> Tensor:
            return randn(event.shape, generator, event.device, event.dtype)

        if constraint is not None:
            x = constraint(x, levels[0], noise)
        answer = yield StepState(0, levels[0], x, None, 0)
        state, mean, done, nfe, remembers = None, x, 0, 0, is_self_conditioned(denoiser)
        for stage in plan:
            x = answer if isinstance(answer, Tensor) else x
            answer = None
            with torch.set_grad_enabled(grad):
                if stage.t is not None:
                    shown = with_estimate(cond, mean) if remembers and nfe else cond
                    mean, state = self.evaluate(denoiser, x, stage, shown, state)
                    nfe += 1
                x, state = self.step(x, mean, state, noise, stage.coefficients)
                if stage.lands and constraint is not None:
                    x = constraint(x, stage.level, noise)
            if stage.lands:
                done += 1
                answer = yield StepState(done, stage.level, x, mean, nfe)

    def levels(self, schedule: Schedule, start: float = 1.0, stop: float = 0.0) -> list[Level]:
        """The noise levels visited, from ``start`` down to ``stop`` or the clean end."""
        nodes = [schedule.level(t) for t in times(schedule, self.steps, self.grid, start, stop)]
        return nodes if stop > 0 else [*nodes, CLEAN]

    def nfe(self, schedule: Schedule) -> int:
        """Evaluations of the denoiser for a whole run."""
        return sum(stage.t is not None for stage in _planned(self, schedule, 1.0, 0.0)[1])


@functools.lru_cache(maxsize=256)
def _planned(sampler: Sampler, schedule: Schedule, start: float, stop: float) -> tuple[list[Level], list[Stage]]:
    """Levels and stages of a run: computed once, however often it is repeated."""
    levels = sampler.levels(schedule, start, stop)
    return levels, sampler.plan(levels, schedule)


def combine(x: Tensor, scale: float, weights: Sequence[float], terms: Sequence[Tensor]) -> Tensor:
    """scale x + sum_k weights_k terms_k, over as many terms as have a weight."""
    x = scale * x
    for weight, term in zip(weights, terms, strict=False):
        x = x.add(term, alpha=weight)
    return x


def first_state(
    denoiser: Denoiser,
    level: Level,
    shape: Sequence[int] | None,
    x: Tensor | None,
    init: Tensor | None,
    generator: Generators,
    device: torch.device | str | None,
    dtype: torch.dtype,
) -> Tensor:
    """x at the first level: given, or noise, or noised data."""
    if sum(v is not None for v in (shape, x, init)) != 1:
        raise InvalidArgument("give exactly one of shape (start from noise), x (a noisy batch) or init (a clean batch)")
    if device is None:
        device = next((p.device for p in (*denoiser.parameters(), *denoiser.buffers())), torch.device("cpu"))
    given = x if x is not None else init
    if given is not None:
        if not bool(torch.isfinite(given).all()):
            raise InvalidArgument(f"{'x' if x is not None else 'init'} has NaN or infinite values")
        given = given.to(device, dtype)
        check(generator, len(given))
    if x is not None:
        assert given is not None
        return given
    if shape is not None and (len(shape) < 2 or min(shape) < 1):
        raise InvalidArgument(f"shape must be (B, *event) with positive sizes, got {tuple(shape)}")
    if given is None and level.t == 1.0:
        denoiser.schedule.warn_if_signal_remains()
    size = given.shape if given is not None else tuple(shape or ())
    start = level.sigma * randn(size, generator, device, dtype)
    return start if given is None else level.alpha * given + start


class _Bar:
    """A progress bar, or nothing."""

    def __init__(self, name: str, total: int, show: bool) -> None:
        self.progress = None
        if show:
            from rich.progress import Progress

            self.progress = Progress(transient=True)
            self.task = self.progress.add_task(name, total=total)

    def __enter__(self) -> _Bar:
        if self.progress is not None:
            self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.progress is not None:
            self.progress.stop()

    def move(self, i: int) -> None:
        if self.progress is not None:
            self.progress.update(self.task, completed=i)
