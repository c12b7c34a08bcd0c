"""The Cahn-Hilliard equation by explicit finite differences, with the Laplacian of seven points,

    mu = u^3 - u - kappa lap u,      u_new = u + dt M lap mu,      lap u = (sum of six neighbours - 6 u) / dx^2.

A second way to the same fields, which has nothing in common with the spectral one. A step is several times cheaper, but
stable only for dt < dx^4 / (72 M kappa), some hundred times less than what the spectral step takes.

The field lies in a frame of copies of its opposite faces, so that a neighbour is a fixed distance away in memory and
each half of a step is one loop over all voxels, frame included.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from suffuse.errors import InvalidArgument, require

from .cahn_hilliard import CahnHilliard

__all__ = ["explicit"]


def explicit(equation: CahnHilliard, u: Tensor, times: Sequence[float]) -> Tensor:
    """Fields at the given times, as :meth:`CahnHilliard.run` gives them; on the CPU, in the precision of u.

    Args:
        equation: periodic and without noise; its stabiliser and order do not matter.
        u: (B, X, Y, Z) at time 0.
        times: ascending, each rounded to a whole number of steps ``equation.dt``.

    Returns:
        (B, len(times), X, Y, Z).

    Raises:
        InvalidArgument: for another boundary, noise, a step that is not stable, or a field that is no batch of volumes.
        MissingExtra: without numba.
        SimulationDiverged: if the field leaves what a mixture can be.
    """
    if equation.boundary != "periodic" or equation.temperature:
        raise InvalidArgument(
            "equation must be periodic and without temperature; the spectral step has walls and noise"
        )
    if u.ndim != 4 or min(u.shape[1:]) < 2 or not bool(torch.isfinite(u).all()):
        raise InvalidArgument(f"u must be finite, (B, X, Y, Z) with at least two voxels an edge, got {tuple(u.shape)}")
    limit = equation.dx**4 / (72 * equation.mobility * equation.kappa)
    if equation.dt >= limit:
        raise InvalidArgument(f"dt={equation.dt:g} is not stable in an explicit step; take less than {limit:.3g}")
    stops = equation.steps_until(times)
    advance, number = _kernel(), np.dtype(str(u.dtype).removeprefix("torch.")).type
    inside = (slice(1, -1),) * 3
    found = u.new_empty(len(u), len(stops), *u.shape[1:])
    for volume, out in zip(u.cpu().numpy(), found, strict=True):
        field = np.zeros([n + 2 for n in volume.shape], volume.dtype)
        field[inside] = volume
        mu, done = np.zeros_like(field), 0
        spread = number(-equation.kappa / equation.dx**2)
        push = number(equation.dt * equation.mobility / equation.dx**2)
        for k, stop in enumerate(stops):
            advance(field, mu, spread, push, stop - done)
            done = stop
            out[k] = torch.from_numpy(field[inside])
            equation.check(out[k], done)
    return found


@functools.cache
def _kernel() -> Callable[..., Any]:
    """The compiled steps."""
    njit = require("numba", extra="measure", package="suffuse-materials3d").njit

    @njit
    def frame(a):  # type: ignore[no-untyped-def]
        X, Y, Z = a.shape
        for i in range(1, X - 1):
            for j in range(1, Y - 1):
                a[i, j, 0], a[i, j, Z - 1] = a[i, j, Z - 2], a[i, j, 1]
            for k in range(Z):
                a[i, 0, k], a[i, Y - 1, k] = a[i, Y - 2, k], a[i, 1, k]
        for j in range(Y):
            for k in range(Z):
                a[0, j, k], a[X - 1, j, k] = a[X - 2, j, k], a[1, j, k]

    @njit(fastmath=True, error_model="numpy")
    def half(a, out, shape, scale, potential):  # type: ignore[no-untyped-def]
        """out = a^3 - a + scale lap a, or out += scale lap a."""
        _, Y, Z = shape
        first, n = Y * Z, a.size - 2 * Y * Z
        # a voxel and its six neighbours, for all voxels between the first and the last face
        here, left, right = a[first : first + n], a[first - 1 : first - 1 + n], a[first + 1 : first + 1 + n]
        front, back = a[first - Z : first - Z + n], a[first + Z : first + Z + n]
        below, above, to = a[:n], a[2 * first :], out[first : first + n]
        six = scale * 6
        if potential:
            for k in range(n):
                v = here[k]
                around = (left[k] + right[k]) + (front[k] + back[k]) + (below[k] + above[k])
                to[k] = scale * around - six * v + v * (v * v - np.float32(1))
        else:
            for k in range(n):
                around = (left[k] + right[k]) + (front[k] + back[k]) + (below[k] + above[k])
                to[k] += scale * around - six * here[k]

    @njit
    def advance(u, mu, spread, push, steps):  # type: ignore[no-untyped-def]
        for _ in range(steps):
            frame(u)
            half(u.reshape(-1), mu.reshape(-1), u.shape, spread, True)
            frame(mu)
            half(mu.reshape(-1), u.reshape(-1), u.shape, push, False)

    return advance  # type: ignore[no-any-return]
