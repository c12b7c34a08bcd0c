"""Every format gives back what was written, on a box whose axes cannot be mistaken for each other."""

import json
import subprocess
import sys
import warnings

import numpy as np
import pytest

from suffuse.errors import InvalidArgument
from suffuse_materials3d import Microstructure, read_volume, write_volume
from suffuse_materials3d.data import simulate_dataset
from suffuse_materials3d.io import SUFFIXES, open_zarr, replacing

NEEDS = {".nrrd": "nrrd", ".vti": "pyvista", ".zarr": "zarr"}


@pytest.fixture
def asymmetric() -> Microstructure:
    labels = np.random.default_rng(0).integers(0, 3, (3, 5, 7)).astype(np.uint8)
    labels[0, 0] = [0, 1, 2, 2, 1, 0, 0]
    facts = {"vf_1": 0.25, "how": "by hand"}
    return Microstructure(labels, (0.5, 0.25, 2.0), "um", (True, False, True), facts)


@pytest.mark.parametrize("suffix", sorted(SUFFIXES))
def test_round_trip(suffix, asymmetric, tmp_path):
    if suffix in NEEDS:
        pytest.importorskip(NEEDS[suffix])
    back = read_volume(write_volume(asymmetric, tmp_path / f"volume{suffix}"))
    assert np.array_equal(back.labels, asymmetric.labels)
    assert back.spacing == pytest.approx(asymmetric.spacing) and back.unit == "um"
    assert back.periodic == (True, False, True)
    assert back.attributes["vf_1"] == 0.25


def test_graspi_files_are_as_graspi_reads_them(asymmetric, tmp_path):
    path = write_volume(asymmetric, tmp_path / "morphology.txt")
    numbers = [int(word) for word in path.read_text().split()]
    assert numbers[:3] == [3, 5, 7]
    x, y, z = 2, 1, 4
    label = asymmetric.labels[x, y, z]
    assert numbers[3 + x + 3 * (y + 5 * z)] == (3 if label == 2 else label)
    assert set(numbers[3:]) == {0, 1, 3}


def test_electrodes_of_graspi_are_left_out(tmp_path):
    (tmp_path / "m.txt").write_text("2 1 4\n10 10\n0 1\n3 1\n20 20\n")
    with pytest.warns(UserWarning, match="2 layers of electrodes"):
        ms = read_volume(tmp_path / "m.txt")
    assert ms.labels[:, 0, :].tolist() == [[0, 2], [1, 1]]


def test_raw_needs_its_header(asymmetric, tmp_path):
    path = write_volume(asymmetric, tmp_path / "v.raw")
    assert path.stat().st_size == 3 * 5 * 7
    header = tmp_path / "v.raw.json"
    wrong = {**json.loads(header.read_text()), "shape": [3, 5, 8]}
    header.write_text(json.dumps(wrong))
    with pytest.raises(InvalidArgument, match="its header says"):
        read_volume(path)
    header.unlink()
    with pytest.raises(InvalidArgument, match="no header v.raw.json"):
        read_volume(path)


def test_point_data_of_other_programs(tmp_path):
    pyvista = pytest.importorskip("pyvista")
    values = np.random.default_rng(0).random((3, 4, 5))
    grid = pyvista.ImageData(dimensions=values.shape, spacing=(1, 2, 3))
    grid.point_data["phi"] = values.ravel(order="F")
    grid.save(tmp_path / "phi.vti", binary=False)
    with pytest.warns(UserWarning, match="cut at 0.5"):
        ms = read_volume(tmp_path / "phi.vti")
    assert np.array_equal(ms.labels, values > 0.5) and ms.spacing == (1, 2, 3)


def test_values_of_segmented_and_of_grey_images(tmp_path):
    tifffile = pytest.importorskip("tifffile")
    three = np.random.default_rng(0).choice([0, 127, 255], (4, 5, 6)).astype(np.uint8)
    tifffile.imwrite(tmp_path / "three.tif", three, photometric="minisblack")
    with pytest.warns(UserWarning, match="0 -> 0, 127 -> 1, 255 -> 2"):
        ms = read_volume(tmp_path / "three.tif")
    assert ms.phases == (0, 1, 2) and ms.attributes["source_values"] == [0, 127, 255]
    tifffile.imwrite(tmp_path / "grey.tif", np.arange(120, dtype=np.uint8).reshape(4, 5, 6), photometric="minisblack")
    with pytest.raises(InvalidArgument, match="grey values and no phases"):
        read_volume(tmp_path / "grey.tif")


def test_labels_that_we_wrote_are_not_renamed(tmp_path):
    """A volume of phases 0 and 2 stays one, and is not taken for a segmented image."""
    labels = np.zeros((4, 4, 4), dtype=np.uint8)
    labels[2:] = 2
    assert read_volume(write_volume(Microstructure(labels), tmp_path / "v.tif")).phases == (0, 2)


def test_an_array_that_is_not_complete_says_so(tmp_path):
    pytest.importorskip("zarr")
    open_zarr(tmp_path / "v.zarr", (4, 4, 4))
    with pytest.warns(UserWarning, match="not complete"):
        read_volume(tmp_path / "v.zarr")
    with pytest.raises(InvalidArgument, match="must end in .zarr"):
        open_zarr(tmp_path / "v.tif", (4, 4, 4))


# --- files that are written over --------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", sorted(SUFFIXES))
def test_a_write_that_fails_leaves_what_was_there(suffix, asymmetric, tmp_path, monkeypatch):
    """The new volume takes the old one's place when it is complete, or not at all, and leaves nothing beside it."""
    if suffix in NEEDS:
        pytest.importorskip(NEEDS[suffix])
    path = write_volume(asymmetric, tmp_path / f"volume{suffix}")
    before = sorted(p.name for p in tmp_path.iterdir())

    def fail(*_):
        raise OSError("disk is full")

    monkeypatch.setattr("suffuse_materials3d.io.os.replace", fail)
    with pytest.raises(OSError, match="disk is full"):
        write_volume(Microstructure(1 - asymmetric.labels // 2, asymmetric.spacing), path)
    monkeypatch.undo()
    assert sorted(p.name for p in tmp_path.iterdir()) == before
    assert np.array_equal(read_volume(path).labels, asymmetric.labels)


def test_a_process_that_is_killed_leaves_what_was_there(asymmetric, tmp_path):
    """SIGKILL in the middle of a stack: the old one is whole, and the next write takes the half one's place."""
    path = write_volume(asymmetric, tmp_path / "v.tif")
    code = (
        "import os, signal, sys, numpy as np, tifffile\n"
        "from suffuse_materials3d import Microstructure, write_volume\n"
        "write = tifffile.imwrite\n"
        "def killed(path, *a, **k):\n"
        "    write(path, *a, **k); os.truncate(path, 200); os.kill(os.getpid(), signal.SIGKILL)\n"
        "tifffile.imwrite = killed\n"
        "write_volume(Microstructure(np.zeros((9, 9, 9))), sys.argv[1])\n"
    )
    assert subprocess.run([sys.executable, "-c", code, str(path)]).returncode == -9
    assert np.array_equal(read_volume(path).labels, asymmetric.labels)
    assert len(list(tmp_path.iterdir())) == 2
    write_volume(asymmetric, path)
    assert [p.name for p in tmp_path.iterdir()] == ["v.tif"]


def test_a_volume_of_another_shape_than_is_written_beside_it(asymmetric, tmp_path):
    for name in ("v.npy", "w.txt"):
        write_volume(asymmetric, tmp_path / name)
        beside = tmp_path / ("v.json" if name == "v.npy" else "w.txt.json")
        beside.write_text(json.dumps({**json.loads(beside.read_text()), "shape": [3, 5, 8]}))
        with pytest.raises(InvalidArgument, match=r"\(3, 5, 7\) voxels, but \(3, 5, 8\)"):
            read_volume(tmp_path / name)


def test_only_what_is_complete_takes_a_place(tmp_path):
    with pytest.raises(KeyboardInterrupt), replacing(tmp_path / "a.zarr") as partial:
        partial.mkdir()
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())
    for content in ("old", "new"):
        with replacing(tmp_path / "a.zarr") as partial:
            partial.mkdir()
            (partial / content).touch()
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")] == ["a.zarr", "a.zarr/new"]


@pytest.mark.parametrize("shape", [(5, 4, 1), (1, 4, 5), (4, 1, 5), (1, 1, 1), (4, 5, 3)])
def test_stacks_of_one_voxel_along_an_axis(shape, tmp_path):
    labels = np.random.default_rng(0).integers(0, 2, shape)
    assert np.array_equal(read_volume(write_volume(Microstructure(labels), tmp_path / "v.tif")).labels, labels)


# --- what is known of a volume ----------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", sorted(SUFFIXES))
def test_attributes_of_numpy_and_units_of_any_letters(suffix, asymmetric, tmp_path):
    if suffix in NEEDS:
        pytest.importorskip(NEEDS[suffix])
    facts = {"a": np.float32(0.5), "b": np.int64(3), "c": np.arange(3), "d": {"e": (1, None)}}
    for unit in ("µm", "Å"):
        ms = Microstructure(asymmetric.labels, (0.5, 0.25, 2.0), unit, attributes=facts)
        back = read_volume(write_volume(ms, tmp_path / f"v{suffix}"))
        assert back.unit == unit
        assert back.attributes == {"a": 0.5, "b": 3, "c": [0, 1, 2], "d": {"e": [1, None]}}
    other = tmp_path / f"w{suffix}"
    with pytest.raises(InvalidArgument, match=r"attributes\['x'\] is a set"):
        write_volume(Microstructure(asymmetric.labels, attributes={"x": {1}}), other)
    assert not other.exists()


def test_the_voxel_size_in_files_of_others(tmp_path):
    tifffile = pytest.importorskip("tifffile")
    stack = np.random.default_rng(0).integers(0, 2, (6, 5, 4)).astype(np.uint8)
    meta = {"axes": "ZYX", "PhysicalSizeX": 0.3, "PhysicalSizeXUnit": "µm", "PhysicalSizeY": 0.3, "PhysicalSizeZ": 2.0}
    tifffile.imwrite(tmp_path / "a.ome.tif", stack, metadata=meta, ome=True, photometric="minisblack")
    ms = read_volume(tmp_path / "a.ome.tif")
    assert ms.spacing == (0.3, 0.3, 2.0) and ms.unit == "um" and ms.shape == (4, 5, 6)
    # ImageJ leaves out a distance of slices of one
    for unit in ("micron", "\\u00B5m"):
        tifffile.imwrite(
            tmp_path / "b.tif", stack, imagej=True, resolution=(4, 2), metadata={"axes": "ZYX", "unit": unit}
        )
        ms = read_volume(tmp_path / "b.tif")
        assert ms.spacing == (0.25, 0.5, 1.0) and ms.unit == "um"
    nrrd = pytest.importorskip("nrrd")
    space = {"space directions": np.diag([0.5, 0.5, 2.0]), "space units": ["mm"] * 3, "space dimension": 3}
    nrrd.write(str(tmp_path / "c.nrrd"), stack, space)
    ms = read_volume(tmp_path / "c.nrrd")
    assert ms.spacing == (0.5, 0.5, 2.0) and ms.unit == "mm"


def test_a_part_of_a_set_is_a_volume(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folder = simulate_dataset(
            tmp_path, trajectories=1, snapshots=1, shape=(8, 8, 8), spacing=(5, 5, 5), unit="nm", progress=False
        )
    ms = read_volume(folder / "part_0000.h5")
    assert ms.spacing == (5.0, 5.0, 5.0) and ms.unit == "nm" and ms.periodic == (True,) * 3
    assert ms.attributes["trajectory_id"] == 0 and "log_time" in ms.attributes


# --- images that are no volumes, or not as we wrote them --------------------------------------------------------


def test_colours_are_no_phases(tmp_path):
    tifffile = pytest.importorskip("tifffile")
    picture = (255 * np.random.default_rng(0).integers(0, 2, (32, 30, 3))).astype(np.uint8)
    tifffile.imwrite(tmp_path / "rgb.tif", picture, photometric="rgb")
    with pytest.raises(InvalidArgument, match="colours or channels"):
        read_volume(tmp_path / "rgb.tif")


def test_our_stack_changed_by_another_program(asymmetric, tmp_path):
    """Thresholded to 0 and 255, or cut, with our text kept: labels and voxels are those of the image."""
    tifffile = pytest.importorskip("tifffile")
    two = Microstructure(asymmetric.labels % 2, (0.5, 0.5, 2.0), "um", (True,) * 3, {"vf_1": 0.5})
    with tifffile.TiffFile(write_volume(two, tmp_path / "ours.tif")) as file:
        info = file.imagej_metadata["Info"]
    meta = {"axes": "ZYX", "spacing": 2, "unit": "um", "Info": info}
    stack = 255 * two.labels.transpose(2, 1, 0)
    tifffile.imwrite(tmp_path / "a.tif", stack, imagej=True, resolution=(2, 2), metadata=meta)
    with pytest.warns(UserWarning, match="0 -> 0, 255 -> 1"):
        assert np.array_equal(read_volume(tmp_path / "a.tif").labels, two.labels)
    tifffile.imwrite(tmp_path / "b.tif", stack[:4] // 255, imagej=True, resolution=(2, 2), metadata=meta)
    cut = read_volume(tmp_path / "b.tif")
    assert cut.shape == (3, 5, 4) and cut.spacing == (0.5, 0.5, 2.0) and "vf_1" not in cut.attributes


def test_a_mask_that_is_set_everywhere(tmp_path):
    np.save(tmp_path / "full.npy", np.full((4, 4, 4), 255, dtype=np.uint8))
    with pytest.warns(UserWarning, match="255 -> 1"):
        assert read_volume(tmp_path / "full.npy").phases == (1,)


@pytest.mark.parametrize("suffix", [".tif", ".nrrd", ".npy", ".h5", ".raw", ".txt"])
def test_files_that_end_early(suffix, asymmetric, tmp_path):
    if suffix in NEEDS:
        pytest.importorskip(NEEDS[suffix])
    path = write_volume(asymmetric, tmp_path / f"v{suffix}")
    whole = path.read_bytes()
    for share in (0, 0.02, 0.3, 0.5, 0.7, 0.9):
        path.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(InvalidArgument):
            read_volume(path)


@pytest.mark.parametrize(
    "header", [{"shape": [2, 3, 4], "dtype": "u9"}, {"shape": [2, 3, 4], "spacing": 3}, {"shape": 24}, [1], "text"]
)
def test_headers_that_make_no_sense(header, tmp_path):
    (tmp_path / "v.raw").write_bytes(bytes(24))
    (tmp_path / "v.raw.json").write_text(json.dumps(header))
    with pytest.raises(InvalidArgument, match="cannot be read as"):
        read_volume(tmp_path / "v.raw")
