"""What is wrong with a dataset, said before training instead of in the middle of it."""

import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from gluonts.core.component import validated
from gluonts.dataset import DataEntry, Dataset
from gluonts.transform import SimpleTransformation

from suffuse.errors import InvalidArgument

from ..frequency import normalize

__all__ = ["RejectInfinite", "Summary", "nonempty", "summarize"]


@dataclass(frozen=True)
class Summary:
    """Facts about a training set: number of series, longest length in steps, mean |y| over what is observed."""

    series: int
    longest: int
    mean_abs: float


def summarize(dataset: Iterable[DataEntry], freq: str, prediction_length: int, target_dim: int = 1) -> Summary:
    """One pass over a training set.

    Series that are not longer than the horizon, or are all missing, cannot be learnt from and are skipped with a
    warning. Series shorter than context and lags are fine: what lies before their start counts as missing.

    Raises:
        InvalidArgument: for no series at all, none that can be used, infinite values, or another frequency.
    """
    series = usable = longest = count = 0
    total = 0.0
    for entry in dataset:
        series += 1
        target = check_target(entry, target_dim)
        check_frequency(entry, freq)
        seen = np.isfinite(target)
        usable += bool(target.shape[-1] > prediction_length and seen.any())
        longest = max(longest, target.shape[-1])
        total, count = total + float(np.abs(target[seen]).sum()), count + int(seen.sum())
    if not series:
        raise InvalidArgument("training_data is empty; give at least one series")
    if not count:
        raise InvalidArgument(f"training_data has {series} series and not one observed value; all targets are NaN")
    if not usable:
        raise InvalidArgument(
            f"no series is longer than prediction_length={prediction_length} (the longest has {longest} steps); "
            f"give longer series or a shorter horizon"
        )
    if usable < series:
        warnings.warn(
            f"{series - usable} of {series} series are all missing or not longer than the horizon of "
            f"{prediction_length} steps; they are not learnt from",
            stacklevel=3,
        )
    return Summary(series, longest, total / count or 1.0)


def check_target(entry: DataEntry, target_dim: int = 1) -> np.ndarray:
    """The target as float64, (T,) or (target_dim, T). Raises InvalidArgument for another shape or infinite values."""
    if "target" not in entry:
        raise InvalidArgument(f"{name_of(entry)} has no 'target', only {sorted(entry)}")
    target = np.asarray(entry["target"], dtype=np.float64)
    if target_dim == 1 and target.ndim != 1:
        raise InvalidArgument(
            f"{name_of(entry)} has a target of shape {target.shape}, but the model is univariate, (T,); give "
            f"target_dim for several variates, or each variate as a series of its own"
        )
    if target_dim > 1 and (target.ndim != 2 or len(target) != target_dim):
        raise InvalidArgument(
            f"{name_of(entry)} has a target of shape {target.shape}, but target_dim={target_dim} needs "
            f"({target_dim}, T)"
        )
    if bad := int(np.isinf(target).sum()):
        raise InvalidArgument(f"{name_of(entry)} has {bad} infinite values; replace them by NaN, which means missing")
    return target


def check_frequency(entry: DataEntry, freq: str) -> None:
    """Raise InvalidArgument when the periods of an entry are of another frequency."""
    own = getattr(entry.get("start"), "freqstr", freq)
    if normalize(own) != freq:
        raise InvalidArgument(f"{name_of(entry)} has frequency {own!r}, the estimator was given freq={freq!r}")


def name_of(entry: DataEntry) -> str:
    return f"series {entry['item_id']!r}" if entry.get("item_id") is not None else "a series"


def nonempty(dataset: Dataset) -> Dataset:
    """The dataset itself. Raises InvalidArgument when it has no entries."""
    if not len(dataset):
        raise InvalidArgument("dataset is empty; give at least one series to forecast")
    return dataset


class RejectInfinite(SimpleTransformation):
    """Stops at infinite targets, another number of variates, or another frequency, so that none reaches a forecast."""

    @validated()
    def __init__(self, target_dim: int = 1, freq: str | None = None) -> None:
        super().__init__()
        self.target_dim, self.freq = target_dim, freq

    def transform(self, data: DataEntry) -> DataEntry:
        check_target(data, self.target_dim)
        if self.freq is not None:
            check_frequency(data, self.freq)
        return data


def learnable(dataset: Iterable[DataEntry], prediction_length: int) -> Iterator[dict[str, Any]]:
    """The series that ``summarize`` called usable."""
    for entry in dataset:
        target = np.asarray(entry["target"])
        if target.shape[-1] > prediction_length and np.isfinite(target).any():
            yield entry
