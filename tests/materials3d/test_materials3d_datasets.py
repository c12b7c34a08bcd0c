"""Data sets on disk: what is in them, that they can be gone on with, and how they are split."""

import json
import warnings

import h5py
import numpy as np
import pytest
import torch

from suffuse.errors import InvalidArgument, SuffuseError
from suffuse_materials3d import Microstructure
from suffuse_materials3d.data import Volumes, cut_tomogram, read_volumes, simulate_dataset, simulated
from suffuse_materials3d.data.tomogram import rev
from suffuse_materials3d.data.volumes import symmetries, write_part

#: Boxes here are far below the structures that grow in them.
pytestmark = pytest.mark.filterwarnings("ignore:structures are up to")

SMALL = {"trajectories": 6, "shape": (8, 8, 8), "snapshots": 2, "part_size": 2, "batch_size": 2, "progress": False}


@pytest.mark.parametrize("system", ["cahn-hilliard", "flory-huggins-three", "ternary"])
def test_a_set_has_its_labels_parameters_and_descriptors(system, tmp_path):
    settings = {**SMALL, "trajectories": 2, "shape": (12, 12, 12)}
    folder = simulate_dataset(tmp_path / "set", system, descriptors=("vf_0", "clusters_1"), workers=1, **settings)
    volumes = read_volumes(folder)
    assert volumes.shape == (12, 12, 12) and len(volumes) + volumes.rejected == 4
    if len(volumes):
        share = (volumes.labels == 0).double().mean((1, 2, 3))
        assert torch.allclose(volumes.attributes["vf_0"], share)
        assert torch.allclose(volumes.attributes["time"].log(), volumes.attributes["log_time"])
        assert int(volumes.labels.max()) < volumes.phases == (2 if system == "cahn-hilliard" else 3)


def test_a_stopped_run_goes_on_and_gives_the_same(tmp_path):
    whole = simulate_dataset(tmp_path / "a", workers=1, **SMALL)
    parts = simulate_dataset(tmp_path / "b", workers=1, **SMALL)
    (parts / "part_0001.h5").unlink()
    (parts / ".part_0002.h5.partial").write_bytes(b"half")
    before = (parts / "part_0000.h5").stat().st_mtime_ns
    simulate_dataset(parts, workers=1, **SMALL)
    assert (parts / "part_0000.h5").stat().st_mtime_ns == before
    assert torch.equal(read_volumes(whole).labels, read_volumes(parts).labels)
    with pytest.raises(InvalidArgument, match="another data set"):
        simulate_dataset(parts, workers=1, **{**SMALL, "seed": 1})


@pytest.mark.slow
def test_several_processes_give_what_one_gives(tmp_path):
    one = simulate_dataset(tmp_path / "one", workers=1, **SMALL)
    two = simulate_dataset(tmp_path / "two", workers=2, **SMALL)
    assert torch.equal(read_volumes(one).labels, read_volumes(two).labels)


@pytest.mark.slow
def test_a_process_that_fails_is_reported_and_keeps_what_is_done(tmp_path):
    folder = simulate_dataset(tmp_path / "set", workers=1, **SMALL)
    (folder / "part_0000.h5").unlink()
    (folder / "part_0001.h5").unlink()
    (folder / "part_0001.h5").mkdir()  # cannot be written
    with pytest.raises(SuffuseError, match="a simulating process failed"):
        simulate_dataset(folder, workers=2, **SMALL)
    assert (folder / "part_0002.h5").is_file()


def test_histories_are_kept_with_their_structures(tmp_path):
    folder = simulate_dataset(
        tmp_path / "set", "flory-huggins", histories=("ramp", "quench"), workers=1, **{**SMALL, "trajectories": 2}
    )
    volumes = read_volumes(folder)
    assert volumes.histories["chi"].shape == (len(volumes), 33)
    assert volumes.histories["chi"].min() >= 2.4 and volumes.histories["chi"].max() <= 3.8
    with pytest.raises(InvalidArgument, match="histories drive chi"):
        simulate_dataset(tmp_path / "other", histories=("ramp",), **SMALL)


def test_a_film_is_not_periodic_across(tmp_path):
    folder = simulate_dataset(tmp_path / "set", boundary="film", workers=1, **{**SMALL, "trajectories": 2})
    assert read_volumes(folder).periodic == (True, True, False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"system": "cahn-hiliard"}, "did you mean 'cahn-hilliard'"),
        ({"descriptors": ("vf_7",)}, "unknown descriptor"),
        ({"trajectories": 0}, "at least 1"),
        ({"shape": (8, 8)}, "three sizes"),
        ({"boundary": "wall"}, "boundary"),
        ({"substrate": 1.0}, "boundary='film'"),
        ({"descriptors": ("S2_1",)}, "are curves"),
        ({"spacing": (1, 0, 1)}, "spacing"),
        ({"seed": -1}, "seed must not be negative"),
        ({"workers": 0}, "at least 1"),
        ({"device": "nope"}, "device: 'nope' cannot be used here"),
        ({"system": "flory-huggins", "histories": ("rampe",)}, "did you mean 'ramp'"),
    ],
)
def test_sets_that_cannot_be_simulated(arguments, message, tmp_path):
    """Before there is anything on disk, which would stand in the way of the corrected call."""
    with pytest.raises(InvalidArgument, match=message):
        simulate_dataset(tmp_path / "set", **{**SMALL, **arguments})
    assert not (tmp_path / "set").exists()


def test_settings_of_no_parts_are_no_set(tmp_path):
    (tmp_path / "dataset.json").write_text('{"system": "cahn')
    folder = simulate_dataset(tmp_path, workers=1, **{**SMALL, "trajectories": 2})
    assert json.loads((folder / "dataset.json").read_text())["trajectories"] == 2
    (tmp_path / "dataset.json").write_text('{"system": "cahn')
    with pytest.raises(InvalidArgument, match="cannot be read"):
        simulate_dataset(tmp_path, workers=1, **{**SMALL, "trajectories": 2})


def test_missing_parts_are_shared_among_the_processes(tmp_path, monkeypatch):
    """Parts 0, 2 and 4 of six are missing, which would all be the first's of two who take every other one of all."""
    given = []

    class Done:
        def __init__(self, command, **_):
            given.append([int(k) for k in command[5:]])

        def poll(self):
            return 0

    settings = {**SMALL, "part_size": 1}
    folder = simulate_dataset(tmp_path, workers=1, **settings)
    for k in (0, 2, 4):
        (folder / f"part_{k:04d}.h5").unlink()
    monkeypatch.setattr(simulated.subprocess, "Popen", Done)
    simulate_dataset(folder, workers=2, **settings)
    assert given == [[0, 4], [2]]


@pytest.mark.filterwarnings("default")
def test_structures_too_long_for_their_box_are_warned_of(tmp_path):
    with pytest.warns(UserWarning, match=r"structures are up to .* long in a box of 8") as seen:
        simulate_dataset(tmp_path / "small", workers=1, **SMALL)
    assert len(seen) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        simulate_dataset(
            tmp_path / "large", "flory-huggins", trajectories=1, snapshots=1, shape=(36,) * 3, progress=False
        )


def test_no_simulation_is_on_both_sides_of_a_split(tmp_path):
    volumes = read_volumes(simulate_dataset(tmp_path / "set", workers=1, **SMALL))
    train, test = volumes.split(0.34, seed=1)
    assert len(train) + len(test) == len(volumes) and len(torch.unique(test.trajectory)) == 2
    assert not set(train.trajectory.tolist()) & set(test.trajectory.tolist())


def test_files_of_others_are_read(tmp_path):
    """One dataset per sample at the root, its attributes on it, a channel axis, a field in [0, 1]."""
    field = np.random.default_rng(0).random((1, 6, 6, 4)).astype(np.float32)
    with h5py.File(tmp_path / "part_1.h5", "w") as file:
        for i in range(2):
            file.create_dataset(f"sample_{i}", data=field).attrs.update(ABS_f_D=0.4 + i, phi=0.5)
    with pytest.warns(UserWarning, match="cut into phases"):
        volumes = read_volumes(tmp_path)
    assert volumes.shape == (6, 6, 4) and volumes.attributes["ABS_f_D"].tolist() == [0.4, 1.4]
    assert np.array_equal(volumes.labels[0].numpy(), field[0] > 0.5)
    assert len(torch.unique(volumes.trajectory)) == 2


def test_files_that_are_no_sets(tmp_path):
    (tmp_path / "part_0.h5").write_bytes(b"not hdf5")
    with pytest.raises(InvalidArgument, match="cannot be read as HDF5"):
        read_volumes(tmp_path)
    with pytest.raises(InvalidArgument, match="neither a file nor a folder"):
        read_volumes(tmp_path / "absent")
    for i, shape in enumerate([(4, 4, 4), (4, 4, 5)]):
        write_part(tmp_path / f"part_{i}.h5", np.zeros((1, *shape), dtype=np.uint8), [{"trajectory_id": i}])
    with pytest.raises(InvalidArgument, match="different shapes"):
        read_volumes(tmp_path)


@pytest.mark.parametrize(("values", "phases"), [([0, 255], 2), ([0, 1, 3], 3), ([1, 2], 2), ([0.0, 255.0], 2)])
def test_the_values_of_a_set_become_labels_alike_in_all_volumes(values, phases, tmp_path):
    """A volume that lacks a value does not number the rest in its own way."""
    every = np.random.default_rng(0).choice(values, (6, 5, 4))
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["one"], file["two"] = every, np.full_like(every, values[-1])
    with pytest.warns(UserWarning, match="values are read as labels"):
        volumes = read_volumes(tmp_path)
    assert volumes.phases == phases and np.array_equal(volumes.labels[0], np.searchsorted(values, every))
    assert set(volumes.labels[1].flatten().tolist()) == {phases - 1}


def test_a_set_written_with_0_and_255_has_two_phases(tmp_path):
    labels = 255 * np.random.default_rng(0).integers(0, 2, (2, 6, 5, 4)).astype(np.uint8)
    write_part(tmp_path / "part_0.h5", labels, [{}, {}], phases=256)
    with pytest.warns(UserWarning, match="0 -> 0, 255 -> 1"):
        assert read_volumes(tmp_path).phases == 2


def test_a_phase_that_does_not_occur_keeps_its_number(tmp_path):
    write_part(tmp_path / "part_0.h5", np.full((1, 4, 4, 4), 2, dtype=np.uint8), [{}], phases=3)
    write_part(tmp_path / "part_1.h5", np.zeros((1, 4, 4, 4), dtype=np.uint8), [{}], phases=2)
    volumes = read_volumes(tmp_path)
    assert volumes.phases == 3 and volumes.labels.unique().tolist() == [0, 2]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.full((4, 4, 4), 300), r"whole labels in 0 ... 255, got int64 300"),
        (np.full((4, 4, 4), -1), r"whole labels in 0 ... 255, got int64 -1"),
        (np.arange(64).reshape(4, 4, 4), "grey values"),
        (np.zeros((0, 3, 3)), "at least one voxel"),
        (np.zeros((2, 4, 4, 4)), r"\(2, 4, 4, 4\); each volume must be"),
    ],
)
def test_volumes_of_a_set_that_are_none(values, message, tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["v"] = values
    with pytest.raises(InvalidArgument, match=message):
        read_volumes(tmp_path)


@pytest.mark.parametrize(
    ("attributes", "head", "message"),
    [
        ({"history_chi": np.arange(3.0)}, {}, "history_chi has"),
        ({}, {"spacing": (9, 9, 9)}, "differ in spacing"),
        ({}, {"unit": "nm"}, "differ in unit"),
        ({}, {"periodic": (True, True, False)}, "differ in periodic"),
    ],
)
def test_sets_of_different_kinds_are_not_one(attributes, head, message, tmp_path):
    labels = np.zeros((1, 4, 4, 4), dtype=np.uint8)
    write_part(tmp_path / "part_0.h5", labels, [{"trajectory_id": 0}])
    write_part(tmp_path / "part_1.h5", labels, [{"trajectory_id": 1, **attributes}], **head)
    with pytest.raises(InvalidArgument, match=message):
        read_volumes(tmp_path)


def test_symmetries_keep_the_thickness_of_films():
    assert len(symmetries((True, True, True), (8, 8, 4))) == 16
    film = symmetries((True, True, False), (8, 8, 4), film=True)
    assert len(film) == 8 and not any(2 in flips for flips, _ in film)
    assert len(symmetries((True, True, False), (8, 6, 4), film=True)) == 4


# --- tomograms --------------------------------------------------------------------------------------------------


def coarse(shape: tuple[int, int, int], grain: int, seed: int = 0) -> Microstructure:
    small = np.random.default_rng(seed).random([n // grain for n in shape]) < 0.5
    return Microstructure(small.repeat(grain, 0).repeat(grain, 1).repeat(grain, 2))


def test_held_out_patches_share_no_voxel_with_training():
    index = np.arange(32)[:, None, None] * np.ones((1, 16, 16))
    ms = Microstructure((index % 2).astype(np.uint8))
    marked = Microstructure(index.astype(np.uint8))  # labels are the position along x
    cut = cut_tomogram(ms, (8, 8, 8), held_out=0.25)
    assert len(cut.train) == 5 * 9 and len(cut.held_out) == 9
    front = cut_tomogram(marked, (8, 8, 8), held_out=0.25, tolerance=10.0)
    assert int(front.train.labels.max()) < 24 <= int(front.held_out.labels.min())
    assert not set(cut.train.trajectory.tolist()) & set(cut.held_out.trajectory.tolist())


def test_a_patch_below_the_representative_volume_is_warned_of():
    with pytest.warns(UserWarning, match="below the representative elementary volume"):
        cut = cut_tomogram(coarse((48, 48, 48), 12), (8, 8, 8))
    assert cut.rev[4] > 0.5
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fine = cut_tomogram(coarse((48, 48, 48), 1), (16, 16, 16), descriptors=("vf_1",))
    assert fine.representative is not None and fine.train.attributes["vf_1"].mean() == pytest.approx(0.5, abs=0.02)


def test_the_phase_that_varies_most_decides_what_is_representative():
    labels = np.zeros((16, 16, 16), np.uint8)
    labels[:8] = 2  # no phase 1, and either half has one phase alone
    assert rev(Microstructure(labels))[4] > 1 and rev(Microstructure(labels), phase=1)[4] == 0


def test_the_spread_of_independent_voxels_falls_as_the_root_of_their_number():
    spread = rev(coarse((64, 64, 64), 1))
    assert spread[8] == pytest.approx(8**-1.5, rel=0.15) and spread[4] == pytest.approx(4**-1.5, rel=0.1)


@pytest.mark.parametrize(
    ("patch", "arguments", "message"),
    [
        ((32, 32, 32), {}, "twice along axis"),
        ((8, 8), {}, "three sizes"),
        ((8, 8, 8), {"held_out": 1.5}, "held_out"),
        ((8, 8, 8), {"held_out": 0.9}, "lower it"),
    ],
)
def test_tomograms_that_cannot_be_cut(patch, arguments, message):
    with pytest.raises(InvalidArgument, match=message):
        cut_tomogram(coarse((32, 32, 32), 4), patch, **arguments)
    with pytest.raises(InvalidArgument, match="nothing to learn"):
        cut_tomogram(Microstructure(np.zeros((32, 32, 32))), (8, 8, 8))


def test_labels_beyond_the_phases_are_refused():
    with pytest.raises(InvalidArgument, match="phases=2"):
        Volumes(torch.full((1, 4, 4, 4), 2, dtype=torch.uint8), {}, torch.zeros(1), 2)


@pytest.mark.data
def test_real_tomograms_can_be_cut(suffuse_data):
    from suffuse_materials3d import read_volume

    ms = read_volume(suffuse_data / "materials" / "superres_electrodes" / "SOFC_lr_input.tif")
    assert ms.phases == (0, 1, 2)
    cut = cut_tomogram(ms, (16, 16, 16), tolerance=1.0, descriptors=("vf_0", "vf_2"))
    assert len(cut.train) > 50 and cut.train.phases == 3
