r"""Imputation: gaps in a series are filled by the model that forecasts it, for to self-guidance a gap is a horizon.

A window is laid with the first gap in its middle, so that the model sees both sides of it; all that is missing in its
first three quarters is drawn at once, and what was drawn counts as known when the next window is laid. Every sample
path so goes through the whole series, at its own quantile level under the method ``q``.

Kollovieh et al. (2023), arXiv:2307.11494, section 4.1: the same network, whatever is missing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gluonts.core.component import validated
from gluonts.dataset import DataEntry, Dataset
from gluonts.itertools import batcher
from gluonts.model.forecast import SampleForecast
from gluonts.transform import MissingValueImputation
from torch import Tensor

from suffuse.errors import InvalidArgument, SamplingDiverged

from .checks import check_target, name_of, nonempty
from .module import TSDiffModule, chunks
from .predictor import TSDiffPredictor
from .self_guidance import quantile_levels
from .windows import Window

__all__ = ["DiffusionImputation", "Imputation", "impute", "lay"]


@dataclass(frozen=True)
class Imputation:
    """A series whose gaps are filled.

    Attributes:
        entry: the GluonTS entry, its target (T,) filled with the medians of the samples.
        gaps: one ``SampleForecast`` per run of missing steps, which starts where the run does.
    """

    entry: DataEntry
    gaps: list[SampleForecast]


def impute(predictor: TSDiffPredictor, dataset: Dataset, num_samples: int = 100) -> Iterator[Imputation]:
    """Fill the NaN of every series, with uncertainty.

        filled = [each.entry for each in impute(predictor, dataset)]

    A network that reads conditions and was only ever told pasts is guided instead (the method ``q``), for its condition
    says nothing of what comes after a gap. Features are not used. A series without any observation is filled with
    samples of the unconditional model.

    Args:
        predictor: a trained model, asked in the way it is to be asked (``predictor.using``).
        dataset: entries with ``start`` and ``target`` (T,).
        num_samples: sample paths S.

    Raises:
        InvalidArgument: for infinite values, several variates, an empty dataset, or a network that can only forecast.
    """
    if num_samples < 1:
        raise InvalidArgument(f"num_samples must be at least 1, got {num_samples}")
    network = imputing(predictor).prediction_net
    for group in batcher(nonempty(dataset), predictor.batch_size):
        targets = [check_target(entry) for entry in group]
        for entry, target, paths in zip(group, targets, fill(network, targets, num_samples), strict=True):
            if not np.isfinite(paths).all():
                raise SamplingDiverged(f"the imputation of {name_of(entry)} is not finite; lower guidance_scale")
            missing = np.isnan(target)
            filled = np.where(missing, np.median(paths, axis=0), target).astype(np.float32)
            gaps = [
                SampleForecast(paths[:, a:b], start_date=entry["start"] + a, item_id=entry.get("item_id"))
                for a, b in runs(missing)
            ]
            yield Imputation({**entry, "target": filled}, gaps)


def imputing(predictor: TSDiffPredictor) -> TSDiffPredictor:
    """The predictor, asked in a way that serves imputation."""
    network = predictor.prediction_net
    if network.target_dim > 1:
        raise InvalidArgument(f"imputation is for one variate, but the model has target_dim={network.target_dim}")
    if network.forecasting.method != "cond" or network.training_mask != "forecast":
        return predictor
    if network.condition_dropout == 0:
        raise InvalidArgument(
            "this network was only trained to forecast; imputation needs training_mask='random' or 'mix', or "
            "condition_dropout > 0"
        )
    return predictor.using(method="q")


def runs(mask: np.ndarray) -> list[tuple[int, int]]:
    """(first, past the last) of every run of True in a mask (T,)."""
    edges = np.flatnonzero(np.diff(np.pad(mask.astype(np.int8), 1)))
    return [(int(a), int(b)) for a, b in edges.reshape(-1, 2)]


def lay(network: TSDiffModule, y: Tensor, known: Tensor, start: Tensor) -> Window:
    """Windows of one length at any place of a batch of series.

    Args:
        network: which says how windows are made.
        y: (R, T), any number where not known.
        known: (R, T), 1 where a value is there.
        start: (R,), the step of each row at which its window starts; it may reach over both ends.
    """
    length, past = network.context_length + network.prediction_length, network.past_length
    steps = start[:, None] + torch.arange(-(past - network.context_length), length, device=y.device)
    inside = (steps >= 0) & (steps < y.shape[1])
    at = steps.clamp(0, y.shape[1] - 1)
    values, seen = y.gather(1, at), known.gather(1, at) * inside
    told = torch.ones_like(seen)
    return network.window(values[:, :past], seen[:, :past], values[:, past:], seen[:, past:], told)


@torch.no_grad()
def complete(network: TSDiffModule, w: Window, levels: Tensor) -> Tensor:
    """One sample of each window, (R, L) in the unit of the data, given all that is known of it."""
    rows = chunks(len(levels), levels.device)
    paths = torch.cat([network.complete(w.values[i], w.known[i], levels[i]) for i in rows])
    return w.loc + w.scale * paths[:, 0]


def fill(network: TSDiffModule, targets: list[np.ndarray], samples: int) -> list[np.ndarray]:
    """Sample paths (S, T) of series (T,) that may have NaN, equal to them where they have none."""
    length = network.context_length + network.prediction_length
    longest = max(len(t) for t in targets)
    padded = np.stack([np.pad(t, (longest - len(t), 0)) for t in targets])  # the ends of all series are aligned
    device = network.device
    y = torch.as_tensor(padded, dtype=torch.float32, device=device)
    inside = torch.arange(longest, device=device) >= longest - torch.tensor([[len(t)] for t in targets], device=device)
    known = (inside & ~y.isnan()).float()
    y = torch.where(known > 0, y, 0.0)[:, None].repeat(1, samples, 1)  # (N, S, T)
    kappa = quantile_levels(samples).to(device)
    steps = torch.arange(longest, device=device)
    while len(rows := ((pending := inside & (known == 0)).any(1)).nonzero()[:, 0]):
        first = pending[rows].int().argmax(1)
        start = torch.minimum(first - length // 2, torch.tensor(longest - length, device=device))
        w = lay(
            network,
            y[rows].flatten(0, 1),
            known[rows].repeat_interleave(samples, 0),
            start.repeat_interleave(samples),
        )
        drawn = complete(network, w, kappa.repeat(len(rows))).unflatten(0, (-1, samples))  # (n, S, L)
        offset = steps - start[:, None]
        settled = (offset >= 0) & ((offset < 3 * length // 4) | (start[:, None] + length >= longest))
        settled = settled & (offset < length) & pending[rows]
        placed = drawn.gather(2, offset.clamp(0, length - 1)[:, None].expand(-1, samples, -1))
        y[rows] = torch.where(settled[:, None], placed, y[rows])
        known[rows] = torch.where(settled, 1.0, known[rows])
    paths = y.cpu().numpy()
    return [path[:, longest - len(t) :] for path, t in zip(paths, targets, strict=True)]


class DiffusionImputation(MissingValueImputation):
    """The ``imputation_method`` of any GluonTS estimator: gaps are filled by a trained TSDiff model.

        AddObservedValuesIndicator("target", "observed_values", imputation_method=DiffusionImputation("runs/tsdiff"))

    The model is named by the folder of a serialized ``TSDiffPredictor``, so that the estimator and its predictor can be
    serialized too. It is read at the first gap.

    Args:
        folder: what ``TSDiffPredictor.serialize`` wrote.
        num_samples: gaps take the median of so many sample paths.
        device: cpu, cuda, or auto.
        asked: fields of ``Forecasting``, such as ``{"method": "q", "guidance_scale": 4.0}``.
    """

    @validated()
    def __init__(
        self, folder: str, num_samples: int = 20, device: str = "auto", asked: dict[str, Any] | None = None
    ) -> None:
        self.folder, self.num_samples, self.device, self.asked = folder, num_samples, device, asked or {}
        self._predictor: TSDiffPredictor | None = None

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """Fill the NaN of values (T,)."""
        if not np.isnan(values).any():
            return values
        if self._predictor is None:
            from gluonts.torch.util import resolve_device

            read = TSDiffPredictor.deserialize(Path(self.folder), device=resolve_device(self.device))
            self._predictor = imputing(read.using(**self.asked))
        target = check_target({"target": values})
        (paths,) = fill(self._predictor.prediction_net, [target], self.num_samples)
        return np.where(np.isnan(values), np.median(paths, axis=0), values).astype(values.dtype)
