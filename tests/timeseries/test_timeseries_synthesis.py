"""Synthetic windows, what they are worth, and the baselines that are trained on them or beside them."""

import numpy as np
import pandas as pd
import pytest
from gluonts.model.predictor import Predictor

from suffuse.errors import InvalidArgument
from suffuse_timeseries.baselines import BASELINES, Problem, RidgeEstimator
from suffuse_timeseries.metrics import evaluate
from suffuse_timeseries.presets import Preset
from suffuse_timeseries.synthesis import (
    ScaledPredictor,
    as_dataset,
    linear_predictive_score,
    real_windows,
    synthetic_windows,
    train_on_synthetic_test_on_real,
)

H, CONTEXT = 5, 14


def entry(target, item="a"):
    return {"start": pd.Period("2020-01-01", "D"), "target": np.asarray(target, np.float32), "item_id": item}


def panel(series=6, length=120, seed=0, noise=0.1):
    rng = np.random.default_rng(seed)
    steps = np.arange(length)
    return [
        entry(
            level * (2 + np.sin(2 * np.pi * (steps / 7 + rng.random())) + noise * rng.standard_normal(length)), f"s{i}"
        )
        for i, level in enumerate(10.0 ** rng.uniform(-1, 3, series))
    ]


def problem(folder, **changes):
    trainer = {
        "accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False,
        "default_root_dir": folder,
    }  # fmt: skip
    given = {
        "freq": "D", "prediction_length": H, "preset": Preset(CONTEXT, season=7), "steps": 3, "batch_size": 8,
        "width": 8, "state": 4, "trainer_kwargs": trainer,
    }  # fmt: skip
    return Problem(**{**given, **changes})


@pytest.mark.parametrize("scaling", ["mean", "std"])
def test_real_windows_are_scaled_by_their_context(scaling):
    windows = real_windows(panel(), CONTEXT, H, n=200, scaling=scaling)
    context = windows[:, :CONTEXT]
    assert windows.shape == (200, CONTEXT + H)
    size = np.abs(context).mean(1) if scaling == "mean" else context.std(1)
    np.testing.assert_allclose(size, 1, rtol=1e-4)
    if scaling == "std":
        np.testing.assert_allclose(context.mean(1), 0, atol=1e-4)
    with pytest.raises(InvalidArgument, match="no series has the 135 steps"):
        real_windows(panel(), 130, H)


@pytest.mark.parametrize("scaling", ["mean", "std", None])
def test_scaling_and_back_is_the_identity_for_a_predictor_that_scales_alike(scaling):
    """Repeating the last value commutes with scaling."""

    class Last(Predictor):
        def predict(self, dataset, **_):
            from gluonts.model.forecast import SampleForecast

            for e in dataset:
                yield SampleForecast(np.full((1, H), e["target"][-1]), e["start"] + len(e["target"]))

    test = panel(3)
    test[1]["target"][-4:-1] = np.nan
    for plain, scaled in zip(
        Last(H).predict(test), ScaledPredictor(Last(H), CONTEXT, scaling).predict(test), strict=True
    ):
        np.testing.assert_allclose(scaled.samples, plain.samples, rtol=1e-4)
        assert scaled.start_date == plain.start_date
    assert [f.item_id for f in ScaledPredictor(Last(H), CONTEXT).predict(test)] == ["s0", "s1", "s2"]


def test_the_linear_predictive_score_of_real_windows_is_that_of_ridge():
    train, test = panel(), panel(seed=1)
    direct, _ = evaluate(RidgeEstimator(H, CONTEXT, windows=400).train(train), test)
    score = linear_predictive_score(real_windows(train, CONTEXT, H, n=400), test, H)
    assert score == pytest.approx(direct["CRPS"], rel=0.15)
    noise = np.random.default_rng(0).standard_normal((400, CONTEXT + H))
    assert linear_predictive_score(noise, test, H) > 3 * score


def test_worse_windows_score_worse():
    """More noise in the windows, a higher score."""
    train, test = panel(), panel(seed=1)
    windows = real_windows(train, CONTEXT, H, n=400)
    rng = np.random.default_rng(0)
    scores = [linear_predictive_score(windows + s * rng.standard_normal(windows.shape), test, H) for s in (0, 0.5, 2)]
    assert scores == sorted(scores) and scores[2] > 1.5 * scores[0]


def test_synthetic_windows_of_a_model_that_was_trained(tmp_path):
    train, test = panel(12), panel(seed=1)
    import lightning.pytorch as pl

    pl.seed_everything(0, verbose=False)
    settings = {"steps": 200, "width": 16, "state": 8, "batch_size": 32, "lr": 5e-3}
    model = problem(tmp_path, **settings).estimator(condition_dropout=1.0).train(train).using(steps=8)
    assert np.array_equal(synthetic_windows(model, 4), synthetic_windows(model, 4))
    assert not np.array_equal(synthetic_windows(model, 4), synthetic_windows(model, 4, seed=1))
    windows = synthetic_windows(model, 200)
    assert windows.shape == (200, CONTEXT + H)
    real = linear_predictive_score(real_windows(train, CONTEXT, H, n=200), test, H)
    assert linear_predictive_score(windows, test, H) < 1.6 * real
    shuffled = np.random.default_rng(0).permuted(windows, axis=1)
    assert linear_predictive_score(shuffled, test, H) > 1.6 * real


@pytest.mark.parametrize("name", ["deepar", "patchtst", "tft"])
def test_deep_forecasters_are_trained_on_windows(name, tmp_path):
    estimator = BASELINES[name](problem(tmp_path, scaled=False))
    windows = real_windows(panel(), CONTEXT, H, n=40)
    scores = train_on_synthetic_test_on_real(estimator, windows, panel(3, seed=1), H, num_samples=10)
    assert np.isfinite(scores["CRPS"]) and scores["CRPS"] > 0


def test_bad_windows():
    with pytest.raises(InvalidArgument, match="more than prediction_length=5"):
        train_on_synthetic_test_on_real(RidgeEstimator(H, 1), np.zeros((10, H)), panel(1), H)
    assert [e["item_id"] for e in as_dataset(np.zeros((2, 8)), "h")] == ["window-0", "window-1"]


# --- baselines ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BASELINES)
def test_every_baseline_trains_and_forecasts(name, tmp_path):
    train = panel(3)
    predictor = BASELINES[name](problem(tmp_path)).train(train)
    scores, forecasts = evaluate(predictor, panel(3, seed=1), num_samples=8)
    assert np.isfinite(list(scores.values())).all()
    assert len(forecasts) == 3 and forecasts[0].mean.shape == (H,)


def test_all_are_given_the_same_budget(tmp_path):
    given = problem(tmp_path, steps=250, batch_size=16)
    estimators = [BASELINES[name](given) for name in ("deepar", "patchtst", "tft", "tsdiff-cond", "csdi")]
    assert {e.batch_size for e in estimators} == {16}
    assert {e.num_batches_per_epoch for e in estimators} == {100}
    assert {e.trainer_kwargs["max_steps"] for e in estimators} == {250}
    assert {e.context_length for e in estimators} == {CONTEXT}


def test_seasonal_naive_repeats_the_season(tmp_path):
    predictor = BASELINES["seasonal-naive"](problem(tmp_path)).train([])
    (forecast,) = predictor.predict([entry(np.arange(14.0))])
    assert forecast.mean.tolist() == [7.0, 8.0, 9.0, 10.0, 11.0]


def test_csdi_gives_what_is_known_clean(tmp_path):
    estimator = BASELINES["csdi"](problem(tmp_path))
    assert len(estimator.schedule.betas) == 50 and not estimator.noise_observed
    assert estimator.training_mask == "mix" and estimator.condition_dropout == 0
