"""Bundled and stored datasets, their frequencies, and the classical forecasters on them."""

import json

import numpy as np
import pandas as pd
import pytest

from suffuse.data import data_root
from suffuse.errors import InvalidArgument
from suffuse_timeseries import data
from suffuse_timeseries.baselines import RidgePredictor
from suffuse_timeseries.baselines.ridge import filled
from suffuse_timeseries.frequency import lags_for, normalize
from suffuse_timeseries.metrics import evaluate
from suffuse_timeseries.presets import PRESETS, preset


@pytest.mark.parametrize(
    ("name", "freq", "horizon", "windows", "steps"),
    [("elnino", "M", 12, 10, 732), ("co2", "W-SAT", 26, 10, 2284), ("sunspots", "Y-DEC", 11, 5, 309)],
)
def test_bundled_series(name, freq, horizon, windows, steps):
    dataset = data.load(name)
    assert (dataset.metadata.freq, dataset.metadata.prediction_length) == (freq, horizon)
    (train,), test = list(dataset.train), list(dataset.test)
    assert len(test) == windows and len(test[-1]["target"]) == steps
    assert len(train["target"]) == steps - windows * horizon
    lengths = [len(entry["target"]) for entry in test]
    assert lengths == [len(train["target"]) + horizon * (k + 1) for k in range(windows)]  # windows do not overlap
    assert np.array_equal(test[0]["target"][: len(train["target"])], train["target"], equal_nan=True)


def test_gaps_of_the_co2_record_stay_gaps():
    (train,) = data.load("co2").train
    assert np.isnan(train["target"]).sum() > 50
    assert 310 < np.nanmean(train["target"]) < 370


def test_years_of_the_sea_surface_temperature():
    (train,) = data.load("elnino").train
    assert train["start"] == pd.Period("1950-01", freq="M")
    assert train["target"][0] == pytest.approx(23.11) and 18 < train["target"].min() < train["target"].max() < 30


def test_an_unknown_dataset_lists_what_exists(monkeypatch):
    monkeypatch.delenv("SUFFUSE_DATA", raising=False)
    with pytest.raises(InvalidArgument, match="did you mean 'elnino'.*co2, elnino, sunspots"):
        data.load("elninjo")
    with pytest.raises(InvalidArgument, match="SUFFUSE_DATA is unset.*known here: elnino, co2, sunspots"):
        data.load("m4_hourly")


def written(folder, **meta):
    """A dataset folder as GluonTS writes it."""
    for part, length in (("train", 20), ("test", 24)):
        (folder / part).mkdir(parents=True)
        line = {"start": "2020-01-01 00:00:00", "target": list(range(length)), "item_id": "x"}
        (folder / part / "data.json").write_text(json.dumps(line) + "\n")
    (folder / "metadata.json").write_text(json.dumps(meta))
    return folder


@pytest.mark.parametrize("key", ["freq", "time_granularity"])
def test_folders_by_name_and_by_path(tmp_path, key):
    folder = written(tmp_path / "timeseries" / "gluonts" / "mine", **{key: "H", "prediction_length": 4})
    assert data.available(tmp_path) == ["elnino", "co2", "sunspots", "mine"]
    for dataset in (data.load("mine", tmp_path), data.load(str(folder))):
        assert (dataset.metadata.freq, dataset.metadata.prediction_length) == ("h", 4)
        assert len(next(iter(dataset.test))["target"]) == 24


def test_incomplete_folders_are_named(tmp_path):
    with pytest.raises(InvalidArgument, match="freq and prediction_length"):
        data.read_folder(written(tmp_path / "a", prediction_length=4))
    with pytest.raises(InvalidArgument, match=r"no metadata\.json"):
        data.read_folder(tmp_path / "b")
    folder = written(tmp_path / "c", freq="D", prediction_length=4)
    (folder / "test" / "data.json").unlink()
    (folder / "test").rmdir()
    with pytest.raises(InvalidArgument, match="no test/ folder"):
        data.read_folder(folder)


@pytest.mark.parametrize(
    ("given", "expected"), [("H", "h"), ("h", "h"), ("T", "min"), ("30min", "30min"), ("M", "M"), ("W", "W-SUN")]
)
def test_frequencies(given, expected):
    assert normalize(given) == expected


@pytest.mark.parametrize("freq", ["fortnight", "", "0h", None, "5"])
def test_unknown_frequencies(freq):
    with pytest.raises(InvalidArgument, match="pandas period frequency"):
        normalize(freq)


def test_lags_of_the_paper():
    assert lags_for("H")[-1] == 672 and len(lags_for("h")) == 10
    assert lags_for("B") == lags_for("D") == list(range(30, 361, 30))
    assert lags_for("M") == []


def test_presets_are_valid_estimators():
    freqs = {"elnino": "M", "co2": "W", "sunspots": "Y", "exchange_rate_nips": "B", "wiki2000_nips": "D"}
    for name, chosen in PRESETS.items():
        estimator = chosen.estimator(freqs.get(name, "h"), 24)
        assert estimator.context_length == chosen.context_length
    assert preset("anything").estimator("h", 24).context_length == 168


# --- classical forecasters ----------------------------------------------------------------------------------------


def test_ridge_finds_a_linear_law():
    """A noiseless sinusoid is linear in its past; a point forecast has one sample path, residuals give many."""
    wave = 2 + np.sin(2 * np.pi * np.arange(400) / 10)
    entries = [{"start": pd.Period("2020", freq="D"), "target": wave, "item_id": "w"}]
    point = RidgePredictor.fit(entries, 5, 20, alpha=1e-6)
    (forecast,) = point.predict([{**entries[0], "target": wave[:-5]}])
    assert forecast.samples.shape == (1, 5) and forecast.item_id == "w"
    np.testing.assert_allclose(forecast.samples[0], wave[-5:], atol=1e-3)
    spread = RidgePredictor.fit(entries, 5, 20, residuals=True)
    (forecast,) = spread.predict([{**entries[0], "target": wave[:-5]}], num_samples=7)
    assert forecast.samples.shape == (7, 5)


def test_ridge_survives_short_and_missing_series():
    entries = [{"start": pd.Period("2020", freq="D"), "target": np.r_[np.nan, np.arange(60.0)]}]
    ridge = RidgePredictor.fit(entries, 3, 10)
    for target in ([5.0], [np.nan] * 4, [np.nan, 2.0, np.nan]):
        (forecast,) = ridge.predict([{**entries[0], "target": target}])
        assert np.isfinite(forecast.samples).all()
    with pytest.raises(InvalidArgument, match="shorten context_length"):
        RidgePredictor.fit(entries, 3, 100)


def test_filling():
    assert filled({"target": [np.nan, 1, np.nan, 3]}).tolist() == [1, 1, 1, 3]


@pytest.mark.data
@pytest.mark.skipif(not data_root(), reason="SUFFUSE_DATA is unset")
@pytest.mark.parametrize(
    ("name", "season", "crps"),
    [("m4_hourly", 24, 0.04831), ("exchange_rate_nips", 5, 0.01075), ("exchange_rate_nips", 1, 0.00931)],
)
def test_seasonal_naive_has_its_known_score(name, season, crps):
    """A wrong protocol is caught here before any model is blamed; the paper reports .048 and .011."""
    from gluonts.model.seasonal_naive import SeasonalNaivePredictor

    if name not in data.available():
        pytest.skip(f"SUFFUSE_DATA has no {name}")
    dataset = data.load(name)
    naive = SeasonalNaivePredictor(dataset.metadata.prediction_length, season_length=season)
    scores, _ = evaluate(naive, list(dataset.test))
    assert scores["CRPS"] == pytest.approx(crps, abs=1e-5)
    assert scores["CRPS"] == pytest.approx(scores["ND"])
