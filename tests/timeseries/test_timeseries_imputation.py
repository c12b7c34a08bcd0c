"""Gaps are filled from both sides, anomalies stand out, and nothing that was observed changes."""

import lightning.pytorch as pl
import numpy as np
import pandas as pd
import pytest
import torch
from gluonts.transform import AddObservedValuesIndicator

from suffuse.errors import InvalidArgument
from suffuse_timeseries import AnomalyScorer, DiffusionImputation, TSDiffEstimator, impute
from suffuse_timeseries.tsdiff.imputation import fill, lay, runs

HORIZON, CONTEXT = 6, 18


def entry(target, item="a"):
    return {"start": pd.Period("2020-01-01", freq="D"), "target": np.asarray(target, np.float32), "item_id": item}


def waves(series=6, length=90, seed=0):
    """Weekly sines of different level and phase, with little noise."""
    rng = np.random.default_rng(seed)
    steps = np.arange(length)
    return [
        entry(
            level * (2 + np.sin(2 * np.pi * (steps / 7 + rng.random())) + 0.03 * rng.standard_normal(length)), f"s{i}"
        )
        for i, level in enumerate(10.0 ** rng.uniform(-1, 2, series))
    ]


@pytest.fixture(scope="module")
def predictor(tmp_path_factory):
    pl.seed_everything(0, verbose=False)
    trainer = {
        "max_epochs": 1, "accelerator": "cpu", "logger": False, "enable_progress_bar": False,
        "enable_model_summary": False, "default_root_dir": tmp_path_factory.mktemp("impute"),
    }  # fmt: skip
    estimator = TSDiffEstimator(
        "D", HORIZON, CONTEXT, lags_seq=[7], width=16, depth=2, state=8, batch_size=32, num_batches_per_epoch=250,
        lr=5e-3, trainer_kwargs=trainer,
    )  # fmt: skip
    return estimator.train(waves()).using(method="q", guidance_scale=4.0, steps=8)


def holes(series, *spans):
    target = series["target"].copy()
    for a, b in spans:
        target[a:b] = np.nan
    return {**series, "target": target}


def test_gaps_are_filled_better_than_by_the_last_value(predictor):
    torch.manual_seed(0)
    ours = theirs = 0.0
    whole = waves()
    broken = [holes(series, (30, 34), (60, 65)) for series in whole]
    for truth, series, each in zip(whole, broken, impute(predictor, broken, num_samples=12), strict=True):
        gap = np.isnan(series["target"])
        size = np.abs(truth["target"]).mean()
        carried = pd.Series(series["target"]).ffill().to_numpy()
        ours += np.abs(each.entry["target"] - truth["target"])[gap].mean() / size
        theirs += np.abs(carried - truth["target"])[gap].mean() / size
    assert ours < 0.6 * theirs


def test_what_was_observed_stays_and_each_gap_has_its_forecast(predictor):
    series = holes(waves(1)[0], (0, 3), (40, 41), (80, 90))
    (each,) = impute(predictor, [series], num_samples=5)
    seen = ~np.isnan(series["target"])
    assert np.array_equal(each.entry["target"][seen], series["target"][seen])
    assert np.isfinite(each.entry["target"]).all() and each.entry["item_id"] == "s0"
    assert [gap.samples.shape for gap in each.gaps] == [(5, 3), (5, 1), (5, 10)]
    assert [gap.start_date - series["start"] for gap in each.gaps] == [n * series["start"].freq for n in (0, 40, 80)]


@pytest.mark.parametrize(
    "target",
    [np.full(70, np.nan), np.full(4, np.nan), np.r_[np.ones(3), np.nan], np.r_[np.zeros(50), np.full(60, np.nan)]],
    ids=["all missing", "all missing and short", "shorter than a window", "a gap longer than a window"],
)
def test_no_gap_is_too_long_and_no_series_too_short(predictor, target):
    (each,) = impute(predictor, [entry(target)], num_samples=3)
    assert np.isfinite(each.entry["target"]).all() and len(each.entry["target"]) == len(target)


def test_a_series_is_filled_alike_alone_and_beside_a_longer_one(predictor):
    """Padding to a common length is not seen."""
    network = predictor.prediction_net
    short, long = (holes(series, (20, 24))["target"] for series in (waves(1, 40)[0], waves(1, 90, seed=1)[0]))
    torch.manual_seed(3)
    alone = fill(network, [short], 2)[0]
    torch.manual_seed(3)
    beside = fill(network, [short, long], 2)[0]
    assert alone.shape == beside.shape == (2, 40)
    # the draws of noise are laid out by row, and those of the first series come first
    np.testing.assert_allclose(alone, beside, rtol=1e-3)


def test_a_window_may_reach_over_both_ends(predictor):
    network = predictor.prediction_net
    y = torch.arange(1.0, 11.0).repeat(2, 1)
    w = lay(network, y, torch.ones_like(y), torch.tensor([-5, -14]))
    rescaled = (w.loc + w.scale * w.values[:, 0]) * w.known[:, 0]
    assert rescaled[0, 5:15].tolist() == pytest.approx(y[0].tolist())
    assert rescaled[1, 14:].tolist() == pytest.approx(y[1].tolist())
    assert w.known[0, 0].sum() == 10 and w.known[1, 1].sum() == 3  # lag 7: the first three steps, seven later


def test_runs():
    assert runs(np.array([True, True, False, True, False, True])) == [(0, 2), (3, 4), (5, 6)]
    assert runs(np.zeros(3, bool)) == [] and runs(np.ones(3, bool)) == [(0, 3)]


def test_the_adapter_serves_any_gluonts_transformation(predictor, tmp_path):
    from gluonts.core import serde

    predictor.serialize(tmp_path)
    method = DiffusionImputation(str(tmp_path), num_samples=4, device="cpu")
    restored = serde.load_json(serde.dump_json(method))
    assert (restored.folder, restored.num_samples) == (str(tmp_path), 4)
    series = holes(waves(1)[0], (30, 36))
    step = AddObservedValuesIndicator("target", "observed", imputation_method=restored)
    (out,) = step([{**series}], is_train=True)
    assert np.isfinite(out["target"]).all() and out["observed"].sum() == 84
    assert np.array_equal(out["target"][:30], series["target"][:30])


@pytest.mark.parametrize("kind", ["forecast", "imputation", "density"])
def test_a_spike_has_the_highest_score(predictor, kind):
    torch.manual_seed(0)
    series = waves(1)[0]
    series["target"][50] *= 3
    series["target"][20] = np.nan
    (scores,) = AnomalyScorer(predictor, kind, num_samples=8).score([series])
    assert np.nanargmax(scores.values) == 50
    assert np.isnan(scores.values[20]) and np.isfinite(scores.values[CONTEXT + HORIZON :]).all()
    assert scores.to_series().idxmax() == series["start"] + 50


@pytest.mark.parametrize("kind", ["forecast", "imputation", "density"])
@pytest.mark.parametrize("length", [1, 7, 23])
def test_short_series_are_scored(predictor, kind, length):
    (scores,) = AnomalyScorer(predictor, kind, num_samples=2).score([entry(np.arange(1.0, length + 1))])
    assert len(scores.values) == length and not np.isinf(scores.values).any()


def test_bad_arguments(predictor, tmp_path):
    with pytest.raises(InvalidArgument, match="num_samples must be at least 1"):
        list(impute(predictor, waves(1), num_samples=0))
    with pytest.raises(InvalidArgument, match="dataset is empty"):
        list(impute(predictor, []))
    with pytest.raises(InvalidArgument, match="1 infinite values"):
        list(impute(predictor, [entry([1.0, np.inf])]))
    with pytest.raises(InvalidArgument, match="anomaly score 'surprise'"):
        AnomalyScorer(predictor, "surprise")
    with pytest.raises(InvalidArgument, match=r"block must lie in \[1, 6\]"):
        AnomalyScorer(predictor, "forecast", block=7)
    with pytest.raises(InvalidArgument, match="time must lie in"):
        AnomalyScorer(predictor, time=0.0)
