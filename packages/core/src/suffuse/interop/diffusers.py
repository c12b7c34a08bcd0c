"""diffusers in both directions; needs the extra ``diffusers``.

``DiffusersDenoiser`` reads a diffusers model and its scheduler's configuration as a denoiser, to be guided and sampled
like any other. ``SuffuseScheduler`` is a diffusers scheduler made of one of our samplers, for use in any
``DiffusionPipeline``.

Both turn a noise level into diffusers' timestep by interpolating the log-SNR between the integer timesteps of the
training, not by rounding: index k - 1 of ``alphas_cumprod`` is t = k / T.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..condition import Condition
from ..denoiser import PREDICTION_TYPES, Denoiser, output_coefficients
from ..errors import InvalidArgument, require
from ..random import Generators, randn
from ..samplers import by_name
from ..schedules import DiscreteBetas, RectifiedFlow, Scalar, Schedule

require("diffusers", extra="diffusers")

from diffusers import SchedulerMixin  # noqa: E402
from diffusers.configuration_utils import ConfigMixin, register_to_config  # noqa: E402
from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers, SchedulerOutput  # noqa: E402

__all__ = ["DiffusersDenoiser", "SuffuseScheduler", "schedule_of"]


def schedule_of(scheduler: Any) -> Schedule:
    """The noise schedule of a diffusers scheduler, or of its configuration.

    Raises:
        InvalidArgument: naming a field that has no counterpart here.
    """
    config: Mapping[str, Any] = getattr(scheduler, "config", scheduler)
    if "beta_schedule" not in config and "shift" in config:
        if config.get("use_dynamic_shifting"):
            raise InvalidArgument("use_dynamic_shifting depends on the image size; pass RectifiedFlow(shift) yourself")
        return RectifiedFlow(float(config["shift"]))
    for field in ("rescale_betas_zero_snr", "thresholding", "use_flow_sigmas"):
        if config.get(field):
            raise InvalidArgument(f"the scheduler's {field}=True is not supported; set it to False, or wrap the model")
    if config.get("trained_betas") is not None:
        return DiscreteBetas(tuple(float(b) for b in config["trained_betas"]))
    kind, steps = config.get("beta_schedule"), int(config.get("num_train_timesteps", 1000))
    start, end = config.get("beta_start", 1e-4), config.get("beta_end", 0.02)
    match kind:
        case "linear":
            return DiscreteBetas.linear(start, end, steps)
        case "scaled_linear":
            return DiscreteBetas.scaled_linear(start, end, steps)
        case "squaredcos_cap_v2":
            return DiscreteBetas.cosine(steps)
    raise InvalidArgument(
        f"beta_schedule={kind!r} is not supported; use linear, scaled_linear, squaredcos_cap_v2 or trained_betas"
    )


class DiffusersDenoiser(Denoiser):
    """A diffusers model as a denoiser.

    Args:
        model: called as ``model(x, timestep, encoder_hidden_states=..., class_labels=...)`` with ``.sample`` in its
            output: UNet1DModel, UNet2DModel, UNet2DConditionModel, DiTTransformer2DModel and their like.
        scheduler: the scheduler it was trained with, or its configuration.
        prediction_type: default the scheduler's.

    The tokens of a condition become ``encoder_hidden_states``, side by side. Give text models their empty prompt as the
    condition's null value, which is what they were trained with. The token ``class_labels`` is given as such instead: a
    class index (B, 1, 1), whose null value is the index that stands for no class, or an embedding (B, 1, D).

    A model with twice the channels has learned the variance of reverse steps in the second half. It is left out, except
    with a scheduler of ``variance_type="learned_range"``, where ``DDPM(variance="learned")`` samples with it.
    """

    def __init__(self, model: nn.Module, scheduler: Any, prediction_type: str | None = None) -> None:
        super().__init__()
        config: Mapping[str, Any] = getattr(scheduler, "config", scheduler)
        self.schedule = schedule_of(config)
        flow = isinstance(self.schedule, RectifiedFlow)
        chosen = prediction_type or config.get("prediction_type") or ("flow_prediction" if flow else "epsilon")
        if chosen not in PREDICTION_TYPES:
            raise InvalidArgument(f"prediction_type must be one of {PREDICTION_TYPES}, got {chosen!r}")
        self.model, self.prediction_type = model, chosen
        self.train_timesteps = int(config.get("num_train_timesteps", 1000))
        self.variance_type: str | None = config.get("variance_type")

    def forward(self, x: Tensor, t: Scalar, cond: Condition | None = None) -> Tensor:
        output, _ = self._output(x, t, cond)
        return to_mean(output, x, self.schedule, t, self.prediction_type)

    def with_variance(self, x: Tensor, t: Scalar, cond: Condition | None = None) -> tuple[Tensor, Tensor]:
        if self.variance_type != "learned_range":
            raise InvalidArgument(
                f"the scheduler's variance_type is {self.variance_type!r}; a learned variance is read where it is "
                f"'learned_range', as a fraction between the two fixed ones"
            )
        output, rest = self._output(x, t, cond)
        return to_mean(output, x, self.schedule, t, self.prediction_type), (rest + 1) / 2

    def _output(self, x: Tensor, t: Scalar, cond: Condition | None) -> tuple[Tensor, Tensor]:
        """The model's prediction, and the channels behind it."""
        options: dict[str, Any] = {}
        tokens = {} if cond is None else dict(cond.tokens)
        if (labels := tokens.pop("class_labels", None)) is not None:
            if cond is not None and "class_labels" not in cond.nulls:
                raise InvalidArgument(
                    "cond needs a null value for class_labels, as a masked class would be read as class 0: "
                    "Condition(tokens=..., nulls={'class_labels': torch.tensor([[no_class]])})"
                )
            options["class_labels"] = labels[:, 0, 0].long() if labels.shape[-1] == 1 else labels[:, 0].to(x.dtype)
        if tokens:
            options["encoder_hidden_states"] = torch.cat(list(tokens.values()), dim=1).to(x.dtype)
        output = self.model(x, timestep_of(self.schedule, self.train_timesteps, t, x), **options).sample
        return split_variance(output, x, self.variance_type)


def split_variance(output: Tensor, x: Tensor, variance_type: str | None) -> tuple[Tensor, Tensor]:
    """The channels of x, and those behind them: none, or as many.

    Raises:
        InvalidArgument: when there are others, or none where ``variance_type`` says that a variance was learned.
    """
    channels, given = x.shape[1], output.shape[1]
    if given not in (channels, 2 * channels):
        raise InvalidArgument(
            f"the model returned {given} channels for {channels}; it must return as many, or twice as many where it "
            f"also learned the variance"
        )
    if given == channels and variance_type in ("learned", "learned_range"):
        raise InvalidArgument(
            f"the scheduler's variance_type={variance_type!r} needs a model with {2 * channels} output channels, this "
            f"has {given}; set variance_type to 'fixed_small'"
        )
    return output[:, :channels], output[:, channels:]


def timestep_of(schedule: Schedule, count: int, t: Scalar, x: Tensor) -> Tensor:
    """diffusers' timestep (B,) of our time, fractional."""
    time = t if isinstance(t, Tensor) else torch.tensor(t, dtype=torch.float64)
    if isinstance(schedule, RectifiedFlow):
        step = count * schedule.sigma(time.double())
    else:
        step = (count * time.double() - 1).clamp(min=0)
    return step.to(x.device, torch.float32).expand(len(x))


def to_mean(output: Tensor, x: Tensor, schedule: Schedule, t: Scalar, prediction_type: str) -> Tensor:
    """The posterior mean from a model's output."""
    level = schedule.level(t, like=x)
    if prediction_type == "flow_prediction" and isinstance(schedule, RectifiedFlow):
        return x - level.sigma * output  # diffusers' flow is eps - x0 whatever the shift
    a, b = output_coefficients(level, prediction_type)
    return a * x + b * output


class SuffuseScheduler(SchedulerMixin, ConfigMixin):
    """One of our samplers as a diffusers scheduler.

    Args:
        num_train_timesteps, beta_start, beta_end, beta_schedule, trained_betas, prediction_type: as of any diffusers
            scheduler, so that ``SuffuseScheduler.from_config(pipe.scheduler.config, sampler="unipc-2")`` works.
        sampler: a name in ``suffuse.samplers.SAMPLERS``.
        sampler_options: further fields of that sampler, as a dictionary.
        grid: ``"logsnr"``, ``"karras"`` or ``"time"``.
    """

    _compatibles = [e.name for e in KarrasDiffusionSchedulers]  # noqa: RUF012
    order = 1

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 1e-4,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: list[float] | None = None,
        prediction_type: str = "epsilon",
        sampler: str = "dpmpp-2m",
        sampler_options: dict[str, Any] | None = None,
        grid: str = "logsnr",
    ) -> None:
        self.schedule = schedule_of(self.config)
        self.init_noise_sigma = self.schedule.sigma(1.0)
        by_name(sampler, grid=grid, **(sampler_options or {}))  # a wrong name or option is an error here, not later
        self.set_timesteps(num_train_timesteps)

    def set_timesteps(
        self, num_inference_steps: int, device: str | torch.device | None = None, **unsupported: Any
    ) -> None:
        """Prepare a run of that many steps; Heun's method and its like have more timesteps than steps."""
        if unsupported := {k: v for k, v in unsupported.items() if v is not None}:
            raise InvalidArgument(f"{sorted(unsupported)} cannot be set; choose the grid when making the scheduler")
        config = self.config
        self._sampler = by_name(
            config["sampler"], steps=num_inference_steps, grid=config["grid"], **(config["sampler_options"] or {})
        )
        self.num_inference_steps = num_inference_steps
        self._plan = self._sampler.plan(self._sampler.levels(self.schedule), self.schedule)
        times = [stage.t for stage in self._plan if stage.t is not None]
        x = torch.zeros(len(times), device=device)
        self._times = times
        self.timesteps = timestep_of(self.schedule, config["num_train_timesteps"], torch.tensor(times), x)
        self.sigmas = torch.tensor([*(self.schedule.kappa(t) for t in times), 0.0], dtype=torch.float32)
        self._position = 0
        self._state: Any = None
        self.step_index: int | None = None
        self.begin_index: int | None = None

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Start from a later timestep (image-to-image)."""
        self.begin_index = begin_index

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        """Variance-preserving models see the sample as it is."""
        return sample

    def step(
        self,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        generator: Generators = None,
        return_dict: bool = True,
    ) -> Any:
        """One evaluation's worth of the sampler; diffusers' signature."""
        if self.step_index is None:
            nearest = (self.timesteps.to("cpu") - torch.as_tensor(timestep).to("cpu")).abs().argmin()
            self.step_index = self.begin_index if self.begin_index is not None else int(nearest)
            evaluations = [i for i, stage in enumerate(self._plan) if stage.t is not None]
            self._position, self._state = evaluations[self.step_index], None
        index = self.step_index
        t = self._times[index]
        x = sample.float()
        learned = getattr(self._sampler, "variance", None) == "learned"
        output, rest = split_variance(model_output.float(), x, "learned_range" if learned else None)
        mean = to_mean(output, x, self.schedule, t, self.config["prediction_type"])
        if learned:
            self._state = (rest + 1) / 2

        def noise() -> Tensor:
            return randn(x.shape, generator, x.device, x.dtype)

        while True:  # the evaluated stage, and the noise that is raised after it, if any
            stage = self._plan[self._position]
            x, self._state = self._sampler.step(x, mean, self._state, noise, stage.coefficients)
            self._position += 1
            if self._position == len(self._plan) or self._plan[self._position].t is not None:
                break
        self.step_index = index + 1
        x, mean = x.to(sample.dtype), mean.to(sample.dtype)
        return SchedulerOutput(prev_sample=x) if return_dict else (x, mean)

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Noise clean samples to timesteps (B,)."""
        t = (timesteps.double() + 1) / self.config["num_train_timesteps"]
        return self.schedule.add_noise(original_samples, t.clamp(max=1.0), noise)

    def __len__(self) -> int:
        return int(self.config["num_train_timesteps"])
