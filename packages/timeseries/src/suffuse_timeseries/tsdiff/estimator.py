"""The estimator: GluonTS's ``PyTorchLightningEstimator`` around ``TSDiffModule``."""

from collections.abc import Callable, Iterable
from typing import Any, get_args

import numpy as np
import torch
from gluonts.core.component import validated
from gluonts.dataset import DataEntry, Dataset
from gluonts.dataset.field_names import FieldName
from gluonts.dataset.loader import as_stacked_batches
from gluonts.itertools import Cyclic
from gluonts.torch.model.estimator import PyTorchLightningEstimator, TrainOutput
from gluonts.torch.model.predictor import PyTorchPredictor
from gluonts.transform import (
    AddObservedValuesIndicator,
    AsNumpyArray,
    Chain,
    ExpectedNumInstanceSampler,
    InstanceSampler,
    InstanceSplitter,
    SelectFields,
    TestSplitSampler,
    Transformation,
    ValidationSplitSampler,
)

from suffuse import hub
from suffuse.errors import InvalidArgument, unknown
from suffuse.schedules import DiscreteBetas, Schedule

from ..frequency import lags_for, normalize
from .checks import RejectInfinite, learnable, summarize
from .features import Features, counts
from .module import PREDICTION_INPUTS, TRAINING_INPUTS, Forecasting, TSDiffModule
from .predictor import TSDiffPredictor
from .windows import Masking

__all__ = ["TSDiffEstimator", "WindowSampler"]

#: The schedule of the paper: 100 steps, beta from 1e-4 to 0.1.
PAPER_SCHEDULE = DiscreteBetas.linear(1e-4, 0.1, steps=100)


class WindowSampler(ExpectedNumInstanceSampler):
    """Windows with their full past inside the series; of a series too short for that, its last window, padded."""

    def _get_bounds(self, ts: np.ndarray) -> tuple[int, int]:
        last = ts.shape[self.axis] - self.min_future
        return min(self.min_past, max(last, 1)), last


class TSDiffEstimator(PyTorchLightningEstimator):
    """Train a diffusion model on windows of a panel of series.

        predictor = TSDiffEstimator(freq="h", prediction_length=24).train(dataset)
        forecast = next(predictor.predict(dataset))

    NaN in a target is missing: it is neither learnt from nor scaled by, and forecasts treat gaps as they treat the
    horizon. Infinite values are an error.

    Args:
        freq: pandas frequency of the data.
        prediction_length: horizon H in steps.
        context_length: steps before the horizon in a window; default 7 H (the paper has 5 to 14 H).
        lags_seq: shifts of the lag channels in steps; default, the paper's for hourly, daily and business-day data,
            none for others.
        scaling: ``mean`` (divide by the mean |y| of the context, the paper's), ``std`` (standardise by the context) or
            None.
        condition_dropout: share of training windows without condition. 1 is the paper's unconditional TSDiff, 0 its
            TSDiff-Cond, and between lies one network that is both.
        training_mask: what a conditional model is told of training windows: ``forecast``, the past; ``random``, entries
            drawn anywhere, for gaps of any pattern; or ``mix``, both.
        noise_observed: whether what is known is noised and learnt too, as in TSDiff; False gives it clean and learns
            only the rest, as CSDI does.
        target_dim: number of variates D. Above 1 targets are (D, T), forecasts (S, H, D), and the network mixes
            variates by attention (``nets.TwoAxisBackbone``).
        num_feat_dynamic_real: number of real features known in the future, ``feat_dynamic_real``; (F, T) in training
            and (F, T + H) to forecast.
        num_feat_static_cat, cardinality: number of ``feat_static_cat``, and of the categories of each.
        num_feat_static_real: number of ``feat_static_real``.
        time_features: GluonTS's features of the calendar; default none, as in the paper.
        forecasting: how the predictor is asked at first; see ``Forecasting`` and ``TSDiffPredictor.using``.
        schedule: noise schedule; default the paper's.
        width, depth, state: of ``S4DBackbone``.
        lr, weight_decay: of AdamW.
        lr_decay: whether the learning rate falls to zero along a cosine over the planned steps.
        ema_decay: of the average of the weights that is kept.
        batch_size: windows per step in training, and series per step in forecasting.
        num_batches_per_epoch: steps per epoch.
        num_parallel_samples: sample paths per forecast where a caller does not say.
        nonnegative_pred_samples: whether samples are clipped at zero.
        train_sampler, validation_sampler: GluonTS instance samplers.
        trainer_kwargs: of ``lightning.Trainer``; default 100 epochs, gradients clipped at norm 0.5.
    """

    @validated()
    def __init__(
        self,
        freq: str,
        prediction_length: int,
        context_length: int | None = None,
        lags_seq: list[int] | None = None,
        scaling: str | None = "mean",
        condition_dropout: float = 0.5,
        training_mask: str = "forecast",
        noise_observed: bool = True,
        target_dim: int = 1,
        num_feat_dynamic_real: int = 0,
        num_feat_static_cat: int = 0,
        num_feat_static_real: int = 0,
        cardinality: list[int] | None = None,
        time_features: list[Callable] | None = None,
        forecasting: Forecasting | None = None,
        schedule: Schedule | None = None,
        width: int = 64,
        depth: int = 3,
        state: int = 64,
        lr: float = 1e-3,
        weight_decay: float = 0.0,
        lr_decay: bool = True,
        ema_decay: float = 0.995,
        batch_size: int = 64,
        num_batches_per_epoch: int = 128,
        num_parallel_samples: int = 100,
        nonnegative_pred_samples: bool = False,
        train_sampler: InstanceSampler | None = None,
        validation_sampler: InstanceSampler | None = None,
        trainer_kwargs: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(trainer_kwargs={"max_epochs": 100, "gradient_clip_val": 0.5, **(trainer_kwargs or {})})
        context_length = 7 * prediction_length if context_length is None else context_length
        lags_seq = lags_for(freq) if lags_seq is None else sorted(lags_seq)
        positive = {
            "prediction_length": prediction_length,
            "context_length": context_length,
            "batch_size": batch_size,
            "num_batches_per_epoch": num_batches_per_epoch,
            "num_parallel_samples": num_parallel_samples,
            "lags_seq": min(lags_seq, default=1),
            "target_dim": target_dim,
        }
        for name, value in positive.items():
            if value < 1:
                raise InvalidArgument(f"{name} must be at least 1, got {value}")
        if scaling not in ("mean", "std", None):
            raise InvalidArgument(f"scaling must be 'mean', 'std' or None, got {scaling!r}")
        if not 0 <= condition_dropout <= 1:
            raise InvalidArgument(f"condition_dropout must lie in [0, 1], got {condition_dropout}")
        if training_mask not in get_args(Masking):
            raise unknown("training_mask", training_mask, get_args(Masking))
        self.freq, self.prediction_length, self.context_length = normalize(freq), prediction_length, context_length
        self.lags_seq, self.scaling, self.condition_dropout = lags_seq, scaling, condition_dropout
        self.training_mask, self.noise_observed, self.target_dim = training_mask, noise_observed, target_dim
        self.features = Features(
            num_feat_dynamic_real, num_feat_static_cat, num_feat_static_real, cardinality, time_features
        )
        self.forecasting = forecasting or Forecasting(method="q" if condition_dropout == 1 else "cond")
        self.schedule = schedule or PAPER_SCHEDULE
        self.backbone = {"width": width, "depth": depth, "state": state}
        self.lr, self.weight_decay, self.lr_decay, self.ema_decay = lr, weight_decay, lr_decay, ema_decay
        self.batch_size, self.num_batches_per_epoch = batch_size, num_batches_per_epoch
        self.num_parallel_samples = num_parallel_samples
        self.nonnegative_pred_samples = nonnegative_pred_samples
        self.default_scale = 1.0  # measured on the training data
        past = context_length + max(lags_seq, default=0)
        self.train_sampler = train_sampler or WindowSampler(
            num_instances=1.0, min_past=past, min_future=prediction_length
        )
        self.validation_sampler = validation_sampler or ValidationSplitSampler(min_future=prediction_length)

    @classmethod
    def derive_auto_fields(cls, train_iter: Iterable[DataEntry]) -> dict[str, Any]:
        """Counts of features as they are in a dataset, for ``TSDiffEstimator.from_inputs(dataset, freq=..., ...)``."""
        return counts(train_iter)

    # --- what GluonTS asks of an estimator ----------------------------------------------------------------------
    def create_transformation(self) -> Transformation:
        return Chain(
            [
                RejectInfinite(self.target_dim, self.freq),
                SelectFields(
                    [FieldName.START, FieldName.TARGET, FieldName.ITEM_ID, FieldName.INFO, *self.features.fields],
                    allow_missing=True,
                ),
                AsNumpyArray(field=FieldName.TARGET, expected_ndim=1 if self.target_dim == 1 else 2),
                AddObservedValuesIndicator(target_field=FieldName.TARGET, output_field=FieldName.OBSERVED_VALUES),
                *self.features.transformations(self.prediction_length),
            ]
        )

    def create_lightning_module(self) -> TSDiffModule:
        epochs = self.trainer_kwargs.get("max_epochs") or 0
        steps = self.trainer_kwargs.get("max_steps", -1)
        planned = min(s for s in (epochs * self.num_batches_per_epoch, steps, 10**9) if s > 0)
        return TSDiffModule(
            context_length=self.context_length,
            prediction_length=self.prediction_length,
            lags_seq=self.lags_seq,
            schedule=self.schedule.to_config(),
            backbone=self.backbone,
            forecasting=vars(self.forecasting),
            scaling=self.scaling,
            default_scale=self.default_scale,
            condition_dropout=self.condition_dropout,
            training_mask=self.training_mask,
            noise_observed=self.noise_observed,
            target_dim=self.target_dim,
            features=self.features.network(),
            num_parallel_samples=self.num_parallel_samples,
            nonnegative_pred_samples=self.nonnegative_pred_samples,
            lr=self.lr,
            weight_decay=self.weight_decay,
            decay_steps=planned if self.lr_decay else None,
            ema_decay=self.ema_decay,
        )

    def create_training_data_loader(
        self, data: Dataset, module: TSDiffModule, shuffle_buffer_length: int | None = None, **kwargs: Any
    ) -> Iterable[Any]:
        return as_stacked_batches(
            self.splitter(module, self.train_sampler).apply(Cyclic(data).stream(), is_train=True),
            batch_size=self.batch_size,
            shuffle_buffer_length=16 * self.batch_size if shuffle_buffer_length is None else shuffle_buffer_length,
            field_names=[*TRAINING_INPUTS, *self.features.inputs],
            output_type=torch.tensor,
            num_batches_per_epoch=self.num_batches_per_epoch,
        )

    def create_validation_data_loader(self, data: Dataset, module: TSDiffModule, **kwargs: Any) -> Iterable[Any]:
        return as_stacked_batches(
            self.splitter(module, self.validation_sampler).apply(data, is_train=True),
            batch_size=self.batch_size,
            field_names=[*TRAINING_INPUTS, *self.features.inputs],
            output_type=torch.tensor,
        )

    def create_predictor(self, transformation: Transformation, module: TSDiffModule) -> TSDiffPredictor:
        return TSDiffPredictor(
            input_transform=transformation + self.splitter(module, TestSplitSampler()),
            input_names=[*PREDICTION_INPUTS, *self.features.inputs],
            prediction_net=module,
            batch_size=self.batch_size,
            prediction_length=self.prediction_length,
        )

    def splitter(self, module: TSDiffModule, sampler: InstanceSampler) -> InstanceSplitter:
        """Cuts past and future; what lies before the start of a series is padding and counts as not observed."""
        return InstanceSplitter(
            target_field=FieldName.TARGET,
            is_pad_field=FieldName.IS_PAD,
            start_field=FieldName.START,
            forecast_start_field=FieldName.FORECAST_START,
            instance_sampler=sampler,
            past_length=module.past_length,
            future_length=self.prediction_length,
            time_series_fields=[FieldName.OBSERVED_VALUES, *self.features.series_fields],
        )

    # --- training -----------------------------------------------------------------------------------------------
    def train_model(
        self,
        training_data: Dataset,
        validation_data: Dataset | None = None,
        from_predictor: PyTorchPredictor | None = None,
        shuffle_buffer_length: int | None = None,
        cache_data: bool = False,
        ckpt_path: str | None = None,
        **kwargs: Any,
    ) -> TrainOutput:
        """Train; see GluonTS. Series arrive in file order, so windows pass through a shuffle buffer by default.

        Raises:
            InvalidArgument: when the data cannot be learnt from; see ``checks.summarize``.
            CheckpointError: when the network of ``from_predictor`` is not one that this estimator would train.
        """
        summary = summarize(training_data, self.freq, self.prediction_length, self.target_dim)
        self.features.check(training_data, self.prediction_length)
        self.default_scale = summary.mean_abs
        if from_predictor is not None:
            state = from_predictor.prediction_net.state_dict()
            hub.check_state(self.create_lightning_module(), state, "from_predictor")
        callbacks = self.trainer_kwargs.get("callbacks")
        output = super().train_model(
            list(learnable(training_data, self.prediction_length)),
            validation_data,
            from_predictor=from_predictor,
            shuffle_buffer_length=shuffle_buffer_length,
            cache_data=cache_data,
            ckpt_path=ckpt_path,
            **kwargs,
        )
        if callbacks is not None:
            self.trainer_kwargs["callbacks"] = callbacks  # GluonTS takes them out; a second training needs them too
        return output
