"""The parity report knows good from bad, and the benchmarks run and report what they promise."""

import importlib.util
import sys

import numpy as np
import pytest
import torch

from suffuse.bench import Run
from suffuse.errors import InvalidArgument
from suffuse_materials3d import Microstructure
from suffuse_materials3d.benchmarks import BENCHMARKS, models, tiling
from suffuse_materials3d.data import simulate_spinodal
from suffuse_materials3d.parity import ParityReport, VolumeFractionOnly, spread

pytestmark = pytest.mark.skipif(importlib.util.find_spec("taufactor") is None, reason="needs the extra measure")

NAMES = ("vf_1", "drel_1")


@pytest.fixture(scope="module")
def real() -> list[Microstructure]:
    torch.set_num_threads(1)
    return simulate_spinodal(
        12, (12, 12, 8), volume_fraction=(0.45, 0.7), times=(30.0,), progress=False
    ).microstructures()


@pytest.fixture(scope="module")
def report(real) -> ParityReport:
    from suffuse_materials3d.descriptors import measure_all

    found = measure_all(real, NAMES)
    table = np.stack([found[n] for n in NAMES], 1)
    report = ParityReport(NAMES, table, real, table)
    report.add("itself", real, 0.5)
    report.add("shuffled", [real[i] for i in np.random.default_rng(0).permutation(len(real))])
    return report


def values(report: ParityReport, method: str) -> dict[tuple[str, str], float]:
    rows = [r for r in report.rows() if r["method"] == method]
    return {(r["metric"], r["setting"].get("descriptor", "")): r["value"] for r in rows}


def test_the_same_volumes_are_perfect_and_others_are_not(report):
    same, other = values(report, "itself"), values(report, "shuffled")
    for name in ("vf", "drel"):
        assert same["r2", name] == pytest.approx(1, abs=1e-3) and same["mae", name] < 1e-3
        assert other["r2", name] < 0.5
    assert same["r2-vf-residual", "drel"] == pytest.approx(1, abs=1e-3)
    assert same["s2-distance", ""] == same["lineal-path-distance", ""] == 0
    assert other["s2-distance", ""] == pytest.approx(0, abs=1e-12)  # the same set, in another order
    assert same["seconds-per-volume", ""] == 0.5


def test_the_baseline_of_fractions_is_their_best_cubic(report):
    base = values(report, "vf-only")
    assert 0 < base["r2", "drel"] < 1 and ("r2", "vf") not in base
    x = np.linspace(0.2, 0.8, 30)[:, None]
    cubic = VolumeFractionOnly(x, 2 * x[:, 0] ** 3 - x[:, 0])
    assert cubic(x) == pytest.approx(2 * x[:, 0] ** 3 - x[:, 0])


def test_spread_of_equal_and_of_different_structures(real):
    assert spread([[real[0], real[0]]], ["vf_1"]) == {"vf_1": 0, "s2": 0}
    assert spread([real[:2], real[2:4]], ["vf_1"])["s2"] > 0


def test_reports_that_cannot_be(real):
    with pytest.raises(InvalidArgument, match="must be"):
        ParityReport(NAMES, np.zeros((3, 2)), real, np.zeros((3, 2)))
    with pytest.raises(InvalidArgument, match="volume fraction"):
        ParityReport(("drel_1",), np.zeros((12, 1)), real, np.zeros((12, 1)))


def test_a_seam_is_seen():
    seam_over_bulk = tiling.function.__globals__["seam_over_bulk"]
    labels = np.random.default_rng(0).integers(0, 2, (16, 16, 16))
    assert seam_over_bulk(labels, 8) == pytest.approx(1, abs=0.1)
    labels[8], labels[0] = 1 - labels[7], 1 - labels[15]
    assert seam_over_bulk(labels, 8) > 1.25


def in_this_process(folders, run):
    for system, folder in folders.items():
        models._train(
            {"dataset": system, "preset": "smoke", "out": folder, "device": "cpu", "workers": 1, "progress": False}
        )


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """All benchmarks on the smallest models there are, which are trained once for all of them."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("bench")
    done = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "PRESET", {"quick": "smoke"})
        patch.setattr(models, "_train_all", in_this_process)
        patch.setitem(sys.modules, "pde", None)  # it takes its time to compile
        for benchmark in BENCHMARKS[1:]:
            names = benchmark.function.__globals__
            for name, value in {
                "REQUESTS": {"quick": 5}, "FIXED": {"quick": (2, 2)}, "STEPS": 2, "EDGE": {"quick": 64},
                "VOXEL": {"quick": {"steps": 4, "batch_size": 2, "widths": (8, 8)}}, "SPAN": {"quick": 1.0},
                "SIZES": {"quick": [((8, 8, 8), 4, 2)]}, "GRID": {"quick": (8, 8, 8)},
            }.items():  # fmt: skip
                if name in names:
                    value = {"quick": 2} if name == "STEPS" and isinstance(names[name], dict) else value
                    patch.setitem(names, name, value)
            out = root / "work" / benchmark.slug / "seed-0"
            out.mkdir(parents=True)
            run = Run(benchmark, "quick", 0, "cpu", out, None, False, root / "report")
            benchmark(run)
            done[benchmark.name] = run
    return done


@pytest.mark.slow
def test_parity_reports_all_methods_for_two_and_three_phases(runs):
    run = runs["materials3d/parity"]
    assert {row.dataset for row in run.rows} == {"cahn-hilliard 16x16x8", "flory-huggins-three 16x16x8"}
    two = {row.method for row in run.rows if row.dataset.startswith("cahn")}
    assert {"ldm", "voxel", "vf-only", "nearest", "gaussian-field", "unconditional", "resimulated (reference)"} <= two
    assert {
        "r2",
        "mae",
        "r2-vf-residual",
        "r2-self",
        "seconds-per-volume",
        "voxel-accuracy",
        "spread-over-simulated",
    } <= {row.metric for row in run.rows}
    assert len(run.figures) == 3
    seconds = {row.metric: row.value for row in run.rows if row.method == "ldm" and row.dataset.startswith("cahn")}
    assert seconds["end-to-end-seconds"] > seconds["training-seconds"] > 0


@pytest.mark.slow
def test_process_simulator_and_tiling_report(runs):
    process = runs["materials3d/process"].rows
    assert {"simulated", "generated", "descriptors", "repeated (ceiling)", "stated"} <= {row.method for row in process}
    assert {"coverage-90", "r2"} == {row.metric for row in process}
    simulator = {row.metric for row in runs["materials3d/simulator"].rows}
    assert "volumes-per-minute" in simulator
    rows = {(row.method, row.metric): row.value for row in runs["materials3d/tiling"].rows}
    assert rows["tiles", "labels-that-differ"] == 0 and rows["tiles", "decode-difference"] < 1e-4
    assert rows["windows", "labels-that-differ"] < 0.5
    assert all(value < 6 for (_, metric), value in rows.items() if metric == "peak-memory")
