r"""Noise schedules: how much of the data and how much noise there is at time t.

A schedule is a pair of functions on t in [0, 1], t = 0 the data and t = 1 the noise, with

    x_t = alpha(t) x_0 + sigma(t) eps,     eps ~ N(0, I).

Everything else follows: the noise-to-signal ratio kappa = sigma / alpha, the log signal-to-noise ratio
log_snr = 2 log(alpha / sigma) = -2 log kappa, and the derivatives alpha', sigma' that turn a posterior mean into a
velocity. Two schedules with the same kappa differ by a rescaling of x only, so a denoiser trained under one can be read
under another (``Denoiser.with_schedule``).

Functions take a float and return a float, or take a tensor and return a tensor of its shape, dtype and device;
the arithmetic between is float64 wherever the device has it.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from torch import Tensor

from .errors import InvalidArgument, unknown

__all__ = ["EDM", "VE", "DiscreteBetas", "Level", "RectifiedFlow", "Schedule", "VPCosine", "VPLinear"]

T = TypeVar("T", float, Tensor)
Scalar = float | Tensor


@dataclass(frozen=True)
class Level:
    """A noise level: what a schedule says at one t. Floats, or tensors that broadcast against a batch.

    Attributes:
        t: time in [0, 1].
        alpha, sigma: the coefficients of data and noise.
        dalpha, dsigma: their derivatives with respect to t.
        log_kappa: log(sigma / alpha), kept apart because the ratio of two rounded numbers loses it at the ends.
    """

    t: Any
    alpha: Any
    sigma: Any
    dalpha: Any
    dsigma: Any
    log_kappa: Any

    @property
    def kappa(self) -> Any:
        """sigma / alpha, the noise level in the coordinates x / alpha."""
        return self.log_kappa.exp() if isinstance(self.log_kappa, Tensor) else _exp(self.log_kappa)

    @property
    def log_snr(self) -> Any:
        """2 log(alpha / sigma)."""
        return -2 * self.log_kappa

    @property
    def wronskian(self) -> Any:
        """alpha sigma' - alpha' sigma > 0, which divides the velocity when it is turned into a mean."""
        return self.alpha * self.dsigma - self.dalpha * self.sigma


#: Data without noise, where every sampler ends.
CLEAN = Level(t=0.0, alpha=1.0, sigma=0.0, dalpha=0.0, dsigma=0.0, log_kappa=-math.inf)


def _exp(x: float) -> float:
    return math.exp(x) if x < 700 else math.inf


def _float64(function: Callable[[Tensor], Tensor], x: T) -> T:
    """Evaluate in float64 and return what came in: a float for a float, the dtype and device of a tensor."""
    if not isinstance(x, Tensor):
        return float(function(torch.tensor(float(x), dtype=torch.float64)))
    work = x if x.device.type == "mps" else x.double()  # mps has no float64
    return function(work).to(x.dtype if x.is_floating_point() else torch.get_default_dtype())


class Schedule(ABC):
    """A noise schedule. Subclasses are frozen dataclasses and give the four private functions on float64 tensors."""

    kinds: ClassVar[dict[str, type[Schedule]]] = {}
    #: The smallest t a network is trained at and a sampler evaluates at; below it lies the clean end.
    t_min: ClassVar[float] = 1e-3

    def __init_subclass__(cls) -> None:
        Schedule.kinds[cls.__name__] = cls

    # --- what a subclass supplies -------------------------------------------------------------------------------
    @abstractmethod
    def _alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]: ...

    @abstractmethod
    def _derivatives(self, t: Tensor) -> tuple[Tensor, Tensor]: ...

    @abstractmethod
    def _log_kappa(self, t: Tensor) -> Tensor: ...

    @abstractmethod
    def _t_of_log_kappa(self, log_kappa: Tensor) -> Tensor: ...

    def _values(self, t: Tensor) -> tuple[Tensor, ...]:
        """alpha, sigma, their derivatives and log kappa. On a GPU each operation costs a launch: share what can be."""
        return (*self._alpha_sigma(t), *self._derivatives(t), self._log_kappa(t))

    # --- what a user calls --------------------------------------------------------------------------------------
    def alpha(self, t: T) -> T:
        """The coefficient of the data."""
        return _float64(lambda s: self._alpha_sigma(s)[0], t)

    def sigma(self, t: T) -> T:
        """The coefficient of the noise."""
        return _float64(lambda s: self._alpha_sigma(s)[1], t)

    def dalpha(self, t: T) -> T:
        """d alpha / dt."""
        return _float64(lambda s: self._derivatives(s)[0], t)

    def dsigma(self, t: T) -> T:
        """d sigma / dt (infinite at t = 0 for variance-preserving schedules)."""
        return _float64(lambda s: self._derivatives(s)[1], t)

    def log_kappa(self, t: T) -> T:
        """log(sigma / alpha), increasing in t."""
        return _float64(self._log_kappa, t)

    def kappa(self, t: T) -> T:
        """sigma / alpha."""
        return _float64(lambda s: self._log_kappa(s).exp(), t)

    def log_snr(self, t: T) -> T:
        """2 log(alpha / sigma), decreasing in t."""
        return _float64(lambda s: -2 * self._log_kappa(s), t)

    def t_of_log_kappa(self, log_kappa: T) -> T:
        """The inverse of ``log_kappa``, clipped to [0, 1]."""
        return _float64(self._time, log_kappa)

    def t_of_kappa(self, kappa: T) -> T:
        """The inverse of ``kappa``, clipped to [0, 1]."""
        return _float64(lambda k: self._time(k.log()), kappa)

    def t_of_log_snr(self, log_snr: T) -> T:
        """The inverse of ``log_snr``, clipped to [0, 1]."""
        return _float64(lambda s: self._time(-s / 2), log_snr)

    def _time(self, log_kappa: Tensor) -> Tensor:
        return self._t_of_log_kappa(log_kappa.clamp(max=300)).clamp(0, 1)  # infinity is no number to compute with

    def level(self, t: Scalar, like: Tensor | None = None) -> Level:
        """All coefficients at once.

        Args:
            t: a float, which gives floats; or a tensor, 0-d or (B,), which gives tensors.
            like: a tensor (B, *event); tensor coefficients get its dtype and device and broadcast against it.
        """
        if not isinstance(t, Tensor):
            return _float_level(self, float(t))
        work = t if t.device.type == "mps" else t.double()
        values = (work, *self._values(work))
        if like is not None:
            shape = t.shape + (1,) * (like.ndim - t.ndim)
            values = tuple(v.to(like.device, like.dtype).reshape(shape) for v in values)
        return Level(*values)

    def add_noise(self, x0: Tensor, t: Scalar, noise: Tensor) -> Tensor:
        """x_t = alpha x_0 + sigma eps, for x0 and noise (B, *event) and t a float or (B,)."""
        level = self.level(t, like=x0)
        return level.alpha * x0 + level.sigma * noise

    def warn_if_signal_remains(self, threshold: float = 0.05) -> None:
        """Warn when alpha / sigma at t = 1 is so large that pure noise is the wrong place to start from."""
        ratio = math.exp(-self.log_kappa(1.0))
        if ratio > threshold:
            warnings.warn(
                f"{type(self).__name__} keeps alpha/sigma = {ratio:.3g} of the data at t=1; samples that start from "
                f"pure noise will be biased. Use a schedule that reaches more noise.",
                stacklevel=3,
            )

    def to_config(self) -> dict[str, Any]:
        """A JSON-able description, read back by ``Schedule.from_config``."""
        return {"type": type(self).__name__, **dataclasses.asdict(self)}  # type: ignore[call-overload]

    @staticmethod
    def from_config(config: dict[str, Any]) -> Schedule:
        """Build a schedule from ``to_config``'s dictionary. Raises InvalidArgument for an unknown type or field."""
        fields = dict(config)
        kind = fields.pop("type", None)
        if kind not in Schedule.kinds:
            raise unknown("schedule type", kind, Schedule.kinds)
        cls = Schedule.kinds[kind]
        known = {f.name for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
        if extra := set(fields) - known:
            raise InvalidArgument(f"schedule {kind} has no field {sorted(extra)}; it has {sorted(known)}")
        return cls(**fields)


@functools.lru_cache(maxsize=4096)
def _float_level(schedule: Schedule, t: float) -> Level:
    if not 0 <= t <= 1:
        raise InvalidArgument(f"t must lie in [0, 1] (0 data, 1 noise), got {t}")
    at = torch.tensor(t, dtype=torch.float64)
    return Level(t, *(float(v) for v in schedule._values(at)))


class _VariancePreserving(Schedule):
    """alpha^2 + sigma^2 = 1, so log alpha is enough: sigma and kappa follow without cancellation by expm1."""

    @abstractmethod
    def _log_alpha(self, t: Tensor) -> Tensor: ...

    @abstractmethod
    def _dlog_alpha(self, t: Tensor) -> Tensor: ...

    def _alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        log_alpha = self._log_alpha(t)
        return log_alpha.exp(), (-torch.expm1(2 * log_alpha)).sqrt()

    def _derivatives(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return self._values(t)[2:4]  # type: ignore[return-value]

    def _log_kappa(self, t: Tensor) -> Tensor:
        return 0.5 * torch.log(torch.expm1(-2 * self._log_alpha(t)))

    def _values(self, t: Tensor) -> tuple[Tensor, ...]:
        log_alpha = self._log_alpha(t)
        return _turned(log_alpha, self._dlog_alpha(t), 0.5 * torch.log(torch.expm1(-2 * log_alpha)))


def _turned(log_alpha: Tensor, dlog_alpha: Tensor, log_kappa: Tensor) -> tuple[Tensor, ...]:
    """The values of a variance-preserving schedule."""
    alpha, sigma = log_alpha.exp(), (-torch.expm1(2 * log_alpha)).sqrt()
    dalpha = alpha * dlog_alpha
    return alpha, sigma, dalpha, -alpha * dalpha / sigma, log_kappa  # alpha alpha' + sigma sigma' = 0


@dataclass(frozen=True)
class VPLinear(_VariancePreserving):
    """Variance preserving with a linear rate: log alpha = -(beta_max - beta_min) t^2 / 4 - beta_min t / 2.

    Song et al. (2021), "Score-Based Generative Modeling through Stochastic Differential Equations",
    arXiv:2011.13456, eq. 33; the continuous limit of Ho et al.'s DDPM schedule.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self) -> None:
        if not 0 < self.beta_min < self.beta_max:
            raise InvalidArgument(f"need 0 < beta_min < beta_max, got beta_min={self.beta_min}, {self.beta_max=}")

    def _log_alpha(self, t: Tensor) -> Tensor:
        return -(self.beta_max - self.beta_min) / 4 * t**2 - self.beta_min / 2 * t

    def _dlog_alpha(self, t: Tensor) -> Tensor:
        return -(self.beta_max - self.beta_min) / 2 * t - self.beta_min / 2

    def _t_of_log_kappa(self, log_kappa: Tensor) -> Tensor:
        rise = self.beta_max - self.beta_min
        total = torch.nn.functional.softplus(2 * log_kappa)  # log(1 + kappa^2) = -2 log alpha
        # the root of rise t^2 / 2 + beta_min t = total, in the form that does not cancel at small t
        return 2 * total / ((self.beta_min**2 + 2 * rise * total).sqrt() + self.beta_min)


@dataclass(frozen=True)
class VPCosine(_VariancePreserving):
    """Variance preserving, alpha = cos(pi/2 (t+s)/(1+s)) / cos(pi/2 s/(1+s)), kept above ``alpha_min`` at t = 1.

    Nichol, Dhariwal (2021), "Improved Denoising Diffusion Probabilistic Models", arXiv:2102.09672, eq. 17.
    The time axis ends where alpha meets ``alpha_min``, which keeps the log-SNR finite and invertible.
    """

    s: float = 0.008
    alpha_min: float = 1e-3

    def __post_init__(self) -> None:
        if self.s < 0 or not 0 < self.alpha_min < 1:
            raise InvalidArgument(f"need s >= 0 and 0 < alpha_min < 1, got s={self.s}, alpha_min={self.alpha_min}")

    @functools.cached_property
    def _angles(self) -> tuple[float, float]:
        """The angle runs from phi_0 at t = 0 to phi_1 at t = 1."""
        start = math.pi / 2 * self.s / (1 + self.s)
        return start, math.acos(self.alpha_min * math.cos(start))

    def _log_alpha(self, t: Tensor) -> Tensor:
        start, end = self._angles
        # cos(a + d) / cos(a) = 1 - 2 sin^2(d/2) - tan(a) sin(d): log1p keeps the small t
        d = (end - start) * t
        return torch.log1p(-2 * torch.sin(d / 2) ** 2 - math.tan(start) * torch.sin(d))

    def _dlog_alpha(self, t: Tensor) -> Tensor:
        start, end = self._angles
        return -(end - start) * torch.tan(start + (end - start) * t)

    def _t_of_log_kappa(self, log_kappa: Tensor) -> Tensor:
        start, end = self._angles
        # alpha = (1 + kappa^2)^(-1/2); sin^2 of the angle gives more digits than acos when alpha is near 1
        alpha2 = torch.sigmoid(-2 * log_kappa) * math.cos(start) ** 2
        sine2 = torch.sigmoid(2 * log_kappa) * math.cos(start) ** 2 + math.sin(start) ** 2
        angle = torch.atan2(sine2.sqrt(), alpha2.sqrt())
        return (angle - start) / (end - start)


@dataclass(frozen=True)
class EDM(Schedule):
    """Variance exploding: alpha = 1, sigma log-linear from sigma_min to sigma_max, so uniform t is uniform log-SNR.

    Song et al. (2021), arXiv:2011.13456, eq. 31; the range of Karras et al. (2022), "Elucidating the Design Space of
    Diffusion-Based Generative Models", arXiv:2206.00364.
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    t_min: ClassVar[float] = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.sigma_min < self.sigma_max:
            raise InvalidArgument(f"need 0 < sigma_min < sigma_max, got {self.sigma_min=}, {self.sigma_max=}")

    @property
    def _span(self) -> float:
        return math.log(self.sigma_max / self.sigma_min)

    def _alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ones_like(t), self._log_kappa(t).exp()

    def _derivatives(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(t), self._span * self._log_kappa(t).exp()

    def _log_kappa(self, t: Tensor) -> Tensor:
        return math.log(self.sigma_min) + self._span * t

    def _t_of_log_kappa(self, log_kappa: Tensor) -> Tensor:
        return (log_kappa - math.log(self.sigma_min)) / self._span


VE = EDM


@dataclass(frozen=True)
class RectifiedFlow(Schedule):
    """Straight paths: alpha = 1 - tau, sigma = tau, tau = shift t / (1 + (shift - 1) t).

    Liu et al. (2022), "Flow Straight and Fast", arXiv:2209.03003; Lipman et al. (2022), arXiv:2210.02747. ``shift`` > 1
    spends more time at high noise: Esser et al. (2024), arXiv:2403.03206, eq. 23. At t = 1 kappa is infinite.
    """

    shift: float = 1.0

    def __post_init__(self) -> None:
        if self.shift <= 0:
            raise InvalidArgument(f"shift must be positive, got {self.shift}")

    def _tau(self, t: Tensor) -> Tensor:
        return self.shift * t / (1 + (self.shift - 1) * t)

    def _alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return (1 - t) / (1 + (self.shift - 1) * t), self._tau(t)

    def _derivatives(self, t: Tensor) -> tuple[Tensor, Tensor]:
        rate = self.shift / (1 + (self.shift - 1) * t) ** 2
        return -rate, rate

    def _log_kappa(self, t: Tensor) -> Tensor:
        return math.log(self.shift) + torch.log(t) - torch.log1p(-t)

    def _t_of_log_kappa(self, log_kappa: Tensor) -> Tensor:
        return torch.sigmoid(log_kappa - math.log(self.shift))


@dataclass(frozen=True)
class DiscreteBetas(_VariancePreserving):
    """The discrete chain of DDPM, alpha_bar_k = prod_{j<=k} (1 - beta_j), at t = k / T for k = 1..T.

    Index k - 1 of diffusers' ``alphas_cumprod`` sits at t = k / T; between two indices the log-SNR is interpolated
    linearly, and below t = 1/T it is extrapolated along the first segment, so the schedule stays invertible.

    Ho, Jain, Abbeel (2020), "Denoising Diffusion Probabilistic Models", arXiv:2006.11239.

    Args:
        betas: the T variances, each in (0, 1).
    """

    betas: tuple[float, ...]

    def __post_init__(self) -> None:
        betas = np.asarray(self.betas, dtype=np.float64)
        if betas.ndim != 1 or len(betas) < 2 or not ((betas > 0) & (betas < 1)).all():
            raise InvalidArgument("betas must be a sequence of at least two numbers, each in (0, 1)")
        object.__setattr__(self, "betas", tuple(float(b) for b in betas))
        object.__setattr__(self, "_hash", hash(self.betas))  # a thousand floats are hashed once, not at every step

    def __repr__(self) -> str:
        return f"DiscreteBetas({len(self.betas)} betas, {self.betas[0]:.3g} to {self.betas[-1]:.3g})"

    def __hash__(self) -> int:
        return self._hash  # type: ignore[attr-defined]

    @classmethod
    def linear(cls, beta_start: float = 1e-4, beta_end: float = 0.02, steps: int = 1000) -> DiscreteBetas:
        """DDPM's own: betas equally spaced."""
        return cls(tuple(np.linspace(beta_start, beta_end, steps)))

    @classmethod
    def scaled_linear(cls, beta_start: float = 0.00085, beta_end: float = 0.012, steps: int = 1000) -> DiscreteBetas:
        """Latent diffusion's: square roots of the betas equally spaced."""
        return cls(tuple(np.linspace(beta_start**0.5, beta_end**0.5, steps) ** 2))

    @classmethod
    def cosine(cls, steps: int = 1000, max_beta: float = 0.999) -> DiscreteBetas:
        """Improved DDPM's: betas from cos^2, clipped at ``max_beta``."""
        bar = np.cos((np.linspace(0, 1, steps + 1) + 0.008) / 1.008 * np.pi / 2) ** 2
        return cls(tuple(np.minimum(1 - bar[1:] / bar[:-1], max_beta)))

    @property
    def t_min(self) -> float:  # type: ignore[override]
        return 1 / len(self.betas)

    @functools.cached_property
    def _nodes(self) -> Tensor:
        """log kappa at t = 1/T .. 1, float64."""
        log_bar = np.cumsum(np.log1p(-np.asarray(self.betas)))
        return torch.from_numpy(0.5 * np.log(np.expm1(-log_bar)))

    @functools.cached_property
    def _copies(self) -> dict[tuple[torch.device, torch.dtype], Tensor]:
        """``_nodes`` where they are needed: a copy to a GPU makes both wait."""
        return {}

    def _nodes_like(self, t: Tensor) -> Tensor:
        kept = self._copies.get((t.device, t.dtype))
        if kept is None:
            with torch.inference_mode(False):  # what is kept may meet a gradient later
                kept = self._copies[t.device, t.dtype] = self._nodes.to(t)
        return kept

    def _segment(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The value at the segment's left end, its slope in t, and how far t lies to the right of that end."""
        count = len(self.betas)
        nodes = self._nodes_like(t)
        left = (t.detach() * count - 1).floor().long().clamp(0, count - 2)
        return nodes[left], (nodes[left + 1] - nodes[left]) * count, t - (left + 1).to(t) / count

    def _log_kappa(self, t: Tensor) -> Tensor:
        value, slope, offset = self._segment(t)
        return value + slope * offset

    def _log_alpha(self, t: Tensor) -> Tensor:
        return self._logs(t)[0]

    def _dlog_alpha(self, t: Tensor) -> Tensor:
        return self._logs(t)[1]

    def _values(self, t: Tensor) -> tuple[Tensor, ...]:
        return _turned(*self._logs(t))

    def _logs(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """log alpha, its derivative, and log kappa."""
        value, slope, offset = self._segment(t)
        log_kappa = value + slope * offset
        # d log alpha = -sigma^2 d log kappa
        return -0.5 * torch.nn.functional.softplus(2 * log_kappa), -torch.sigmoid(2 * log_kappa) * slope, log_kappa

    def _t_of_log_kappa(self, log_kappa: Tensor) -> Tensor:
        nodes = self._nodes_like(log_kappa)
        left = (torch.searchsorted(nodes, log_kappa.contiguous()) - 1).clamp(0, len(nodes) - 2)
        fraction = (log_kappa - nodes[left]) / (nodes[left + 1] - nodes[left])
        return (left + 1 + fraction) / len(nodes)

    @property
    def alphas_cumprod(self) -> Tensor:
        """(T,) float64, equal to diffusers' ``alphas_cumprod``."""
        return torch.from_numpy(np.cumprod(1 - np.asarray(self.betas)))
