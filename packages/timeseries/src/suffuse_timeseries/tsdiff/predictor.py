"""The predictor: GluonTS's, with the number of samples known to the network and weights in safetensors."""

import copy
import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from gluonts.core.component import validated
from gluonts.dataset import Dataset
from gluonts.model.forecast import Forecast
from gluonts.model.forecast_generator import ForecastGenerator, SampleForecastGenerator
from gluonts.model.predictor import OutputTransform, RepresentablePredictor
from gluonts.torch.model.predictor import PyTorchPredictor
from gluonts.transform import Transformation

from suffuse import hub
from suffuse.errors import InvalidArgument, SamplingDiverged

from .checks import nonempty
from .module import Forecasting, TSDiffModule

__all__ = ["TSDiffPredictor"]


class TSDiffPredictor(PyTorchPredictor):
    """Forecasts as ``SampleForecast``; made by ``TSDiffEstimator.train`` or ``TSDiffPredictor.deserialize``.

    A serialized predictor is one folder with two readers: GluonTS restores the predictor from it, and
    ``suffuse.hub.load`` the denoiser (``config.json`` and ``model.safetensors``).
    """

    @validated()
    def __init__(
        self,
        input_names: list[str],
        prediction_net: TSDiffModule,
        batch_size: int,
        prediction_length: int,
        input_transform: Transformation,
        forecast_generator: ForecastGenerator = SampleForecastGenerator(),  # noqa: B008
        output_transform: OutputTransform | None = None,
        lead_time: int = 0,
        device: str | torch.device = "auto",
    ) -> None:
        super().__init__(
            input_names=input_names,
            prediction_net=prediction_net,
            batch_size=batch_size,
            prediction_length=prediction_length,
            input_transform=input_transform,
            forecast_generator=forecast_generator,
            output_transform=output_transform,
            lead_time=lead_time,
            device=device,
        )
        self.prediction_net.requires_grad_(False)  # guidance differentiates by the input alone; kernels are then kept

    def using(self, **changes: Any) -> "TSDiffPredictor":
        """The same weights asked in another way: any fields of ``Forecasting``, such as method, sampler, steps.

        predictor.using(method="q", guidance_scale=4.0, sampler="ddpm", steps=100)
        """
        network = copy.copy(self.prediction_net)
        if unknown := set(changes) - {field.name for field in dataclasses.fields(Forecasting)}:
            raise InvalidArgument(f"using() takes {list(network.describe())}, got {sorted(unknown)}")
        network.forecasting = dataclasses.replace(network.forecasting, **changes)
        other = copy.copy(self)
        other.prediction_net = network
        return other

    def predict(self, dataset: Dataset, num_samples: int | None = None) -> Iterator[Forecast]:
        """One ``SampleForecast`` per entry, of the steps after its end.

        Args:
            dataset: entries with ``start`` and ``target``; NaN is missing.
            num_samples: sample paths S; default, those the estimator was told. The network is told S, because quantile
                guidance spreads its levels over all samples of a forecast: truncating a larger set, as GluonTS's
                generator would, loses the upper quantiles.
        """
        network = copy.copy(self.prediction_net)
        if num_samples is not None:
            if num_samples < 1:
                raise InvalidArgument(f"num_samples must be at least 1, got {num_samples}")
            network.num_parallel_samples = num_samples
        asked = copy.copy(self)
        asked.prediction_net = network
        for forecast in super(TSDiffPredictor, asked).predict(nonempty(dataset), num_samples=num_samples):
            if not torch.isfinite(torch.as_tensor(forecast.samples)).all():
                raise SamplingDiverged(
                    f"the forecast of item {forecast.item_id!r} is not finite; lower guidance_scale or raise steps "
                    f"(now {network.describe()})"
                )
            yield forecast

    def serialize(self, path: Path, metadata: Mapping[str, Any] | None = None) -> None:
        """Write the predictor into a folder, which is made if need be.

        Args:
            path: the folder.
            metadata: JSON-able facts kept in ``config.json``.
        """
        path = Path(path)
        path.mkdir(parents=True, exist_ok=True)
        RepresentablePredictor.serialize(self, path)
        hub.write(self.prediction_net.denoiser, path, metadata or {})

    @classmethod
    def deserialize(cls, path: Path, device: str | torch.device | None = None) -> "TSDiffPredictor":
        """Read what ``serialize`` wrote.

        Raises:
            CheckpointError: when the weights are missing, altered, or do not fit the predictor.
        """
        path = Path(path)
        state = hub.load(path).state_dict()
        predictor = super(PyTorchPredictor, cls).deserialize(path)
        assert isinstance(predictor, cls)
        hub.check_state(predictor.prediction_net.denoiser, state, str(path))
        predictor.prediction_net.denoiser.load_state_dict(state)
        return predictor if device is None else predictor.to(device)
