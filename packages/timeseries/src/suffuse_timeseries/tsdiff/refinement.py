r"""Refinement: a forecast of any model, moved to where the diffusion model finds the whole window more likely.

With ỹ the context and a base forecast, y what becomes of it, a noise level tau, and fresh noise eps in each iteration,

    E(y) = |eps_theta(alpha y + sigma eps, tau) - eps|^2 + lambda R(y, ỹ),

    ms:  R = sum over what is observed of (y - ỹ)^2
    q:   R = sum over all entries of max(kappa (ỹ - y), (kappa - 1) (ỹ - y)),

    ml:   y <- y - eta dE/dy                                    towards the most likely window
    lmc:  y <- y - eta dE/dy + gamma sqrt(2 eta) xi             Langevin Monte Carlo, a sample

Sample j of S starts from the base forecast's quantile kappa_j = j / (S + 1), so a point forecast starts S times from
one place. Under ``ms`` the horizon is free to move, under ``q`` it is held at its level. tau is the representative
step: the one whose loss is nearest to the mean over all steps. It takes 20 gradients of the network where sampling
takes 100 evaluations.

Kollovieh, Ansari, Bohlke-Schneider, Zschiegner, Wang, Wang (2023), "Predict, Refine, Synthesize", arXiv:2307.11494,
section 4.2, eqs. 9-12. gamma multiplies sqrt(2 eta) as in the authors' programs; in the paper it stands below the root.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from gluonts.dataset import DataEntry, Dataset
from gluonts.model.forecast import Forecast, SampleForecast
from gluonts.model.predictor import Predictor
from gluonts.torch.batchify import batchify
from rich.progress import track
from torch import Tensor

from suffuse import Condition, Denoiser
from suffuse.errors import InvalidArgument, SamplingDiverged, unknown

from .checks import name_of, nonempty
from .module import TSDiffModule, chunks, of
from .predictor import TSDiffPredictor
from .self_guidance import quantile_levels
from .windows import Window, draw_cuts

__all__ = ["RefinedPredictor", "Refinement", "quantile_paths", "representative_time"]

Method = Literal["lmc", "ml"]
Regulariser = Literal["ms", "q"]


@dataclass(frozen=True)
class Refinement:
    """How forecasts are refined.

    Args:
        method: ``lmc`` (samples) or ``ml`` (the most likely).
        regulariser: ``ms`` or ``q``.
        iterations: gradients of the network.
        step_size: eta; the paper has 0.1, and 0.01 for the exchange rates.
        noise: gamma, of ``lmc``.
        weight: lambda.
    """

    method: Method = "lmc"
    regulariser: Regulariser = "q"
    iterations: int = 20
    step_size: float = 0.1
    noise: float = 0.1
    weight: float = 1.0

    def __post_init__(self) -> None:
        if self.method not in ("lmc", "ml"):
            raise unknown("refinement method", self.method, ("lmc", "ml"))
        if self.regulariser not in ("ms", "q"):
            raise unknown("regulariser", self.regulariser, ("ms", "q"))
        if self.iterations < 0:
            raise InvalidArgument(f"iterations must not be negative, got {self.iterations}")
        for name in ("step_size", "noise", "weight"):
            if not getattr(self, name) >= 0:
                raise InvalidArgument(f"{name} must be >= 0, got {getattr(self, name)}")

    def __call__(
        self,
        denoiser: Denoiser,
        base: Tensor,
        known: Tensor,
        given: Tensor,
        levels: Tensor,
        time: float,
        cond: Condition | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The refined windows.

        Args:
            denoiser: unconditional, or conditional on ``cond``.
            base: ỹ, where the iteration starts, (N, *event).
            known: 1 where there is an observation, which ``ms`` holds on to.
            given: 1 where there is an observation or a base forecast, which ``q`` holds on to.
            levels: kappa of each row, (N,).
            time: tau, in [0, 1].
            cond: of the denoiser.
            generator: of all noise.
        """
        level = denoiser.schedule.level(time)
        kappa = levels.view(-1, *(1,) * (base.ndim - 1))

        def energy(y: Tensor) -> Tensor:
            eps = torch.randn(y.shape, generator=generator, device=y.device, dtype=y.dtype)
            error = denoiser.eps(level.alpha * y + level.sigma * eps, time, cond) - eps
            return error.square().sum() + self.weight * self.distance(y, base, known, given, kappa)

        y = base
        spread = self.noise * math.sqrt(2 * self.step_size) if self.method == "lmc" else 0.0
        for _ in range(self.iterations):
            with torch.enable_grad():
                leaf = y.detach().requires_grad_()
                (gradient,) = torch.autograd.grad(energy(leaf), leaf)
            y = y - self.step_size * gradient
            if spread:
                y = y + spread * torch.randn(y.shape, generator=generator, device=y.device, dtype=y.dtype)
        return y

    def distance(self, y: Tensor, base: Tensor, known: Tensor, given: Tensor, kappa: Tensor) -> Tensor:
        """R."""
        if self.regulariser == "ms":
            return ((y - base) * known).square().sum()
        error = (base - y) * given
        return torch.maximum(kappa * error, (kappa - 1) * error).sum()


class RefinedPredictor(Predictor):
    """Any GluonTS predictor with a TSDiff model behind it, which refines its forecasts.

        time = representative_time(tsdiff, dataset.train)
        refined = RefinedPredictor(SeasonalNaivePredictor(24, season_length=24), tsdiff, time)

    Forecasts are ``SampleForecast``, whatever the base predictor gives (samples, quantiles or a distribution).

    Args:
        base: the predictor to be refined, of the same horizon.
        model: a TSDiff predictor that was trained with ``condition_dropout`` above 0.
        time: tau; see ``representative_time``.
        refinement: how.
    """

    def __init__(
        self, base: Predictor, model: TSDiffPredictor, time: float, refinement: Refinement | None = None
    ) -> None:
        if base.prediction_length != model.prediction_length:
            raise InvalidArgument(
                f"base forecasts {base.prediction_length} steps but the model {model.prediction_length}; they must be "
                f"the same"
            )
        if model.prediction_net.condition_dropout == 0:
            raise InvalidArgument("refinement needs a model trained with condition_dropout > 0")
        if not 0 < time <= 1:
            raise InvalidArgument(f"time must lie in (0, 1], got {time}; see representative_time")
        super().__init__(prediction_length=model.prediction_length)
        self.base, self.model, self.time, self.refinement = base, model, time, refinement or Refinement()

    def using(self, **changes: object) -> RefinedPredictor:
        """The same predictors with other fields of ``Refinement``."""
        if stray := set(changes) - {field.name for field in dataclasses.fields(Refinement)}:
            raise InvalidArgument(
                f"using() takes {[f.name for f in dataclasses.fields(Refinement)]}, got {sorted(stray)}"
            )
        other = copy.copy(self)
        other.refinement = dataclasses.replace(self.refinement, **changes)  # type: ignore[arg-type]
        return other

    def predict(self, dataset: Dataset, num_samples: int | None = None) -> Iterator[Forecast]:  # type: ignore[override]
        """One ``SampleForecast`` per entry.

        Args:
            dataset: entries with ``start`` and ``target``, and the features of both predictors.
            num_samples: sample paths S; default, those of the model.
        """
        samples = self.model.prediction_net.num_parallel_samples if num_samples is None else num_samples
        if samples < 1:
            raise InvalidArgument(f"num_samples must be at least 1, got {samples}")
        if torch.is_inference_mode_enabled():
            raise InvalidArgument("refinement needs gradients; use torch.no_grad() instead of torch.inference_mode()")
        pairs = zip(nonempty(dataset), self.base.predict(dataset, num_samples=samples), strict=True)
        while batch := list(islice(pairs, self.model.batch_size)):
            entries, forecasts = zip(*batch, strict=True)
            paths = np.stack([quantile_paths(forecast, samples) for forecast in forecasts])
            for entry, forecast, refined in zip(entries, forecasts, self.refine(entries, paths), strict=True):
                if not np.isfinite(refined).all():
                    raise SamplingDiverged(
                        f"the refined forecast of {name_of(entry)} is not finite; lower "
                        f"step_size={self.refinement.step_size}"
                    )
                yield SampleForecast(
                    refined, start_date=forecast.start_date, item_id=forecast.item_id, info=forecast.info
                )

    @torch.no_grad()
    def refine(self, entries: Iterable[DataEntry], paths: np.ndarray) -> np.ndarray:
        """Refined sample paths, (B, S, H) or (B, S, H, D), from those of the base predictor."""
        network = self.model.prediction_net.eval()
        batch = inputs(self.model, entries)
        base = torch.from_numpy(paths).to(self.model.device, torch.float32)
        samples = base.shape[1]
        w = complete(network, batch, base.flatten(0, 1), samples)
        cond = network.covariates(**{name: batch[name] for name in batch if name not in PAST})
        levels = quantile_levels(samples).to(base).repeat(len(base))
        rows = chunks(len(levels), base.device)
        start = carried(w.values, w.observed)
        out = torch.cat(
            [
                self.refinement(
                    network.denoiser,
                    start[i],
                    w.known[i],
                    w.observed[i],
                    levels[i],
                    self.time,
                    of(cond, i // samples),
                )
                for i in rows
            ]
        )[:, 0, ..., network.context_length :]
        forecast = w.loc + w.scale * out
        forecast = forecast if network.target_dim == 1 else forecast.mT
        forecast = forecast.clamp_min(0) if network.nonnegative_pred_samples else forecast
        return forecast.unflatten(0, (-1, samples)).cpu().numpy()

    def serialize(self, path: Path) -> None:
        """Write both predictors and the settings into a folder; the base predictor must be able to serialize."""
        path = Path(path)
        path.mkdir(parents=True, exist_ok=True)
        for name, predictor in (("base", self.base), ("model", self.model)):
            (path / name).mkdir(exist_ok=True)
            predictor.serialize(path / name)
        settings = {"time": self.time, "refinement": dataclasses.asdict(self.refinement)}
        (path / "refinement.json").write_text(json.dumps(settings, indent=2) + "\n")
        super().serialize(path)

    @classmethod
    def deserialize(cls, path: Path, **kwargs: object) -> RefinedPredictor:
        """Read what ``serialize`` wrote; ``device`` is passed on to the model."""
        path = Path(path)
        settings = json.loads((path / "refinement.json").read_text())
        model = TSDiffPredictor.deserialize(path / "model", **kwargs)  # type: ignore[arg-type]
        base = Predictor.deserialize(path / "base")
        return cls(base, model, settings["time"], Refinement(**settings["refinement"]))


PAST = ("past_target", "past_observed_values")


def inputs(model: TSDiffPredictor, entries: Iterable[DataEntry]) -> dict[str, Tensor]:
    """What the model's network is given of entries whose horizon follows their end, as a batch on its device."""
    transformed = model.input_transform.apply(list(entries), is_train=False)
    rows = [{name: row[name] for name in model.input_names} for row in transformed]
    return batchify(rows, model.device)


def complete(network: TSDiffModule, batch: dict[str, Tensor], future: Tensor, samples: int = 1) -> Window:
    """Windows with a horizon, (B S, ...), from a batch of pasts (B, ...) and futures (B S, H[, D]); NaN is missing."""
    past = (batch[name].repeat_interleave(samples, 0) for name in PAST)
    return network.window(*past, future.nan_to_num(), future.isfinite().to(future.dtype))


def carried(values: Tensor, observed: Tensor) -> Tensor:
    """Each gap at the value before it along the last axis, and 0 where there is none."""
    steps = torch.arange(values.shape[-1], device=values.device)
    return values.gather(-1, (steps * (observed > 0)).cummax(-1).values)


def quantile_paths(forecast: Forecast, samples: int) -> np.ndarray:
    """The forecast's quantiles kappa_j = j / (S + 1), (S, H) or (S, H, D): path j plays its level at every step.

    Raises:
        InvalidArgument: when the forecast is not finite.
    """
    if isinstance(forecast, SampleForecast) and forecast.num_samples == 1:
        paths = np.repeat(forecast.samples, samples, axis=0)
    else:
        paths = np.stack([np.asarray(forecast.quantile(float(kappa))) for kappa in quantile_levels(samples)])
    if not np.isfinite(paths).all():
        raise InvalidArgument(f"the base forecast of item {forecast.item_id!r} is not finite")
    return paths


@torch.no_grad()
def representative_time(
    model: TSDiffPredictor,
    dataset: Dataset,
    windows: int = 1024,
    levels: int = 100,
    seed: int = 0,
    progress: bool = True,
) -> float:
    """The noise level whose loss |eps_theta - eps|^2 is nearest to the mean over all levels, as a time in (0, 1].

    Args:
        model: the predictor whose network it is.
        dataset: the training series.
        windows: number of windows of them, drawn at random.
        levels: number of times, equally spaced.
        seed: of windows and noise.
        progress: whether to show a bar.
    """
    network = model.prediction_net.eval()
    horizon = model.prediction_length
    cuts = draw_cuts(dataset, network.context_length + horizon, windows, seed)
    entries = [{**entry, "target": np.asarray(entry["target"])[..., : cut - horizon]} for entry, cut in cuts]
    futures = [np.asarray(entry["target"], np.float32)[..., cut - horizon : cut].T for entry, cut in cuts]
    batch = inputs(model, entries)
    future = torch.from_numpy(np.stack(futures)).to(model.device)
    w = complete(network, batch, future)
    cond = network.covariates(**{name: batch[name] for name in batch if name not in PAST})
    generator = torch.Generator(model.device).manual_seed(seed)
    eps = torch.randn(w.values.shape, generator=generator, device=model.device)
    schedule = network.denoiser.schedule
    times = [max(k / levels, schedule.t_min) for k in range(1, levels + 1)]
    rows = chunks(len(eps), eps.device)
    losses = torch.zeros(levels, dtype=torch.float64)
    for k, time in enumerate(track(times, "representative step", disable=not progress, transient=True)):
        level = schedule.level(time)
        for i in rows:
            x = level.alpha * w.values[i] + level.sigma * eps[i]
            error = (network.denoiser.eps(x, time, of(cond, i)) - eps[i]) * w.observed[i]
            losses[k] += error.square().sum().item()
    return times[int((losses - losses.mean()).abs().argmin())]
