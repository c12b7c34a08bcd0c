"""Descriptors against closed forms."""

import math

import numpy as np
import pytest
import torch

from suffuse.errors import InvalidArgument
from suffuse_materials3d import Microstructure, measure, metrics


def structure(labels, **kwargs) -> Microstructure:
    return Microstructure(np.asarray(labels), **kwargs)


def test_a_ball_has_the_volume_and_the_area_of_a_ball(sphere):
    ms, radius = sphere
    box = np.prod(ms.size)
    assert metrics.volume_fraction(ms) * box == pytest.approx(4 / 3 * math.pi * radius**3, rel=0.01)
    assert metrics.interface_area(ms) * box == pytest.approx(4 * math.pi * radius**2, rel=0.01)


def test_lengths_scale_with_the_voxel(sphere):
    """Voxels of 0.5: areas per volume double, Euler numbers per volume grow eightfold, fractions stay."""
    ms, _ = sphere
    half = Microstructure(ms.labels, spacing=(0.5, 0.5, 0.5), unit="um", periodic=ms.periodic)
    assert metrics.interface_area(half) == pytest.approx(2 * metrics.interface_area(ms))
    assert metrics.euler_density(half) == pytest.approx(8 * metrics.euler_density(ms))
    assert metrics.volume_fraction(half) == metrics.volume_fraction(ms)
    a, b = metrics.two_point_correlation(half), metrics.two_point_correlation(ms)
    assert np.allclose(a.values, b.values) and np.allclose(2 * a.r, b.r)


def test_area_of_an_anisotropic_ball():
    """A ball on voxels of 1 x 1 x 2: the area is that of the ball, not of its image."""
    x, y, z = np.meshgrid(np.arange(32) - 15.2, np.arange(32) - 15.2, 2 * (np.arange(16) - 7.4), indexing="ij")
    ms = structure(x**2 + y**2 + z**2 < 12**2, spacing=(1, 1, 2), periodic=(True, True, True))
    assert metrics.interface_area(ms) * np.prod(ms.size) == pytest.approx(4 * math.pi * 12**2, rel=0.02)


def test_layers_have_two_faces_a_period(layers):
    """S_V = 2 / period = 1/4; the 13 directions leave a few percent on flat aligned faces."""
    assert metrics.interface_area(layers) == pytest.approx(0.25, rel=0.08)


def test_open_and_periodic_boundaries_are_counted_apart():
    """Half and half: one interface inside an open box, and one more across the periodic boundary."""
    labels = np.zeros((8, 8, 8), dtype=np.uint8)
    labels[:4] = 1
    open_, periodic = structure(labels), structure(labels, periodic=(True, True, True))
    assert metrics.interface_area(periodic) == pytest.approx(2 * metrics.interface_area(open_) * 7 / 8, rel=1e-6)


def test_two_points_in_layers(layers):
    """Along the layers S2 = 1/2 always, across them it is a triangle wave between 1/2 and 0; S2(0) = 1/2."""
    mask = torch.from_numpy(layers.mask(1)).double()
    lags = metrics._autocorrelation(mask, mask.shape) / mask.numel()
    assert torch.allclose(lags[:, 0, 0], torch.full((16,), 0.5, dtype=torch.float64))
    wave = torch.tensor([abs(4 - z % 8) / 8 for z in range(16)], dtype=torch.float64)
    assert torch.allclose(lags[0, 0], wave)
    curve = metrics.two_point_correlation(layers)
    assert curve.r[0] == 0 and curve.values[0] == pytest.approx(0.5)


def test_two_points_without_periodicity_count_only_pairs_inside():
    """One full box: every pair inside it is in the phase, at every distance."""
    curve = metrics.two_point_correlation(structure(np.ones((6, 8, 10))))
    assert np.allclose(curve.values, 1.0)
    assert len(curve.r) == 4


def test_overlapping_balls(balls):
    """Void of overlapping balls, Torquato (2002), eq. 5.4 and 5.18: S2 and L in closed form."""
    ms, radius, eta = balls
    assert metrics.volume_fraction(ms, 0) == pytest.approx(math.exp(-eta), abs=0.02)
    eta = -math.log(metrics.volume_fraction(ms, 0))  # of this realisation
    r, s2 = metrics.two_point_correlation(ms, 0)
    inside = r < 2 * radius
    union = np.where(inside, 1 + 3 * r / (4 * radius) - r**3 / (16 * radius**3), 2)
    assert np.abs(s2 - np.exp(-eta * union)).max() < 0.012
    line = metrics.lineal_path(ms, 0)
    assert np.abs(line.values - np.exp(-eta * (1 + 3 * line.r / (4 * radius)))).max() < 0.02
    surface = 3 * eta / radius * math.exp(-eta)  # eq. 5.22
    assert 0.89 * surface < metrics.interface_area(ms) < surface  # crossings closer than a voxel (R/5) are missed


def test_lineal_path_in_layers(layers):
    """A segment of r voxels starts inside a layer of 4 at (4 - r) of 8 places; along the layers always."""
    assert np.allclose(metrics.lineal_path(layers, axis=2).values[:6], [0.5, 0.375, 0.25, 0.125, 0, 0])
    assert np.allclose(metrics.lineal_path(layers, axis=0).values, 0.5)


def test_characteristic_length_of_layers_and_of_a_wave(layers):
    u = np.broadcast_to(np.cos(2 * np.pi * np.arange(16) / 8), (16, 16, 16))
    wave = Microstructure.from_field(u, spacing=(1, 1, 0.5))
    assert metrics.characteristic_length(wave) == pytest.approx(4.0)
    assert metrics.characteristic_length(layers) == pytest.approx(8.0, rel=0.25)


# --- connectivity -----------------------------------------------------------------------------------------------


def test_a_bar_percolates_along_itself_only():
    labels = np.zeros((8, 8, 8), dtype=np.uint8)
    labels[3:5, 3:5, :] = 1
    ms = structure(labels)
    assert metrics.percolates(ms, axis=2)
    assert not metrics.percolates(ms, axis=0) and not metrics.percolates(ms, axis=1)
    labels[:, :, 4] = 0
    assert not metrics.percolates(structure(labels), axis=2)


def test_an_edge_is_no_connection():
    labels = np.zeros((2, 2, 2), dtype=np.uint8)
    labels[0, 0, 0] = labels[1, 1, 1] = 1
    assert metrics.components(structure(labels))[1] == 2
    assert not metrics.percolates(structure(labels))


def test_percolation_may_wrap_sideways_but_not_through_its_own_axis():
    """Two half bars that meet only across the periodic side."""
    labels = np.zeros((8, 4, 8), dtype=np.uint8)
    labels[0, 1, :4] = 1
    labels[7, 1, 3:] = 1
    assert metrics.percolates(structure(labels, periodic=(True, True, True)))
    assert not metrics.percolates(structure(labels))
    inner = np.zeros((4, 4, 4), dtype=np.uint8)
    inner[1, 1, 0] = inner[1, 1, 3] = 1  # one cluster around the periodic axis, which crosses nothing
    assert not metrics.percolates(structure(inner, periodic=(True, True, True)))


def test_clusters_join_across_periodic_faces():
    labels = np.zeros((6, 6, 6), dtype=np.uint8)
    labels[0, 2, 2] = labels[5, 2, 2] = labels[3, 4, 4] = 1
    assert metrics.components(structure(labels))[1] == 3
    found, n = metrics.components(structure(labels, periodic=(True, False, False)))
    assert n == 2 and found[0, 2, 2] == found[5, 2, 2] != found[3, 4, 4]
    assert metrics.connected_fraction(structure(labels, periodic=(True, False, False))) == pytest.approx(2 / 3)
    assert metrics.connected_fraction(structure(labels), phase=7) == 0.0


def test_euler_numbers(sphere):
    """A ball 1, a hollow ball 2, a ring 0; a bar around a periodic axis is a ring, a layer around two is a torus."""
    ms, _ = sphere
    volume = float(np.prod(ms.size))
    assert metrics.euler_density(ms) * volume == pytest.approx(1)
    shell = ms.labels.copy()
    shell[12, 13, 14] = 0
    assert metrics.euler_density(structure(shell)) * volume == pytest.approx(2)
    ring = np.zeros((6, 6, 6), dtype=np.uint8)
    ring[1:5, 1:5, 2] = 1
    ring[2:4, 2:4, 2] = 0
    assert metrics.euler_density(structure(ring)) == pytest.approx(0)
    bar = np.zeros((6, 6, 6), dtype=np.uint8)
    bar[2, 2, :] = 1
    assert metrics.euler_density(structure(bar)) * 216 == pytest.approx(1)
    assert metrics.euler_density(structure(bar, periodic=(False, False, True))) == pytest.approx(0)
    assert metrics.euler_density(structure(np.ones((6, 6, 6)), periodic=(True, True, True))) == pytest.approx(0)


# --- comparing --------------------------------------------------------------------------------------------------


def test_overlap_finds_a_shifted_copy():
    generator = torch.Generator().manual_seed(0)
    library = torch.randn(5, 8, 8, 8, generator=generator)
    probe = torch.stack([library[3].roll((2, 5, 1), (0, 1, 2)), torch.randn(8, 8, 8, generator=generator)])
    found = metrics.overlap(probe, library)
    assert found[0] == pytest.approx(1.0, abs=1e-5) and found[1] < 0.4


def test_r2_and_mae():
    asked = [0.3, 0.4, 0.5, 0.6]
    assert metrics.r2(asked, asked) == pytest.approx(1) and metrics.mae(asked, asked) == 0
    assert metrics.r2(asked, [0.45] * 4) == pytest.approx(0, abs=1e-9)
    assert metrics.mae(asked, [0.4, 0.5, 0.6, 0.7]) == pytest.approx(0.1)
    with pytest.raises(InvalidArgument, match="two lists of one length"):
        metrics.r2(asked, asked[:2])


def test_curves_compare_only_on_the_same_distances(layers, sphere):
    a = metrics.two_point_correlation(layers)
    assert metrics.curve_distance([a], [a, a]) == 0
    with pytest.raises(InvalidArgument, match="different distances"):
        metrics.curve_distance([a], [metrics.two_point_correlation(sphere[0])])
    with pytest.raises(InvalidArgument, match="both sides"):
        metrics.curve_distance([], [a])


def test_measure_by_name(layers):
    assert measure(layers, ["vf_1", "clusters_A"]) == {"vf_1": 0.5, "clusters_A": 2.0}
    assert {"vf_0", "vf_1", "percolates_1", "sv"} <= set(measure(layers))
    assert "vf_0" not in measure(layers, phase=1)
    with pytest.raises(InvalidArgument, match="did you mean 'clusters_1'"):
        measure(layers, ["clustres_1"])


def test_structures_are_compared_by_identity(layers):
    """Arrays have no one truth value, so == and sets of structures ask whether it is the same one."""
    other = structure(layers.labels)
    assert layers == layers and layers != other and len({layers, other, layers}) == 2


def test_a_uniform_structure_has_no_length():
    with pytest.raises(InvalidArgument, match="uniform"):
        metrics.characteristic_length(structure(np.zeros((4, 4, 4))))


@pytest.mark.data
def test_berea_sandstone():
    """Porosity 0.1965 of the published scan, pores being 0; its pore space percolates in every direction."""
    import io
    import zipfile

    import tifffile

    from suffuse.data import data_root

    root = data_root()
    if root is None or not (root / "materials" / "berea" / "berea.zip").is_file():
        pytest.skip("needs materials/berea/berea.zip under SUFFUSE_DATA")
    with zipfile.ZipFile(root / "materials" / "berea" / "berea.zip") as archive:
        volume = tifffile.imread(io.BytesIO(archive.read("berea.tif")))
    rock = structure(volume != 0, spacing=(3e-6,) * 3, unit="m")
    assert metrics.volume_fraction(rock, 0) == pytest.approx(0.1965, abs=5e-4)
    part = structure(rock.labels[:96, :96, :96], spacing=rock.spacing, unit="m")
    assert all(metrics.percolates(part, 0, axis) for axis in range(3))
    assert metrics.two_point_correlation(part, 0).values[0] == pytest.approx(metrics.volume_fraction(part, 0))
    assert 5e3 < metrics.interface_area(part, 0) < 5e4  # 1/m; sandstones are of the order of 10^4
