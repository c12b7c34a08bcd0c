"""Every format gives back what was written, on a box whose axes cannot be mistaken for each other."""

import json

import numpy as np
import pytest

from suffuse.errors import InvalidArgument
from suffuse_materials3d import Microstructure, read_volume, write_volume
from suffuse_materials3d.io import SUFFIXES, open_zarr

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
    tifffile.imwrite(tmp_path / "grey.tif", np.arange(120, dtype=np.uint8).reshape(4, 5, 6))
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
