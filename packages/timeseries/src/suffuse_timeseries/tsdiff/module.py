"""The Lightning module of TSDiff: a denoiser over windows, its loss, and the three ways it forecasts.

``cond``  the network reads the observed part of the window (TSDiff-Cond).
``ms``    the unconditional model is guided to the observations by the mean-square energy (TSDiff-MS).
``q``     the same with the quantile energy, each sample at its own level (TSDiff-Q).

A model that was trained with the condition dropped in part of the windows does all three.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from gluonts.core.component import validated
from torch import Tensor

from suffuse import Condition, Denoiser, NetworkDenoiser, samplers
from suffuse.errors import InvalidArgument, TrainingDiverged, unknown
from suffuse.schedules import Schedule
from suffuse.training import EMA, DenoisingObjective

from ..nets.s4d import S4D, S4DBackbone
from .self_guidance import ObservationSelfGuidance, quantile_levels
from .windows import Window, window

__all__ = ["Forecasting", "TSDiffModule"]

Method = Literal["cond", "ms", "q"]
METHODS: tuple[Method, ...] = ("cond", "ms", "q")

#: Windows that are denoised at once; more only costs memory.
CHUNK = 1024


@dataclass(frozen=True)
class Forecasting:
    """How a trained model is asked for forecasts; none of it matters in training.

    Args:
        method: ``cond``, ``ms`` or ``q``.
        sampler: ``ddpm``, ``ddim``, ``euler``, ``heun`` or ``dpmpp-2m``.
        steps: its number of steps, which is the number of network evaluations (twice that for Heun).
        guidance_scale: s of ``ms`` and ``q``; the paper takes 1 to 8 for ``q``, by data set.
    """

    method: Method = "cond"
    sampler: str = "dpmpp-2m"
    steps: int = 20
    guidance_scale: float = 4.0

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise unknown("forecasting method", self.method, METHODS)
        if self.sampler not in samplers.SAMPLERS:
            raise unknown("sampler", self.sampler, samplers.SAMPLERS)
        if self.steps < 1:
            raise InvalidArgument(f"steps must be at least 1, got {self.steps}")
        if not self.guidance_scale >= 0:
            raise InvalidArgument(f"guidance_scale must be >= 0, got {self.guidance_scale}")


class TSDiffModule(pl.LightningModule):
    """A denoiser over windows (B, 1 + #lags, context + horizon), trained on and forecasting GluonTS batches.

    Its arguments are JSON values, so that GluonTS can write it down: ``backbone`` are keyword arguments of
    ``S4DBackbone``, ``schedule`` is a ``Schedule.to_config()`` and ``forecasting`` the fields of ``Forecasting``. The
    rest is explained at ``TSDiffEstimator``.
    """

    @validated()
    def __init__(
        self,
        *,
        context_length: int,
        prediction_length: int,
        lags_seq: list[int],
        schedule: dict,
        backbone: dict,
        forecasting: dict,
        scaling: str | None = "mean",
        default_scale: float = 1.0,
        condition_dropout: float = 0.5,
        num_parallel_samples: int = 100,
        nonnegative_pred_samples: bool = False,
        lr: float = 1e-3,
        weight_decay: float = 0.0,
        decay_steps: int | None = None,
        ema_decay: float = 0.995,
    ) -> None:
        super().__init__()
        self.context_length, self.prediction_length = context_length, prediction_length
        self.lags, self.scaling, self.default_scale = tuple(lags_seq), scaling, default_scale
        self.condition_dropout = condition_dropout
        self.num_parallel_samples, self.nonnegative_pred_samples = num_parallel_samples, nonnegative_pred_samples
        self.lr, self.weight_decay, self.decay_steps, self.ema_decay = lr, weight_decay, decay_steps, ema_decay
        network = S4DBackbone(1 + len(lags_seq), conditional=condition_dropout < 1, **backbone)
        self.denoiser = NetworkDenoiser(network, Schedule.from_config(schedule), prediction_type="v_prediction")
        self.forecasting = Forecasting(**forecasting)
        self._average: list[EMA] = []  # in a list, so that it is no submodule and no part of the state

    @property
    def past_length(self) -> int:
        """Steps of history that a forecast reads: the context and the longest lag."""
        return self.context_length + max(self.lags, default=0)

    @property
    def event_shape(self) -> tuple[int, int]:
        """(1 + #lags, context + horizon)."""
        return 1 + len(self.lags), self.context_length + self.prediction_length

    @property
    def forecasting(self) -> Forecasting:
        return self._forecasting

    @forecasting.setter
    def forecasting(self, wanted: Forecasting) -> None:
        if wanted.method == "cond" and self.condition_dropout == 1:
            raise InvalidArgument("method='cond' needs a model trained with condition_dropout < 1; use 'q' or 'ms'")
        if wanted.method != "cond" and self.condition_dropout == 0:
            raise InvalidArgument(
                f"method={wanted.method!r} needs a model trained with condition_dropout > 0; use 'cond'"
            )
        self._forecasting = wanted

    def window(self, past_target: Tensor, past_observed_values: Tensor, *future: Tensor) -> Window:
        return window(
            past_target,
            past_observed_values,
            *future,
            context_length=self.context_length,
            prediction_length=self.prediction_length,
            lags=self.lags,
            scaling=self.scaling,  # type: ignore[arg-type]
            default_scale=self.default_scale,
        )

    # --- training -----------------------------------------------------------------------------------------------
    def loss(self, batch: Mapping[str, Tensor], denoiser: Denoiser | None = None) -> Tensor:
        """Mean squared error of the network's output over the observed entries, at uniform t, as a scalar.

        A share ``condition_dropout`` of the windows is denoised without seeing what is known of them.
        """
        w = self.window(*(batch[name] for name in TRAINING_INPUTS))
        objective = DenoisingObjective(cond_dropout=self.condition_dropout)
        weight = w.observed / w.observed.mean().clamp_min(1e-6)
        return objective(denoiser or self.denoiser, w.values, told(w.values, w.known), weight=weight)

    def training_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        if not torch.isfinite(loss):
            raise TrainingDiverged(f"the loss became {float(loss)} at step {self.global_step}; lower lr={self.lr}")
        self.log("train_loss", loss, on_step=False, on_epoch=True, prog_bar=True, batch_size=len(batch["past_target"]))
        return loss

    def validation_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> Tensor:
        loss = self.loss(batch, self._average[0].model if self._average else None)  # type: ignore[arg-type]
        self.log("val_loss", loss, on_step=False, on_epoch=True, prog_bar=True, batch_size=len(batch["past_target"]))
        return loss

    def configure_optimizers(self) -> Any:
        """Adam, no weight decay on the state-space parameters; a cosine to zero over ``decay_steps`` if given."""
        spaces = {id(p) for m in self.modules() if isinstance(m, S4D) for p in m.parameters()}
        rest = [p for p in self.parameters() if id(p) not in spaces]
        groups = [
            {"params": rest, "weight_decay": self.weight_decay},
            {"params": [p for p in self.parameters() if id(p) in spaces], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, lr=self.lr)
        if not self.decay_steps:
            return optimizer
        decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.decay_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": decay, "interval": "step"}}

    # The average of the weights is what is saved and used. It lives in hooks of the module, not in a callback: GluonTS
    # writes checkpoints of weights alone, for which Lightning does not ask callbacks.
    def on_fit_start(self) -> None:
        self._average = [EMA(self.denoiser, self.ema_decay)]

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._average[0].update(self.denoiser, self.global_step - 1)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self._average:
            checkpoint["state_dict"] = dict(self._average[0].model.state_dict(prefix="denoiser."))

    def on_train_end(self) -> None:
        self.denoiser.load_state_dict(self._average[0].model.state_dict())

    def on_fit_end(self) -> None:
        self._average = []

    # --- forecasting --------------------------------------------------------------------------------------------
    def forward(self, past_target: Tensor, past_observed_values: Tensor) -> Tensor:
        """Sample paths of the horizon, (B, S, H) in the unit of the data, S = ``num_parallel_samples``.

        Args:
            past_target: (B, past_length).
            past_observed_values: (B, past_length), 1 where observed. Rows without any observation get samples of the
                unconditional model.
        """
        samples = self.num_parallel_samples
        w = self.window(past_target, past_observed_values)
        levels = quantile_levels(samples).to(past_target).repeat(len(past_target))
        values, known = (x.repeat_interleave(samples, 0) for x in (w.values, w.known))
        parts = zip(*(x.split(CHUNK) for x in (values, known, levels)), strict=True)
        paths = torch.cat([self.complete(*part) for part in parts])[:, 0, self.context_length :]
        forecast = w.loc[..., None] + w.scale[..., None] * paths.unflatten(0, (-1, samples))
        return forecast.clamp_min(0) if self.nonnegative_pred_samples else forecast

    def complete(self, values: Tensor, known: Tensor, levels: Tensor) -> Tensor:
        """One sample of the whole window for each row, given its known entries; all (N, C, L), levels (N,)."""
        how = self.forecasting
        denoiser: Denoiser = self.denoiser
        cond: Condition | None = told(values, known)
        if how.method != "cond":
            denoiser = ObservationSelfGuidance(
                denoiser,
                values,
                known,
                guidance_scale=how.guidance_scale,
                levels=levels if how.method == "q" else None,
            )
            cond = None
        return self.sampler(denoiser, shape=values.shape, cond=cond, device=values.device, dtype=values.dtype)

    @torch.no_grad()
    def synthesize(self, n: int, generator: Any = None) -> Tensor:
        """n windows of the series in scaled space, (n, context + horizon), from the unconditional model."""
        if self.condition_dropout == 0:
            raise InvalidArgument("synthesis needs a model trained with condition_dropout > 0")
        if n < 1:
            raise InvalidArgument(f"n must be at least 1, got {n}")
        shape = (n, *self.event_shape)
        return self.sampler(self.denoiser, shape=shape, generator=generator, device=self.device)[:, 0]

    @property
    def sampler(self) -> samplers.Sampler:
        return samplers.by_name(self.forecasting.sampler, steps=self.forecasting.steps)

    def describe(self) -> dict[str, Any]:
        """The forecasting settings, as a flat JSON-able dictionary."""
        return dataclasses.asdict(self.forecasting)


TRAINING_INPUTS = ("past_target", "past_observed_values", "future_target", "future_observed_values")
PREDICTION_INPUTS = ("past_target", "past_observed_values")


def told(values: Tensor, known: Tensor) -> Condition:
    """What the network is told of a window: the known values, zeros elsewhere, and where they are; (B, C, L) each."""
    return Condition(maps={"values": values * known, "observed": known})
