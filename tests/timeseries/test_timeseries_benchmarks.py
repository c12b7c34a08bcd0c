"""Protocols of the benchmarks: what is hidden, what is kept between runs, and a known score."""

import importlib
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from gluonts.model.forecast import SampleForecast
from gluonts.model.seasonal_naive import SeasonalNaivePredictor

from suffuse.bench import Skipped, benchmarks
from suffuse_timeseries import data
from suffuse_timeseries.benchmarks import BENCHMARKS, official, tasks
from suffuse_timeseries.benchmarks.store import Store
from suffuse_timeseries.metrics import evaluate, score

# the modules; the package has the benchmarks of these names
forecasting, guidance, imputation, missing = (
    importlib.import_module(f"suffuse_timeseries.benchmarks.{name}")
    for name in ("forecasting", "guidance", "imputation", "missing")
)


def entry(target, item="a"):
    return {"start": pd.Period("2020-01-01", freq="h"), "target": np.asarray(target, np.float32), "item_id": item}


def run(tmp_path, quick=True, device="cpu", **more):
    """What benchmarks ask of a ``Run``, with lists of what they report."""
    notes: list[str] = []

    def skip(reason):
        raise Skipped(reason)

    return SimpleNamespace(
        seed=0, quick=quick, device=device, out=tmp_path, data=None, notes=notes, note=notes.append, skip=skip, **more
    )


def test_all_are_registered():
    assert {b.name for b in BENCHMARKS} <= set(benchmarks())


@pytest.mark.parametrize("context", [336, 360, 312])
def test_half_of_the_context_is_hidden_and_never_the_horizon(context):
    """The paper's counts: 168 of 336, 180 of 360, 156 of 312."""
    horizon, series = 24, entry(np.arange(500.0))
    where = {}
    for pattern in ("none", "RM", "BM-B", "BM-E"):
        out = missing.hide(series, pattern, context, horizon, np.random.default_rng(0))["target"]
        gone = np.isnan(out)
        assert gone.sum() == (0 if pattern == "none" else context // 2)
        assert not gone[-horizon:].any() and not gone[: 500 - horizon - context].any()
        assert np.array_equal(out[~gone], series["target"][~gone])
        where[pattern] = np.flatnonzero(gone)
    begin = 500 - horizon - context
    assert where["BM-B"][0] == begin and where["BM-E"][-1] == 500 - horizon - 1
    assert len(where["RM"]) and set(where["RM"]) != set(where["BM-B"])


def test_a_context_that_is_short_is_hidden_by_half():
    out = missing.hide(entry(np.ones(30)), "BM-E", 100, 10, np.random.default_rng(0))["target"]
    assert np.flatnonzero(np.isnan(out)).tolist() == list(range(10, 20))


@pytest.mark.parametrize(("pattern", "share"), [("10 %", 0.1), ("50 %", 0.5), ("90 %", 0.9), ("blocks", 1 / 3)])
def test_what_imputation_hides(pattern, share):
    mask = imputation.hidden(1000, 360, pattern, 48, np.random.default_rng(0))
    assert not mask[:640].any()
    assert mask.sum() == pytest.approx(360 * share, rel=0.15)


def test_errors_of_imputation():
    """Exact paths cost nothing; for a point the CRPS is the MAE."""
    truth, mask = np.array([1.0, 2.0, 3.0, 4.0]), np.array([False, True, True, False])
    assert imputation.errors([truth], [mask], [truth[None]]) == {"CRPS": 0.0, "MAE": 0.0, "RMSE": 0.0}
    off = imputation.errors([truth], [mask], [truth[None] + [0.0, 1.0, -1.0, 9.0]])
    assert off == pytest.approx({"CRPS": 0.4, "MAE": 0.4, "RMSE": 0.4})


def test_seasonal_imputation_goes_on_through_gaps():
    y = np.array([1.0, 2.0, np.nan, 2.5, np.nan, np.nan])
    assert imputation.seasonal(y, 2).tolist() == [[1.0, 2.0, 1.0, 2.5, 1.0, 2.5]]


def test_forecasts_are_kept_and_score_as_they_did(tmp_path, monkeypatch):
    monkeypatch.delenv("SUFFUSE_RUNS", raising=False)
    rng = np.random.default_rng(0)
    test = [entry(rng.random(60), name) for name in "ab"]
    made = [SampleForecast(rng.random((20, 6)), start_date=e["start"] + 54, item_id=e["item_id"]) for e in test]
    calls = []

    def make():
        calls.append(1)
        return made, 12.5

    for _ in range(2):  # the second time from the file
        kept, seconds = Store(run(tmp_path)).forecasts({"dataset": "toy", "method": "m"}, test, make)
        assert score(kept, test) == pytest.approx(score(made, test), rel=1e-6)
        assert (seconds, [f.item_id for f in kept], kept[0].start_date) == (12.5, ["a", "b"], made[0].start_date)
    assert len(calls) == 1
    Store(run(tmp_path)).forecasts({"dataset": "toy", "method": "another"}, test, make)
    other = run(tmp_path)
    other.seed = 1
    Store(other).forecasts({"dataset": "toy", "method": "m"}, test, make)
    assert len(calls) == 3


def test_models_are_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("SUFFUSE_RUNS", str(tmp_path / "kept"))
    task = tasks.Task("elnino", steps=2, batch_size=4, width=8, state=4)
    loaded = task.load(run(tmp_path))
    first, seconds = loaded.model(Store(loaded.run))
    again, as_before = loaded.model(Store(loaded.run))
    assert seconds == as_before > 0
    for a, b in zip(first.prediction_net.parameters(), again.prediction_net.parameters(), strict=True):
        assert (a == b).all()
    assert not first.prediction_net.denoiser.backbone.conditional


def test_sizes_by_machine(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "available", lambda root=None: ["elnino", "co2", "m4_hourly"])
    cores, gpu = run(tmp_path, quick=False), run(tmp_path, quick=False, device="cuda")
    (small,), (whole,) = tasks.tasks(cores), tasks.tasks(gpu)
    assert small.dataset == whole.dataset == "m4_hourly"
    assert small.steps < whole.steps and whole.sampler == "ddpm" and whole.sampling_steps == 100
    assert any("Left out" in note and "solar_nips" in note for note in cores.notes)
    assert any("On a CPU" in note for note in cores.notes) and not any("On a CPU" in note for note in gpu.notes)
    monkeypatch.setattr(data, "available", lambda root=None: ["elnino"])
    with pytest.raises(Skipped, match="SUFFUSE_DATA"):
        tasks.tasks(run(tmp_path, quick=False))


def test_shorter_windows_are_guided_more(tmp_path):
    whole, half = (tasks.Task("elnino", steps=1, context=c).load(run(tmp_path)) for c in (None, 18))
    assert whole.guidance_scale("q") == 2.0 and whole.guidance_scale("ms") == 0.25
    assert half.guidance_scale("q") == 2.0 * (48 + 12) / (18 + 12)


@pytest.mark.parametrize(
    ("best", "asked"),
    [(4, [1, 2, 4, 8]), (0.5, [0.25, 0.5, 1, 2, 4, 8]), (16, [1, 2, 4, 8, 16, 32])],
)
def test_scales_are_the_papers_and_on_to_beyond_the_best(best, asked):
    """In units of the window: here windows are half as long as the paper's, and take twice the scale."""
    seen = []

    def crps(s):
        seen.append(s)
        return abs(np.log2(s / 2 / best))

    assert list(guidance.beyond(2.0, crps)) == [2 * s for s in asked] and len(seen) == len(asked)
    assert list(guidance.beyond(1.0, lambda s: -s if s < 20 else np.inf))[-1] == 32  # ends where sampling diverges


def test_a_scale_is_chosen_without_the_windows_it_is_judged_on():
    """Scale 1 is right on the even windows, 2 on the odd ones: chosen elsewhere, each is used where it is wrong."""
    test = [entry(np.full(30, 1.0 if i % 2 else 5.0)) for i in range(6)]

    def forecasts(right):
        values = [np.full((9, 10), y if i % 2 == right else y + 2) for i, y in enumerate(e["target"][-1] for e in test)]
        return [SampleForecast(v, e["start"] + 20, item_id="a") for v, e in zip(values, test, strict=True)]

    made = {1.0: forecasts(0), 2.0: forecasts(1)}
    assert guidance.chosen_elsewhere(made, test) == pytest.approx(6 * 2 / (3 * 5 + 3 * 1))
    assert guidance.chosen_elsewhere({1.0: made[1.0]}, test) == pytest.approx(score(made[1.0], test)["CRPS"])


def test_the_official_code_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setenv(official.VARIABLE, str(tmp_path))
    assert official.checkout() is None
    (tmp_path / "src" / "uncond_ts_diff").mkdir(parents=True)
    assert official.checkout() == tmp_path / "src"


@pytest.mark.data
@pytest.mark.parametrize(("name", "season"), [("m4_hourly", 24), ("exchange_rate_nips", 5)])
def test_seasonal_naive_has_its_known_score(name, season, data_copy):
    dataset = data.load(str(data_copy(f"timeseries/gluonts/{name}")))
    naive = SeasonalNaivePredictor(dataset.metadata.prediction_length, season_length=season)
    scores, _ = evaluate(naive, list(dataset.test))
    assert f"{scores['CRPS']:.5f}" == f"{forecasting.CHECK[name]:.5f}"
