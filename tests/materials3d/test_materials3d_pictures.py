"""Meshes of all formats, pictures, pages, and the command line."""

import json
import zipfile

import numpy as np
import pytest
import torch
import trimesh

from suffuse.errors import InvalidArgument
from suffuse_materials3d import Microstructure, to_mesh, to_scene, write_mesh, write_volume
from suffuse_materials3d.__main__ import main
from suffuse_materials3d.mesh import MESH_SUFFIXES


@pytest.fixture
def three() -> Microstructure:
    """Smooth random phases 0, 1, 2."""
    u = torch.randn(3, 14, 12, 10, generator=torch.Generator().manual_seed(0))
    for dim in (1, 2, 3):
        u = u + u.roll(1, dim) + u.roll(-1, dim)
    return Microstructure(u.argmax(0).to(torch.uint8).numpy(), (0.5, 0.5, 1.0), "um")


@pytest.mark.parametrize("suffix", MESH_SUFFIXES)
def test_meshes_come_back_watertight_and_of_the_volume_of_the_voxels(suffix, three, tmp_path):
    if suffix == ".3mf":
        pytest.importorskip("lxml")
    path = write_mesh(to_mesh(three, 1), tmp_path / f"phase{suffix}")
    back = trimesh.load_mesh(path)
    if suffix == ".stl":
        back.merge_vertices()
    assert back.is_watertight and back.volume > 0
    voxels = float(three.mask(1).sum()) * 0.25
    assert back.volume == pytest.approx(voxels, rel=0.15)
    facts = json.loads((tmp_path / f"phase{suffix}.json").read_text())
    assert facts["unit"] == "um" and facts["watertight"]


@pytest.mark.parametrize("seed", range(8))
def test_meshes_of_noise_are_closed(seed):
    """Voxels that meet at edges and corners only, in labels and in fields."""
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(1, 9, 3))
    for ms in (Microstructure(rng.integers(0, 3, shape)), Microstructure.from_field(rng.normal(size=shape).round())):
        for phase in ms.phases:
            mesh = to_mesh(ms, phase)
            assert mesh.is_volume and mesh.volume > 0


@pytest.mark.parametrize("arguments", [{}, {"smooth": 5}, {"decimate": 0.5}], ids=str)
def test_a_mesh_has_the_same_form_in_any_unit(sphere, arguments):
    if "decimate" in arguments:
        pytest.importorskip("fast_simplification")
    ms, _ = sphere
    small, large = (
        Microstructure(ms.labels, (edge, edge, 2 * edge), unit, field=ms.field)
        for edge, unit in ((1e-9, "m"), (1.0, "nm"))
    )
    a, b = to_mesh(small, **arguments), to_mesh(large, **arguments)
    assert a.is_watertight and len(a.faces) == len(b.faces)
    assert a.extents * 1e9 == pytest.approx(b.extents)
    assert a.volume * 1e27 == pytest.approx(b.volume) and a.area * 1e18 == pytest.approx(b.area)


@pytest.mark.parametrize(("unit", "stated"), [("um", "micron"), ("m", "meter"), ("nm", "millimeter")])
def test_a_3mf_states_the_unit_where_it_has_one(unit, stated, tmp_path):
    pytest.importorskip("lxml")
    path = write_mesh(to_scene(Microstructure(np.eye(3)[None], unit=unit)), tmp_path / "a.3mf")
    with zipfile.ZipFile(path) as package:
        assert f'unit="{stated}"' in package.read("3D/3dmodel.model").decode()
    assert set(trimesh.load_scene(path).geometry) == {"phase-0", "phase-1"}


def test_a_scene_has_all_phases_by_name(three, tmp_path):
    path = write_mesh(to_scene(three, smooth=5), tmp_path / "all.glb")
    assert set(trimesh.load_scene(path).geometry) == {"phase-0", "phase-1", "phase-2"}


def test_decimation_keeps_a_mesh_closed(sphere):
    pytest.importorskip("fast_simplification")
    ms, _ = sphere
    full, fewer = to_mesh(ms), to_mesh(ms, decimate=0.6)
    assert len(fewer.faces) < 0.5 * len(full.faces) and fewer.is_watertight
    assert fewer.volume == pytest.approx(full.volume, rel=0.02)
    with pytest.raises(InvalidArgument, match="decimate"):
        to_mesh(ms, decimate=1.5)


def test_pictures_and_pages(three, sphere, tmp_path):
    figure = three.plot("a title")
    figure.savefig(tmp_path / "slices.png")
    assert len(figure.axes) == 4 and (tmp_path / "slices.png").stat().st_size > 5000
    page = three.to_html(tmp_path / "page.html")
    assert page.read_text().lstrip().lower().startswith("<!doctype html")
    assert sphere[0].plot().axes


@pytest.mark.slow
def test_a_rendered_picture_is_not_empty(three, tmp_path):
    from PIL import Image

    picture = np.asarray(Image.open(three.render(tmp_path / "picture.png")).convert("L"))
    assert picture.std() > 5


def test_without_pyvista_matplotlib_draws(sphere, tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "pyvista", None)
    assert sphere[0].render(tmp_path / "picture.png").stat().st_size > 5000


def test_the_command_line(three, tmp_path, capsys):
    path = write_volume(three, tmp_path / "v.tif")
    assert main(["check-data", str(path)]) == 0
    told = capsys.readouterr().out
    assert "14 x 12 x 10 voxels" in told and "phase 2" in told and "not cubes" in told and "sv_cubes refuse" in told
    assert main(["measure", str(path), "--names", "vf_1", "S2_M"]) == 0
    assert f"vf_1 {three.mask(1).mean():.6g}" in capsys.readouterr().out
    assert main(["mesh", str(path), str(tmp_path / "v.stl"), "--smooth", "0"]) == 0
    assert (
        main(["simulate", str(tmp_path / "set"), "--trajectories", "1", "--shape", "8", "8", "8", "--snapshots", "1"])
        == 0
    )
    assert main(["measure", str(path), "--names", "vf_9"]) == 2
    assert "unknown descriptor" in capsys.readouterr().err
