"""The presets are the paper's, make estimators, and train by name."""

import numpy as np
import pandas as pd
import pytest

from suffuse import hub
from suffuse.errors import InvalidArgument
from suffuse_timeseries import recipes
from suffuse_timeseries.data.registry import PAPER
from suffuse_timeseries.presets import PRESETS, Preset, preset

#: horizon, context, number of lags, s of TSDiff-Q: Kollovieh et al. (2023), published configurations
TABLE = {
    "solar_nips": ("h", 24, 336, 10, 8),
    "electricity_nips": ("h", 24, 336, 10, 4),
    "traffic_nips": ("h", 24, 336, 10, 4),
    "exchange_rate_nips": ("B", 30, 360, 12, 8),
    "m4_hourly": ("h", 48, 312, 0, 2),
    "uber_tlc_hourly": ("h", 24, 336, 10, 2),
    "kdd_cup_2018_without_missing": ("h", 48, 312, 10, 1),
    "wiki2000_nips": ("D", 30, 360, 0, 2),
}


def test_all_datasets_of_the_paper_have_presets():
    assert set(TABLE) == set(PAPER) <= set(PRESETS)


@pytest.mark.parametrize("name", TABLE)
def test_a_preset_is_the_published_configuration(name, tmp_path):
    freq, horizon, context, lags, scale = TABLE[name]
    estimator = preset(name).estimator(condition_dropout=1.0, trainer_kwargs={"default_root_dir": tmp_path})
    assert (estimator.freq, estimator.prediction_length, estimator.context_length) == (freq, horizon, context)
    assert estimator.scaling == "mean" and len(estimator.schedule.betas) == 100
    assert estimator.forecasting.method == "q" and preset(name).guidance_scale == scale
    assert estimator.trainer_kwargs["max_steps"] == 12_800 and estimator.trainer_kwargs["gradient_clip_val"] == 0.5
    module = estimator.create_lightning_module()
    assert module.event_shape == (1 + lags, context + horizon)
    assert 100_000 < sum(p.numel() for p in module.parameters()) < 250_000  # the paper's network has 192 thousand


def test_settings_override_a_preset():
    estimator = preset("m4_hourly").estimator(context_length=96, width=16, trainer_kwargs={"max_epochs": 2})
    assert estimator.context_length == 96 and estimator.backbone["width"] == 16 and estimator.prediction_length == 48
    assert estimator.trainer_kwargs["max_epochs"] == 2 and "max_steps" not in estimator.trainer_kwargs
    with pytest.raises(InvalidArgument, match="freq and prediction_length"):
        Preset().estimator()


def test_a_dataset_of_the_paper_is_trained_by_name(tmp_path, monkeypatch):
    """Found below SUFFUSE_DATA, with its preset, here shortened."""
    from gluonts.dataset.common import MetaData, TrainDatasets
    from gluonts.dataset.jsonl import JsonLinesWriter

    rng = np.random.default_rng(0)
    start = pd.Period("2015-01-01", "h")

    def series(length):
        return [{"start": start, "target": rng.random(length), "item_id": str(i)} for i in range(2)]

    datasets = TrainDatasets(MetaData(freq="h", prediction_length=24), series(1100), series(1124))
    folder = tmp_path / "timeseries" / "gluonts" / "uber_tlc_hourly"
    folder.parent.mkdir(parents=True)
    datasets.save(str(folder), writer=JsonLinesWriter())
    monkeypatch.setenv("SUFFUSE_DATA", str(tmp_path))
    (recipe,) = recipes.RECIPES
    small = {"steps": 1, "batch_size": 2, "width": 8, "state": 4}
    out = recipe.train(dataset="uber_tlc_hourly", out=tmp_path / "m", device="cpu", progress=False, **small)
    network = hub.load(out).backbone
    assert network.channels == 11 and len(network.blocks) == 3
    table, _ = recipe.sample(out, out=tmp_path / "f", n=3, steps=2, device="cpu")
    assert len(table.read_text().splitlines()) == 1 + 2 * 24
