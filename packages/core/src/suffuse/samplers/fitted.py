r"""A multistep solver whose coefficients are fitted to a model, one least-squares problem a step.

A linear multistep solver goes from level i to i + 1 by x and the last few slopes,

    x_{i+1} = a_i x_i + sum_k b_ik eps_{i-k},

and DEIS takes a and b from a polynomial through the slopes. With few evaluations the polynomial is a poor guess, while
the model itself can be asked: run it once with many evaluations, x*, and choose

    (a_i, b_i) = argmin  mean_n || a x_i + sum_k b_k eps_{i-k} - x*_{i+1} ||_n

over samples n, one step after the other, on the states that the solver itself reaches, so that a step also mends what
those before it lost. Five numbers a step from thousands of values, so there is nothing to overfit.

The family is that of Shaul et al. (2024), "Bespoke Non-Stationary Solvers", arXiv:2403.01329, and Frankel et al.
(2025), "S4S", arXiv:2502.17423; they find the numbers by gradient descent through the whole solver.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..condition import Condition
from ..denoiser import Denoiser
from ..errors import InvalidArgument
from ..schedules import Level, Schedule
from .adams import DEIS
from .base import Coefficients, Noise, combine, first_state
from .grids import times
from .teleport import Teleport

if TYPE_CHECKING:
    from ..analysis import GaussianStatistics

__all__ = ["FittedMultistep"]

#: The model's own solution is computed with about this many evaluations, and a few more above a jump.
FINE, ABOVE = 60, 20


@dataclass(frozen=True)
class FittedMultistep(DEIS):
    """DEIS with the coefficients of a table; ``FittedMultistep.fit`` makes one.

    It is as good as it gets on the model, the condition and the guidance that it was fitted to, and no better than any
    other elsewhere. All its fields are plain numbers: ``dataclasses.asdict`` and JSON keep it.

    Args:
        grid: the times, from the one to start from.
        order: how many slopes a step sees.
        table: of each step, the factor of x and the weights of the slopes, now first.
    """

    order: int = 4
    table: Sequence[Sequence[float]] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "table", tuple(tuple(float(v) for v in row) for row in self.table))
        if isinstance(self.grid, str) or len(self.table) != len(self.grid):
            raise InvalidArgument(
                f"table needs a row for each time of grid, got {len(self.table)} rows and grid {self.grid!r}; "
                f"FittedMultistep.fit(denoiser, steps) makes both"
            )

    def levels(self, schedule: Schedule, start: float = 1.0, stop: float = 0.0) -> list[Level]:
        assert not isinstance(self.grid, str)
        if not math.isclose(start, self.grid[0], abs_tol=1e-9) or stop != 0:
            raise InvalidArgument(
                f"this solver was fitted to run from t={self.grid[0]} to 0, got start={start}, stop={stop}"
            )
        return super().levels(schedule, start, stop)

    def nfe(self, schedule: Schedule) -> int:
        """One evaluation a step."""
        return self.steps

    def coefficients(self, t: Level, s: Level, past: Sequence[Level]) -> Coefficients:
        return *super().coefficients(t, s, past)[:2], *self.table[len(past)]

    @classmethod
    def fit(
        cls,
        denoiser: Denoiser,
        steps: int,
        shape: Sequence[int],
        statistics: GaussianStatistics | None = None,
        cond: Condition | None = None,
        generator: torch.Generator | None = None,
    ) -> FittedMultistep | Teleport:
        """The solver of ``steps`` evaluations for a model; below a jump, where there are statistics of the data.

        The levels are those of the open Karras grid, from the top or from where ``Teleport.fit`` jumps to. It costs
        some 80 evaluations of the whole batch, and what ``Teleport.fit`` costs.

        Args:
            denoiser: guided or not.
            steps: number of evaluations.
            shape: (B, *event), of the trajectories to fit to; B = 64 to 128 is plenty.
            statistics: of the data, for the jump.
            cond: the condition of the B rows.
            generator: of the noise, on the device of the denoiser.

        Raises:
            SamplingDiverged: where the samples are not finite.
        """
        schedule = denoiser.schedule
        plain = DEIS(steps, order=3, grid="karras-open")
        jump = None
        if statistics is not None:
            jump = Teleport.fit(plain, denoiser, statistics, cond, shape[0], generator)
        start = 1.0 if jump is None else min(1.0, schedule.t_of_kappa(jump.kappa))
        x = first_state(denoiser, schedule.level(1.0), shape, None, None, generator, None, torch.float32)
        grid = times(schedule, steps, "karras-open", start, 0.0)
        fitting = _Fitting(grid=grid, truth=_solution(denoiser, x, grid, cond))
        if jump is not None and start < 1:
            Teleport(fitting, jump.statistics, jump.kappa)(denoiser, x=x, cond=cond)
        else:
            fitting(denoiser, x=x, cond=cond)
        solver = cls(grid=grid, table=fitting.rows)
        return solver if jump is None else Teleport(solver, jump.statistics, jump.kappa)


@dataclass(frozen=True, eq=False)
class _Fitting(DEIS):
    """Makes each step the best one, and keeps its coefficients in ``rows``."""

    order: int = 4
    truth: Sequence[Tensor] = ()
    rows: list[list[float]] = field(default_factory=list)

    def coefficients(self, t: Level, s: Level, past: Sequence[Level]) -> Coefficients:
        # the polynomial of third order through the slopes is where the search starts from
        return DEIS(order=3).coefficients(t, s, past)

    def step(self, x: Tensor, mean: Tensor, state: Any, noise: Noise, c: Coefficients) -> tuple[Tensor, Any]:
        slopes = ((c[0] * x).add(mean, alpha=c[1]), *(state or ()))[: self.order]
        terms = torch.stack([x, *slopes], -1).flatten(1, -2).double()
        row = torch.zeros(terms.shape[-1], dtype=torch.float64)
        row[: len(c) - 2] = torch.tensor(c[2:], dtype=torch.float64)
        weights = _nearest(terms, self.truth[len(self.rows)].flatten(1).double(), row.to(x.device)).tolist()
        self.rows.append(weights)
        return combine(x, weights[0], weights[1:], slopes), slopes[: self.order - 1]


def _nearest(terms: Tensor, target: Tensor, first: Tensor, rounds: int = 6, ridge: float = 1e-6) -> Tensor:
    """The weights w with the smallest mean over n of |terms_n w - target_n|, near ``first`` where it does not matter.

    Least squares, reweighted by one over the distance (Weiszfeld's algorithm): the mean of distances, not of squares,
    as a few trajectories that pass between two modes would otherwise decide everything.

    Args:
        terms: (B, P, K).
        target: (B, P).
        first: (K,).
    """
    rest = target - terms @ first
    gram = torch.einsum("npk,npl->nkl", terms, terms)
    right = torch.einsum("npk,np->nk", terms, rest)
    weights = torch.zeros_like(first)
    distance = rest.norm(dim=1)
    for _ in range(rounds):
        share = 1 / distance.clamp(min=1e-3 * float(distance.max()) + 1e-30)
        a = torch.einsum("n,nkl->kl", share, gram)
        b = torch.einsum("n,nk->k", share, right)
        weights = torch.linalg.solve(a + ridge * torch.diag(a.diagonal()), b)
        distance = (rest - terms @ weights).norm(dim=1)
    return first + weights


def _solution(denoiser: Denoiser, x: Tensor, grid: Sequence[float], cond: Condition | None) -> list[Tensor]:
    """Where the model's own ODE leads from x at t = 1: its states at the times after the first, and its end."""
    schedule = denoiser.schedule
    fine = times(schedule, ABOVE, "karras-open", 1.0, grid[0])[:-1] if grid[0] < 1 else []
    marks = []
    parts = -(-FINE // len(grid))
    for start, stop in pairwise([*grid, 0.0]):
        nodes = times(schedule, parts, "karras-open", start, stop)
        fine += nodes[:parts]
        marks.append(len(fine))
    states = DEIS(grid=fine).iterate(denoiser, x=x, cond=cond)
    return [state.x for state in states if state.i in marks]
