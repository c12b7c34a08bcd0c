"""TSDiff does what a GluonTS user expects of an estimator and a predictor."""

import json
import warnings

import lightning.pytorch as pl
import numpy as np
import pandas as pd
import pytest
import torch
from gluonts.dataset.pandas import PandasDataset
from gluonts.evaluation import make_evaluation_predictions
from gluonts.model.forecast import SampleForecast
from gluonts.model.predictor import Predictor

from suffuse import hub
from suffuse.errors import CheckpointError, InvalidArgument
from suffuse.samplers import SAMPLERS
from suffuse_timeseries import Forecasting, TSDiffEstimator, TSDiffPredictor
from suffuse_timeseries.metrics import evaluate

HORIZON, CONTEXT = 6, 18
QUICK = {"steps": 4, "guidance_scale": 0.5}


def entry(target, item="a", freq="D"):
    return {
        "start": pd.Period("2020-01-01", freq=freq),
        "target": np.asarray(target, dtype=np.float32),
        "item_id": item,
    }


def panel(series=6, length=120, seed=0):
    """Weekly seasons of different level, phase and noise."""
    rng = np.random.default_rng(seed)
    steps = np.arange(length)
    return [
        entry(level * (2 + np.sin(2 * np.pi * (steps / 7 + rng.random())) + 0.1 * rng.standard_normal(length)), f"s{i}")
        for i, level in enumerate(10.0 ** rng.uniform(-1, 3, series))
    ]


def trainer(folder, **more):
    return {
        "max_epochs": 2,
        "accelerator": "cpu",
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": folder,
        **more,
    }


def estimator(folder, **settings):
    small = {
        "freq": "D", "prediction_length": HORIZON, "context_length": CONTEXT, "lags_seq": [7], "width": 16, "depth": 2,
        "state": 8, "batch_size": 16, "num_batches_per_epoch": 60, "num_parallel_samples": 16, "lr": 5e-3,
    }  # fmt: skip
    return TSDiffEstimator(**{**small, "trainer_kwargs": trainer(folder), **settings})


@pytest.fixture(scope="module")
def predictor(tmp_path_factory):
    pl.seed_everything(0, verbose=False)
    return estimator(tmp_path_factory.mktemp("tsdiff")).train(panel())


def forecasts(predictor, dataset, num_samples=8, seed=0, **how):
    pl.seed_everything(seed, verbose=False)
    return list(predictor.using(**{**QUICK, **how}).predict(dataset, num_samples=num_samples))


@pytest.mark.parametrize("method", ["cond", "ms", "q"])
def test_make_evaluation_predictions(predictor, method):
    test = panel()
    iterator, series = make_evaluation_predictions(test, predictor.using(method=method, **QUICK), num_samples=9)
    for forecast, truth, source in zip(iterator, series, test, strict=True):
        assert isinstance(forecast, SampleForecast)
        assert forecast.samples.shape == (9, HORIZON) and np.isfinite(forecast.samples).all()
        assert forecast.start_date == source["start"] + len(source["target"]) - HORIZON
        assert forecast.item_id == source["item_id"] and len(truth) == len(source["target"])


def test_it_learns_the_season(predictor):
    """On regular weekly series a short training already beats repeating the last value."""
    from gluonts.model.seasonal_naive import SeasonalNaivePredictor

    naive, _ = evaluate(SeasonalNaivePredictor(HORIZON, season_length=1), panel())
    ours, _ = evaluate(predictor.using(steps=8), panel(), num_samples=16)
    assert ours["CRPS"] < 0.75 * naive["CRPS"]


def test_evaluate_model(predictor):
    from gluonts.dataset.split import split
    from gluonts.ev.metrics import MASE, MeanWeightedSumQuantileLoss
    from gluonts.model.evaluation import evaluate_model

    _, template = split(panel(2), offset=-HORIZON)
    table = evaluate_model(
        predictor.using(**QUICK),
        test_data=template.generate_instances(HORIZON),
        metrics=[MASE(), MeanWeightedSumQuantileLoss([0.1, 0.5, 0.9])],
        axis=None,
    )
    assert np.isfinite(table.to_numpy()).all()


def test_a_pandas_frame_goes_in(predictor):
    index = pd.date_range("2021-01-01", periods=50, freq="D")
    frame = pd.DataFrame({"target": 3 + np.sin(np.arange(50)), "item_id": "x"}, index=index)
    dataset = PandasDataset.from_long_dataframe(frame, target="target", item_id="item_id")
    (forecast,) = forecasts(predictor, dataset)
    assert forecast.start_date == pd.Period("2021-02-20", freq="D")


def test_forecast_plot(predictor):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    forecasts(predictor, panel(1))[0].plot()
    assert plt.gca().lines and plt.gca().collections
    plt.close("all")


@pytest.mark.parametrize("num_samples", [1, 20, 24])
def test_the_network_draws_exactly_the_samples_that_are_asked_for(predictor, num_samples, monkeypatch):
    """So the levels of quantile guidance are never truncated."""
    seen = []
    network = type(predictor.prediction_net)
    complete = network.complete

    def spy(self, values, known, levels, *more):
        seen.append(levels)
        return complete(self, values, known, levels, *more)

    monkeypatch.setattr(network, "complete", spy)
    (forecast,) = forecasts(predictor, panel(1), num_samples, method="q")
    assert forecast.samples.shape == (num_samples, HORIZON)
    assert torch.cat(seen).numel() == num_samples
    assert torch.cat(seen).mean().item() == pytest.approx(0.5)
    assert predictor.prediction_net.num_parallel_samples == 16


def test_the_same_seed_gives_the_same_forecast(predictor):
    one, same, other = (forecasts(predictor, panel(1), seed=s)[0].samples for s in (1, 1, 2))
    assert np.array_equal(one, same) and not np.allclose(one, other)


@pytest.mark.parametrize("method", ["cond", "ms"])
def test_forecasts_scale_with_the_data(predictor, method):
    series = panel(1)[0]
    bigger = {**series, "target": 1000 * series["target"]}
    a, b = (forecasts(predictor, [s], method=method)[0].samples for s in (series, bigger))
    np.testing.assert_allclose(1000 * a, b, rtol=1e-3)


# --- missing values ---------------------------------------------------------------------------------------------


def with_gaps(kind):
    series = panel(1)[0]["target"].copy()
    match kind:
        case "holes":
            series[-CONTEXT::2] = np.nan
        case "block before the horizon":
            series[-5:] = np.nan
        case "whole context":
            series[-CONTEXT:] = np.nan
        case "everything":
            series[:] = np.nan
        case "zeros":
            series[:] = 0
        case "constant":
            series[:] = 5
        case "short":
            series = series[:3]
        case "one":
            series = series[:1]
    return series


@pytest.mark.parametrize("method", ["cond", "ms", "q"])
@pytest.mark.parametrize(
    "kind",
    ["holes", "block before the horizon", "whole context", "everything", "zeros", "constant", "short", "one"],
)
def test_no_forecast_is_ever_nan(predictor, kind, method):
    for forecast in forecasts(predictor, [entry(with_gaps(kind))], method=method):
        assert np.isfinite(forecast.samples).all()


def test_missing_values_do_not_enter_the_loss(predictor):
    """Whatever number stands where nothing was observed, the loss is the same."""
    net = predictor.prediction_net
    torch.manual_seed(0)
    batch = {
        "past_target": torch.rand(4, net.past_length) + 1,
        "past_observed_values": (torch.rand(4, net.past_length) > 0.4).float(),
        "future_target": torch.rand(4, HORIZON) + 1,
        "future_observed_values": (torch.rand(4, HORIZON) > 0.4).float(),
    }
    junk = dict(batch)
    for part in ("past", "future"):
        seen = batch[f"{part}_observed_values"] > 0
        junk[f"{part}_target"] = torch.where(seen, batch[f"{part}_target"], 1e6)
    losses = []
    for b in (batch, junk):
        torch.manual_seed(1)
        losses.append(net.loss(b).item())
    assert losses[0] == losses[1]


def test_training_on_gaps_short_and_dead_series(tmp_path):
    series = panel(4)
    series[0]["target"][30:60] = np.nan
    dead = [entry(np.full(60, np.nan), "nan"), entry(np.zeros(60), "zero"), entry(np.ones(HORIZON), "short")]
    short = [entry(np.arange(1.0, HORIZON + 4), "padded")]
    with pytest.warns(UserWarning, match="2 of 8 series"):
        predictor = estimator(tmp_path, num_batches_per_epoch=5).train([*series, *dead, *short])
    for forecast in forecasts(predictor, [*series, *dead, *short]):
        assert np.isfinite(forecast.samples).all()


def test_nonnegative_samples(predictor, tmp_path):
    low = [entry(np.abs(np.random.default_rng(0).standard_normal(80)) * 0.1)]
    net = predictor.prediction_net
    try:
        net.nonnegative_pred_samples = True
        assert forecasts(predictor, low, 32)[0].samples.min() >= 0
    finally:
        net.nonnegative_pred_samples = False


# --- keeping ----------------------------------------------------------------------------------------------------


def test_a_serialized_predictor_forecasts_the_same(predictor, tmp_path):
    predictor.serialize(tmp_path, metadata={"note": "kept"})
    assert not list(tmp_path.glob("*.pt"))
    for restored in (Predictor.deserialize(tmp_path), TSDiffPredictor.deserialize(tmp_path, device="cpu")):
        assert isinstance(restored, TSDiffPredictor)
        for method in ("cond", "q"):
            a, b = (forecasts(p, panel(2), method=method) for p in (predictor, restored))
            for one, other in zip(a, b, strict=True):
                assert np.array_equal(one.samples, other.samples)
    assert hub.read_config(tmp_path)["metadata"] == {"note": "kept"}


def test_the_same_folder_holds_the_denoiser(predictor, tmp_path):
    predictor.serialize(tmp_path / "new" / "folder")
    denoiser = hub.load(tmp_path / "new" / "folder")
    x = torch.randn(3, *predictor.prediction_net.event_shape)
    with torch.no_grad():
        assert torch.equal(denoiser(x, 0.3), predictor.prediction_net.denoiser(x, 0.3))


def test_altered_and_foreign_weights_are_refused(predictor, tmp_path):
    predictor.serialize(tmp_path)
    weights = tmp_path / "model.safetensors"
    good = weights.read_bytes()
    weights.write_bytes(good[:-8])
    with pytest.raises(CheckpointError, match="hash"):
        TSDiffPredictor.deserialize(tmp_path)
    weights.write_bytes(good)
    described = json.loads((tmp_path / "predictor.json").read_text())
    text = json.dumps(described).replace('"width": 16', '"width": 8')
    (tmp_path / "predictor.json").write_text(text)
    with pytest.raises(CheckpointError, match="do not fit"):
        TSDiffPredictor.deserialize(tmp_path)


def test_warm_start_and_training_twice_on_one_estimator(predictor, tmp_path):
    class Count(pl.Callback):
        steps = 0

        def on_train_batch_end(self, *_):
            self.steps += 1

    count = Count()
    est = estimator(
        tmp_path, num_batches_per_epoch=2, trainer_kwargs=trainer(tmp_path, max_epochs=1, callbacks=[count]), lr=1e-12
    )
    warm = est.train_from(predictor, panel(), panel())
    est.train(panel())
    assert count.steps == 4
    for a, b in zip(warm.prediction_net.parameters(), predictor.prediction_net.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=0)


def test_what_is_saved_is_the_average(tmp_path):
    """Decay 0 follows the weights, 0.9 lags behind them; from the same seed the two trainings differ in that alone."""
    est = estimator(tmp_path, num_batches_per_epoch=5, ema_decay=0.0)
    pl.seed_everything(0, verbose=False)
    followed = est.train(panel())
    est.ema_decay = 0.9
    pl.seed_everything(0, verbose=False)
    averaged = est.train(panel())
    pairs = zip(followed.prediction_net.parameters(), averaged.prediction_net.parameters(), strict=True)
    assert max((a - b).abs().max().item() for a, b in pairs) > 1e-4


# --- one network, several models ----------------------------------------------------------------------------------


def test_conditional_and_unconditional_only(tmp_path):
    only = {"num_batches_per_epoch": 2, "trainer_kwargs": trainer(tmp_path, max_epochs=1)}
    free = estimator(tmp_path, condition_dropout=1.0, **only).train(panel())
    assert free.prediction_net.forecasting.method == "q"
    assert not free.prediction_net.denoiser.backbone.conditional
    with pytest.raises(InvalidArgument, match="condition_dropout"):
        free.using(method="cond")
    tied = estimator(tmp_path, condition_dropout=0.0, **only).train(panel())
    with pytest.raises(InvalidArgument, match="condition_dropout"):
        tied.using(method="q")
    with pytest.raises(InvalidArgument, match="condition_dropout"):
        tied.prediction_net.synthesize(2)


@pytest.mark.parametrize("method", ["cond", "q"])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_core_sampler_forecasts(predictor, sampler, method):
    (forecast,) = forecasts(predictor, panel(1), sampler=sampler, method=method)
    assert np.isfinite(forecast.samples).all()


def test_guidance_after_the_step(predictor):
    """It differs from guidance in the step, though not by much."""
    after, within, free = (
        forecasts(predictor, panel(1), 32, method="q", sampler="ddpm", steps=20, **more)[0].samples
        for more in ({"post_step": True}, {}, {"guidance_scale": 0.0})
    )
    assert 0 < np.abs(after - within).mean() < np.abs(after - free).mean()


def test_synthesis(predictor):
    generator = torch.Generator().manual_seed(0)
    windows = predictor.using(steps=4).prediction_net.synthesize(5, generator)
    assert windows.shape == (5, CONTEXT + HORIZON) and torch.isfinite(windows).all()
    again = predictor.using(steps=4).prediction_net.synthesize(5, torch.Generator().manual_seed(0))
    assert torch.equal(windows, again)


def test_using_leaves_the_predictor_as_it_was(predictor):
    before = predictor.prediction_net.forecasting
    other = predictor.using(method="ms", steps=3)
    assert predictor.prediction_net.forecasting == before
    assert other.prediction_net.forecasting == Forecasting("ms", before.sampler, 3, before.guidance_scale)
    assert other.prediction_net.denoiser is predictor.prediction_net.denoiser


# --- bad input ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"freq": "fortnight"}, "freq='fortnight'"),
        ({"freq": ""}, "freq=''"),
        ({"prediction_length": 0}, "prediction_length must be at least 1, got 0"),
        ({"prediction_length": -3}, "prediction_length must be at least 1, got -3"),
        ({"context_length": 0}, "context_length"),
        ({"lags_seq": [0, 7]}, "lags_seq"),
        ({"scaling": "max"}, "scaling"),
        ({"condition_dropout": 1.5}, "condition_dropout"),
        ({"num_parallel_samples": 0}, "num_parallel_samples"),
        ({"batch_size": 0}, "batch_size"),
    ],
)
def test_bad_settings_are_named_before_training(tmp_path, settings, message):
    with pytest.raises(InvalidArgument, match=message):
        estimator(tmp_path, **settings)


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        ([], "training_data is empty"),
        ([entry(np.full(50, np.nan))], "not one observed value"),
        ([entry(np.ones(HORIZON)), entry(np.ones(2))], f"longer than prediction_length={HORIZON}"),
        ([entry([1.0, np.inf, 2.0] * 20)], "series 'a' has 20 infinite values"),
        ([entry(np.ones((2, 50)))], "univariate"),
        ([entry(np.ones(50), freq="h")], "frequency 'h'"),
        ([{"start": pd.Period("2020", freq="D"), "values": [1.0]}], "no 'target'"),
    ],
    ids=["empty", "all NaN", "short", "infinite", "multivariate", "frequency", "no target"],
)
def test_bad_training_data_is_named_before_training(tmp_path, dataset, message):
    with pytest.raises(InvalidArgument, match=message):
        estimator(tmp_path).train(dataset)


def test_bad_data_to_forecast(predictor):
    with pytest.raises(InvalidArgument, match="dataset is empty"):
        list(predictor.predict([]))
    with pytest.raises(InvalidArgument, match="1 infinite values"):
        list(predictor.predict([entry([1.0, 2.0, -np.inf])]))
    with pytest.raises(InvalidArgument, match="num_samples must be at least 1"):
        list(predictor.predict(panel(1), num_samples=0))
    with pytest.raises(InvalidArgument, match="has frequency 'h'"):
        list(predictor.predict([entry(np.ones(40), freq="h")]))


def test_a_warm_start_from_another_network_is_refused(predictor, tmp_path):
    with pytest.raises(CheckpointError, match="do not fit"):
        estimator(tmp_path, width=8).train_from(predictor, panel())


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"method": "quantile"}, "forecasting method 'quantile'"),
        ({"sampler": "ddmp"}, "did you mean 'ddpm'"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"guidance_scale": -1.0}, "guidance_scale"),
        ({"grid": "even"}, "unknown grid 'even'"),
        ({"weighting": "even"}, "unknown weighting 'even'"),
        ({"sampler": "ddim", "post_step": True}, "post_step is a form of the sampler 'ddpm'"),
        ({"scale": 1.0}, r"using\(\) takes"),
    ],
)
def test_bad_ways_of_asking(predictor, how, message):
    with pytest.raises(InvalidArgument, match=message):
        predictor.using(**how)


def test_upper_case_frequencies_of_older_pandas(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert estimator(tmp_path, freq="H").freq == "h"
