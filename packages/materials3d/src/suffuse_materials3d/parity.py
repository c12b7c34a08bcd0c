r"""Asked and got: the parity of a generator of microstructures, with what it must beat printed beside it.

Requests are descriptor vectors of *held-out real* volumes, not points of a box: boxes ask for combinations that do not
exist. Obtained is what is *measured* of the decoded, thresholded volume, not what a network says of its latent.

    r2               1 - sum (obtained - requested)^2 / sum (requested - mean)^2
    r2-vf-residual   the same of what is left of both when a cubic in the volume fractions, fitted to training data, is
                     taken off: the control beyond the fraction. 0 for one who knows the mean, less for more noise
    r2-self          by the feature predictor of the latents instead of by measurement
    vf-only          the method that answers with that cubic of the requested fractions: it explains most of D_rel
    diversity        spread of the structures of one request, over the spread of simulations of equal parameters
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from suffuse.errors import InvalidArgument

from . import metrics
from .descriptors import measure_all
from .microstructure import Microstructure

__all__ = ["Obtained", "ParityReport", "VolumeFractionOnly", "spread"]


@dataclass(frozen=True)
class VolumeFractionOnly:
    """The cubic of the volume fractions that predicts a descriptor best, by least squares.

    Args:
        fractions: (M, F) volume fractions of training volumes.
        values: (M,) the descriptor.
        degree: of the polynomial, all products up to it.
    """

    fractions: NDArray[np.float64]
    values: NDArray[np.float64]
    degree: int = 3
    weights: NDArray[np.float64] = field(init=False)

    def __post_init__(self) -> None:
        weights, *_ = np.linalg.lstsq(self._terms(self.fractions), self.values, rcond=None)
        object.__setattr__(self, "weights", weights)

    def __call__(self, fractions: NDArray[np.float64]) -> NDArray[np.float64]:
        """(N, F) fractions -> (N,)."""
        predicted: NDArray[np.float64] = self._terms(fractions) @ self.weights
        return predicted

    def _terms(self, fractions: NDArray[np.float64]) -> NDArray[np.float64]:
        columns = [np.ones(len(fractions))]
        for degree in range(1, self.degree + 1):
            for chosen in itertools.combinations_with_replacement(range(fractions.shape[1]), degree):
                columns.append(np.prod(fractions[:, list(chosen)], axis=1))
        return np.stack(columns, 1)


@dataclass
class Obtained:
    """What a method made for the requests.

    Args:
        structures: one for each request.
        measured: name -> (N,).
        seconds: per structure; None where it is not a matter of time.
    """

    structures: Sequence[Microstructure]
    measured: Mapping[str, NDArray[np.float64]]
    seconds: float | None = None


class ParityReport:
    """Requests, what methods made of them, and the rows.

    Args:
        names: descriptors that are asked for; volume fractions among them begin with "vf_".
        requested: (N, len(names)), measured of held-out volumes.
        real: these volumes.
        train: (M, len(names)), of training volumes, for the baseline of volume fractions alone.
        extra: further descriptors that are compared as distributions.

    Raises:
        InvalidArgument: for fewer than 4 requests, or no volume fraction among the names.
    """

    def __init__(
        self,
        names: Sequence[str],
        requested: NDArray[np.float64],
        real: Sequence[Microstructure],
        train: NDArray[np.float64],
        extra: Sequence[str] = ("sv",),
    ) -> None:
        self.names, self.requested = tuple(names), np.asarray(requested, dtype=np.float64)
        if self.requested.shape != (len(real), len(self.names)) or len(real) < 4:
            raise InvalidArgument(
                f"requested must be (N, {len(self.names)}) for N = {len(real)} >= 4 volumes, got {self.requested.shape}"
            )
        self.fraction_at = [i for i, name in enumerate(self.names) if name.startswith("vf_")]
        if not self.fraction_at:
            raise InvalidArgument(f"names must have a volume fraction, vf_0 for instance, got {self.names}")
        one = len(self.fraction_at) == 1  # of two phases one says all, and "vf" and "drel" are clear
        self.label = {name: name.rpartition("_")[0] if one else name for name in self.names}
        self.others = [(i, name) for i, name in enumerate(self.names) if i not in self.fraction_at]
        self.baseline = {name: VolumeFractionOnly(train[:, self.fraction_at], train[:, i]) for i, name in self.others}
        self.real, self.extra = list(real), tuple(extra)
        self.truth = self._measure(real, given=self.requested)
        self.curves = self._curves(real)
        self.methods: dict[str, Obtained] = {}

    def add(self, method: str, structures: Sequence[Microstructure], seconds: float | None = None) -> Obtained:
        """Measure what a method made, one structure for each request."""
        if len(structures) != len(self.real):
            raise InvalidArgument(f"{method}: {len(structures)} structures for {len(self.real)} requests")
        self.methods[method] = Obtained(structures, self._measure(structures), seconds)
        return self.methods[method]

    # --- numbers ------------------------------------------------------------------------------------------------
    def rows(self) -> Iterator[dict[str, Any]]:
        """Each number: method, metric, setting, value, better."""
        for i, name in self.others:
            predicted = self.baseline[name](self.requested[:, self.fraction_at])
            yield _row("vf-only", "r2", metrics.r2(self.requested[:, i], predicted), self.label[name])
            yield _row("vf-only", "mae", metrics.mae(self.requested[:, i], predicted), self.label[name])
        for method, made in self.methods.items():
            for i, name in enumerate(self.names):
                wanted, got = self.requested[:, i], made.measured[name]
                yield _row(method, "r2", metrics.r2(wanted, got), self.label[name])
                yield _row(method, "mae", metrics.mae(wanted, got), self.label[name])
            for _, name in self.others:
                yield _row(method, "r2-vf-residual", metrics.r2(*self.residuals(name, made)), self.label[name])
            yield from self._distances(method, made)

    def residuals(self, name: str, made: Obtained) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(requested, obtained) values of a descriptor less what the fractions tell of it."""
        i = self.names.index(name)
        fractions = np.stack([made.measured[self.names[j]] for j in self.fraction_at], 1)
        base = self.baseline[name]
        return self.requested[:, i] - base(self.requested[:, self.fraction_at]), made.measured[name] - base(fractions)

    def _distances(self, method: str, made: Obtained) -> Iterator[dict[str, Any]]:
        for name, curves in self._curves(made.structures).items():
            yield _row(method, f"{name}-distance", metrics.curve_distance(curves, self.curves[name]))
        keys = [*self.names, *self.extra]
        a, b = (np.stack([m[k] for k in keys], 1) for m in (made.measured, self.truth))
        scale = b.std(0).clip(1e-12)
        from suffuse.metrics import energy_distance

        distance = energy_distance(torch.from_numpy(a / scale), torch.from_numpy(b / scale))
        yield _row(method, "energy-distance", distance)
        if made.seconds is not None:
            yield _row(method, "seconds-per-volume", made.seconds)

    def _measure(
        self, structures: Sequence[Microstructure], given: NDArray[np.float64] | None = None
    ) -> dict[str, NDArray[np.float64]]:
        names = self.extra if given is not None else (*self.names, *self.extra)
        found = measure_all(structures, names)
        if given is not None:
            found |= {name: given[:, i] for i, name in enumerate(self.names)}
        return found

    @staticmethod
    def _curves(structures: Sequence[Microstructure]) -> dict[str, list[metrics.Curve]]:
        return {
            "s2": [metrics.two_point_correlation(ms, 1) for ms in structures],
            "lineal-path": [metrics.lineal_path(ms, 1, 0) for ms in structures],
        }

    # --- pictures -----------------------------------------------------------------------------------------------
    def figure(self, methods: Sequence[str] | None = None) -> Any:
        """Obtained against requested, a panel per descriptor, with the cubic of the fractions where there is one."""
        from matplotlib.figure import Figure

        shown = list(methods or self.methods)
        picture = Figure(figsize=(3.6 * len(self.names), 4.6), layout="constrained")
        axes = picture.subplots(1, len(self.names), squeeze=False)[0]
        for i, (axis, name) in enumerate(zip(axes, self.names, strict=True)):
            wanted = self.requested[:, i]
            low, high = wanted.min(), wanted.max()
            margin = 0.08 * (high - low)
            axis.plot([low - margin, high + margin], [low - margin, high + margin], color="0.6", linewidth=1, zorder=0)
            for method, marker in zip(shown, "os^vDP*", strict=False):
                got = self.methods[method].measured[name]
                label = f"{method}, $R^2$ {metrics.r2(wanted, got):.2f}"
                axis.scatter(wanted, got, s=16, alpha=0.75, marker=marker, label=label)
            if name in self.baseline:
                guess = self.baseline[name](self.requested[:, self.fraction_at])
                label = f"vf-only, $R^2$ {metrics.r2(wanted, guess):.2f}"
                axis.scatter(wanted, guess, s=8, color="0.4", marker="x", linewidth=0.8, label=label)
            axis.set(xlabel=f"requested {name}", ylabel="measured")
            axis.legend(frameon=False, fontsize=7, loc="upper left", bbox_to_anchor=(0, -0.15))
        return picture


def spread(groups: Sequence[Sequence[Microstructure]], names: Sequence[str]) -> dict[str, float]:
    """How much structures of one group differ, on average over groups: name -> standard deviation, and "s2".

    Args:
        groups: structures of one request (or of one set of process parameters) each, at least two.
        names: descriptors.
    """
    found: dict[str, list[float]] = {name: [] for name in (*names, "s2")}
    for group in groups:
        for name, values in measure_all(group, names).items():
            found[name].append(float(values.std(ddof=1)))
        curves = np.stack([metrics.two_point_correlation(ms, 1).values for ms in group])
        pairs = [np.abs(curves[i] - curves[j]).mean() for i, j in itertools.combinations(range(len(group)), 2)]
        found["s2"].append(float(np.mean(pairs)))
    return {name: float(np.mean(values)) for name, values in found.items()}


def _row(method: str, metric: str, value: float, descriptor: str | None = None) -> dict[str, Any]:
    return {
        "method": method,
        "metric": metric,
        "setting": {} if descriptor is None else {"descriptor": descriptor},
        "value": float(value),
        "better": "higher" if metric.startswith("r2") else "lower",
    }
