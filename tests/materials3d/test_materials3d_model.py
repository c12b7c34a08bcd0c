"""The denoiser, the pipeline, the recipe, the baselines and the benchmark."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh

from suffuse import NetworkDenoiser, hub, schedules
from suffuse.errors import CheckpointError, InvalidArgument, MissingExtra
from suffuse_materials3d import Microstructure, MicrostructurePipeline, metrics, plots, read_volume
from suffuse_materials3d.baselines import GaussianField, gaussian_correlation, nearest
from suffuse_materials3d.data import load, request, simulate_spinodal
from suffuse_materials3d.nets import PeriodicUNet
from suffuse_materials3d.nets.layers import depth_to_space, space_to_depth
from suffuse_materials3d.recipes import sample, volume_fraction

WORDS = {"volume_fraction": 1}
SMALL = {"volumes": 8, "size": 8, "widths": (8, 8), "steps": 4, "batch_size": 2, "progress": False, "device": "cpu"}


def awake(**arguments) -> PeriodicUNet:
    """A small network whose zero-initialised layers are not zero, so that everything it sees matters."""
    net = PeriodicUNet(1, (8, 12), tokens=WORDS, ranges={"volume_fraction": (0.3, 0.7)}, **arguments)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in net.parameters():
            weight.add_(0.1 * torch.randn(weight.shape, generator=generator))
    return net.eval()


@pytest.fixture
def volume() -> torch.Tensor:
    return torch.randn(2, 1, 8, 12, 16, generator=torch.Generator().manual_seed(1))


LEVEL = torch.tensor([-0.3, 0.4])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    torch.set_num_threads(1)
    return volume_fraction(out=tmp_path_factory.mktemp("run"), **SMALL)


# --- the network ------------------------------------------------------------------------------------------------


def test_space_to_depth_loses_nothing(volume):
    assert space_to_depth(volume).shape == (2, 8, 4, 6, 8)
    assert torch.equal(depth_to_space(space_to_depth(volume)), volume)


def test_the_network_commutes_with_shifts(volume):
    """Shifting the input by whole coarse voxels shifts the output: there is no border anywhere."""
    net, cond = awake(), request([0.4, 0.6])
    shift, axes = (4, -4, 8), (2, 3, 4)
    assert torch.allclose(
        net(volume.roll(shift, axes), LEVEL, cond), net(volume, LEVEL, cond).roll(shift, axes), atol=1e-5
    )


def test_an_axis_that_does_not_repeat_has_borders(volume):
    net, cond = awake(periodic=(True, True, False)), request([0.4, 0.6])
    same, moved = net(volume, LEVEL, cond), net(volume.roll(4, 2), LEVEL, cond).roll(-4, 2)
    assert torch.allclose(same, moved, atol=1e-5)
    across = net(volume.roll(4, 4), LEVEL, cond).roll(-4, 4)
    assert not torch.allclose(same, across, atol=1e-3)


def test_a_box_repeated_gives_the_answer_repeated(volume):
    """One set of weights for any box: on two periods side by side the network answers as on one."""
    net, cond = awake(), request([0.4, 0.6])
    twice = net(volume.repeat(1, 1, 2, 1, 1), LEVEL, cond)
    assert torch.allclose(twice, net(volume, LEVEL, cond).repeat(1, 1, 2, 1, 1), atol=1e-5)


def test_the_request_matters_and_its_absence_is_a_third_thing(volume):
    net = awake()
    answers = [net(volume, LEVEL, c) for c in (request([0.3, 0.3]), request([0.7, 0.7]), request([0.3, 0.3]).null())]
    assert torch.allclose(answers[2], net(volume, LEVEL, None))
    assert torch.allclose(answers[2], net(volume, LEVEL, request([0.7, 0.7]).null()))
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert not torch.allclose(answers[a], answers[b], atol=1e-3)


def test_every_weight_learns(volume):
    net = awake()
    net(volume, LEVEL, request([0.4, 0.6])).square().mean().backward()
    silent = [name for name, weight in net.named_parameters() if weight.grad is None or not weight.grad.any()]
    assert silent == ["tokens.null.volume_fraction"]  # nothing was masked


def test_a_checkpoint_rebuilds_the_network(volume, tmp_path):
    denoiser = NetworkDenoiser(awake(), schedules.VPCosine(), "sample", data_std=0.7)
    back = hub.load(hub.save(denoiser, tmp_path))
    assert torch.equal(back(volume, 0.5, request([0.4, 0.6])), denoiser(volume, 0.5, request([0.4, 0.6])))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: PeriodicUNet(widths=()), "width"),
        (lambda: PeriodicUNet(periodic=(True, True)), "periodic"),
        (lambda: PeriodicUNet(ranges={"volume_fraction": (0, 1)}), "not in tokens"),
        (lambda: PeriodicUNet(tokens=WORDS, ranges={"volume_fraction": (1, 0)}), "low < high"),
        (lambda: awake()(torch.zeros(1, 1, 8, 8), torch.zeros(1)), r"\(B, 1, X, Y, Z\)"),
        (lambda: awake()(torch.zeros(1, 2, 8, 8, 8), torch.zeros(1)), r"\(B, 1, X, Y, Z\)"),
        (lambda: awake()(torch.zeros(1, 1, 8, 8, 10), torch.zeros(1)), "multiples of 4"),
        (lambda: PeriodicUNet()(torch.zeros(1, 1, 8, 8, 8), torch.zeros(1), request([0.5])), "not built for"),
    ],
)
def test_networks_and_inputs_that_do_not_fit(build, message):
    with pytest.raises(InvalidArgument, match=message):
        build()


# --- recipe and pipeline ----------------------------------------------------------------------------------------


def test_train_then_sample_writes_volumes_and_meshes(checkpoint, tmp_path):
    facts = hub.read_config(checkpoint)["metadata"]
    assert facts["recipe"] == "materials3d/volume-fraction" and facts["shape"] == [8, 8, 8]
    files = sample(checkpoint, out=tmp_path, volume_fraction=(0.4, 0.6), steps=2, spacing=0.5, unit="um", device="cpu")
    assert [f.suffix for f in files] == [".tif", ".glb", ".tif", ".glb"]
    ms = read_volume(files[0])
    assert ms.shape == (8, 8, 8) and ms.spacing == (0.5,) * 3 and ms.unit == "um" and ms.periodic == (True,) * 3
    assert ms.attributes["requested_volume_fraction"] == 0.4
    assert ms.attributes["volume_fraction"] == pytest.approx(metrics.volume_fraction(ms))
    assert trimesh.load_mesh(files[1]).is_watertight


def test_structures_are_on_disk_before_the_next_batch_is_drawn(checkpoint, tmp_path, monkeypatch):
    """An interruption loses one batch; a structure of one phase has no mesh, and the rest are written all the same."""
    drawn = MicrostructurePipeline.stream

    def one_by_one(self, *given, **arguments):
        for i, ms in enumerate(drawn(self, *given, **{**arguments, "batch_size": 1})):
            if i == 2:
                raise KeyboardInterrupt
            yield Microstructure(0 * ms.labels) if i == 0 else ms

    monkeypatch.setattr(MicrostructurePipeline, "stream", one_by_one)
    with (
        pytest.raises(KeyboardInterrupt),
        pytest.warns(UserWarning, match=r"vf-0\.400-000 has no mesh: phase 1 is absent"),
    ):
        sample(checkpoint, out=tmp_path, volume_fraction=(0.4, 0.5, 0.6), steps=2, device="cpu")
    names = {path.name for path in tmp_path.iterdir()}
    assert {"vf-0.400-000.tif", "vf-0.500-001.tif", "vf-0.500-001.glb"} <= names and "vf-0.400-000.glb" not in names


def test_what_is_not_installed_is_missed_before_sampling(checkpoint, tmp_path, monkeypatch):
    from suffuse_materials3d.recipes import sample_ldm

    monkeypatch.setitem(sys.modules, "nrrd", None)
    with pytest.raises(MissingExtra, match="nrrd"):
        sample_ldm(tmp_path / "no checkpoint", format="nrrd", device="cpu")
    monkeypatch.setitem(sys.modules, "lxml", None)
    with pytest.raises(MissingExtra, match="lxml"):
        sample(tmp_path / "no checkpoint", mesh="3mf", device="cpu")


def test_a_structure_depends_on_its_seed_and_request_alone(checkpoint):
    pipeline = MicrostructurePipeline.from_pretrained(checkpoint)
    many = pipeline([0.35, 0.5, 0.65], steps=2, seed=3, batch_size=3)
    few = pipeline([0.35, 0.5, 0.65], steps=2, seed=3, batch_size=1)
    for a, b in zip(many, few, strict=True):
        assert np.allclose(a.field, b.field, atol=1e-5)
    assert not np.allclose(many[0].field, pipeline([0.35], steps=2, seed=4)[0].field)


def test_shapes_counts_and_no_request(checkpoint):
    pipeline = MicrostructurePipeline.from_pretrained(checkpoint)
    made = pipeline(0.5, n=2, shape=(8, 12, 16), steps=2, guidance_scale=2.0)
    assert [ms.shape for ms in made] == [(8, 12, 16)] * 2
    free = pipeline(None, n=2, steps=2)
    assert len(free) == 2 and "requested_volume_fraction" not in free[0].attributes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"targets": 1.2}, r"\[0, 1\], got 1.2"),
        ({"targets": -0.1}, r"\[0, 1\]"),
        ({"targets": [0.5, float("nan")]}, r"\[0, 1\], got nan"),
        ({"targets": 0.9, "strict": True}, r"volume_fraction=0.9 is outside of what the training data have"),
        ({"targets": []}, "volume_fraction is empty"),
        ({"targets": 0.5, "n": 0}, "n, batch_size and candidates"),
        ({"targets": 0.5, "steps": 0}, "steps"),
        ({"targets": 0.5, "shape": (8, 8)}, "shape"),
        ({"targets": 0.5, "shape": (8, 8, 9)}, "multiples of 4"),
        ({"targets": 0.5, "spacing": (1, 1, -1)}, "spacing"),
    ],
)
def test_requests_that_cannot_be_met(checkpoint, arguments, message):
    with pytest.raises(InvalidArgument, match=message):
        MicrostructurePipeline.from_pretrained(checkpoint)(**{"steps": 2, **arguments})


def test_checkpoints_and_data_that_are_not_ours(checkpoint, tmp_path):
    hub.save(NetworkDenoiser(awake(), schedules.VPCosine()), tmp_path, {"recipe": "other/thing"})
    with pytest.raises(CheckpointError, match="other/thing"):
        MicrostructurePipeline.from_pretrained(tmp_path)
    with pytest.raises(InvalidArgument, match="unknown dataset 'spinodle'; did you mean 'spinodal'"):
        volume_fraction(out=tmp_path / "a", **{**SMALL, "dataset": "spinodle"})
    with pytest.raises(InvalidArgument, match="multiple of 4"):
        volume_fraction(out=tmp_path / "b", **{**SMALL, "size": 10})
    with pytest.raises(InvalidArgument, match="mesh must be one of"):
        sample(checkpoint, out=tmp_path, mesh="obj")


def test_data_sets_by_name_differ_in_their_length():
    def length(name: str) -> float:
        structures = load(name, 2, 24, (0.4, 0.6), progress=False).microstructures()
        return float(np.mean([metrics.characteristic_length(ms) for ms in structures]))

    assert 1.1 * length("spinodal") < length("spinodal-coarse")


# --- baselines --------------------------------------------------------------------------------------------------


def test_correlation_of_a_gaussian_field_at_one_half():
    """phi = 1/2: S2 = 1/4 + arcsin(rho) / (2 pi)."""
    rho = np.array([-0.5, 0.0, 0.3, 0.9, 1.0])
    s2 = 0.25 + np.arcsin(rho) / (2 * np.pi)
    assert gaussian_correlation(s2, 0.5) == pytest.approx(rho, abs=1e-5)
    with pytest.raises(InvalidArgument, match="phi"):
        gaussian_correlation(s2, 1.0)


def test_a_cut_gaussian_field_has_the_fraction_and_the_two_point_function():
    data = simulate_spinodal(8, (24, 24, 24), volume_fraction=(0.45, 0.55), progress=False)
    field = GaussianField(data.microstructures(), neighbours=8)
    generator = torch.Generator().manual_seed(0)
    made = [field(0.5, (24, 24, 24), generator) for _ in range(8)]
    assert all(metrics.volume_fraction(ms) == pytest.approx(0.5, abs=1e-4) for ms in made)
    target = field.target(0.5)
    assert target.values[0] == pytest.approx(0.5)
    mean = np.mean([metrics.two_point_correlation(ms).values for ms in made], axis=0)
    assert np.abs(mean - target.values).max() < 0.03
    with pytest.raises(InvalidArgument, match="examples is empty"):
        GaussianField([])


def test_the_nearest_volume():
    data = simulate_spinodal(6, (8, 8, 8), times=(30.0,), progress=False)
    row = nearest(data, 0.5)
    assert abs(data.volume_fraction[row] - 0.5) == (data.volume_fraction - 0.5).abs().min()


# --- pictures, benchmark, readme --------------------------------------------------------------------------------


def test_pictures(tmp_path):
    two = simulate_spinodal(2, (8, 8, 8), times=(30.0,), progress=False).microstructures()
    plots.slice_grid({"a": two, "b": two}, ["1", "2"]).savefig(tmp_path / "slices.png")
    plots.surface(two, ["1", "2"]).savefig(tmp_path / "surface.png")
    plots.parity([0.3, 0.5], {"a": [0.31, 0.5]}, "volume fraction").savefig(tmp_path / "parity.png")
    assert all((tmp_path / f"{name}.png").stat().st_size > 2000 for name in ("slices", "surface", "parity"))
    with pytest.raises(InvalidArgument, match="equally long"):
        plots.slice_grid({"a": two, "b": two[:1]})


def test_the_benchmark_runs_and_reports(tmp_path, monkeypatch):
    from suffuse.bench import Run
    from suffuse_materials3d.benchmarks import BENCHMARKS

    benchmark = BENCHMARKS[0]
    tiny = {k: v for k, v in SMALL.items() if k not in ("device", "progress")}
    monkeypatch.setitem(benchmark.function.__globals__, "PROFILES", {"quick": tiny})
    monkeypatch.setitem(benchmark.function.__globals__, "REQUESTS", {"quick": 6})
    out = tmp_path / "scratch"
    out.mkdir()
    run = Run(benchmark, "quick", 0, "cpu", out, None, False, tmp_path / "report")
    benchmark(run)
    methods = {row.method for row in run.rows}
    assert methods == {"diffusion", "unconditional", "gaussian-field", "nearest-training-volume", "simulation"}
    assert {a.path.rsplit("/")[-1] for a in run.figures} == {"slices.png", "parity.png", "surfaces.png"}
    assert (run.report / run.artifacts[0].path).suffix == ".glb"
    exact = next(r for r in run.rows if r.method == "gaussian-field" and r.metric == "mae")
    assert exact.value < 0.01  # a cut has the fraction by construction
    json.dumps([row.setting for row in run.rows])


def test_the_readme_example_runs(tmp_path, monkeypatch, checkpoint):
    """The first Python block of the README, on a model of a few steps."""
    readme = Path(__file__).parents[2] / "packages" / "materials3d" / "README.md"
    code = re.search(r"```python\n(.*?)```", readme.read_text(), re.S)
    assert code is not None
    monkeypatch.chdir(tmp_path)
    exec(compile(code[1], "README.md", "exec"), {})
    assert trimesh.load_mesh(tmp_path / "structure.glb").is_watertight


def test_simulations_and_samples_do_not_start_from_the_same_noise():
    """Both grow a structure out of white noise, and out of the same noise much the same one, which proves nothing."""
    from suffuse.random import generators, randn

    shape, arguments = (16, 16, 16), {"times": (20.0,), "volume_fraction": (0.45, 0.55), "progress": False}
    data = simulate_spinodal(4, shape, seed=0, **arguments)
    of_samples = randn((4, *shape), generators(range(4)))  # as the pipeline draws for seed 0
    start = data.equation.start(torch.zeros(4), shape, generators(range(4)))
    assert metrics.overlap(data.equation.run(start, [20.0])[:, 0], of_samples).min() > 0.14
    assert metrics.overlap(data.fields, of_samples).max() < 0.11
