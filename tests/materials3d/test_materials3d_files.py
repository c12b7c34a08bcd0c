"""Microstructures, volumes on disk, and meshes."""

import json

import numpy as np
import pytest
import trimesh

from suffuse.errors import InvalidArgument, MissingExtra
from suffuse_materials3d import Microstructure, read_volume, to_mesh, to_scene, write_mesh, write_volume
from suffuse_materials3d.data import simulate_spinodal


@pytest.fixture
def odd() -> Microstructure:
    """Three phases in no symmetric arrangement, with three voxel edges and three sizes."""
    labels = np.random.default_rng(0).integers(0, 3, (4, 6, 9))
    return Microstructure(
        labels, spacing=(0.5, 0.25, 2.0), unit="um", periodic=(True, False, True), attributes={"sample": "A1", "t": 3.5}
    )


@pytest.fixture
def network() -> Microstructure:
    return simulate_spinodal(1, (20, 20, 20), times=(40.0,), progress=False).microstructures((0.1, 0.1, 0.2), "um")[0]


# --- volumes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".tif", ".tiff", ".npy", ".nrrd"])
def test_a_volume_comes_back_as_it_was(odd, tmp_path, suffix):
    if suffix == ".nrrd":
        pytest.importorskip("nrrd", reason="needs the extra nrrd")
    back = read_volume(write_volume(odd, tmp_path / f"volume{suffix}"))
    assert (back.labels == odd.labels).all() and back.labels.dtype == np.uint8
    assert back.spacing == odd.spacing and back.unit == odd.unit and back.periodic == odd.periodic
    assert dict(back.attributes) == dict(odd.attributes)


def test_a_stack_is_what_other_programs_expect(odd, tmp_path):
    """Pages along z, rows along y; the voxel size is where Fiji looks for it, and is read from there, too."""
    import tifffile

    path = write_volume(odd, tmp_path / "stack.tif")
    with tifffile.TiffFile(path) as file:
        assert file.is_imagej and file.asarray().shape == (9, 6, 4)
        assert file.imagej_metadata["spacing"] == 2.0 and file.imagej_metadata["unit"] == "um"
        assert file.pages[0].tags["XResolution"].value == (2, 1)
    foreign = tmp_path / "foreign.tif"
    meta = {"axes": "ZYX", "spacing": 2.0, "unit": "nm"}
    tifffile.imwrite(foreign, odd.labels.transpose(2, 1, 0), imagej=True, resolution=(2, 4), metadata=meta)
    back = read_volume(foreign)
    assert back.spacing == (0.5, 0.25, 2.0) and back.unit == "nm" and (back.labels == odd.labels).all()


def test_an_image_of_two_values_is_read_as_two_phases_and_says_so(tmp_path):
    import tifffile

    labels = np.random.default_rng(0).integers(0, 2, (3, 4, 5)).astype(np.uint8)
    tifffile.imwrite(tmp_path / "scan.tif", 255 * labels, photometric="minisblack")
    with pytest.warns(UserWarning, match="values are read as labels 0 -> 0, 255 -> 1"):
        ms = read_volume(tmp_path / "scan.tif", spacing=(2, 2, 2), unit="um")
    assert (ms.labels == labels.transpose(2, 1, 0)).all()
    assert ms.attributes["source_values"] == [0, 255] and ms.spacing == (2.0, 2.0, 2.0) and ms.unit == "um"


def test_files_that_are_no_volumes(tmp_path, odd):
    with pytest.raises(InvalidArgument, match=r"unknown volume format '.vtk'.*\.nrrd"):
        write_volume(odd, tmp_path / "a.vtk")
    with pytest.raises(InvalidArgument, match="unknown volume format"):
        read_volume(tmp_path / "noending")
    with pytest.raises(InvalidArgument, match="is not a file"):
        read_volume(tmp_path / "absent.npy")
    for name in ("a.tif", "a.npy"):
        (tmp_path / name).write_bytes(b"not a volume")
        with pytest.raises(InvalidArgument, match="cannot be read"):
            read_volume(tmp_path / name)
    np.save(tmp_path / "flat.npy", np.zeros((4, 4)))
    with pytest.raises(InvalidArgument, match="3 axes"):
        read_volume(tmp_path / "flat.npy")
    np.save(tmp_path / "objects.npy", np.array([{}]), allow_pickle=True)
    with pytest.raises(InvalidArgument, match="cannot be read"):
        read_volume(tmp_path / "objects.npy")


def test_nrrd_needs_its_extra(tmp_path, odd, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "nrrd", None)
    with pytest.raises(MissingExtra, match=r"pip install 'suffuse-materials3d\[io\]'"):
        write_volume(odd, tmp_path / "a.nrrd")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"labels": np.zeros((4, 4))}, "3 axes"),
        ({"labels": np.zeros((2, 4, 4, 4))}, "3 axes"),
        ({"labels": np.zeros((0, 4, 4))}, "empty"),
        ({"labels": np.full((2, 2, 2), np.nan)}, "NaN"),
        ({"labels": np.full((2, 2, 2), 0.5)}, "from_field"),
        ({"labels": np.full((2, 2, 2), -1)}, "0 ... 255"),
        ({"labels": np.full((2, 2, 2), 256)}, "0 ... 255"),
        ({"labels": np.full((2, 2, 2), "a")}, "whole numbers"),
        ({"spacing": (1, 1, 0)}, "spacing"),
        ({"spacing": (1, -1, 1)}, "spacing"),
        ({"spacing": (1, 1)}, "spacing"),
        ({"spacing": (1, 1, float("nan"))}, "spacing"),
        ({"periodic": (True,)}, "periodic"),
        ({"field": np.zeros((2, 2, 3))}, "field has shape"),
        ({"field": np.full((2, 2, 2), np.inf)}, "field has NaN"),
    ],
)
def test_structures_that_are_none(arguments, message):
    with pytest.raises(InvalidArgument, match=message):
        Microstructure(**{"labels": np.zeros((2, 2, 2)), **arguments})


def test_a_field_with_nan_is_no_structure():
    with pytest.raises(InvalidArgument, match="NaN"):
        Microstructure.from_field(np.full((2, 2, 2), np.nan))


# --- meshes -----------------------------------------------------------------------------------------------------


def test_the_mesh_of_a_ball(sphere):
    ms, radius = sphere
    mesh = to_mesh(ms)
    assert mesh.is_watertight and mesh.is_winding_consistent and mesh.is_volume
    assert mesh.volume == pytest.approx(4 / 3 * np.pi * radius**3, rel=0.01)
    assert mesh.area == pytest.approx(4 * np.pi * radius**2, rel=0.01)
    assert mesh.center_mass == pytest.approx((12.3, 12.9, 13.6), abs=0.02)
    assert mesh.euler_number == 2 and mesh.units == "um"


@pytest.mark.parametrize("phase", [0, 1])
def test_a_network_that_meets_the_box_is_closed_on_its_faces(network, phase):
    mesh = to_mesh(network, phase)
    assert mesh.is_watertight and mesh.is_volume
    assert mesh.bounds == pytest.approx(np.array([[0, 0, 0], network.size]), abs=1e-5)
    assert mesh.volume == pytest.approx(network.mask(phase).sum() * 0.1 * 0.1 * 0.2, rel=0.03)


def test_both_phases_fill_the_box(network):
    total = to_mesh(network, 0).volume + to_mesh(network, 1).volume
    assert (
        0.975 < total / np.prod(network.size) < 1
    )  # the edges of the box, and where the interface meets it, are bevelled


def test_an_uncapped_surface_reaches_its_own_repetition(network):
    """The open surface of a periodic structure is one period wide, and its area has no part on the box."""
    mesh = to_mesh(network, cap=False)
    assert not mesh.is_watertight
    assert mesh.extents == pytest.approx(network.size, rel=1e-4)
    assert mesh.area < to_mesh(network).area


def test_labels_mesh_too_and_smoothing_keeps_their_volume(network):
    plain = Microstructure(network.labels, network.spacing, network.unit)
    rough, smooth = to_mesh(plain), to_mesh(plain, smooth=10)
    assert rough.is_watertight and smooth.is_watertight
    assert smooth.volume == pytest.approx(rough.volume, rel=0.03) and smooth.area < rough.area


def test_a_full_box_is_a_box():
    mesh = to_mesh(Microstructure(np.ones((3, 4, 5)), spacing=(1, 2, 3)))
    assert mesh.is_watertight and mesh.extents == pytest.approx((3, 8, 15))


@pytest.mark.parametrize("suffix", [".glb", ".stl", ".ply"])
def test_a_mesh_file_holds_the_mesh(network, tmp_path, suffix):
    mesh = to_mesh(network)
    path = write_mesh(mesh, tmp_path / f"part{suffix}")
    back = trimesh.load_mesh(path)
    assert back.is_watertight and back.volume == pytest.approx(mesh.volume, rel=1e-4)
    assert back.bounds == pytest.approx(mesh.bounds, abs=1e-4)
    facts = json.loads((tmp_path / f"part{suffix}.json").read_text())
    assert facts["unit"] == "um" and facts["watertight"] and facts["volume"] == pytest.approx(mesh.volume)


def test_a_scene_names_its_phases(network, tmp_path):
    scene = to_scene(network)
    back = trimesh.load_scene(write_mesh(scene, tmp_path / "scene.glb"))
    assert set(back.geometry) == {"phase-0", "phase-1"}
    assert json.loads((tmp_path / "scene.glb.json").read_text())["unit"] == "um"


def test_meshes_that_cannot_be(network, tmp_path):
    with pytest.raises(InvalidArgument, match=r"phase 5 is absent.*\(0, 1\)"):
        to_mesh(network, 5)
    with pytest.raises(InvalidArgument, match="fills the box"):
        to_mesh(Microstructure(np.ones((4, 4, 4))), cap=False)
    with pytest.raises(InvalidArgument, match=r"unknown mesh format '.obj'"):
        write_mesh(to_mesh(network), tmp_path / "part.obj")
    with pytest.raises(InvalidArgument, match="empty"):
        write_mesh(trimesh.Trimesh(), tmp_path / "part.stl")
