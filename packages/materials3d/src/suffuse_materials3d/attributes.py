r"""Attributes: from what a user asks for, in its own unit, to what a network is told, and what data can be had at all.

A value becomes the normal score of its rank in the training data, Phi^-1(F(value)), so that each attribute is N(0, 1)
however it is distributed. Each attribute is a token of its own, and one that is not asked for is a null token: any
subset can be requested.

Attributes depend on each other: not every combination exists. A request is feasible when it is a mean of training rows
(in the convex hull of the attributes that are asked for); the nearest feasible one is their projection on it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from suffuse import Condition
from suffuse.errors import InvalidArgument, unknown
from suffuse.hub import serializable

__all__ = ["AttributeScaler", "request_table"]

QUANTILES = 129
ROWS = 1024


@serializable
class AttributeScaler(nn.Module):
    """Values to normal scores and back, conditions, and the hull of the data.

    Args:
        names: the attributes, A of them.
        features: width of a token: the score s, and tanh((s - c) / w) for centres c that tell values apart.
    """

    table: Tensor
    rows: Tensor

    def __init__(self, names: Sequence[str], features: int = 8) -> None:
        super().__init__()
        if not names or len(set(names)) != len(names):
            raise InvalidArgument(f"names must be different attributes, at least one, got {list(names)}")
        if features < 1:
            raise InvalidArgument(f"features must be at least 1, got {features}")
        self.names, self.features = tuple(names), features
        self.register_buffer("table", torch.zeros(len(names), QUANTILES, dtype=torch.float64))
        self.register_buffer("rows", torch.full((ROWS, len(names)), float("nan"), dtype=torch.float64))

    @property
    def tokens(self) -> dict[str, int]:
        """Name -> width, as a network's ``tokens``."""
        return dict.fromkeys(self.names, self.features)

    def fit(self, values: Tensor, seed: int = 0) -> AttributeScaler:
        """Take the distribution of training values (N, A); NaN where not known.

        Raises:
            InvalidArgument: when an attribute does not vary, or is not known at all.
        """
        values = values.double()
        levels = torch.linspace(0, 1, QUANTILES, dtype=torch.float64)
        for a, name in enumerate(self.names):
            known = values[:, a][values[:, a].isfinite()]
            if len(known) < 2 or float(known.max() - known.min()) < 1e-12:
                raise InvalidArgument(f"attribute {name!r} does not vary in the data, so it cannot be asked for")
            self.table[a] = torch.quantile(known, levels)
        complete = values[values.isfinite().all(1)]
        # the extremes of each attribute, and a random choice of the rest
        ends = (
            torch.cat([complete.argmin(0), complete.argmax(0)]) if len(complete) else torch.zeros(0, dtype=torch.long)
        )
        order = torch.randperm(len(complete), generator=torch.Generator().manual_seed(seed))
        chosen = torch.unique(torch.cat([ends, order[: max(ROWS - len(ends), 0)]]))[:ROWS]
        self.rows.fill_(float("nan"))
        self.rows[: len(chosen)] = complete[chosen]
        return self

    @property
    def spread(self) -> list[float]:
        """The standard deviation of each attribute in the data."""
        rows = self.rows[self.rows.isfinite().all(1)]
        return rows.std(0, correction=0).clamp_min(1e-12).tolist() if len(rows) else [1.0] * len(self.names)

    def correlation(self, values: Tensor) -> list[list[float]]:
        """(A, A) of the scores of those of the values (N, A) that are complete; none where these are too few."""
        scores = self.scores(values)
        complete = scores[scores.isfinite().all(1)]
        if len(complete) <= len(self.names) or bool((complete.std(0) == 0).any()):
            return torch.eye(len(self.names)).tolist()
        return torch.corrcoef(complete.T).reshape(len(self.names), -1).tolist()

    # --- scores -------------------------------------------------------------------------------------------------
    def scores(self, values: Tensor) -> Tensor:
        """(B, A) values -> normal scores; NaN stays NaN, and beyond the data the ends count."""
        return self._interpolate(values.double(), forward=True).to(torch.float32)

    def values(self, scores: Tensor) -> Tensor:
        """(B, A) normal scores -> values."""
        return self._interpolate(scores.double(), forward=False).to(torch.float32)

    def _interpolate(self, x: Tensor, forward: bool) -> Tensor:
        levels = torch.linspace(0, 1, QUANTILES, dtype=torch.float64)
        # half a step inside, so that the ends have finite scores
        grid = torch.special.ndtri(levels.clamp(0.5 / QUANTILES, 1 - 0.5 / QUANTILES)).numpy()
        columns = []
        for a in range(len(self.names)):
            table = _increasing(self.table[a].cpu().numpy())
            points = (table, grid) if forward else (grid, table)
            columns.append(torch.from_numpy(np.interp(x[:, a].cpu().numpy(), *points)))
        return torch.stack(columns, 1).to(x.device)

    # --- conditions ---------------------------------------------------------------------------------------------
    def condition(self, values: Tensor) -> Condition:
        """What a network is told of values (B, A): a token (B, 1, features) per attribute, masked where NaN."""
        scores = self.scores(values)
        known = scores.isfinite()
        scores = scores.nan_to_num()
        parts = [scores[..., None]]
        if self.features > 1:
            centres = torch.linspace(-2, 2, self.features - 1, device=scores.device)
            parts.append(torch.tanh(2 * (scores[..., None] - centres)))
        encoded = torch.cat(parts, -1)
        return Condition(
            tokens={name: encoded[:, a : a + 1] for a, name in enumerate(self.names)},
            masks={name: known[:, a : a + 1] for a, name in enumerate(self.names)},
        )

    def requested(self, targets: Mapping[str, Sequence[float] | float] | None, n: int = 1) -> Tensor:
        """(N, A) values, NaN where an attribute is left open.

        Args:
            targets: attribute -> one value for all, or a value for each; None asks for nothing.
            n: how many, where no attribute has several values.

        Raises:
            InvalidArgument: for an unknown attribute, a value that is not finite, or lists of different lengths.
        """
        return request_table(self.names, targets, n)

    def nearest_feasible(self, values: Tensor, tolerance: float = 0.25) -> tuple[Tensor, Tensor]:
        """The nearest means of training rows to requests (N, A), NaN where open; and how far each is, (N,).

        Distances are in standard deviations of the data; a request within ``tolerance`` of the hull, which is that of a
        sample, is feasible as it is: distance 0.
        """
        from scipy.optimize import nnls

        rows = self.rows[self.rows.isfinite().all(1)].cpu().numpy()
        answer, distance = values.clone(), torch.zeros(len(values), dtype=torch.float64)
        if not len(rows):
            return answer, distance
        mean, std = rows.mean(0), np.array(self.spread)
        done: dict[tuple[float, ...], tuple[np.ndarray, float]] = {}
        for i, value in enumerate(values.cpu().numpy()):
            asked = np.isfinite(value)
            if not asked.any():
                continue
            key = tuple(np.nan_to_num(value, nan=np.inf).tolist())
            if key not in done:
                points = (rows[:, asked] - mean[asked]) / std[asked]
                wanted = (value[asked] - mean[asked]) / std[asked]
                heavy = 1e3  # the weights sum to one
                system = np.vstack([points.T, heavy * np.ones(len(points))])
                weights, _ = nnls(system, np.append(wanted, heavy), maxiter=50 * len(points))
                found = points.T @ (weights / weights.sum())
                done[key] = found * std[asked] + mean[asked], float(np.linalg.norm(found - wanted))
            found, far = done[key]
            if far > tolerance:
                answer[i, torch.from_numpy(asked)] = torch.from_numpy(found)
                distance[i] = far
        return answer, distance


def _increasing(table: np.ndarray) -> np.ndarray:
    """Quantiles with ties pulled apart a little, so that they can be inverted."""
    span = max(float(table[-1] - table[0]), 1e-12)
    return np.maximum.accumulate(table) + 1e-9 * span * np.arange(len(table))


def request_table(names: Sequence[str], targets: Mapping[str, Any] | None, n: int = 1) -> Tensor:
    """(N, A) values of a request, NaN where an attribute is left open; as ``AttributeScaler.requested``."""
    targets = dict(targets or {})
    for name in targets:
        if name not in names:
            raise unknown("attribute", name, names)
    listed = {k: [float(x) for x in np.atleast_1d(np.asarray(v, dtype=float))] for k, v in targets.items()}
    lengths = {len(v) for v in listed.values() if len(v) != 1}
    if len(lengths) > 1 or 0 in lengths:
        raise InvalidArgument(
            f"targets must have one value each or equally many, got { ({k: len(v) for k, v in listed.items()}) }"
        )
    count = max(lengths, default=1)
    count = n if count == 1 else count
    if n < 1:
        raise InvalidArgument(f"n must be at least 1, got {n}")
    values = torch.full((count, len(names)), float("nan"), dtype=torch.float64)
    for name, given in listed.items():
        if not np.isfinite(given).all():
            raise InvalidArgument(f"targets[{name!r}] must be finite, got {given}")
        values[:, names.index(name)] = torch.tensor(given, dtype=torch.float64)
    return values
