"""Refinement: towards what the model finds likely, from any forecast of GluonTS."""

import lightning.pytorch as pl
import numpy as np
import pandas as pd
import pytest
import torch
from gluonts.model.forecast import QuantileForecast, SampleForecast
from gluonts.model.predictor import Predictor
from gluonts.model.seasonal_naive import SeasonalNaivePredictor

from suffuse import as_denoiser
from suffuse.errors import InvalidArgument
from suffuse.exact import GaussianDenoiser
from suffuse.schedules import DiscreteBetas
from suffuse_timeseries import TSDiffEstimator
from suffuse_timeseries.baselines import RidgePredictor
from suffuse_timeseries.metrics import evaluate
from suffuse_timeseries.tsdiff import RefinedPredictor, Refinement, representative_time
from suffuse_timeseries.tsdiff.refinement import carried, quantile_paths
from suffuse_timeseries.tsdiff.windows import draw_cuts

H, CONTEXT, TIME = 6, 18, 0.3


def entry(target, item="a", **more):
    return {"start": pd.Period("2020-01-01", "D"), "target": np.asarray(target, np.float32), "item_id": item, **more}


def panel(series=8, length=130, seed=0):
    """Weekly seasons of different level and phase, with noise that seasonal naive doubles."""
    rng = np.random.default_rng(seed)
    steps = np.arange(length)
    return [
        entry(level * (2 + np.sin(2 * np.pi * (steps / 7 + rng.random())) + 0.3 * rng.standard_normal(length)), f"s{i}")
        for i, level in enumerate(10.0 ** rng.uniform(-1, 2, series))
    ]


def estimator(folder, **settings):
    trainer = {
        "max_epochs": 1, "accelerator": "cpu", "logger": False, "enable_progress_bar": False,
        "enable_model_summary": False, "default_root_dir": folder,
    }  # fmt: skip
    small = {
        "freq": "D", "prediction_length": H, "context_length": CONTEXT, "lags_seq": [7], "width": 16, "depth": 2,
        "state": 8, "batch_size": 32, "num_batches_per_epoch": 200, "lr": 5e-3, "condition_dropout": 1.0,
        "trainer_kwargs": trainer,
    }  # fmt: skip
    return TSDiffEstimator(**{**small, **settings})


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    pl.seed_everything(0, verbose=False)
    return estimator(tmp_path_factory.mktemp("model")).train(panel(24, seed=1))


@pytest.fixture(scope="module")
def naive():
    return SeasonalNaivePredictor(H, season_length=7)


# --- the energy ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def exact():
    """A covariance and the posterior mean of its Gaussian, which is known: what a trained network approximates."""
    steps = torch.arange(12.0)
    covariance = torch.exp(-((steps[:, None] - steps) ** 2) / 8) + 0.05 * torch.eye(12)
    schedule = DiscreteBetas.linear(1e-4, 0.1, 100)
    return covariance.double(), GaussianDenoiser(torch.zeros(12).double(), covariance.double(), schedule)


def run(denoiser, base, n=400, iterations=200, time=TIME, **how):
    torch.manual_seed(0)
    rows = base.expand(n, -1).double()
    known = torch.zeros_like(rows)
    known[:, :8] = 1
    levels = torch.arange(1, n + 1) / (n + 1)
    how = {"iterations": iterations, "step_size": 0.02, "noise": 1.0, **how}
    return Refinement(**how)(denoiser, rows, known, torch.ones_like(rows), levels.double(), time)


def test_nothing_moves_without_steps(exact):
    base = torch.randn(12)
    assert torch.equal(run(exact[1], base, iterations=0)[0], base.double())
    assert torch.equal(run(exact[1], base, step_size=0.0)[0], base.double())


def test_refinement_moves_a_forecast_to_the_minimum_of_the_energy(exact):
    """Of a Gaussian eps_theta = sigma M x with M = (alpha^2 C + sigma^2)^-1, and the expected energy is that of
    (sigma alpha M y)^2: a quadratic, whose minimum given what is observed is known."""
    c, denoiser = exact
    level = denoiser.schedule.level(TIME)
    m = torch.linalg.inv(level.alpha**2 * c + level.sigma**2 * torch.eye(12))
    known, free = slice(0, 8), slice(8, 12)
    base = torch.linalg.cholesky(c) @ torch.randn(12, generator=torch.Generator().manual_seed(3)).double()
    least = -torch.linalg.solve((m @ m)[free, free], (m @ m)[free, known] @ base[known])
    base[free] = least + 1.5  # a forecast that is off
    strong = {"method": "ml", "regulariser": "ms", "weight": 10.0, "step_size": 0.04, "iterations": 400, "n": 200}
    refined = run(denoiser, base, **strong).mean(0)
    assert (refined[known] - base[known]).abs().max() < 0.3  # held
    assert (refined[free] - least).abs().max() < 0.4  # let go
    still = run(denoiser, base, **{**strong, "regulariser": "q"}).mean(0)
    assert (still[free] - base[free]).abs().max() < 0.3  # the quantile regulariser holds the forecast too


def test_the_noise_of_lmc_spreads_samples(exact):
    ml, lmc = (run(exact[1], torch.zeros(12), method=m, regulariser="ms").std(0).mean() for m in ("ml", "lmc"))
    assert lmc > 2 * ml


def test_levels_of_the_quantile_regulariser_spread_samples(exact):
    """Sample j is pulled to its own side, so a point forecast gets a spread that is ordered by level."""
    refined = run(exact[1], torch.zeros(12), method="ml", iterations=40, weight=3.0)[:, 8:].mean(1)
    n = len(refined)
    assert np.corrcoef(np.arange(n), refined.numpy())[0, 1] > 0.5


# --- the predictor ------------------------------------------------------------------------------------------------


def refine(base, model, dataset, samples=20, **how):
    pl.seed_everything(0, verbose=False)
    return list(RefinedPredictor(base, model, TIME, Refinement(**how)).predict(dataset, num_samples=samples))


@pytest.fixture(scope="module")
def time(model):
    return representative_time(model, panel(24, seed=1), windows=64, levels=50)


@pytest.mark.parametrize("method", ["lmc", "ml"])
def test_seasonal_naive_gets_better(model, naive, time, method):
    test = panel(30, seed=2)
    before, _ = evaluate(naive, test)
    pl.seed_everything(0, verbose=False)
    after, _ = evaluate(RefinedPredictor(naive, model, time, Refinement(method, "q")), test, num_samples=9)
    assert after["CRPS"] < 0.85 * before["CRPS"]


def test_any_forecast_can_be_refined(model, tmp_path):
    """Point, samples, quantiles and distributions: all come out as samples of the same place and time."""
    from gluonts.torch import DeepAREstimator, PatchTSTEstimator, TemporalFusionTransformerEstimator

    trainer = {
        "max_epochs": 1, "accelerator": "cpu", "logger": False, "enable_progress_bar": False,
        "enable_model_summary": False, "default_root_dir": tmp_path,
    }  # fmt: skip
    budget = {"num_batches_per_epoch": 2, "trainer_kwargs": trainer, "context_length": CONTEXT}
    bases = [
        RidgePredictor.fit(panel(), H, CONTEXT),
        RidgePredictor.fit(panel(), H, CONTEXT, residuals=True),
        DeepAREstimator("D", H, lags_seq=[1, 7], **budget).train(panel()),
        PatchTSTEstimator(H, patch_len=4, **budget).train(panel()),
        TemporalFusionTransformerEstimator("D", H, **budget).train(panel()),
        model.using(steps=2),
    ]
    test = panel(3)
    for base in bases:
        for forecast, source in zip(refine(base, model, test, 5, iterations=2), test, strict=True):
            assert isinstance(forecast, SampleForecast)
            assert forecast.samples.shape == (5, H) and np.isfinite(forecast.samples).all()
            assert forecast.start_date == source["start"] + len(source["target"])
            assert forecast.item_id == source["item_id"]


def test_without_steps_the_forecast_is_the_base_forecast(model, naive):
    test = panel(3)
    for refined, base in zip(refine(naive, model, test, 4, iterations=0), naive.predict(test), strict=True):
        np.testing.assert_allclose(refined.samples, np.repeat(base.samples, 4, 0), rtol=1e-4)


def test_refined_forecasts_scale_with_the_data(model, naive):
    series = panel(1)[0]
    bigger = {**series, "target": 1000 * series["target"]}
    a, b = (refine(naive, model, [s])[0].samples for s in (series, bigger))
    np.testing.assert_allclose(1000 * a, b, rtol=1e-3)


@pytest.mark.parametrize("kind", ["gaps", "zeros", "short", "no context"])
def test_refined_forecasts_are_never_nan(model, naive, kind):
    target = panel(1)[0]["target"].copy()
    match kind:
        case "gaps":
            target[-CONTEXT::2] = np.nan
        case "zeros":
            target[:] = 0
        case "short":
            target = target[:3]
        case "no context":
            target[-CONTEXT:] = np.nan
    for regulariser in ("ms", "q"):
        (forecast,) = refine(naive, model, [entry(target)], regulariser=regulariser)
        assert np.isfinite(forecast.samples).all()


def test_several_variates(tmp_path):
    rng = np.random.default_rng(0)
    series = [entry(1 + rng.random((2, 60)), f"m{i}") for i in range(3)]
    model = estimator(tmp_path, target_dim=2, num_batches_per_epoch=2).train(series)

    class Last(Predictor):
        def predict(self, dataset, **_):
            for e in dataset:
                yield SampleForecast(np.repeat(e["target"][:, -1:].T[None], H, 1), e["start"] + e["target"].shape[1])

    for forecast in refine(Last(H), model, series, 5):
        assert forecast.samples.shape == (5, H, 2) and np.isfinite(forecast.samples).all()
    assert 0 < representative_time(model, series, windows=8, levels=10) <= 1


def test_a_refined_predictor_is_kept_whole(model, naive, tmp_path):
    refined = RefinedPredictor(naive, model, TIME, Refinement("ml", "ms", iterations=3))
    ridge = RefinedPredictor(RidgePredictor.fit(panel(), H, CONTEXT, residuals=True), model, TIME)
    for i, predictor in enumerate((refined, ridge)):
        predictor.serialize(tmp_path / str(i))
        again = Predictor.deserialize(tmp_path / str(i))
        assert isinstance(again, RefinedPredictor) and again.refinement == predictor.refinement
        samples = []
        for p in (predictor, again):
            pl.seed_everything(0, verbose=False)
            samples.append(next(iter(p.predict(panel(1), num_samples=3))).samples)
        assert np.array_equal(*samples)
    assert not list(tmp_path.rglob("*.pt"))


def test_bad_requests(model, naive, tmp_path):
    with pytest.raises(InvalidArgument, match="base forecasts 5 steps but the model 6"):
        RefinedPredictor(SeasonalNaivePredictor(5, season_length=7), model, TIME)
    with pytest.raises(InvalidArgument, match="time must lie"):
        RefinedPredictor(naive, model, 0.0)
    tied = estimator(tmp_path, condition_dropout=0.0, num_batches_per_epoch=1).train(panel())
    with pytest.raises(InvalidArgument, match="condition_dropout > 0"):
        RefinedPredictor(naive, tied, TIME)
    refined = RefinedPredictor(naive, model, TIME)
    with pytest.raises(InvalidArgument, match="num_samples"):
        list(refined.predict(panel(1), num_samples=0))
    with torch.inference_mode(), pytest.raises(InvalidArgument, match="needs gradients"):
        list(refined.predict(panel(1), num_samples=2))
    with pytest.raises(InvalidArgument, match="dataset is empty"):
        list(refined.predict([]))
    for wrong in ({"method": "hmc"}, {"regulariser": "l1"}, {"iterations": -1}, {"step_size": -0.1}):
        with pytest.raises(InvalidArgument, match=next(iter(wrong)).replace("method", "refinement method")):
            refined.using(**wrong)
    with pytest.raises(InvalidArgument, match=r"using\(\) takes"):
        refined.using(steps=3)


# --- the parts ----------------------------------------------------------------------------------------------------


def test_quantile_paths():
    start = pd.Period("2020-01-01", "D")
    point = SampleForecast(np.arange(3.0)[None], start)
    assert np.array_equal(quantile_paths(point, 4), np.repeat(np.arange(3.0)[None], 4, 0))
    samples = SampleForecast(np.random.default_rng(0).random((50, 3)), start)
    paths = quantile_paths(samples, 9)
    assert paths.shape == (9, 3) and (np.diff(paths, axis=0) >= 0).all()
    levels = QuantileForecast(np.array([[1.0], [2.0], [3.0]]), start, ["0.1", "0.5", "0.9"])
    assert quantile_paths(levels, 3)[1] == 2.0
    with pytest.raises(InvalidArgument, match="not finite"):
        quantile_paths(SampleForecast(np.full((1, 3), np.nan), start), 2)


def test_gaps_carry_the_value_before_them():
    values = torch.tensor([[0.0, 1.0, 0.0, 0.0, 4.0, 0.0]])
    assert carried(values, (values > 0).float()).tolist() == [[0.0, 1.0, 1.0, 1.0, 4.0, 4.0]]


def test_the_representative_time_is_that_of_the_mean_loss(model):
    """On a denoiser whose loss is known: of white noise alone it is alpha^2 at every level, with abar as its mean."""
    import copy

    white = copy.copy(model)
    white.prediction_net = copy.copy(model.prediction_net)
    schedule = model.prediction_net.denoiser.schedule
    white.prediction_net.denoiser = as_denoiser(lambda x, t, cond: torch.zeros_like(x), schedule)
    time = representative_time(white, panel(), windows=64, levels=100)
    # D = 0 gives eps_theta - eps = alpha x_0 / sigma: the loss is proportional to 1 / kappa^2
    times = np.arange(1, 101) / 100
    loss = np.array([float(schedule.level(float(t)).kappa) ** -2 for t in times])
    assert time == pytest.approx(times[np.abs(loss - loss.mean()).argmin()])


def test_cuts_are_drawn_evenly_from_all_places():
    dataset = [entry(np.zeros(10), "a"), entry(np.zeros(14), "b"), entry(np.zeros(5), "c")]
    cuts = draw_cuts(dataset, 8, 4000, seed=0)
    names, ends = zip(*((e["item_id"], cut) for e, cut in cuts), strict=True)
    assert set(zip(names, ends, strict=True)) == {("a", n) for n in (8, 9, 10)} | {("b", n) for n in range(8, 15)}
    assert names.count("b") / 4000 == pytest.approx(0.7, abs=0.03)
    assert {cut for _, cut in draw_cuts(dataset, 100, 50)} == {14}
    with pytest.raises(InvalidArgument, match="dataset is empty"):
        draw_cuts([], 3, 1)
