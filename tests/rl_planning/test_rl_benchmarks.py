"""Every benchmark, on next to nothing: its rows have the names and settings that tables ask for."""

from __future__ import annotations

import dataclasses
import importlib
from pathlib import Path

import pytest

from suffuse.bench import run_benchmarks
from suffuse_rl_planning import benchmarks
from suffuse_rl_planning.benchmarks import lab

speed = importlib.import_module("suffuse_rl_planning.benchmarks.speed")  # the name is the benchmark's in its package

TINY = lab.Size(
    episodes=20, episode_steps=60, pairs=400, length=20, label_steps=5, horizon=16, measure=20, steps=4, batch_size=16,
    hidden=16, depth=1, tests=8, candidates=2, replan=16,
)  # fmt: skip


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setitem(lab.SIZES, "quick", TINY)


def run(names, out):
    chosen = [b for b in benchmarks.BENCHMARKS if b.name.removeprefix("rl_planning/") in names]
    report = run_benchmarks(chosen, Path(out), profile="quick", device="cpu", progress=False)
    assert report.ok, [result.message for result in report.results]
    return {result.name.removeprefix("rl_planning/"): result for result in report.results}


@pytest.mark.slow
def test_matching_has_floors_judges_and_segments_apart(tmp_path):
    result = run(["matching"], tmp_path / "report")["matching"]
    areas = [row for row in result.rows if row.metric == "area"]
    methods = {row.method for row in areas}
    assert {"AlignDiff", "AlignDiff, one candidate", "constant (floor)", "random (floor)"} < methods
    for key, values in {
        "judge": {"own", "independent", "measured"}, "segments": {"first", "mean", "best-of-3"},
        "targets": {"uniform", "dataset_joint"}, "candidates": {1, 2},
    }.items():  # fmt: skip
        assert {row.setting[key] for row in areas} == values
    by_method = {row.method: row.setting["candidates"] for row in areas}
    assert by_method["AlignDiff"] == 2 and by_method["AlignDiff, one candidate"] == 1
    assert {row.unit for row in result.rows if row.metric == "physical-error"} <= {"m/s", "m", "W"}
    assert any("Chance" in note for note in result.notes) and len(result.figures) == 2


@pytest.mark.slow
def test_benchmarks_of_one_report_share_their_models(tmp_path):
    results = run(["switching", "covering"], tmp_path / "report")
    assert "train AlignDiff" in results["switching"].stages and "train AlignDiff" not in results["covering"].stages
    assert {row.metric for row in results["switching"].rows} == {"settling", "steady-error", "overshoot"}
    assert {row.metric for row in results["covering"].rows} == {"spearman", "deviation", "js-distance"}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["latency", "robustness", "matching-hopper"])
def test_the_others_run(tmp_path, name, monkeypatch):
    if name == "matching-hopper":  # of 401 gaits every tenth is held out; twenty episodes may have none of them
        monkeypatch.setitem(lab.SIZES, "quick", dataclasses.replace(TINY, episodes=40))
    rows = run([name], tmp_path / "report")[name].rows
    wanted = {"latency": "hz", "robustness": "area", "matching-hopper": "fall-rate"}[name]
    assert wanted in {row.metric for row in rows}


@pytest.mark.slow
def test_speed_without_the_peer_says_so(tmp_path, monkeypatch):
    monkeypatch.delenv(speed.CHECKOUT, raising=False)
    result = run(["speed"], tmp_path / "report")["speed"]
    assert {row.metric for row in result.rows} == {"ms"} and "No ratio" in result.notes[-1]


def test_sizes_are_of_all_profiles():
    for size in lab.SIZES.values():
        assert size.measure >= size.horizon and dataclasses.asdict(size)["tests"] > 1
