r"""The denoiser: the posterior mean, and everything that is a view of it.

A denoiser answers D(x_t, t, c) = E[x_0 | x_t, c]. With x_t = alpha x_0 + sigma eps,

    eps      = (x_t - alpha D) / sigma            the noise,
    score    = -eps / sigma                       the gradient of log p_t (Tweedie's formula),
    velocity = alpha' D + sigma' eps              the probability-flow ODE's dx/dt,
    v        = alpha eps - sigma D                the v of Salimans and Ho (2022), arXiv:2202.00512.

Guidance, distillation and adaptation are functions from denoisers to denoisers; samplers consume one.
A network is made a denoiser by saying what its output means (``prediction_type``, in diffusers' words). It may also
learn how uncertain a reverse step is (``with_variance``), and be shown its last estimate (``self_conditioning``).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub import ModelHubMixin
from torch import Tensor, nn

from . import hub
from .condition import Condition
from .errors import InvalidArgument
from .schedules import Level, Scalar, Schedule

__all__ = ["Denoiser", "FunctionDenoiser", "NetworkDenoiser", "Rescheduled", "as_denoiser"]

PREDICTION_TYPES = ("sample", "epsilon", "score", "v_prediction", "flow_prediction")

#: The name under which a self-conditioned network is shown its last posterior mean.
ESTIMATE = "estimate"


class Denoiser(nn.Module, ABC):
    """E[x_0 | x_t] as a function of a noisy batch, its noise level and a condition."""

    schedule: Schedule

    if TYPE_CHECKING:  # nn.Module's own signature says Any

        def __call__(self, x: Tensor, t: Scalar, cond: Condition | None = None) -> Tensor: ...

    @abstractmethod
    def forward(self, x: Tensor, t: Scalar, cond: Condition | None = None) -> Tensor:
        """The posterior mean.

        Args:
            x: the noisy batch x_t, (B, *event).
            t: time in [0, 1], 0 data and 1 noise; a float for the whole batch or a tensor (B,).
            cond: what is asked of each sample, or None.

        Returns:
            E[x_0 | x_t, cond], with the shape and dtype of x.
        """

    def eps(self, x: Tensor, t: Scalar, cond: Condition | None = None) -> Tensor:
        """E[eps | x_t] = (x - alpha D) / sigma."""
        return mean_to_eps(x, self(x, t, cond), self.schedule.level(t, like=x))

    def score(self, x: Tensor, t: Scalar, cond: Condition | None = None) -> Tensor:
        """The gradient of log p_t(x): -eps / sigma."""
        level = self.schedule.level(t, like=x)
        return -mean_to_eps(x, self(x, t, cond), level) / level.sigma

    def velocity(self, x: Tensor, t: Scalar, cond: Condition | None = None) -> Tensor:
        """dx/dt of the probability-flow ODE: alpha' D + sigma' eps."""
        level = self.schedule.level(t, like=x)
        mean = self(x, t, cond)
        return level.dalpha * mean + level.dsigma * mean_to_eps(x, mean, level)

    def v(self, x: Tensor, t: Scalar, cond: Condition | None = None) -> Tensor:
        """E[alpha eps - sigma x_0 | x_t]; for a variance-preserving schedule x_t turned by a right angle."""
        level = self.schedule.level(t, like=x)
        mean = self(x, t, cond)
        return level.alpha * mean_to_eps(x, mean, level) - level.sigma * mean

    def with_variance(self, x: Tensor, t: Scalar, cond: Condition | None = None) -> tuple[Tensor, Tensor]:
        """The posterior mean D, and the learned variance of reverse steps from t, entry by entry, both like x.

        The variance of x_s given x_t is given as a fraction f of the way from the posterior's (0) to the transition's
        (1) on a logarithmic scale (``samplers.DDPM``); f may leave [0, 1].

        Raises:
            InvalidArgument: when no variance was learned.
        """
        raise InvalidArgument(
            f"{type(self).__name__} has no learned variance; train a NetworkDenoiser(learn_variance=True), or use "
            f"variance='small'"
        )

    def with_schedule(self, schedule: Schedule) -> Denoiser:
        """The same denoiser read under another schedule, exactly and without training."""
        return self if schedule == self.schedule else Rescheduled(self, schedule)


def mean_to_eps(x: Tensor, mean: Tensor, level: Level) -> Tensor:
    """(x - alpha D) / sigma."""
    return (x - level.alpha * mean) / level.sigma


class Rescheduled(Denoiser):
    """D_B(x, t_B) = D_A(x alpha_A / alpha_B, t_A) where the two times have the same kappa."""

    def __init__(self, denoiser: Denoiser, schedule: Schedule) -> None:
        super().__init__()
        self.denoiser, self.schedule = denoiser, schedule

    def forward(self, x: Tensor, t: Scalar, cond: Condition | None = None) -> Tensor:
        inner = self.denoiser.schedule
        if isinstance(t, Tensor):
            time: Scalar = inner.t_of_log_kappa(self.schedule.log_kappa(t.double() if t.device.type != "mps" else t))
        else:
            time = inner.t_of_log_kappa(self.schedule.log_kappa(t))
        here, there = self.schedule.level(t, like=x), inner.level(time, like=x)
        # equal to alpha_A / alpha_B and to sigma_A / sigma_B, and finite where either of them vanishes
        return self.denoiser(x * (input_scale(here, 1.0) / input_scale(there, 1.0)), time, cond)


class FunctionDenoiser(Denoiser):
    """A plain function (x, t, cond) -> mean, with the schedule it is meant for."""

    def __init__(self, function: Callable[[Tensor, Scalar, Condition | None], Tensor], schedule: Schedule) -> None:
        super().__init__()
        self.function, self.schedule = function, schedule

    def forward(self, x: Tensor, t: Scalar, cond: Condition | None = None) -> Tensor:
        return self.function(x, t, cond)


def as_denoiser(
    function: Denoiser | Callable[[Tensor, Scalar, Condition | None], Tensor], schedule: Schedule | None = None
) -> Denoiser:
    """A denoiser from a denoiser (as it is) or from a function and its schedule."""
    if isinstance(function, Denoiser):
        return function if schedule is None else function.with_schedule(schedule)
    if schedule is None:
        raise InvalidArgument("schedule is needed to make a function a denoiser; pass as_denoiser(function, schedule)")
    return FunctionDenoiser(function, schedule)


def with_estimate(cond: Condition | None, mean: Tensor, given: int | None = None) -> Condition:
    """The condition with an estimate of x_0 in it, as a self-conditioned network expects it.

    Args:
        cond: any condition, or None.
        mean: the last posterior mean, (B, *event).
        given: how many rows, the first ones, have an estimate; the others are masked. Default: all.
    """
    rows = torch.arange(len(mean), device=mean.device) < (len(mean) if given is None else given)
    if mean.ndim > 2:
        estimate = Condition(maps={ESTIMATE: mean}, masks={ESTIMATE: rows})
    else:
        estimate = Condition(tokens={ESTIMATE: mean[:, None]}, masks={ESTIMATE: rows[:, None]})
    return estimate if cond is None else cond.merge(estimate)


def is_self_conditioned(denoiser: nn.Module) -> bool:
    """Whether a network somewhere inside wants to be shown the last estimate."""
    return any(isinstance(module, NetworkDenoiser) and module.self_conditioning for module in denoiser.modules())


def input_scale(level: Level, data_std: float) -> Any:
    """c_in = (alpha^2 s^2 + sigma^2)^(-1/2)."""
    return (level.alpha**2 * data_std**2 + level.sigma**2) ** -0.5


def output_coefficients(level: Level, prediction_type: str, data_std: float = 1.0) -> tuple[Any, Any]:
    """(a, b) with D = a x + b F for a network's output F: the table in ``NetworkDenoiser``."""
    match prediction_type:
        case "sample":
            return 0.0, 1.0
        case "epsilon":
            return 1 / level.alpha, -level.sigma / level.alpha
        case "score":
            return 1 / level.alpha, level.sigma**2 / level.alpha
        case "flow_prediction":
            # sigma'/W and sigma/W divided through by sigma', which is infinite at t = 0 for some schedules
            ratio = level.sigma / level.dsigma
            scale = 1 / (level.alpha - level.dalpha * ratio)
            return scale, -scale * ratio
        case "v_prediction":
            c_in = input_scale(level, data_std)
            return level.alpha * (data_std * c_in) ** 2, -level.sigma * data_std * c_in
    raise InvalidArgument(f"prediction_type must be one of {PREDICTION_TYPES}, got {prediction_type!r}")


@hub.serializable
class NetworkDenoiser(Denoiser, ModelHubMixin):
    r"""A network made a denoiser: it sees c_in x and the noise level, and its output F is read as

        sample:           D = F
        epsilon:          D = (x - sigma F) / alpha
        score:            D = (x + sigma^2 F) / alpha
        flow_prediction:  D = (sigma' x - sigma F) / (alpha sigma' - alpha' sigma)
        v_prediction:     D = c_skip x - c_out F

    with the preconditioning of Karras et al. (2022), arXiv:2206.00364, table 1, for any schedule: with s the standard
    deviation of the data, c_in = (alpha^2 s^2 + sigma^2)^(-1/2), c_skip = alpha s^2 c_in^2, c_out = sigma s c_in. For a
    variance-preserving schedule and s = 1 that is the v of Salimans and Ho (2022), arXiv:2202.00512; for EDM's it is
    EDM's own parametrisation with the sign of F turned.

    Args:
        backbone: called as ``backbone(c_in * x, c_noise, cond)`` with c_noise = log(kappa) / 4 of shape (B,); returns
            the shape of x. It never sees t, so the schedule can be exchanged after training.
        schedule: the noise schedule.
        prediction_type: what the output means, in diffusers' words.
        data_std: s, the standard deviation of the training data.
        learn_variance: the backbone returns twice the channels of x; the second half v learns the variance of reverse
            steps, as the fraction (v + 1) / 2 of ``with_variance``. Nichol, Dhariwal (2021), arXiv:2102.09672, eq. 15.
        self_conditioning: the backbone is also shown the last posterior mean of the same sample, as the condition map
            ``"estimate"`` (B, C, *spatial), or token (B, 1, D) where x is (B, D); masked where there is none. Samplers
            put it there, training does for half of the rows. Chen et al. (2022), "Analog Bits", arXiv:2208.04202.
    """

    #: log kappa is clipped to this range before the network sees it. A rectified flow's end is at infinity, and what a
    #: network is shown there must be something that it was trained at: above e^5 = 148 all x are noise alike.
    LOG_KAPPA = (-12.0, 5.0)

    def __init__(
        self,
        backbone: nn.Module,
        schedule: Schedule,
        prediction_type: str = "v_prediction",
        data_std: float = 1.0,
        learn_variance: bool = False,
        self_conditioning: bool = False,
    ) -> None:
        super().__init__()
        if prediction_type not in PREDICTION_TYPES:
            raise InvalidArgument(f"prediction_type must be one of {PREDICTION_TYPES}, got {prediction_type!r}")
        if not data_std > 0:
            raise InvalidArgument(f"data_std must be positive, got {data_std}; is the data constant?")
        if prediction_type in ("epsilon", "score") and schedule.alpha(1.0) == 0:
            raise InvalidArgument(
                f"prediction_type={prediction_type!r} says nothing about the data at t=1, where this schedule's alpha "
                f"is 0; use 'flow_prediction' or 'v_prediction'"
            )
        self.backbone, self.schedule = backbone, schedule
        self.prediction_type, self.data_std = prediction_type, float(data_std)
        self.learn_variance, self.self_conditioning = learn_variance, self_conditioning

    def forward(self, x: Tensor, t: Scalar, cond: Condition | None = None) -> Tensor:
        return self._mean_and_rest(x, t, cond)[0]

    def with_variance(self, x: Tensor, t: Scalar, cond: Condition | None = None) -> tuple[Tensor, Tensor]:
        if not self.learn_variance:
            return super().with_variance(x, t, cond)
        mean, rest = self._mean_and_rest(x, t, cond)
        return mean, (rest + 1) / 2

    def _mean_and_rest(self, x: Tensor, t: Scalar, cond: Condition | None) -> tuple[Tensor, Tensor]:
        """D, and the channels of the output behind those of x."""
        if cond is not None and len(cond) not in (0, len(x)):
            raise InvalidArgument(f"cond has batch size {len(cond)} but x has {len(x)}; use cond.repeat or index it")
        if self.self_conditioning and (cond is None or ESTIMATE not in cond.names):
            cond = with_estimate(cond, torch.zeros_like(x), given=0)
        level = self.schedule.level(t, like=x)
        skip, out = self.coefficients(level)
        log_kappa = level.log_kappa
        if isinstance(log_kappa, Tensor):
            c_noise = log_kappa.reshape(-1).clamp(*self.LOG_KAPPA).expand(len(x)) / 4
        else:
            low, high = self.LOG_KAPPA
            c_noise = torch.full((len(x),), min(max(log_kappa, low), high) / 4, device=x.device, dtype=x.dtype)
        output = self.backbone(self.input_scale(level) * x, c_noise, cond)
        channels = x.shape[1] * (2 if self.learn_variance else 1)
        if output.shape != (len(x), channels, *x.shape[2:]):
            rule = "learn_variance needs twice the channels" if self.learn_variance else "shapes must be equal"
            raise InvalidArgument(
                f"the backbone returned {tuple(output.shape)} for an input of {tuple(x.shape)}; {rule}"
            )
        output, rest = output.to(x.dtype).tensor_split([x.shape[1]], dim=1)
        return skip * x + out * output, rest

    def input_scale(self, level: Level) -> Any:
        """c_in, which gives the network inputs of variance one."""
        return input_scale(level, self.data_std)

    def coefficients(self, level: Level) -> tuple[Any, Any]:
        """(a, b) with D = a x + b F; 1/b^2 weights errors of D as errors of F."""
        return output_coefficients(level, self.prediction_type, self.data_std)

    # --- sharing: huggingface_hub's save_pretrained, from_pretrained and push_to_hub, on our own format ----------
    def _save_pretrained(self, save_directory: Path) -> None:
        hub.write(self, Path(save_directory), {})

    @classmethod
    def _from_pretrained(  # type: ignore[override]
        cls,
        *,
        model_id: str,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
        token: str | bool | None = None,
        device: str = "cpu",
        **_: Any,
    ) -> Denoiser:
        folder = Path(model_id)
        if not folder.is_dir():
            from huggingface_hub import snapshot_download

            folder = Path(
                snapshot_download(
                    model_id,
                    revision=revision,
                    cache_dir=cache_dir,
                    force_download=force_download,
                    local_files_only=local_files_only,
                    token=token,
                    allow_patterns=[hub.CONFIG, hub.WEIGHTS],
                )
            )
        return hub.load(folder, device=device)
