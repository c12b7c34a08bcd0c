"""Benchmarks of refinement, synthesis and guidance report what they should, at toy size, from models that are kept."""

import importlib

import numpy as np
import pytest

from suffuse.bench import benchmarks, run_benchmarks
from suffuse_timeseries.benchmarks.tasks import Task

tasks = importlib.import_module("suffuse_timeseries.benchmarks.tasks")
refinement = importlib.import_module("suffuse_timeseries.benchmarks.refinement")
synthesis = importlib.import_module("suffuse_timeseries.benchmarks.synthesis")
TOY = Task("elnino", steps=3, batch_size=8, width=8, state=4, samples=4, series=3, rivals=("deepar",), rival_steps=2)


@pytest.fixture
def toy(monkeypatch, tmp_path):
    monkeypatch.setattr(tasks, "QUICK", (TOY,))
    monkeypatch.setattr(synthesis, "WINDOWS", {"quick": 40})
    monkeypatch.setattr(refinement, "QUICK_RIVAL", {"rivals": ("deepar",), "rival_steps": 2})
    monkeypatch.setattr(synthesis, "QUICK_RIVAL", {"rivals": ("deepar",), "rival_steps": 2})
    monkeypatch.delenv("SUFFUSE_DATA", raising=False)
    monkeypatch.setenv("SUFFUSE_RUNS", str(tmp_path / "runs"))
    return tmp_path


def measured(name, out):
    (result,) = run_benchmarks([benchmarks()[name]], profile="quick", out=out, progress=False).results
    assert result.status == "passed", result
    return result


def test_refinement(toy, monkeypatch):
    assert set(refinement.REFINERS) == {"lmc-ms", "lmc-q", "ml-ms", "ml-q"}
    monkeypatch.setattr(refinement, "REFINERS", {"lmc-q": ("lmc", "q"), "ml-ms": ("ml", "ms")})
    first = measured("timeseries/refinement", toy / "1")
    bases = {"seasonal-naive", "ridge", "ridge-residuals", "deepar"}
    refiners = {"none", "lmc-q", "ml-ms"}
    crps = {(row.method, row.setting["refiner"]): row.value for row in first.rows if row.metric == "CRPS"}
    assert set(crps) == {(base, refiner) for base in bases for refiner in refiners}
    assert sum("when refined, at best by" in note for note in first.notes) == len(bases)
    assert any("representative step" in note for note in first.notes)
    assert list((toy / "1").rglob("fan-elnino.png"))
    kept = sorted(path.name for path in (toy / "runs").iterdir())
    again = measured("timeseries/refinement", toy / "2")
    assert [row.value for row in again.rows] == [row.value for row in first.rows]
    assert sorted(path.name for path in (toy / "runs").iterdir()) == kept  # all was taken up, nothing made anew


def test_synthesis(toy):
    result = measured("timeseries/synthesis", toy / "1")
    values = {(row.method, row.metric): row.value for row in result.rows}
    sources = {"real windows (reference)", "gaussian", "tsdiff"}
    assert set(values) == {(source, metric) for source in sources for metric in ("LPS", "CRPS of deepar")}
    assert np.isfinite(list(values.values())).all()
    assert any("ridge trained on tsdiff's windows" in note for note in result.notes)
    assert list((toy / "1").rglob("windows-elnino.png"))


def test_guidance(toy):
    result = measured("timeseries/guidance", toy / "1")
    values = {(row.method, row.setting["s"]): row.value for row in result.rows}
    for energy in ("quantile", "mean square"):
        scales = {s for name, s in values if name == energy}
        assert {"none", "best", "1 to 8", 1.0, 2.0, 4.0, 8.0} <= scales
        assert values[energy, "best"] > 0 and values[energy, "1 to 8"] > 0
    assert any("with s 1 to 8" in note for note in result.notes)
    assert list((toy / "1").rglob("scales.png"))
