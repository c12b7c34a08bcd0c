"""The contest of samplers: what counts as better, and a small run on a trained network."""

import dataclasses
import importlib

import pytest

from suffuse.bench.run import Run
from suffuse.benchmarks import models
from suffuse.benchmarks.contest import compare

#: The package has the benchmark under the module's name.
trained = importlib.import_module("suffuse.benchmarks.samplers_trained")


def test_better_means_by_more_than_the_spread_of_paired_differences():
    """A common offset of a seed is no spread."""
    ours = {("teleport+deis-3", "karras-open"): [1.0, 5.0, 9.0], ("ddim", "karras"): [3.0, 7.0, 11.0]}
    verdict = compare({**ours, ("azula/ddim", "karras"): [1.2, 5.2, 9.2]})
    assert verdict.outcome == "ours"
    assert verdict.ours == "teleport+deis-3 (karras-open)"
    assert verdict.gap == pytest.approx(0.2)
    assert compare({**ours, ("azula/ddim", "karras"): [0.9, 5.4, 9.0]}).outcome == "neither"
    assert compare({**ours, ("diffusers/ddim", "own"): [0.5, 4.5, 8.5]}).outcome == "theirs"
    assert compare({**ours, ("k-diffusion/lms", "karras"): [1.0 + 1e-6, 5.0 + 1e-6, 9.0 + 1e-6]}).outcome == "neither"
    assert "best is teleport+deis-3" in str(compare(ours))


def test_the_evaluations_that_an_error_takes():
    curve = {5: 1.0, 10: 0.25, 20: 0.0625}  # second order
    assert trained.evaluations_for(0.25, curve) == pytest.approx(10)
    assert trained.evaluations_for(0.5, curve) == pytest.approx(50**0.5)
    assert trained.evaluations_for(2.0, curve) == pytest.approx(5)


@pytest.mark.slow
def test_a_small_run_on_digits(monkeypatch, tmp_path):
    pytest.importorskip("diffusers")
    small = dataclasses.replace(models.MODELS["digits"], steps=(30, 30))
    monkeypatch.setitem(models.MODELS, "digits", small)
    monkeypatch.setattr(trained, "BUDGETS", {"quick": (4,)})
    monkeypatch.setattr(trained, "SAMPLES", {"quick": 6})
    run = Run(trained.samplers_trained, "quick", 0, "cpu", tmp_path, None, False, tmp_path)
    trained.samplers_trained(run)
    methods = {row.method for row in run.rows}
    assert {"deis-3", "evodiff", "teleport+deis-3", "diffusers/dpmpp-2m", "diffusers/dpmpp-2m-default"} <= methods
    assert {row.metric for row in run.rows} == {"mean error", "median error", "evaluations saved", "MMD", "FID"}
    by_method = {row.method: row.value for row in run.rows if row.metric == "mean error"}
    assert by_method["dpmpp-2m"] == pytest.approx(by_method["diffusers/dpmpp-2m"], rel=1e-3)
    assert any("fewer evaluations" in note for note in run.notes)
    assert (tmp_path / "figures").is_dir()
