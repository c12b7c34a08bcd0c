"""The Lightning module of TSDiff: a denoiser over windows, its loss, and the three ways it forecasts.

``cond``  the network reads the observed part of the window (TSDiff-Cond).
``ms``    the unconditional model is guided to the observations by the mean-square energy (TSDiff-MS).
``q``     the same with the quantile energy, each sample at its own level (TSDiff-Q).

A model that was trained with the condition dropped in part of the windows does all three.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from gluonts.core.component import validated
from rich.progress import track
from torch import Tensor

from suffuse import Condition, Denoiser, NetworkDenoiser, samplers
from suffuse.errors import InvalidArgument, TrainingDiverged, unknown
from suffuse.random import randn
from suffuse.schedules import Level, Schedule
from suffuse.training import EMA, DenoisingObjective, recorded

from ..nets import S4D, S4DBackbone, TwoAxisBackbone
from .self_guidance import LineSearch, ObservationSelfGuidance, PostStep, ancestral, quantile_levels
from .windows import Window, training_mask, window

__all__ = ["Forecasting", "TSDiffModule"]

Method = Literal["cond", "ms", "q"]
METHODS: tuple[Method, ...] = ("cond", "ms", "q")

#: Windows that are denoised at once. On a GPU more only costs memory; on a CPU activations are to stay in its cache.
CHUNK = {"cuda": 4096, "mps": 1024, "cpu": 32}

#: Share of training windows without their features, so that the model also serves without.
FEATURE_DROPOUT = 0.1


@dataclass(frozen=True)
class Forecasting:
    """How a trained model is asked for forecasts; none of it matters in training.

    Args:
        method: ``cond``, ``ms`` or ``q``.
        sampler: any of ``suffuse.samplers.SAMPLERS``, such as ``ddpm``, ``ddim``, ``dpmpp-2m`` or ``deis-2``.
        steps: its number of steps, which is the number of network evaluations (twice that for Heun).
        guidance_scale: s of ``ms`` and ``q``; the paper takes 1 to 8 for ``q``, by data set. None, the default, needs
            none: guidance goes as far as the energy falls along its gradient.
        grid: of ``suffuse.samplers.GRIDS``; default ``time`` for ``ddpm``, which with 100 steps is the paper's chain,
            and the sampler's own for others.
        weighting: of s by level, ``ancestral``, the paper's for DDPM, or ``constant``, the official code's for DDIM,
            which needs more steps; see ``self_guidance``.
        post_step: for ``ddpm``, whether guidance comes after each step, as in the official code, at twice the cost.
    """

    method: Method = "cond"
    sampler: str = "dpmpp-2m"
    steps: int = 20
    guidance_scale: float | None = None
    grid: str | None = None
    weighting: Literal["ancestral", "constant"] = "ancestral"
    post_step: bool = False

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise unknown("forecasting method", self.method, METHODS)
        if self.sampler not in samplers.SAMPLERS:
            raise unknown("sampler", self.sampler, samplers.SAMPLERS)
        if self.steps < 1:
            raise InvalidArgument(f"steps must be at least 1, got {self.steps}")
        if self.guidance_scale is not None and not self.guidance_scale >= 0:
            raise InvalidArgument(f"guidance_scale must be >= 0, got {self.guidance_scale}")
        if self.grid is not None and self.grid not in samplers.GRIDS:
            raise unknown("grid", self.grid, samplers.GRIDS)
        if self.weighting not in ("ancestral", "constant"):
            raise unknown("weighting", self.weighting, ("ancestral", "constant"))
        if self.post_step and self.sampler != "ddpm":
            raise InvalidArgument(f"post_step is a form of the sampler 'ddpm', got sampler={self.sampler!r}")
        if self.guidance_scale is None and (self.post_step or self.weighting == "constant"):
            raise InvalidArgument("post_step and weighting are of a guidance_scale; give one, such as 4.0")

    def build(self) -> samplers.Sampler:
        """The sampler."""
        grid = self.grid or ("time" if self.sampler == "ddpm" else None)
        return samplers.by_name(self.sampler, steps=self.steps, **({"grid": grid} if grid else {}))

    def scale(self, levels: Sequence[Level]) -> float | Callable[[Level], float] | LineSearch:
        """That of the guidance, for a sampler that visits these levels."""
        if self.guidance_scale is None:
            return LineSearch(levels)
        return ancestral(self.guidance_scale, levels) if self.weighting == "ancestral" else self.guidance_scale


class TSDiffModule(pl.LightningModule):
    """A denoiser over windows (B, 1 + #lags, context + horizon), trained on and forecasting GluonTS batches.

    Windows of a multivariate target are (B, 1 + #lags, target_dim, context + horizon).

    Its arguments are JSON values, so that GluonTS can write it down: ``backbone`` are keyword arguments of
    ``S4DBackbone`` or ``TwoAxisBackbone``, ``features`` their covariates, ``schedule`` is a ``Schedule.to_config()``
    and ``forecasting`` the fields of ``Forecasting``. The rest is explained at ``TSDiffEstimator``.
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
        target_dim: int = 1,
        features: dict | None = None,
        scaling: str | None = "mean",
        default_scale: float = 1.0,
        condition_dropout: float = 0.5,
        training_mask: str = "forecast",
        noise_observed: bool = True,
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
        self.target_dim, self.condition_dropout = target_dim, condition_dropout
        self.noise_observed, self.training_mask = noise_observed, training_mask
        self.num_parallel_samples, self.nonnegative_pred_samples = num_parallel_samples, nonnegative_pred_samples
        self.lr, self.weight_decay, self.decay_steps, self.ema_decay = lr, weight_decay, decay_steps, ema_decay
        settings = {"conditional": condition_dropout < 1, **backbone, **(features or {})}
        channels = 1 + len(lags_seq)
        network = (
            S4DBackbone(channels, **settings) if target_dim == 1 else TwoAxisBackbone(channels, target_dim, **settings)
        )
        self.denoiser = NetworkDenoiser(network, Schedule.from_config(schedule), prediction_type="v_prediction")
        self.forecasting = Forecasting(**forecasting)
        # in lists, so that they are no submodules and no part of the state
        self._average: list[EMA] = []
        self._recorded: list[NetworkDenoiser] = []

    @property
    def past_length(self) -> int:
        """Steps of history that a forecast reads: the context and the longest lag."""
        return self.context_length + max(self.lags, default=0)

    @property
    def event_shape(self) -> tuple[int, ...]:
        """(1 + #lags, context + horizon), with ``target_dim`` between them where it is more than 1."""
        variates = () if self.target_dim == 1 else (self.target_dim,)
        return 1 + len(self.lags), *variates, self.context_length + self.prediction_length

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

    def window(self, past_target: Tensor, past_observed_values: Tensor, *more: Tensor) -> Window:
        """``windows.window`` with the settings of this model; ``more`` are its future, future_observed and told."""
        return window(
            past_target,
            past_observed_values,
            *more,
            context_length=self.context_length,
            prediction_length=self.prediction_length,
            lags=self.lags,
            scaling=self.scaling,  # type: ignore[arg-type]
            default_scale=self.default_scale,
        )

    def covariates(
        self,
        feat_static_cat: Tensor | None = None,
        feat_static_real: Tensor | None = None,
        past_time_feat: Tensor | None = None,
        future_time_feat: Tensor | None = None,
    ) -> Condition | None:
        """The features of a batch as the network knows them; None where there are none."""
        static = {"category": feat_static_cat, "static": feat_static_real}
        tokens = {name: value[:, None] for name, value in static.items() if value is not None}
        if past_time_feat is None or future_time_feat is None:
            return Condition(tokens=tokens) if tokens else None
        dynamic = torch.cat([past_time_feat[:, -self.context_length :], future_time_feat], dim=1)
        return Condition(tokens=tokens, maps={"dynamic": dynamic.mT})

    # --- training -----------------------------------------------------------------------------------------------
    def loss(self, batch: Mapping[str, Tensor], denoiser: Denoiser | None = None) -> Tensor:
        """Mean squared error of the network's output over the observed entries, at uniform t, as a scalar.

        A share ``condition_dropout`` of the windows is denoised without seeing what is known of them, and a tenth of
        them without their features. Without ``noise_observed`` what is known is given clean and is not learnt.
        """
        mask = training_mask(batch["past_target"], batch["future_target"], self.training_mask)  # type: ignore[arg-type]
        w = self.window(*(batch[name] for name in TRAINING_INPUTS), mask)
        keep = torch.rand(len(w.known), device=w.known.device) >= self.condition_dropout
        known = w.known * keep.view(-1, *(1,) * (w.known.ndim - 1))
        cond = told(w.values, known)
        if (features := self.covariates(**{name: batch[name] for name in FEATURES if name in batch})) is not None:
            cond = cond.merge(features.dropout(FEATURE_DROPOUT))
        weight = w.observed if self.noise_observed else w.observed * (1 - known)
        weight = weight / weight.mean().clamp_min(1e-6)
        clean = None if self.noise_observed else known > 0
        objective = DenoisingObjective(cond_dropout=0.0)
        trained = self._recorded[0] if self._recorded else self.denoiser
        return objective(denoiser or trained, w.values, cond, None, weight, clean)

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
        optimizer = torch.optim.AdamW(groups, lr=self.lr, fused=True)
        if not self.decay_steps:
            return optimizer
        decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.decay_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": decay, "interval": "step"}}

    # The average of the weights is what is saved and used. It lives in hooks of the module, not in a callback: GluonTS
    # writes checkpoints of weights alone, for which Lightning does not ask callbacks.
    def on_fit_start(self) -> None:
        self._average = [EMA(self.denoiser, self.ema_decay)]
        if self._trainer is None or self._trainer.world_size == 1:  # several GPUs hook into the backward pass
            self._recorded = [recorded(self.denoiser)]

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._average[0].update(self.denoiser, self.global_step - 1)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self._average:
            checkpoint["state_dict"] = dict(self._average[0].model.state_dict(prefix="denoiser."))

    def on_train_end(self) -> None:
        self.denoiser.load_state_dict(self._average[0].model.state_dict())

    def on_fit_end(self) -> None:
        self._average, self._recorded = [], []

    # --- forecasting --------------------------------------------------------------------------------------------
    def forward(self, past_target: Tensor, past_observed_values: Tensor, **features: Tensor) -> Tensor:
        """Sample paths of the horizon, (B, S, H) or (B, S, H, D) in the unit of the data, S = ``num_parallel_samples``.

        Args:
            past_target: (B, past_length) or (B, past_length, D).
            past_observed_values: like past_target, 1 where observed. Rows without any observation get samples of the
                unconditional model.
            features: of ``covariates``.
        """
        samples = self.num_parallel_samples
        w = self.window(past_target, past_observed_values)
        levels = quantile_levels(samples).to(past_target).repeat(len(past_target))
        values, known = (x.repeat_interleave(samples, 0) for x in (w.values, w.known))
        cond = self.covariates(**features)
        rows = chunks(len(values), values.device)
        paths = torch.cat([self.complete(values[i], known[i], levels[i], of(cond, i // samples)) for i in rows])
        paths = paths[:, 0, ..., self.context_length :].unflatten(0, (-1, samples))  # (B, S, [D,] H)
        forecast = w.loc[:, None] + w.scale[:, None] * paths
        forecast = forecast if self.target_dim == 1 else forecast.mT
        return forecast.clamp_min(0) if self.nonnegative_pred_samples else forecast

    def complete(self, values: Tensor, known: Tensor, levels: Tensor, features: Condition | None = None) -> Tensor:
        """One sample of the whole window for each row, given its known entries.

        Args:
            values, known: (N, C, L) or (N, C, D, L), as in a ``Window``.
            levels: kappa of each row, (N,), for the method ``q``.
            features: covariates of the rows.
        """
        how = self.forecasting
        denoiser: Denoiser = self.denoiser
        cond: Condition | None = features
        constraint: samplers.Constraint | None = None
        if how.method == "cond":
            cond = told(values, known) if features is None else told(values, known).merge(features)
            if not self.noise_observed:
                constraint = samplers.Inpaint(values, known > 0, noised=False)
        else:
            visited = self.sampler.levels(self.denoiser.schedule)
            guidance = ObservationSelfGuidance(
                denoiser,
                values,
                known,
                guidance_scale=how.scale(visited),
                levels=levels if how.method == "q" else None,
            )
            if how.post_step and how.guidance_scale is not None:
                constraint = PostStep(guidance, how.guidance_scale, visited, features)
            else:
                denoiser = guidance
        return self.sampler(denoiser, x=torch.randn_like(values), cond=cond, constraint=constraint, dtype=values.dtype)

    @torch.no_grad()
    def synthesize(self, n: int, generator: torch.Generator | None = None, progress: bool = False) -> Tensor:
        """n windows of the series in scaled space, (n, [D,] context + horizon), from the unconditional model."""
        if self.condition_dropout == 0:
            raise InvalidArgument("synthesis needs a model trained with condition_dropout > 0")
        if n < 1:
            raise InvalidArgument(f"n must be at least 1, got {n}")
        noise = randn((n, *self.event_shape), generator, self.device, torch.float32)
        rows = track(chunks(n, self.device), "synthesis", disable=not progress, transient=True)
        return torch.cat([self.sampler(self.denoiser, x=noise[i], generator=generator)[:, 0] for i in rows])

    @property
    def sampler(self) -> samplers.Sampler:
        return self.forecasting.build()

    def describe(self) -> dict[str, Any]:
        """The forecasting settings, as a flat JSON-able dictionary."""
        return dataclasses.asdict(self.forecasting)


TRAINING_INPUTS = ("past_target", "past_observed_values", "future_target", "future_observed_values")
PREDICTION_INPUTS = ("past_target", "past_observed_values")
FEATURES = ("feat_static_cat", "feat_static_real", "past_time_feat", "future_time_feat")


def told(values: Tensor, known: Tensor) -> Condition:
    """What the network is told of a window: the known values, zeros elsewhere, and where they are; (B, C, L) each."""
    return Condition(maps={"values": values * known, "observed": known})


def chunks(rows: int, device: torch.device) -> tuple[Tensor, ...]:
    """The numbers 0 to rows - 1 in parts that are denoised at once."""
    return torch.arange(rows, device=device).split(CHUNK.get(device.type, 1024))


def of(cond: Condition | None, rows: Tensor) -> Condition | None:
    """Those rows of a condition, if there is one."""
    return None if cond is None else cond[rows]
