"""Settings by dataset: windows, lags, scaling, guidance, refinement, and the size and length of training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from suffuse.errors import InvalidArgument

from .frequency import lags_for

if TYPE_CHECKING:
    from .tsdiff import TSDiffEstimator

__all__ = ["PRESETS", "Preset", "preset"]


@dataclass(frozen=True)
class Preset:
    """What is chosen by dataset.

    Args:
        context_length: steps of a window before the horizon; None for 7 horizons.
        lags: whether the frequency's lags are further channels.
        scaling: ``mean`` or ``std``.
        guidance_scale: s of the quantile guidance, for who asks with a scale; estimators ask without one.
        guidance_scale_ms: s of the mean-square guidance; None for an eighth of the other, as the paper's is not known.
        season: steps of one season, for seasonal naive; None for GluonTS's by frequency.
        freq, prediction_length: of the dataset, where they are part of its name.
        refinement_step: eta of ``Refinement``.
        width, depth, state: of the network.
        steps, batch_size, lr: of training.
    """

    context_length: int | None = None
    lags: bool = False
    scaling: str = "mean"
    guidance_scale: float = 4.0
    guidance_scale_ms: float | None = None
    season: int | None = None
    freq: str | None = None
    prediction_length: int | None = None
    refinement_step: float = 0.1
    width: int = 32
    depth: int = 3
    state: int = 32
    steps: int = 1000
    batch_size: int = 32
    lr: float = 2e-3

    def estimator(
        self, freq: str | None = None, prediction_length: int | None = None, **settings: Any
    ) -> TSDiffEstimator:
        """A ``TSDiffEstimator`` with these settings and any others of its arguments.

        Training takes ``steps`` steps unless ``trainer_kwargs`` says how many.
        """
        from .tsdiff import Forecasting, TSDiffEstimator
        from .tsdiff.module import Method

        freq, prediction_length = freq or self.freq, prediction_length or self.prediction_length
        if freq is None or prediction_length is None:
            raise InvalidArgument("freq and prediction_length must be given: this preset is of no particular dataset")
        method: Method = "q" if settings.get("condition_dropout") == 1 else "cond"
        forecasting = settings.pop("forecasting", None) or Forecasting(method)
        epoch = min(self.steps, 128)
        ours = {
            "context_length": self.context_length,
            "lags_seq": lags_for(freq) if self.lags else [],
            "scaling": self.scaling,
            "forecasting": forecasting,
            "width": self.width,
            "depth": self.depth,
            "state": self.state,
            "batch_size": self.batch_size,
            "lr": self.lr,
            "num_batches_per_epoch": epoch,
        }
        trainer = settings.pop("trainer_kwargs", None) or {}
        if not {"max_epochs", "max_steps"} & set(trainer):
            trainer = {"max_epochs": -(-self.steps // epoch), "max_steps": self.steps, **trainer}
        return TSDiffEstimator(freq, prediction_length, trainer_kwargs=trainer, **{**ours, **settings})


def paper(freq: str, prediction_length: int, context_length: int, **settings: Any) -> Preset:
    """A preset with the paper's network, and the 100 epochs of 128 batches of its authors' later program."""
    ours = {"width": 64, "state": 128, "steps": 12_800, "batch_size": 64, "lr": 1e-3}
    return Preset(context_length, freq=freq, prediction_length=prediction_length, **ours, **settings)  # type: ignore[arg-type]


#: The eight of the paper carry its settings, from its published configurations; their scales s are those of TSDiff-Q
#: with the DDPM sampler. Those of the bundled series were chosen on the last eight windows of their training parts.
PRESETS: dict[str, Preset] = {
    "elnino": Preset(48, scaling="std", guidance_scale=2.0, guidance_scale_ms=0.25, season=12),
    "co2": Preset(104, scaling="std", guidance_scale=0.5, guidance_scale_ms=0.03, season=52),
    "sunspots": Preset(44, guidance_scale=1.0, season=11),
    "solar_nips": paper("h", 24, 336, lags=True, guidance_scale=8.0),
    "electricity_nips": paper("h", 24, 336, lags=True, guidance_scale=4.0),
    "traffic_nips": paper("h", 24, 336, lags=True, guidance_scale=4.0),
    "exchange_rate_nips": paper("B", 30, 360, lags=True, guidance_scale=8.0, season=5, refinement_step=0.01),
    "m4_hourly": paper("h", 48, 312, guidance_scale=2.0),
    "uber_tlc_hourly": paper("h", 24, 336, lags=True, guidance_scale=2.0),
    "kdd_cup_2018_without_missing": paper("h", 48, 312, lags=True, guidance_scale=1.0),
    "wiki2000_nips": paper("D", 30, 360, guidance_scale=2.0),
}


def preset(dataset: str) -> Preset:
    """The preset of a dataset; for one we do not know, the paper's habits: 7 horizons, lags, mean scaling."""
    return PRESETS.get(dataset, Preset(lags=True))
