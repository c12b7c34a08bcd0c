"""Features beside the target, in GluonTS's fields, checked before anything is computed.

``feat_static_cat``    (K,) integers below their cardinality
``feat_static_real``   (S,)
``feat_dynamic_real``  (F, T) in training and at least (F, T + horizon) when forecasting: known in the future too
``time_features``      functions of the calendar, computed here

Fields that an estimator was not told to use are left out, as GluonTS does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from gluonts.core.component import validated
from gluonts.dataset import DataEntry
from gluonts.dataset.field_names import FieldName
from gluonts.transform import AddTimeFeatures, MapTransformation, Transformation, VstackFeatures

from suffuse.errors import InvalidArgument

from .checks import name_of

__all__ = ["CheckFeatures", "Features", "counts"]


class Features:
    """Which features a model reads.

    Args:
        num_feat_dynamic_real, num_feat_static_real: counts F and S.
        num_feat_static_cat: count K.
        cardinality: categories of each of the K.
        time_features: of GluonTS, such as ``gluonts.time_feature.hour_of_day``.
    """

    def __init__(
        self,
        num_feat_dynamic_real: int = 0,
        num_feat_static_cat: int = 0,
        num_feat_static_real: int = 0,
        cardinality: list[int] | None = None,
        time_features: list[Callable] | None = None,
    ) -> None:
        counts = {
            "num_feat_dynamic_real": num_feat_dynamic_real,
            "num_feat_static_cat": num_feat_static_cat,
            "num_feat_static_real": num_feat_static_real,
        }
        for name, count in counts.items():
            if count < 0:
                raise InvalidArgument(f"{name} must not be negative, got {count}")
        cardinality = list(cardinality or [])
        if len(cardinality) != num_feat_static_cat or any(c < 1 for c in cardinality):
            raise InvalidArgument(
                f"cardinality must be num_feat_static_cat={num_feat_static_cat} positive numbers, the categories of "
                f"each feature; got {cardinality}"
            )
        self.real, self.static, self.cardinality = num_feat_dynamic_real, num_feat_static_real, cardinality
        self.time_features = list(time_features or [])

    @property
    def dynamic(self) -> int:
        """F with the calendar's."""
        return self.real + len(self.time_features)

    def network(self) -> dict[str, Any]:
        """Arguments of ``nets.S4DBackbone``."""
        return {"dynamic": self.dynamic, "static": self.static, "cardinality": self.cardinality}

    @property
    def fields(self) -> list[str]:
        """Dataset fields that are read."""
        present = {
            FieldName.FEAT_STATIC_CAT: self.cardinality,
            FieldName.FEAT_STATIC_REAL: self.static,
            FieldName.FEAT_DYNAMIC_REAL: self.real,
        }
        return [name for name, count in present.items() if count]

    @property
    def series_fields(self) -> list[str]:
        """Fields that run along time, after ``transformations``."""
        return [FieldName.FEAT_TIME] if self.dynamic else []

    @property
    def inputs(self) -> list[str]:
        """What the module is given of a batch, beside the target."""
        static = [name for name in self.fields if name != FieldName.FEAT_DYNAMIC_REAL]
        return static + [f"{part}_{name}" for name in self.series_fields for part in ("past", "future")]

    def check(self, dataset: Iterable[DataEntry], prediction_length: int) -> None:
        """Raise InvalidArgument for the first entry of a training set whose features are not as promised."""
        if self.fields:
            checked = CheckFeatures(self.real, self.static, self.cardinality, prediction_length)
            for entry in dataset:
                checked.map_transform(entry, is_train=True)

    def transformations(self, prediction_length: int) -> list[Transformation]:
        """Check, then stack what runs along time into one field ``time_feat`` (F, T or T + horizon)."""
        steps: list[Transformation] = [CheckFeatures(self.real, self.static, self.cardinality, prediction_length)]
        stacked = [FieldName.FEAT_DYNAMIC_REAL] if self.real else []
        if self.time_features:
            stacked.append(FieldName.FEAT_AGE)  # any free name
            steps.append(
                AddTimeFeatures(
                    start_field=FieldName.START,
                    target_field=FieldName.TARGET,
                    output_field=FieldName.FEAT_AGE,
                    time_features=self.time_features,
                    pred_length=prediction_length,
                )
            )
        if stacked:
            steps.append(VstackFeatures(output_field=FieldName.FEAT_TIME, input_fields=stacked))
        return steps


def counts(dataset: Iterable[DataEntry]) -> dict[str, Any]:
    """What ``TSDiffEstimator`` is to be told of a dataset: numbers of features, and of categories (the largest + 1)."""
    first: dict[str, int] = {}
    largest = np.zeros(0, dtype=int)
    for entry in dataset:
        if not first:
            names = (FieldName.FEAT_DYNAMIC_REAL, FieldName.FEAT_STATIC_REAL, FieldName.FEAT_STATIC_CAT)
            first = {f"num_{name}": len(entry[name]) if entry.get(name) is not None else 0 for name in names}
            largest = np.zeros(first["num_feat_static_cat"], dtype=int)
        if len(largest):
            largest = np.maximum(largest, np.asarray(entry[FieldName.FEAT_STATIC_CAT], dtype=int))
    return {**first, "cardinality": (largest + 1).tolist()}


class CheckFeatures(MapTransformation):
    """Features of the counts, lengths and ranges that were promised, as float32 and int64 arrays.

    Args:
        real, static, cardinality: F, S and the categories of each of K.
        prediction_length: steps of the future for which dynamic features must be there when forecasting.
    """

    @validated()
    def __init__(self, real: int, static: int, cardinality: list[int], prediction_length: int) -> None:
        super().__init__()
        self.real, self.static, self.cardinality = real, static, cardinality
        self.prediction_length = prediction_length

    def map_transform(self, data: DataEntry, is_train: bool) -> DataEntry:
        data = dict(data)
        if self.cardinality:
            data[FieldName.FEAT_STATIC_CAT] = self.categories(data)
        if self.static:
            data[FieldName.FEAT_STATIC_REAL] = self.numbers(data, FieldName.FEAT_STATIC_REAL, (self.static,))
        if self.real:
            steps = np.asarray(data[FieldName.TARGET]).shape[-1] + (0 if is_train else self.prediction_length)
            name = FieldName.FEAT_DYNAMIC_REAL
            data[name] = self.numbers(data, name, (self.real, steps))[:, :steps]
        return data

    def categories(self, data: DataEntry) -> np.ndarray:
        value = self.numbers(data, FieldName.FEAT_STATIC_CAT, (len(self.cardinality),))
        if (value % 1).any() or (value < 0).any() or (value >= self.cardinality).any():
            raise InvalidArgument(
                f"feat_static_cat of {name_of(data)} is {value.tolist()}; with cardinality={self.cardinality} "
                f"categories are whole numbers from 0 to {[c - 1 for c in self.cardinality]}"
            )
        return value.astype(np.int64)

    @staticmethod
    def numbers(data: DataEntry, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """The finite values of a field, of at least that length in the last axis of two."""
        if data.get(name) is None:
            raise InvalidArgument(
                f"{name_of(data)} has no {name}, which the estimator was told of ({shape[0]} features); add it, or set "
                f"num_{name}=0"
            )
        value = np.asarray(data[name], dtype=np.float32)
        if value.ndim != len(shape) or len(value) != shape[0]:
            raise InvalidArgument(
                f"{name} of {name_of(data)} has shape {value.shape}, the estimator was told num_{name}={shape[0]}"
                + ("" if len(shape) == 1 else "; it must be (features, steps)")
            )
        if value.shape[-1] < shape[-1]:
            raise InvalidArgument(
                f"{name} of {name_of(data)} has {value.shape[-1]} steps but {shape[-1]} are needed: it must be known "
                f"in the horizon too when forecasting"
            )
        if not np.isfinite(value[..., : shape[-1]]).all():
            raise InvalidArgument(f"{name} of {name_of(data)} has missing or infinite values; fill them first")
        return value
