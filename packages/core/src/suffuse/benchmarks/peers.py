"""Other libraries' samplers on our denoisers: from our x at t = 1, on our noise levels, with every evaluation counted.

A peer works in its own coordinates, scale(kappa) x / alpha: variance preserving ones, scale = (1 + kappa^2)^(-1/2), for
most schedulers of diffusers, and variance exploding ones, scale = 1, elsewhere. It is run with the libraries' own code
and shares nothing with our samplers but the denoiser, x and kappa. The last level is always the clean end, and to go
there costs one evaluation; peers that cannot go there themselves stop before it and return the posterior mean.

    for peer in peers().values():
        levels = DDIM(peer.steps_within(10), grid="karras").levels(denoiser.schedule)
        samples = peer.sample(denoiser, x, levels)

diffusers, k-diffusion and azula are optional: ``missing`` says which are not installed.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from types import ModuleType
from typing import Any, TypeAlias

import torch
from torch import Tensor

from suffuse.condition import Condition
from suffuse.denoiser import Denoiser
from suffuse.samplers.edm import finite_start
from suffuse.schedules import CLEAN, Level, Schedule

__all__ = ["Peer", "missing", "peers"]

#: The posterior mean as a function of x in the peer's coordinates and kappa, a float or a tensor of equal entries.
Mean: TypeAlias = Callable[[Tensor, Any], Tensor]


def _exploding(kappa: float) -> float:
    return 1.0


def _preserving(kappa: float) -> float:
    return float((1 + kappa**2) ** -0.5)


@dataclass(frozen=True)
class Peer:
    """A sampler of another library.

    Args:
        name: ``library/method``.
        run: from (mean, x at the first kappa, all kappas) to x at the last kappa, in the peer's coordinates.
        scale: of these coordinates, as a function of kappa.
        stages: evaluations of a step; the one to the clean end has one.
        stochastic: whether it draws fresh noise (from torch's global generator).
        own_levels: from a schedule and a number of steps to levels, for a peer that chooses them itself.
    """

    name: str
    run: Callable[[Mean, Tensor, Sequence[float]], Tensor]
    scale: Callable[[float], float] = _exploding
    stages: int = 1
    stochastic: bool = False
    own_levels: Callable[[Schedule, int], list[Level]] | None = None

    def evaluations(self, steps: int) -> int:
        """Evaluations of the denoiser for as many steps, the one to the clean end included."""
        return self.stages * (steps - 1) + 1

    def steps_within(self, budget: int) -> int:
        """The most steps whose evaluations stay within the budget; at least one."""
        return max(1, (budget - 1) // self.stages + 1)

    @torch.no_grad()
    def sample(self, denoiser: Denoiser, x: Tensor, levels: Sequence[Level], cond: Condition | None = None) -> Tensor:
        """Samples (B, *event) from x at the first of n + 1 levels (B, *event), in n steps.

        A peer with levels of its own takes only their number from ``levels``, and x as the noise it starts from.

        Raises:
            InvalidArgument: where kappa is infinite at the start, which no peer can express.
        """
        finite_start(self.name, levels)
        schedule, start = denoiser.schedule, levels[0]
        if self.own_levels is not None:
            levels = self.own_levels(schedule, len(levels) - 1)
        known = {level.kappa: level for level in levels}

        def mean(y: Tensor, kappa: Any) -> Tensor:
            value = float(kappa.flatten()[0]) if isinstance(kappa, Tensor) else kappa
            level = known.get(value) or schedule.level(schedule.t_of_kappa(value))
            return denoiser((y * (level.alpha / self.scale(level.kappa))).to(x.dtype), level.t, cond)

        y = x * (self.scale(start.kappa) / start.alpha)
        return self.run(mean, y, [level.kappa for level in levels]).to(x.dtype)


def peers() -> dict[str, Peer]:
    """All samplers of the libraries that are installed, by name."""
    return {peer.name: peer for library in LIBRARIES if _installed(library) for peer in LIBRARIES[library]()}


def missing() -> list[str]:
    """Names of the libraries that are not installed."""
    return [library for library in LIBRARIES if not _installed(library)]


@functools.cache
def _installed(library: str) -> bool:
    try:
        LIBRARIES[library]()
    except ImportError:
        return False
    return True


# --- diffusers --------------------------------------------------------------------------------------------------


def _scheduled(kind: str, **options: Any) -> Callable[[Mean, Tensor, Sequence[float]], Tensor]:
    """A multistep scheduler; these read nothing but ``sigmas``, so ours are put in the place of theirs."""
    scheduler = getattr(importlib.import_module("diffusers"), kind)(prediction_type="sample", **options)

    def run(mean: Mean, x: Tensor, kappas: Sequence[float]) -> Tensor:
        n = len(kappas) - 1
        scheduler.set_timesteps(n)
        scheduler.sigmas = torch.tensor(kappas, dtype=torch.float64)
        scheduler.timesteps = torch.arange(n, 0, -1.0)
        scheduler.set_begin_index(0)
        scheduler.is_scale_input_called = True  # we scale; without this mark, Euler warns
        for timestep, kappa in zip(scheduler.timesteps, kappas[:-1], strict=True):
            x = scheduler.step(mean(x, kappa), timestep, x).prev_sample
        return x

    return run


def _scheduled_heun() -> Callable[[Mean, Tensor, Sequence[float]], Tensor]:
    """Heun's scheduler is stepped once for each evaluation: at k_0, k_1, k_1, k_2, k_2, ..."""
    run = _scheduled("HeunDiscreteScheduler")
    return lambda mean, x, kappas: run(mean, x, [kappas[0], *(k for k in kappas[1:-1] for _ in range(2)), kappas[-1]])


def _scheduled_ddim() -> Callable[[Mean, Tensor, Sequence[float]], Tensor]:
    """DDIM reads ``alphas_cumprod`` at integer timesteps: it is given a chain of n steps. No clipping of the mean."""
    scheduler_class = importlib.import_module("diffusers").DDIMScheduler

    def run(mean: Mean, x: Tensor, kappas: Sequence[float]) -> Tensor:
        n = len(kappas) - 1
        scheduler = scheduler_class(num_train_timesteps=n, prediction_type="sample", clip_sample=False)
        scheduler.set_timesteps(n)
        scheduler.alphas_cumprod = 1 / (1 + torch.tensor(kappas[:-1], dtype=torch.float64).flip(0) ** 2)
        for timestep, kappa in zip(range(n - 1, -1, -1), kappas[:-1], strict=True):
            x = scheduler.step(mean(x, kappa), timestep, x).prev_sample
        return x

    return run


def _ending_in_mean(
    run: Callable[[Mean, Tensor, Sequence[float]], Tensor],
) -> Callable[[Mean, Tensor, Sequence[float]], Tensor]:
    """For solvers in log kappa, which cannot go to the clean end: stop one level before, and return the mean there."""

    def wrapped(mean: Mean, x: Tensor, kappas: Sequence[float]) -> Tensor:
        if kappas[-1] > 0:
            return run(mean, x, kappas)
        x = run(mean, x, kappas[:-1]) if len(kappas) > 2 else x
        return mean(x, kappas[-2])

    return wrapped


def _default_levels(kind: str) -> Callable[[Schedule, int], list[Level]]:
    """The levels of a scheduler as it is configured when nobody configures it; its timestep k is t = (k + 1) / T."""

    def levels(schedule: Schedule, steps: int) -> list[Level]:
        scheduler = getattr(importlib.import_module("diffusers"), kind)()
        scheduler.set_timesteps(steps)
        timesteps = [k for k, _ in groupby(scheduler.timesteps.tolist())]  # Heun has each twice
        total = scheduler.config.num_train_timesteps
        ends_clean = getattr(scheduler, "sigmas", [0.0])[-1] == 0
        return [
            *(schedule.level((k + 1) / total) for k in timesteps),
            CLEAN if ends_clean else schedule.level(1 / total),
        ]

    return levels


def _diffusers() -> list[Peer]:
    dpm, unipc, deis = "DPMSolverMultistepScheduler", "UniPCMultistepScheduler", "DEISMultistepScheduler"
    euler, heun, ddim = "EulerDiscreteScheduler", "HeunDiscreteScheduler", "DDIMScheduler"
    all_order = {
        "lower_order_final": False
    }  # DEIS's last step is followed by the mean, which is of lower order already

    def vp(name: str, run: Callable[[Mean, Tensor, Sequence[float]], Tensor], default: str = "") -> Peer:
        return Peer(f"diffusers/{name}", run, _preserving, own_levels=_default_levels(default) if default else None)

    return [
        vp("ddim", _scheduled_ddim()),
        vp("dpmpp-2m", _scheduled(dpm)),
        vp("dpmpp-3m", _scheduled(dpm, solver_order=3)),
        vp("unipc-2", _scheduled(unipc)),
        vp("unipc-3", _scheduled(unipc, solver_order=3)),
        vp("deis-2", _ending_in_mean(_scheduled(deis, **all_order))),
        vp("deis-3", _ending_in_mean(_scheduled(deis, solver_order=3, **all_order))),
        Peer("diffusers/euler", _scheduled(euler)),
        Peer("diffusers/heun", _scheduled_heun(), stages=2),
        vp("ddim-default", _scheduled_ddim(), ddim),
        vp("dpmpp-2m-default", _scheduled(dpm), dpm),
        vp("unipc-2-default", _scheduled(unipc), unipc),
        vp("deis-2-default", _ending_in_mean(_scheduled(deis)), deis),
        Peer("diffusers/euler-default", _scheduled(euler), own_levels=_default_levels(euler)),
        Peer("diffusers/heun-default", _scheduled_heun(), stages=2, own_levels=_default_levels(heun)),
    ]


# --- k-diffusion ------------------------------------------------------------------------------------------------


@functools.cache
def _k_sampling() -> ModuleType:
    """``k_diffusion.sampling`` alone.

    The package's ``__init__`` imports its training and evaluation code, with a dozen heavy dependencies, and ``utils``
    imports torchvision for functions that sampling does not call. So the package is stood in for by an empty module
    with the same search path, and torchvision, where absent, by empty modules; both are taken back afterwards.
    """
    if "k_diffusion" in sys.modules:
        return importlib.import_module("k_diffusion.sampling")
    spec = importlib.util.find_spec("k_diffusion")
    if spec is None:
        raise ModuleNotFoundError("k_diffusion is not installed", name="k_diffusion")
    package = ModuleType("k_diffusion")
    package.__path__ = list(spec.submodule_search_locations or [])
    stands_in = {"k_diffusion": package}
    if importlib.util.find_spec("torchvision") is None:
        names = ("torchvision", "torchvision.transforms", "torchvision.transforms.functional")
        stands_in |= {name: ModuleType(name) for name in names}
        stands_in["torchvision.transforms"].functional = stands_in[names[-1]]  # type: ignore[attr-defined]
    sys.modules.update(stands_in)
    try:
        return importlib.import_module("k_diffusion.sampling")
    finally:
        for name in [name for name in sys.modules if name in stands_in or name.startswith("k_diffusion.")]:
            del sys.modules[name]


def _sampled(function: str, fresh_noise: bool = False, **options: Any) -> Callable[..., Tensor]:
    """A function of k-diffusion. Fresh noise is drawn plainly, not from its slow Brownian tree."""
    sample = getattr(_k_sampling(), function)

    def run(mean: Mean, x: Tensor, kappas: Sequence[float]) -> Tensor:
        noise = {"noise_sampler": lambda *_: torch.randn_like(x)} if fresh_noise else {}
        sigmas = torch.tensor(kappas, dtype=x.dtype, device=x.device)
        return sample(mean, x, sigmas, disable=True, **noise, **options)

    return run


def _k_diffusion() -> list[Peer]:
    return [
        Peer("k-diffusion/euler", _sampled("sample_euler")),
        Peer("k-diffusion/heun", _sampled("sample_heun"), stages=2),
        Peer("k-diffusion/dpm-2", _sampled("sample_dpm_2"), stages=2),
        Peer("k-diffusion/dpmpp-2s", _sampled("sample_dpmpp_2s_ancestral", eta=0.0), stages=2),
        Peer("k-diffusion/lms", _sampled("sample_lms")),
        Peer("k-diffusion/dpmpp-2m", _sampled("sample_dpmpp_2m")),
        Peer("k-diffusion/euler-ancestral", _sampled("sample_euler_ancestral", True), stochastic=True),
        Peer("k-diffusion/dpmpp-2m-sde", _sampled("sample_dpmpp_2m_sde", True), stochastic=True),
        Peer("k-diffusion/dpmpp-3m-sde", _sampled("sample_dpmpp_3m_sde", True), stochastic=True),
    ]


# --- azula ------------------------------------------------------------------------------------------------------


def _integrated(kind: str, **options: Any) -> Callable[[Mean, Tensor, Sequence[float]], Tensor]:
    """A sampler of azula, whose time is kappa here: alpha = 1, sigma = t."""
    sample, denoise = importlib.import_module("azula.sample"), importlib.import_module("azula.denoise")

    class Adapter(denoise.Denoiser):  # type: ignore[misc, name-defined]
        def __init__(self, mean: Mean) -> None:
            super().__init__()
            self.mean, self.schedule = mean, lambda t: (torch.ones_like(t), t)

        def forward(self, x: Tensor, t: Tensor) -> Any:
            return denoise.DiracPosterior(self.mean(x, t))

    class OnOurLevels(getattr(sample, kind)):  # type: ignore[misc]
        timesteps: Tensor | None = None

    def run(mean: Mean, x: Tensor, kappas: Sequence[float]) -> Tensor:
        sampler = OnOurLevels(Adapter(mean), silent=True, **options)
        sampler.timesteps = torch.tensor(kappas, dtype=torch.float64, device=x.device)
        return sampler(x)

    return _ending_in_mean(run)


def _azula() -> list[Peer]:
    return [
        Peer("azula/ddim", _integrated("DDIMSampler")),
        Peer("azula/heun", _integrated("HeunSampler"), stages=2),
        Peer("azula/xeab-2", _integrated("xEABSampler", order=2)),
        Peer("azula/xeab-3", _integrated("xEABSampler", order=3)),
        Peer("azula/zeab-2", _integrated("zEABSampler", order=2)),
        Peer("azula/zeab-3", _integrated("zEABSampler", order=3)),
        Peer("azula/vab-2", _integrated("vABSampler", order=2)),
        Peer("azula/vab-3", _integrated("vABSampler", order=3)),
    ]


LIBRARIES: dict[str, Callable[[], list[Peer]]] = {"diffusers": _diffusers, "k-diffusion": _k_diffusion, "azula": _azula}
