r"""Phase fields in Fourier space: what the equations of this folder share.

Matter u with a free energy  F[u] = integral f(u) + kappa/2 |grad u|^2  moves down its chemical potential,

    du/dt = M lap mu,      mu = f'(u) - kappa lap u  (- h exp(-z / l) beside a substrate that attracts).

A step treats the stiff fourth derivative, and S u of the rest, implicitly. With ^ the Fourier transform, k2 = |k|^2,

    (1 + dt M (S k2 + kappa k2^2)) u^_new = (1 + dt M S k2) u^ - dt M k2 (f'(u))^ + sqrt(2 theta M dt k2) eta^.

or, of second order in dt at the same cost (``order=2``), with u^* = 2 u^ - u^_old and the same for mu^,

    (3/2 + dt M (S k2 + kappa k2^2)) u^_new = 2 u^ - u^_old / 2 + dt M k2 (S u^* - mu^*).

S at half the largest f'' keeps the energy falling at any dt, but stable is not accurate: S also slows what it steadies.
eta is white noise of a temperature theta, and conserves matter (Cook, 1970).

Walls without flux are mirrors: a film of thickness n is one half of a periodic box of thickness 2 n that is even in z,
a symmetry that the equation keeps.

Cahn, Hilliard (1958), J. Chem. Phys. 28, 258; the step: Eyre (1998), "Unconditionally gradient stable time marching";
Zhu, Chen, Shen, Tikare (1999), Phys. Rev. E 60, 3564; the second order: Shen, Yang (2010), "Numerical
approximations of Allen-Cahn and Cahn-Hilliard equations", Discrete Contin. Dyn. Syst. 28, 1669.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from suffuse.errors import InvalidArgument, SuffuseError
from suffuse.random import Generators, randn

from ..progress import bar
from .history import History

__all__ = ["PhaseField", "SimulationDiverged", "wave_numbers"]

SPACE = (-3, -2, -1)


class SimulationDiverged(SuffuseError):
    """The field is no longer finite, or far from what a mixture can be: the time step was not stable."""


@dataclass(frozen=True)
class PhaseField(ABC):
    """An equation and its time step. Lengths are in voxels unless ``dx`` says otherwise.

    Args:
        kappa: gradient energy; an interface is about 3 sqrt(kappa) wide (10 to 90 %).
        mobility: M.
        dt: time step.
        stabiliser: S; None is the rule of the equation.
        dx: edge of a voxel.
        boundary: "periodic" in all axes, or "film": periodic in x and y, walls without flux at both ends of z.
        substrate: h, attraction of the first phase to the wall at z = 0; needs ``boundary="film"``.
        substrate_length: l, how far that reaches.
        temperature: theta, strength of the thermal noise; 0 for none.
        order: of the time step, 1 or 2; 2 is far more accurate at the same dt, but stable for smaller dt only, and has
            no noise.
    """

    kappa: float = 1.0
    mobility: float = 1.0
    dt: float = 1.0
    stabiliser: float | None = None
    dx: float = 1.0
    boundary: Literal["periodic", "film"] = "periodic"
    substrate: float = 0.0
    substrate_length: float = 4.0
    temperature: float = 0.0
    order: int = 1

    #: Fields per volume: () for a scalar, (3,) for three of them.
    components: ClassVar[tuple[int, ...]] = ()
    #: Beyond these values a field is no mixture any more.
    bounds: ClassVar[tuple[float, float]] = (-3.0, 3.0)
    #: What a process history may drive.
    controls: ClassVar[tuple[str, ...]] = ("mobility",)

    def __post_init__(self) -> None:
        for name in ("kappa", "mobility", "dt", "dx", "substrate_length"):
            if not 0 < getattr(self, name) < math.inf:
                raise InvalidArgument(f"{name} must be positive, got {getattr(self, name)}")
        if self.stabiliser is not None and not 0 <= self.stabiliser < math.inf:
            raise InvalidArgument(f"stabiliser must not be negative, got {self.stabiliser}")
        if not 0 <= self.temperature < math.inf:
            raise InvalidArgument(f"temperature must not be negative, got {self.temperature}")
        if self.boundary not in ("periodic", "film"):
            raise InvalidArgument(f"boundary must be 'periodic' or 'film', got {self.boundary!r}")
        if self.order not in (1, 2) or (self.order == 2 and self.temperature):
            raise InvalidArgument(f"order must be 1, or 2 without temperature, got {self.order}")
        if self.substrate and self.boundary != "film":
            raise InvalidArgument("substrate attracts to a wall, and a periodic box has none; set boundary='film'")

    # --- what an equation supplies ------------------------------------------------------------------------------
    @abstractmethod
    def density(self, u: Tensor, controls: Mapping[str, Tensor]) -> Tensor:
        """f(u), (B, X, Y, Z)."""

    @abstractmethod
    def potential(self, u: Tensor, controls: Mapping[str, Tensor]) -> Tensor:
        """f'(u), the shape of u."""

    def stability(self, controls: Mapping[str, Tensor]) -> float | Tensor:
        """S: a number, or one per volume."""
        return 1.0 if self.stabiliser is None else self.stabiliser

    def advice(self) -> str:
        """What to do about a step that was not stable."""
        return "take stabiliser >= max f'' / 2, or a smaller dt"

    @property
    def periodic(self) -> tuple[bool, bool, bool]:
        return (True, True, self.boundary == "periodic")

    # --- the physics --------------------------------------------------------------------------------------------
    def energy(self, u: Tensor, **controls: Tensor | float) -> Tensor:
        """Free energy per volume, (B,), of a batch of fields; the gradient is taken in Fourier space."""
        given = {name: torch.as_tensor(value, dtype=u.dtype, device=u.device) for name, value in controls.items()}
        given = {name: _column(value, u) for name, value in given.items()}
        u = self._mirrored(u)
        bulk = self.density(u, given).mean(SPACE)
        u_hat = torch.fft.fftn(u, dim=SPACE)
        k2 = wave_numbers(u.shape[-3:], self.dx, u, half=False).square().sum(0)
        gradient = (k2 * u_hat.abs().square()).sum(SPACE) / math.prod(u.shape[-3:]) ** 2
        return bulk + self.kappa / 2 * gradient.reshape(len(u), -1).sum(1)

    def start(self, mean: Tensor, shape: Sequence[int], generator: Generators = None, noise: float = 0.05) -> Tensor:
        """A mixed state (B, *components, X, Y, Z): exactly the given means (B, *components), and small white noise."""
        z = randn((len(mean), *self.components, *shape), generator, device=mean.device, dtype=mean.dtype)
        return mean[(..., None, None, None)] + noise * (z - z.mean(SPACE, keepdim=True))

    # --- the computation ----------------------------------------------------------------------------------------
    def run(
        self,
        u: Tensor,
        times: Sequence[float],
        *,
        history: Mapping[str, History | Tensor] | None = None,
        generator: torch.Generator | None = None,
        progress: bool = False,
    ) -> Tensor:
        """Fields at the given times.

        Args:
            u: (B, *components, X, Y, Z) at time 0, on the device to compute on.
            times: ascending, each rounded to a whole number of steps.
            history: name of a control -> its course in time, or a constant per volume, (B,).
            generator: of the thermal noise.
            progress: show a progress bar.

        Returns:
            (B, len(times), *components, X, Y, Z).

        Raises:
            InvalidArgument: for a field of the wrong shape or not finite, times that do not ascend, or a control that
                the equation does not have.
            SimulationDiverged: when the step is not stable; says what to take instead.
        """
        axes = "".join(f"{n}, " for n in self.components)
        if u.ndim != 4 + len(self.components) or u.shape[1:-3] != self.components:
            raise InvalidArgument(f"u must be (B, {axes}X, Y, Z), got shape {tuple(u.shape)}")
        if not bool(torch.isfinite(u).all()):
            raise InvalidArgument("u has NaN or infinite values")
        stops = self.steps_until(times)
        thickness = u.shape[-1]
        u = self._mirrored(u)
        step = _Step(self, u, stops[-1], history or {}, generator)
        snapshots, done = [], 0
        with bar("simulating", stops[-1], progress) as move:
            for stop in stops:
                while done < stop:
                    for _ in range(min(50, stop - done)):  # looked at now and then, so that the device need not wait
                        u = step(u, done)
                        done += 1
                    self.check(u, done)
                    move(done)
                snapshots.append(u[..., :thickness])
        return torch.stack(snapshots, 1)

    def steps_until(self, times: Sequence[float]) -> list[int]:
        """Whole numbers of steps until each of the times, which must ascend from 0."""
        stops = [round(t / self.dt) for t in times if math.isfinite(t)]
        if not stops or len(stops) < len(times) or any(b < a for a, b in zip([0, *stops], stops, strict=False)):
            raise InvalidArgument(f"times must be finite and ascend from 0, got {list(times)}")
        return stops

    def check(self, u: Tensor, done: int) -> None:
        """Raise SimulationDiverged if a field after ``done`` steps is no mixture any more."""
        low, high = self.bounds
        if not bool(((u > low) & (u < high)).all()):
            s = "by rule" if self.stabiliser is None else f"{self.stabiliser:g}"
            raise SimulationDiverged(
                f"the field is not finite or outside of [{low:g}, {high:g}] by time {done * self.dt:g}; dt={self.dt:g} "
                f"is too large for stabiliser={s}: {self.advice()}"
            )

    def _mirrored(self, u: Tensor) -> Tensor:
        return torch.cat([u, u.flip(-1)], -1) if self.boundary == "film" else u


class _Step:
    """One step of a batch, with everything that does not change from step to step computed once."""

    def __init__(
        self,
        equation: PhaseField,
        u: Tensor,
        steps: int,
        history: Mapping[str, History | Tensor],
        generator: torch.Generator | None,
    ) -> None:
        if stray := set(history) - set(equation.controls):
            raise InvalidArgument(
                f"history has {sorted(stray)}, which {type(equation).__name__} does not have; it has "
                f"{list(equation.controls)}"
            )
        self.equation, self.generator, self.grid = equation, generator, u.shape[-3:]
        self.k2 = wave_numbers(self.grid, equation.dx, u).square().sum(0)
        clock = torch.arange(max(steps, 1), dtype=torch.float64) * equation.dt
        self.courses = {name: _course(name, value, clock, u) for name, value in history.items()}  # name -> (T, B, 1...)
        extremes = {name: value.amax(0) for name, value in self.courses.items()}
        self.s = equation.stability(extremes)
        self.wall = _wall(equation, u)
        self.fixed = None if "mobility" in self.courses else self._coefficients(equation.mobility)
        self.u_hat = torch.fft.rfftn(u, dim=SPACE)
        self.before: tuple[Tensor, Tensor] | None = None  # u^ and mu^ of the last step, for the second order

    def _coefficients(self, mobility: float | Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """What u^, mu^ and the noise are multiplied by."""
        e = self.equation
        stiff = e.dt * mobility * self.k2
        below = 1 + stiff * (self.s + e.kappa * self.k2)
        noise = (2 * e.temperature * stiff).sqrt() / below if e.temperature else None
        return (1 + stiff * self.s) / below, -stiff / below, noise

    def __call__(self, u: Tensor, n: int) -> Tensor:
        controls = {name: value[n] for name, value in self.courses.items()}
        keep, push, shake = self.fixed or self._coefficients(controls["mobility"])
        mu = self.equation.potential(u, controls)
        if self.wall is not None:
            mu = mu - self.wall
        mu_hat = torch.fft.rfftn(mu, dim=SPACE)
        if self.equation.order == 2:
            return self._second(mu_hat, controls)
        self.u_hat = keep * self.u_hat + push * mu_hat
        if shake is not None:
            half = u.shape[-1] // 2 if self.equation.boundary == "film" else u.shape[-1]
            eta = self.equation._mirrored(randn((*u.shape[:-1], half), self.generator, u.device, u.dtype))
            self.u_hat = self.u_hat + shake * torch.fft.rfftn(eta, dim=SPACE)
        return torch.fft.irfftn(self.u_hat, s=self.grid, dim=SPACE)

    def _second(self, mu_hat: Tensor, controls: Mapping[str, Tensor]) -> Tensor:
        e = self.equation
        stiff = e.dt * controls.get("mobility", e.mobility) * self.k2
        if self.before is None:
            new = ((1 + stiff * self.s) * self.u_hat - stiff * mu_hat) / (1 + stiff * (self.s + e.kappa * self.k2))
        else:
            u_old, mu_old = self.before
            ahead = 2 * self.u_hat - u_old
            new = 2 * self.u_hat - 0.5 * u_old + stiff * (self.s * ahead - 2 * mu_hat + mu_old)
            new = new / (1.5 + stiff * (self.s + e.kappa * self.k2))
        self.before, self.u_hat = (self.u_hat, mu_hat), new
        return torch.fft.irfftn(new, s=self.grid, dim=SPACE)


def _wall(equation: PhaseField, u: Tensor) -> Tensor | None:
    """h exp(-z / l), even about both walls, for the first component."""
    if not equation.substrate:
        return None
    half = u.shape[-1] // 2
    z = (torch.arange(half, dtype=u.dtype, device=u.device) + 0.5) * equation.dx
    pull = equation.substrate * torch.exp(-z / equation.substrate_length)
    pull = torch.cat([pull, pull.flip(0)])
    if not equation.components:
        return pull
    (n,) = equation.components  # the others are pushed away, so that the sum stays
    share = torch.full((n, 1, 1, 1), -1 / (n - 1), dtype=u.dtype, device=u.device)
    share[0] = 1
    return share * pull


def _course(name: str, value: History | Tensor, clock: Tensor, u: Tensor) -> Tensor:
    """(T, B, 1, ...) values of a control at each step; a constant is one value that is looked at T times."""
    if isinstance(value, History):
        course = value.at(clock.to(value.times.device))
    else:
        course = torch.as_tensor(value, dtype=torch.float64).reshape(1, -1).expand(len(clock), -1)
    if course.shape[1] not in (1, len(u)):
        raise InvalidArgument(f"history[{name!r}] has {course.shape[1]} courses for a batch of {len(u)}")
    if not bool(torch.isfinite(course).all()) or (name == "mobility" and bool((course <= 0).any())):
        raise InvalidArgument(f"history[{name!r}] must be finite, and a mobility positive")
    return course.to(u).reshape(len(clock), -1, *(1,) * (u.ndim - 1))


def _column(value: Tensor, u: Tensor) -> Tensor:
    return value.reshape(-1, *(1,) * (u.ndim - 1)) if value.ndim else value


def wave_numbers(shape: Sequence[int], dx: float | Sequence[float], like: Tensor, half: bool = True) -> Tensor:
    """(3, X, Y, Z) wave vectors k = 2 pi / wavelength of an FFT over a box; with ``half`` those of ``rfftn``."""
    edges = (dx,) * 3 if isinstance(dx, int | float) else tuple(dx)
    kind = {"device": like.device, "dtype": like.dtype}
    axes = [2 * math.pi * torch.fft.fftfreq(n, d, **kind) for n, d in zip(shape, edges, strict=True)]
    if half:
        axes[-1] = 2 * math.pi * torch.fft.rfftfreq(shape[-1], edges[-1], **kind)
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))
