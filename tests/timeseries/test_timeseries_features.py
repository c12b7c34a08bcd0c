"""Features and multivariate targets, through the estimator."""

import lightning.pytorch as pl
import numpy as np
import pandas as pd
import pytest
import torch
from gluonts.dataset.pandas import PandasDataset
from gluonts.model.predictor import Predictor
from gluonts.time_feature import day_of_week

from suffuse.errors import InvalidArgument
from suffuse_timeseries import TSDiffEstimator
from suffuse_timeseries.tsdiff.windows import training_mask, window

H, CONTEXT = 4, 12


def estimator(folder, **settings):
    trainer = {
        "max_epochs": 1, "accelerator": "cpu", "logger": False, "enable_progress_bar": False,
        "enable_model_summary": False, "default_root_dir": folder,
    }  # fmt: skip
    small = {
        "freq": "D", "prediction_length": H, "context_length": CONTEXT, "lags_seq": [7], "width": 8, "depth": 2,
        "state": 4, "batch_size": 16, "num_batches_per_epoch": 4, "num_parallel_samples": 6, "lr": 5e-3,
        "trainer_kwargs": trainer,
    }  # fmt: skip
    return TSDiffEstimator(**{**small, **settings})


def entry(target, item="a", **features):
    return {
        "start": pd.Period("2020-01-01", "D"),
        "target": np.asarray(target, np.float32),
        "item_id": item,
        **features,
    }


def with_features(n=4, length=60, future=H, seed=0):
    rng = np.random.default_rng(seed)
    return [
        entry(
            rng.random(length) + 1,
            f"s{i}",
            feat_static_cat=[i % 3],
            feat_static_real=rng.random(2),
            feat_dynamic_real=rng.random((2, length + future)),
        )
        for i in range(n)
    ]


COUNTS = {"num_feat_dynamic_real": 2, "num_feat_static_cat": 1, "num_feat_static_real": 2, "cardinality": [3]}


@pytest.fixture(scope="module")
def featured(tmp_path_factory):
    pl.seed_everything(0, verbose=False)
    return estimator(tmp_path_factory.mktemp("f"), **COUNTS, time_features=[day_of_week]).train(with_features(future=0))


def draw(predictor, dataset, method="cond", num_samples=5):
    pl.seed_everything(0, verbose=False)
    how = predictor.using(method=method, steps=3, guidance_scale=0.5)
    return [forecast.samples for forecast in how.predict(dataset, num_samples=num_samples)]


@pytest.mark.parametrize("method", ["cond", "q"])
def test_features_are_read_and_kept(featured, method, tmp_path):
    dataset = with_features()
    before = draw(featured, dataset, method)
    assert all(s.shape == (5, H) and np.isfinite(s).all() for s in before)
    featured.serialize(tmp_path / "model")
    again = draw(Predictor.deserialize(tmp_path / "model"), dataset, method)
    assert all(np.array_equal(a, b) for a, b in zip(before, again, strict=True))
    for field in ("feat_static_cat", "feat_static_real", "feat_dynamic_real"):
        changed = [{**e, field: (np.asarray(e[field]) + 1) % 3} for e in dataset]
        assert not np.allclose(before[0], draw(featured, changed, method)[0]), field


def test_a_known_future_feature_is_learnt(tmp_path):
    """The target is the feature, nothing else tells it: with it the forecast follows, shuffled it does not."""
    rng = np.random.default_rng(0)

    def series(i):
        feature = rng.integers(0, 2, 80 + H).astype(float)
        return entry(1 + feature[:80], f"s{i}", feat_dynamic_real=feature[None])

    train, test = [series(i) for i in range(8)], [series(i) for i in range(8)]
    pl.seed_everything(0, verbose=False)
    small = {"num_batches_per_epoch": 150, "width": 16, "lags_seq": [], "condition_dropout": 0.0}
    predictor = estimator(tmp_path, num_feat_dynamic_real=1, **small).train(train)
    truth = np.stack([1 + e["feat_dynamic_real"][0, 80:] for e in test])
    flipped = [{**e, "feat_dynamic_real": 1 - e["feat_dynamic_real"]} for e in test]
    error, wrong = (np.abs(np.mean(draw(predictor, d), axis=1) - truth).mean() for d in (test, flipped))
    assert error < 0.3 and wrong > 0.6


def test_a_pandas_frame_with_features(tmp_path):
    index = pd.date_range("2021-01-01", periods=60 + H, freq="D")
    rng = np.random.default_rng(0)
    frames = {
        name: pd.DataFrame({"target": rng.random(60 + H), "price": rng.random(60 + H)}, index=index) for name in "ab"
    }
    static = pd.DataFrame({"shop": ["x", "y"]}, index=["a", "b"], dtype="category")
    dataset = PandasDataset(
        frames, target="target", feat_dynamic_real=["price"], static_features=static, future_length=H
    )
    told = {"num_feat_dynamic_real": 1, "num_feat_static_cat": 1, "cardinality": [2]}
    predictor = estimator(tmp_path, **told).train(dataset)
    assert all(np.isfinite(samples).all() for samples in draw(predictor, dataset))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"feat_dynamic_real": np.zeros((3, 64))}, "num_feat_dynamic_real=2"),
        ({"feat_dynamic_real": np.zeros(64)}, r"must be \(features, steps\)"),
        ({"feat_dynamic_real": np.zeros((2, 50))}, "50 steps but 60 are needed"),
        ({"feat_dynamic_real": np.full((2, 64), np.nan)}, "missing or infinite"),
        ({"feat_static_cat": [0, 1]}, "num_feat_static_cat=1"),
        ({"feat_static_cat": [3]}, r"whole numbers from 0 to \[2\]"),
        ({"feat_static_cat": [0.5]}, "whole numbers"),
        ({"feat_static_real": [1.0]}, "num_feat_static_real=2"),
        ({"feat_static_real": None}, "series 's1' has no feat_static_real"),
    ],
)
def test_wrong_features_are_named_before_training(tmp_path, change, message):
    dataset = with_features()
    dataset[1] = {**dataset[1], **change}
    with pytest.raises(InvalidArgument, match=message):
        estimator(tmp_path, **COUNTS).train(dataset)


def test_features_must_reach_into_the_future(featured):
    with pytest.raises(InvalidArgument, match="60 steps but 64 are needed"):
        list(featured.predict(with_features(future=0)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_feat_static_cat": 2, "cardinality": [3]}, "cardinality"),
        ({"cardinality": [3]}, "cardinality"),
        ({"num_feat_dynamic_real": -1}, "num_feat_dynamic_real"),
        ({"target_dim": 0}, "target_dim"),
        ({"training_mask": "block"}, "training_mask"),
    ],
)
def test_bad_settings(tmp_path, settings, message):
    with pytest.raises(InvalidArgument, match=message):
        estimator(tmp_path, **settings)


# --- several variates ---------------------------------------------------------------------------------------------

D = 3


def multivariate(n=3, length=60, seed=0):
    rng = np.random.default_rng(seed)
    return [entry(10.0 ** np.arange(D)[:, None] * (1 + rng.random((D, length))), f"m{i}") for i in range(n)]


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    pl.seed_everything(0, verbose=False)
    return estimator(tmp_path_factory.mktemp("m"), target_dim=D).train(multivariate())


@pytest.mark.parametrize("method", ["cond", "ms", "q"])
def test_multivariate_forecasts(several, method, tmp_path):
    dataset = multivariate()
    dataset[0]["target"][1, -5:] = np.nan
    dataset[1]["target"][2] = np.nan
    samples = draw(several, dataset, method)
    assert all(s.shape == (5, H, D) and np.isfinite(s).all() for s in samples)
    several.serialize(tmp_path / "model")
    again = draw(Predictor.deserialize(tmp_path / "model"), dataset, method)
    assert np.array_equal(samples[0], again[0])


def test_every_variate_has_its_own_scale(several):
    sizes = np.abs(draw(several, multivariate(), num_samples=20)[0]).mean((0, 1))
    assert np.all(np.diff(np.log10(sizes)) > 0.5)


def test_multivariate_windows_are_univariate_windows_side_by_side():
    g = torch.Generator().manual_seed(0)
    past, future = torch.rand(2, 19, D, generator=g), torch.rand(2, H, D, generator=g)
    seen, soon = (torch.rand(x.shape, generator=g).gt(0.3).float() for x in (past, future))
    how = {"context_length": CONTEXT, "prediction_length": H, "lags": (7,), "scaling": "std"}
    whole = window(past, seen, future, soon, **how)
    for d in range(D):
        alone = window(*(x[..., d] for x in (past, seen, future, soon)), **how)
        for name in ("values", "observed", "known"):
            assert torch.equal(getattr(whole, name)[:, :, d], getattr(alone, name))
        assert torch.equal(whole.scale[:, d], alone.scale)


def test_the_number_of_variates_is_checked(several, tmp_path):
    with pytest.raises(InvalidArgument, match="target_dim=3 needs"):
        list(several.predict([entry(np.ones((2, 50)))]))
    with pytest.raises(InvalidArgument, match="target_dim=3 needs"):
        estimator(tmp_path, target_dim=D).train([entry(np.ones(50))])


def test_variates_are_sampled_together(tmp_path):
    """Two variates that are equal, and unpredictable: their samples are, too; models of each alone would not know."""
    rng = np.random.default_rng(0)
    train = [entry(np.repeat(1 + rng.integers(0, 2, (1, 80)), 2, axis=0), f"s{i}") for i in range(8)]
    pl.seed_everything(0, verbose=False)
    small = {"num_batches_per_epoch": 150, "width": 16, "lags_seq": [], "scaling": None, "condition_dropout": 1.0}
    predictor = estimator(tmp_path, target_dim=2, **small).train(train).using(steps=10)
    torch.manual_seed(0)
    windows = predictor.prediction_net.synthesize(64).numpy()
    assert windows.shape == (64, 2, CONTEXT + H) and windows.std() > 0.3
    assert np.corrcoef(windows[:, 0].ravel(), windows[:, 1].ravel())[0, 1] > 0.8


# --- what a conditional model is told ------------------------------------------------------------------------------


def test_training_masks():
    torch.manual_seed(0)
    past, future = torch.zeros(2000, 10), torch.zeros(2000, 5)
    forecast = training_mask(past, future, "forecast")
    assert forecast[:, :10].eq(1).all() and forecast[:, 10:].eq(0).all()
    share = training_mask(past, future, "random").mean(1)
    assert share.mean() == pytest.approx(0.5, abs=0.03) and share.std() > 0.25  # uniform: 0.29
    mixed = training_mask(past, future, "mix")
    assert (mixed == forecast).all(1).float().mean() == pytest.approx(0.5, abs=0.05)


def test_what_is_hidden_in_training_does_not_set_the_scale():
    past, seen = torch.ones(1, CONTEXT), torch.ones(1, CONTEXT)
    past[:, ::2] = 100.0
    told = torch.cat([(torch.arange(CONTEXT) % 2).float(), torch.zeros(H)])[None]
    w = window(past, seen, torch.ones(1, H), torch.ones(1, H), told, context_length=CONTEXT, prediction_length=H)
    assert w.scale.item() == 1.0 and w.known.sum() == CONTEXT / 2 and w.observed.sum() == CONTEXT + H


def test_counts_are_read_from_a_dataset(tmp_path):
    """GluonTS's ``from_inputs``."""
    rest = {"freq": "D", "prediction_length": H, "trainer_kwargs": {"default_root_dir": tmp_path}}
    est = TSDiffEstimator.from_inputs(with_features(), **rest)
    assert (est.features.real, est.features.static, est.features.cardinality) == (2, 2, [3])
    plain = TSDiffEstimator.from_inputs([entry(np.ones(50))], **rest)
    assert plain.features.inputs == []


@pytest.mark.parametrize("mask", ["forecast", "random", "mix"])
def test_clean_conditions(tmp_path, mask):
    """The CSDI form: what is known enters clean and comes out as it was."""
    predictor = estimator(tmp_path, noise_observed=False, training_mask=mask, condition_dropout=0.0).train(
        multivariate_free()
    )
    net = predictor.using(steps=3).prediction_net
    values, known = torch.randn(4, 2, CONTEXT + H), (torch.rand(4, 2, CONTEXT + H) < 0.5).float()
    with torch.no_grad():
        out = net.complete(values, known, torch.full((4,), 0.5))
    assert torch.equal(out[known > 0], values[known > 0]) and torch.isfinite(out).all()
    assert all(np.isfinite(s).all() for s in draw(predictor, multivariate_free()))


def test_csdi_of_several_variates(tmp_path):
    """Both axes of its network, and its training."""
    clean = {"noise_observed": False, "training_mask": "mix", "condition_dropout": 0.0}
    predictor = estimator(tmp_path, target_dim=D, **clean).train(multivariate())
    net = predictor.using(steps=2).prediction_net
    values, known = torch.randn(2, 2, D, CONTEXT + H), (torch.rand(2, 2, D, CONTEXT + H) < 0.5).float()
    with torch.no_grad():
        out = net.complete(values, known, torch.full((2,), 0.5))
    assert torch.equal(out[known > 0], values[known > 0])
    assert draw(predictor, multivariate())[0].shape == (5, H, D)


def multivariate_free():
    return [{**e, "target": e["target"][0]} for e in multivariate()]
