"""The recipe trains and draws, and the benchmark reports what it should, both at toy size."""

import csv
import importlib
import json

import pytest

from suffuse import hub
from suffuse.bench import run_benchmarks
from suffuse.errors import InvalidArgument
from suffuse_timeseries import benchmarks, recipes

tasks = importlib.import_module("suffuse_timeseries.benchmarks.tasks")
(RECIPE,) = recipes.RECIPES
BENCHMARK = next(b for b in benchmarks.BENCHMARKS if b.name == "timeseries/forecasting")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    out = tmp_path_factory.mktemp("recipe") / "model"
    small = {"width": 8, "depth": 1, "state": 4, "batch_size": 8}
    assert RECIPE.train(dataset="elnino", out=out, steps=7, device="cpu", progress=False, **small) == out
    return out


def test_training_writes_a_checkpoint_that_names_its_recipe(checkpoint):
    facts = hub.read_config(checkpoint)["metadata"]
    assert facts["recipe"] == "timeseries/tsdiff" == RECIPE.name
    assert (facts["dataset"], facts["freq"], facts["prediction_length"], facts["steps"]) == ("elnino", "M", 12, 7)
    assert list((checkpoint / "training").rglob("metrics.csv"))


@pytest.mark.parametrize("method", ["cond", "q"])
def test_forecasts_are_a_table_and_a_picture(checkpoint, tmp_path, method):
    table, picture = RECIPE.sample(checkpoint, out=tmp_path, n=5, steps=2, method=method, device="cpu")
    rows = list(csv.DictReader(table.open()))
    assert len(rows) == 10 * 12 and rows[0]["timestamp"] == "2001-01-01"
    assert all(float(row["0.1"]) <= float(row["0.5"]) <= float(row["0.9"]) for row in rows)
    assert picture.stat().st_size > 10_000


def test_synthetic_windows_are_a_gluonts_dataset(checkpoint, tmp_path):
    table, picture = RECIPE.sample(checkpoint, out=tmp_path, task="synthesize", n=9, steps=2, device="cpu")
    lines = [json.loads(line) for line in table.read_text().splitlines()]
    assert len(lines) == 9 and {len(line["target"]) for line in lines} == {48 + 12}
    assert picture.stat().st_size > 10_000


def test_bad_requests(checkpoint, tmp_path):
    with pytest.raises(InvalidArgument, match="steps must be at least 1"):
        RECIPE.train(out=tmp_path, steps=0)
    with pytest.raises(InvalidArgument, match="unknown dataset"):
        RECIPE.train(dataset="el-nino", out=tmp_path)
    with pytest.raises(InvalidArgument, match="task must be"):
        RECIPE.sample(checkpoint, out=tmp_path, task="impute", device="cpu")


def test_the_benchmark_reports_every_method_and_a_fan_plot(tmp_path, monkeypatch):
    small = {"width": 8, "state": 4, "batch_size": 8, "samples": 4, "sampling_steps": 2}
    toy = tasks.Task("elnino", steps=3, series=3, rivals=("csdi",), rival_steps=2, **small)
    monkeypatch.setattr(tasks, "QUICK", (toy, tasks.Task("solar_nips", steps=1)))
    for name in ("SUFFUSE_DATA", "SUFFUSE_RUNS"):
        monkeypatch.delenv(name, raising=False)
    report = run_benchmarks([BENCHMARK], profile="quick", out=tmp_path, progress=False)
    (result,) = report.results
    methods = {row.method for row in result.rows if row.metric == "CRPS"}
    classical = {"seasonal-naive", "ridge", "ridge-residuals"}
    assert methods == {*classical, "csdi", "tsdiff-cond", "tsdiff-ms", "tsdiff-q"}
    assert {row.dataset for row in result.rows} == {"elnino[3 series]"}
    assert any("better than seasonal-naive" in note for note in result.notes)
    assert any("Left out" in note and "solar_nips" in note for note in result.notes)
    assert list(tmp_path.rglob("fan-elnino.png"))
