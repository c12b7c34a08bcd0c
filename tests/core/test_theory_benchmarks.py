"""What the benchmarks of theory are made of, against known truth; and that they report."""

import math
from importlib import import_module

import pytest
import torch

from suffuse import NetworkDenoiser
from suffuse.analysis import asymmetry
from suffuse.bench import Run
from suffuse.exact import EmpiricalDenoiser
from suffuse.schedules import EDM

pytest.importorskip("ot")
pytest.importorskip("sklearn")

# the package names the benchmarks, so its modules of the same names are to be asked for
gap = import_module("suffuse.benchmarks.fokker_planck")
dimension = import_module("suffuse.benchmarks.intrinsic_dimension")
subspaces = import_module("suffuse.benchmarks.subspaces")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def run_of(benchmark, tmp_path):
    return Run(benchmark, "quick", 0, "cpu", tmp_path / "work", None, False, tmp_path / "report")


def test_the_torus_denoiser_is_that_of_evenly_spread_points():
    """One circle in 5 dimensions, against the empirical denoiser of points so close that the sum is an integral."""
    denoiser, x = dimension.torus(1, 5, 2000, generator())
    plane = torch.linalg.svd(x, full_matrices=False).Vh[:2]
    angle = torch.arange(3000, dtype=torch.float64) * 2 * math.pi / 3000
    spread = EmpiricalDenoiser(torch.stack([angle.cos(), angle.sin()], -1) @ plane, EDM())
    y = x[:20] + 0.3 * torch.randn(20, 5, dtype=torch.float64, generator=generator(1))
    for kappa in (0.05, 0.5, 5.0):
        t = EDM().t_of_kappa(kappa)
        torch.testing.assert_close(denoiser(y, t), spread(y, t), rtol=1e-6, atol=1e-6)
    times = torch.full((20,), EDM().t_of_kappa(0.5), dtype=torch.float64)
    torch.testing.assert_close(denoiser(y, times), denoiser(y, EDM().t_of_kappa(0.5)))


@pytest.mark.parametrize("d", [1, 3])
def test_levina_bickel_finds_the_dimension_of_a_cube(d):
    x = torch.zeros(2000, 10)
    x[:, :d] = torch.rand(2000, d, generator=generator())
    assert float(dimension.levina_bickel(x)) == pytest.approx(d, rel=0.1)


def test_the_energy_network_is_a_gradient_and_the_other_is_not():
    y = torch.randn(4, 2, generator=generator())
    tilts = [
        float(asymmetry(NetworkDenoiser(network, EDM(0.01, 10.0), "epsilon"), y, 1.0).max())
        for network in (gap.energy(0), gap.perceptron(0))
    ]
    assert tilts[0] < 1e-4 < tilts[1]


@pytest.mark.parametrize("name", gap.EXAMPLES["full"])
def test_examples_have_the_size_of_one(name):
    x = gap.draw_example(name, 20_000, generator())
    assert x.shape == (20_000, 2)
    assert 0.9 < float(x.std()) < 1.3
    assert float(x.mean(0).abs().max()) < 0.05
    if name == "checkerboard":
        assert bool(((x.floor().sum(1) % 2) == 0).all())


def test_the_verdict_reads_the_distances():
    def outcomes(gaps, ode, sde):
        metrics = (gap.GAP, gap.ODE, gap.SDE)
        rows = zip((0.0, 0.1, 1.0), gaps, ode, sde, strict=True)
        return {w: gap.Outcome(None, None, dict(zip(metrics, row, strict=True))) for w, *row in rows}

    good = gap.verdict("x", outcomes((0.3, 0.1, 0.06), (0.3, 0.2, 0.4), (0.1, 0.12, 0.4)), 0.06)
    assert "the gap closes" in good and "ODE samples improve" in good and "SDE samples get worse" in good
    bad = gap.verdict("x", outcomes((0.3, 0.1, 0.2), (0.3, 0.3, 0.4), (0.1, 0.1, 0.1)), 0.06)
    assert "does not close" in bad and "do not improve" in bad and "do not get worse" in bad


def test_principal_components_are_taken_about_the_origin():
    x = torch.randn(30, 8, dtype=torch.float64, generator=generator()) + 3
    expected = torch.linalg.svd(x, full_matrices=False).Vh[:2].T
    found = subspaces.pca(x, 2)[0]
    torch.testing.assert_close(found @ found.T, expected @ expected.T)


def test_the_samples_needed_are_the_fewest_from_which_on_success_stays():
    assert subspaces.samples_needed({1: 0.0, 2: 1.0, 3: 0.5, 4: 0.9, 5: 1.0}) == 4
    assert subspaces.samples_needed({1: 0.0, 2: 0.5}) is None


# --- the benchmarks themselves, made small --------------------------------------------------------------------------


@pytest.mark.slow
def test_the_gap_is_reported(tmp_path, monkeypatch):
    monkeypatch.setattr(gap, "STEPS", {"quick": 30})
    monkeypatch.setattr(gap, "SAMPLES", 1000)
    run = run_of(gap.fokker_planck, tmp_path)
    gap.fokker_planck(run)
    metrics = {row.metric for row in run.rows if row.method == "energy network, regularised"}
    assert metrics == {gap.GAP, gap.ODE, gap.SDE, "mean squared Fokker-Planck residual"}
    residual = {r.method: r.value for r in run.rows if "residual" in r.metric}
    assert residual["energy network, regularised"] < residual["energy network"]
    assert len(run.figures) == 1


@pytest.mark.slow
def test_dimensions_are_reported(tmp_path, monkeypatch):
    monkeypatch.setattr(dimension, "POINTS", {"quick": 4})
    monkeypatch.setattr(dimension, "TRAINING", {"quick": (30, 10)})
    run = run_of(dimension.intrinsic_dimension, tmp_path)
    dimension.intrinsic_dimension(run)
    exact = [r.value for r in run.rows if r.method == "normal bundle" and not r.dataset.startswith("sphere")]
    assert len(exact) == 12
    assert max(exact) < 0.15
    assert len(run.figures) == 1


@pytest.mark.slow
def test_subspaces_are_reported(tmp_path, monkeypatch):
    monkeypatch.setattr(subspaces, "TRIALS", {"quick": 2})
    monkeypatch.setattr(subspaces, "COUNTS", (1, 2, 4, 16))
    monkeypatch.setattr(subspaces, "RANKS", (2, 4))
    monkeypatch.setattr(subspaces, "TRAINED_COUNTS", {"quick": (4, 8, 16)})
    monkeypatch.setattr(subspaces, "DESCENT", {"quick": (5, 5)})
    monkeypatch.setattr(subspaces, "TRAINING", {"quick": 10})
    run = run_of(subspaces.subspaces, tmp_path)
    subspaces.subspaces(run)
    found = [r for r in run.rows if (r.method, r.metric) == ("K-subspaces, two", "success")]
    success = {r.setting["samples of each"]: r.value for r in found}
    assert success[1] == 0 and success[16] == 1
    assert {r.method for r in run.rows} >= {"isotropic", "Gaussian", "mixture", "empirical", "network"}
    assert len(run.figures) == 2
