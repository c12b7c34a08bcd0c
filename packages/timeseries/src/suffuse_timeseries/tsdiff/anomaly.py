r"""Anomaly scores: how little a trained model expected each step of a series. Higher is stranger.

``forecast``    each block is forecast from what lies before it; the score is the CRPS of the forecast at the step,
                in units of the window's scale,
``imputation``  each block is hidden and filled in from both sides; the score is |y - median| over the spread of the
                samples (half the distance of the quantiles 0.16 and 0.84),
``density``     the series is noised to one level and denoised; the score is |eps_theta - eps|^2 at the step, the mean
                over several draws of noise. It needs no sampling, and is the cheapest by far.

None of them needs labels or training of its own: the network is the one that forecasts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import torch
from gluonts.dataset import Dataset
from torch import Tensor

from suffuse.errors import InvalidArgument, unknown

from .checks import check_target, nonempty
from .imputation import complete, imputing, lay
from .module import TSDiffModule, chunks
from .predictor import TSDiffPredictor
from .self_guidance import quantile_levels
from .windows import Window

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["AnomalyScorer", "AnomalyScores"]

Kind = Literal["forecast", "imputation", "density"]

#: The spread of an imputation is at least this share of the window's scale.
FLOOR = 1e-2


@dataclass(frozen=True)
class AnomalyScores:
    """The scores of one series.

    Attributes:
        item_id: of the series.
        start: its first period.
        values: (T,), NaN where the series is missing and, for ``forecast``, before the first forecast.
    """

    item_id: str | None
    start: pd.Period
    values: np.ndarray

    def to_series(self) -> pd.Series:
        """The scores by period."""
        import pandas as pd

        index = pd.period_range(self.start, periods=len(self.values), freq=self.start.freq)
        return pd.Series(self.values, index=index, name=self.item_id)


class AnomalyScorer:
    """Scores every step of every series of a dataset.

        for each in AnomalyScorer(predictor, "density").score(dataset):
            print(each.to_series().nlargest(5))

    Args:
        predictor: a trained TSDiff model of one variate, asked in the way it is to be asked (``predictor.using``).
            Features are not used.
        kind: ``forecast``, ``imputation`` or ``density``; see the module.
        num_samples: sample paths per block, or draws of noise for ``density``.
        block: steps that are hidden at once; default the horizon, which is also the most for ``forecast``.
        time: noise level of ``density``, in (0, 1]; a value such as ``representative_time`` gives.
        seed: of the noise of ``density``.
    """

    def __init__(
        self,
        predictor: TSDiffPredictor,
        kind: Kind = "density",
        *,
        num_samples: int = 20,
        block: int | None = None,
        time: float = 0.3,
        seed: int = 0,
    ) -> None:
        if kind not in get_args(Kind):
            raise unknown("kind of anomaly score", kind, get_args(Kind))
        network = predictor.prediction_net
        if kind == "density" and network.condition_dropout == 0:
            raise InvalidArgument("kind='density' needs a model trained with condition_dropout > 0")
        if kind == "forecast" and network.target_dim > 1:
            raise InvalidArgument(f"scores are for one variate, but the model has target_dim={network.target_dim}")
        most = network.prediction_length if kind == "forecast" else network.context_length
        block = network.prediction_length if block is None else block
        if not 1 <= block <= most:
            raise InvalidArgument(f"block must lie in [1, {most}] for kind={kind!r}, got {block}")
        if num_samples < 1 + (kind != "density"):
            raise InvalidArgument(f"num_samples is {num_samples}; give more")
        if not 0 < time <= 1:
            raise InvalidArgument(f"time must lie in (0, 1], got {time}")
        self.predictor = predictor if kind == "forecast" else imputing(predictor)
        self.kind, self.num_samples, self.block, self.time, self.seed = kind, num_samples, block, time, seed

    def score(self, dataset: Dataset) -> Iterator[AnomalyScores]:
        """The scores of each entry, in order.

        Raises:
            InvalidArgument: for an empty dataset, infinite values, or targets that are not (T,).
        """
        network = self.predictor.prediction_net.eval()
        how = density if self.kind == "density" else blockwise
        for entry in nonempty(dataset):
            target = check_target(entry)
            y = torch.as_tensor(target, dtype=torch.float32, device=network.device)
            scores = how(self, network, torch.nan_to_num(y), (~y.isnan()).float()).cpu().numpy().astype(np.float64)
            scores[np.isnan(target)] = np.nan
            yield AnomalyScores(entry.get("item_id"), entry["start"], scores)


@torch.no_grad()
def blockwise(scorer: AnomalyScorer, network: TSDiffModule, y: Tensor, seen: Tensor) -> Tensor:
    """Scores (T,) of a series y (T,): every block from a window of its own."""
    steps, block, samples = len(y), scorer.block, scorer.num_samples
    length = network.context_length + network.prediction_length
    forecast = scorer.kind == "forecast"
    begin = torch.arange(0, steps, block, device=y.device)
    at = torch.arange(steps, device=y.device)
    hidden = at >= begin[:, None] if forecast else (at >= begin[:, None]) & (at < begin[:, None] + block)
    known = seen * ~hidden  # (blocks, T)
    if forecast:
        keep = known.any(1)  # there is something to forecast from
        begin, known = begin[keep], known[keep]
        start = begin - network.context_length
    else:
        start = (begin + block // 2 - length // 2).clamp(max=steps - length)
    scores = torch.full_like(y, torch.nan)
    if not len(begin):
        return scores
    w = lay(network, y.expand(len(begin), -1), known, start)
    each = torch.arange(len(begin), device=y.device).repeat_interleave(samples)
    repeated = Window(*(x[each] for x in (w.values, w.observed, w.known, w.loc, w.scale)))
    paths = complete(network, repeated, quantile_levels(samples).to(y).repeat(len(begin))).unflatten(0, (-1, samples))
    steps_of = begin[:, None] + torch.arange(block, device=y.device)  # (blocks, block)
    offset = (steps_of - start[:, None]).clamp(max=length - 1)
    drawn = paths.gather(2, offset[:, None].expand(-1, samples, -1))  # (blocks, S, block)
    truth = y[steps_of.clamp(max=steps - 1)]
    if forecast:
        score = crps(truth, drawn) / w.scale
    else:
        low, middle, high = torch.quantile(drawn, drawn.new_tensor([0.16, 0.5, 0.84]), dim=1)
        score = (truth - middle).abs() / torch.maximum((high - low) / 2, FLOOR * w.scale)
    inside = steps_of < steps
    scores[steps_of[inside]] = score[inside]
    return scores


def crps(truth: Tensor, samples: Tensor) -> Tensor:
    """CRPS of ensembles (B, S, T) for what happened (B, T)."""
    import scoringrules  # type: ignore[import-untyped]

    score = scoringrules.crps_ensemble(truth.cpu().numpy(), samples.cpu().numpy(), m_axis=1)
    return torch.as_tensor(np.asarray(score), dtype=truth.dtype, device=truth.device)


@torch.no_grad()
def density(scorer: AnomalyScorer, network: TSDiffModule, y: Tensor, seen: Tensor) -> Tensor:
    """Scores (T,) of a series y (T,): the denoising error in windows that overlap by half."""
    steps = len(y)
    length = network.context_length + network.prediction_length
    last = max(steps - length, 0)
    start = torch.tensor(sorted({*range(0, last, max(length // 2, 1)), last}), device=y.device)
    w = lay(network, y.expand(len(start), -1), seen.expand(len(start), -1), start)
    generator = torch.Generator(y.device).manual_seed(scorer.seed)
    level = network.denoiser.schedule.level(scorer.time)
    error = torch.zeros_like(w.values[:, 0])
    for _ in range(scorer.num_samples):
        eps = torch.randn(w.values.shape, generator=generator, device=y.device)
        x = level.alpha * w.values + level.sigma * eps
        parts = [network.denoiser.eps(x[i], scorer.time) for i in chunks(len(x), y.device)]
        error += (torch.cat(parts) - eps)[:, 0].square() / scorer.num_samples
    at = (start[:, None] + torch.arange(length, device=y.device)).flatten()
    inside = at < steps
    total, count = torch.zeros_like(y), torch.zeros_like(y)
    total.index_add_(0, at[inside], error.flatten()[inside])
    count.index_add_(0, at[inside], torch.ones_like(error).flatten()[inside])
    return total / count
