"""Descriptors against closed forms, and against each other."""

import itertools
import math
import sys

import numpy as np
import pytest
import torch

from suffuse.errors import InvalidArgument, MissingExtra
from suffuse_materials3d import Microstructure, metrics
from suffuse_materials3d.data import simulate_spinodal
from suffuse_materials3d.descriptors import (
    DESCRIPTORS,
    canonical,
    graspi,
    measure,
    measure_all,
    multiphase_transport,
    pores,
    soft,
    transport,
)

measured = pytest.mark.skipif(
    __import__("importlib.util").util.find_spec("taufactor") is None, reason="needs the extra measure"
)


@pytest.fixture(scope="module")
def spinodal() -> list[Microstructure]:
    torch.set_num_threads(1)
    data = simulate_spinodal(4, (20, 20, 10), volume_fraction=(0.4, 0.6), times=(40.0,), progress=False)
    return data.microstructures()


def channels(share: float = 0.5, shape: tuple[int, int, int] = (8, 8, 16)) -> Microstructure:
    """Straight channels along z of phase 1."""
    labels = np.zeros(shape, dtype=np.uint8)
    labels[: round(share * shape[0])] = 1
    return Microstructure(labels)


# --- transport --------------------------------------------------------------------------------------------------


@measured
def test_a_full_box_and_straight_channels_have_tortuosity_one():
    full, straight = Microstructure(np.ones((8, 8, 16))), channels(0.25)
    a, b = transport([full, straight], 1)
    assert a.tau == pytest.approx(1, abs=0.01) and a.drel == pytest.approx(1, abs=0.01)
    assert b.tau == pytest.approx(1, abs=0.01) and b.drel == pytest.approx(0.25, abs=0.005)
    assert a.converged and a.solver.startswith("taufactor ") and a.tolerance == 0.01 and a.iterations > 0


@measured
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_the_axis_of_transport_is_the_one_asked_for(axis):
    ms = Microstructure(np.moveaxis(channels(0.5).labels, 2, axis))
    found = [transport(ms, 1, transport_axis=a)[0].drel for a in range(3)]
    assert found[axis] == pytest.approx(0.5, abs=0.005)


@measured
def test_layers_in_series_have_the_harmonic_mean():
    labels = np.ones((6, 6, 16), dtype=np.uint8)
    labels[:, :, 8:] = 2
    found = multiphase_transport(Microstructure(labels), {1: 1.0, 2: 0.25})
    assert found == pytest.approx(1 / (0.5 / 1.0 + 0.5 / 0.25), rel=0.01)


@measured
def test_what_does_not_percolate_is_not_solved():
    """An isolated block, and two that touch at an edge only: taufactor returns huge numbers there."""
    block = np.zeros((8, 8, 8), dtype=np.uint8)
    block[2:6, 2:6, 2:6] = 1
    near = np.zeros((8, 8, 8), dtype=np.uint8)
    near[:4, :, :4] = near[4:, :, 4:] = 1
    for found in transport([Microstructure(block), Microstructure(near)], 1):
        assert found.drel == 0 and math.isinf(found.tau) and not found.percolates and found.iterations == 0
    near[3:5, :, 3:5] = 1  # now they share faces
    (found,) = transport(Microstructure(near), 1)
    assert found.percolates and 0 < found.drel < 0.5


@measured
def test_floating_clusters_carry_nothing_and_count_in_the_fraction():
    plain, busy = channels(0.25), channels(0.25).labels.copy()
    busy[5:7, 3:6, 3:6] = 1
    (a,), (b,) = transport(plain, 1), transport(Microstructure(busy), 1)
    assert b.drel == pytest.approx(a.drel, rel=1e-3) and b.tau > a.tau * 1.01


@measured
def test_flat_voxels_and_periodic_sides():
    """A slanted channel that leaves by one side enters by the other only where the structure is periodic."""
    labels = np.zeros((8, 8, 8), dtype=np.uint8)
    for z in range(8):
        labels[[(z + i) % 8 for i in range(3)], :, z] = 1
    walls, wrapped = (Microstructure(labels, periodic=p) for p in [(False,) * 3, (True, True, False)])
    assert transport(walls, 1)[0].drel < transport(wrapped, 1)[0].drel
    flat = Microstructure(channels(0.5).labels, spacing=(1.0, 1.0, 0.5))
    assert transport(flat, 1)[0].drel == pytest.approx(0.5, abs=0.01)


@measured
def test_a_batch_gives_what_each_gives_alone(spinodal):
    together = [t.drel for t in transport(spinodal, 1)]
    alone = [transport(ms, 1)[0].drel for ms in spinodal]
    assert together == pytest.approx(alone, rel=0.02)
    assert np.asarray(measure_all(spinodal, ["drel_A"])["drel_A"]) == pytest.approx(together)


def exact_diffusivity(conductivity: np.ndarray, spacing=(1.0, 1.0, 1.0), ends: float = 0.5) -> float:
    """D_eff along z of a small box with walls, by elimination; the electrodes are ``ends`` voxels outside."""
    from scipy import sparse

    c = np.asarray(conductivity, dtype=float)
    inside, n = c > 0, int((c > 0).sum())
    index = np.full(c.shape, -1)
    index[inside] = np.arange(n)
    rows, columns, values = [], [], []
    for axis in range(3):
        area = math.prod(spacing) / spacing[axis]
        (a, b), (ca, cb) = (
            [v.take(part, axis).ravel() for part in (range(c.shape[axis] - 1), range(1, c.shape[axis]))]
            for v in (index, c)
        )
        both = (a >= 0) & (b >= 0)
        a, b, ca, cb = a[both], b[both], ca[both], cb[both]
        rows += [a, b]
        columns += [b, a]
        values += [area / spacing[axis] * 2 * ca * cb / (ca + cb)] * 2
    ij = np.concatenate(rows), np.concatenate(columns)
    links = sparse.coo_array((np.concatenate(values), ij), shape=(n, n)).tocsr()
    faces, source = np.zeros(n), np.zeros(n)
    to_face = spacing[0] * spacing[1] / (ends * spacing[2])
    bottom, top = (index[:, :, z][inside[:, :, z]] for z in (0, -1))
    faces[bottom] += to_face * c[:, :, 0][inside[:, :, 0]]
    faces[top] += to_face * c[:, :, -1][inside[:, :, -1]]
    source[top] = to_face * c[:, :, -1][inside[:, :, -1]]
    alone = np.asarray(links.sum(1)) + faces == 0
    system = sparse.diags_array(np.asarray(links.sum(1)) + faces + alone) - links
    field = sparse.linalg.spsolve(sparse.csc_array(system), source)
    flux = (to_face * c[:, :, 0][inside[:, :, 0]] * field[bottom]).sum()
    length, width = (c.shape[2] - 1 + 2 * ends) * spacing[2], c.shape[0] * spacing[0] * c.shape[1] * spacing[1]
    return float(flux * length / width)


@measured
@pytest.mark.parametrize("spacing", [(1, 1, 1), (1, 1, 0.5), (1, 1, 2), (1, 3, 5), (1e-9, 1e-9, 2e-9)], ids=str)
@pytest.mark.parametrize("share", [0.6, 0.75])
def test_the_solver_finds_the_solution_of_the_linear_system(share, spacing):
    """Random voxels, cubic, flat or long: an irregular network, solved here by elimination."""
    labels = (np.random.default_rng(0).random((10, 10, 14)) < share).astype(np.uint8)
    ms = Microstructure(labels, spacing)
    (found,) = transport(ms, 1)
    assert found.converged
    assert found.drel == pytest.approx(exact_diffusivity(metrics.clusters_through(ms, 1), spacing), rel=0.01)


@measured
@pytest.mark.parametrize("spacing", [(1, 1, 1), (1, 1, 2), (3, 1, 2)], ids=str)
def test_several_phases_conduct_in_voxels_of_any_edges(spacing):
    labels = np.random.default_rng(1).integers(0, 3, (8, 8, 10))
    found = multiphase_transport(Microstructure(labels, spacing), {0: 0.0, 1: 1.0, 2: 0.1}, tolerance=1e-3)
    exact = exact_diffusivity(np.array([0, 1, 0.1])[labels], spacing, ends=1.0)
    assert found == pytest.approx(exact, rel=0.005)


@measured
@pytest.mark.parametrize("spacing", [(1, 1, 1), (1, 1, 2)], ids=str)
@pytest.mark.parametrize("periodic", [(True, True, False), (True, False, False), (False, True, False)], ids=str)
def test_periodic_sides_wrap_each_for_itself(periodic, spacing):
    """Two periods have the transport of one, whether its sides are even or odd."""
    labels = (np.random.default_rng(2).random((7, 8, 9)) < 0.6).astype(np.uint8)
    twice = np.tile(labels, [1 + p for p in periodic])
    one, two = (transport(Microstructure(v, spacing, periodic=periodic), 1)[0] for v in (labels, twice))
    walls = transport(Microstructure(labels, spacing), 1)[0]
    assert one.converged and one.drel == pytest.approx(two.drel, rel=0.01) and one.drel > walls.drel * 1.01


@measured
def test_the_gate_and_the_solver_have_the_same_sides():
    """A channel that leaves once by x and enters by the other side: it percolates where x wraps, and is solved so."""
    labels = np.zeros((8, 6, 8), dtype=np.uint8)
    for z in range(8):
        labels[[(4 + z) % 8, (5 + z) % 8], :, z] = 1
    for periodic in itertools.product((False, True), repeat=2):
        (found,) = transport(Microstructure(labels, periodic=(*periodic, False)), 1)
        assert found.percolates == periodic[0] and found.converged
        assert found.tau < 10 if periodic[0] else found.drel == 0
    (other,) = transport(Microstructure(labels, periodic=(True, True, False)), 1, solver="porespy")  # has walls only
    assert not other.percolates and other.drel == 0


@measured
def test_what_has_not_converged_is_said():
    labels = np.zeros((12, 12, 12), dtype=np.uint8)
    labels[:, :, :5] = labels[:, :, 7:] = labels[6, 6, 5:7] = 1
    with pytest.warns(UserWarning, match="1 of 2 structures did not converge"):
        found = transport([Microstructure(labels), Microstructure(np.zeros((4, 4, 4)))], tolerance=1e-7, iterations=100)
    assert not found[0].converged and found[1].converged


@measured
def test_one_layer_has_no_transport_across():
    for solve in (transport, lambda ms: multiphase_transport(ms, {1: 1.0})):
        with pytest.raises(InvalidArgument, match="two layers or more"):
            solve(Microstructure(np.ones((4, 4, 1))))


@measured
def test_two_solvers_agree(spinodal):
    pytest.importorskip("openpnm")
    closed = [Microstructure(ms.labels, periodic=(False,) * 3) for ms in spinodal]  # walls at the sides, for both
    ours, other = (transport(closed, 1, solver=name) for name in ("taufactor", "porespy"))
    assert [t.drel for t in ours] == pytest.approx([t.drel for t in other], rel=0.05)
    assert all(t.tau > 1 for t in other if t.percolates)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"transport_axis": 3}, "transport_axis"),
        ({"solver": "puma"}, "unknown solver"),
        ({"tolerance": 0}, "tolerance"),
        ({"iterations": 50}, "iterations"),
    ],
)
def test_transport_refuses(arguments, message):
    with pytest.raises(InvalidArgument, match=message):
        transport(channels(), 1, **arguments)


# --- GraSPI -----------------------------------------------------------------------------------------------------


def test_straight_channels_are_straight_for_both_phases():
    ms = channels(0.5)
    assert graspi.straight(ms, 0) == graspi.straight(ms, 1) == 1
    assert graspi.connected_to_electrode(ms, 0) == graspi.connected_to_electrode(ms, 1) == 1
    assert graspi.geometric_tortuosity(ms, 1) == pytest.approx(1)
    assert graspi.interface_connected(ms) == 1


def test_a_phase_that_misses_its_electrode():
    """Donor at the bottom and acceptor at the top: each reaches the other's electrode and not its own."""
    labels = np.zeros((4, 4, 8), dtype=np.uint8)
    labels[:, :, 4:] = 1
    wrong, right = Microstructure(labels), Microstructure(1 - labels)
    for ms, share in ((wrong, 0), (right, 1)):
        assert graspi.straight(ms, 0) == graspi.connected_to_electrode(ms, 1) == graspi.interface_connected(ms) == share


def test_a_step_aside_costs_its_diagonal():
    """One voxel wide, up 4, one aside, up: beyond the corner the way is longer by sqrt(2) - 1."""
    labels = np.zeros((3, 1, 9), dtype=np.uint8)
    labels[0, 0, :5] = labels[1, 0, 5:] = 1
    ms = Microstructure(labels)
    assert graspi.geometric_tortuosity(ms, 1) == pytest.approx((8 + math.sqrt(2) - 1) / 8)
    # straight where (sqrt 2 - 1) / height < 1 / 9, so from height 4 on: all of them
    assert graspi.straight(ms, 1) == 1


def test_absorption_and_dissociation_by_hand():
    labels = np.ones((2, 2, 3), dtype=np.uint8)
    labels[:, :, 2] = 0  # the donor is the top layer
    ms = Microstructure(labels)
    assert graspi.absorption(ms) == pytest.approx(math.exp(-1 / 100) / 3)
    assert graspi.dissociation(ms) == pytest.approx(6.265 * math.exp(-((24 / 17.17) ** 2)))
    assert graspi.dissociation(ms, weighted=False) == 1
    assert graspi.interface_edges(ms) == pytest.approx(16 / 12)  # each of 4 sees all 4 below


def test_shortest_ways_are_lengths():
    """The step aside once more, with voxels of another height, and in another unit."""
    labels = np.zeros((3, 1, 9), dtype=np.uint8)
    labels[0, 0, :5] = labels[1, 0, 5:] = 1
    for unit in (1.0, 1e-9):
        ms = Microstructure(labels, (unit, unit, 0.25 * unit))
        aside = math.hypot(1, 0.25) - 0.25
        assert graspi.geometric_tortuosity(ms, 1) == pytest.approx((8 * 0.25 + aside) / (8 * 0.25))
        assert graspi.straight(ms, 1) == 5 / 9  # flat voxels: beyond the corner no way is straight
    with pytest.raises(InvalidArgument, match="two layers or more"):
        graspi.geometric_tortuosity(Microstructure(labels[:, :, :1]), 1)


# --- curves -----------------------------------------------------------------------------------------------------


def test_the_void_of_overlapping_balls_has_its_closed_forms(balls):
    """S2 = exp(-eta (1 + 3r/4R - r^3/16R^3)), L = phi^(1 + 3r/4R); Torquato (2002)."""
    ms, radius, eta = balls
    line = measure(ms, ["L_0"])["L_0"]
    expected = math.exp(-eta) ** (1 + 3 * line.r / (4 * radius))
    assert line.values[:10] == pytest.approx(expected[:10], rel=0.06)


def test_two_point_cluster_is_below_two_point_and_equal_for_one_cluster(layers):
    one = channels(0.5)
    assert pores.two_point_cluster(one, 1).values == pytest.approx(metrics.two_point_correlation(one, 1).values)
    s2, c2 = metrics.two_point_correlation(layers, 1).values, pores.two_point_cluster(layers, 1).values
    assert (c2 <= s2 + 1e-12).all() and c2[-1] < s2[-1]
    assert c2[0] == pytest.approx(0.5)


def test_two_point_cluster_starts_at_the_fraction_however_many_clusters():
    labels = np.zeros((32, 32, 32), dtype=np.uint8)
    labels[::4, ::4, ::4] = 1  # 512 clusters of a voxel
    curve = pores.two_point_cluster(Microstructure(labels), 1)
    assert curve.values[0] == pytest.approx(1 / 64) and curve.values[1:] == pytest.approx(0, abs=1e-12)
    assert (pores.two_point_cluster(Microstructure(labels), 7).values == 0).all()


@pytest.mark.parametrize("small", [1, 4, 64])
@pytest.mark.parametrize("periodic", [(False, False, False), (True, False, True)], ids=str)
def test_two_point_cluster_is_the_sum_over_the_clusters(periodic, small, monkeypatch):
    """Each counted alone as a phase of its own, whichever way pairs are counted here."""
    monkeypatch.setattr(pores, "SMALL", small)
    ms = Microstructure(np.random.default_rng(3).random((9, 8, 7)) < 0.3, (1, 1, 0.5), periodic=periodic)
    labels, n = metrics.components(ms)
    alone = [
        metrics.two_point_correlation(Microstructure(labels == k, ms.spacing, periodic=periodic))
        for k in range(1, n + 1)
    ]
    assert pores.two_point_cluster(ms).values == pytest.approx(sum(c.values for c in alone))


def test_chords_of_layers_are_their_thickness(layers):
    curve = pores.chord_lengths(layers, 1, axis=2)
    assert curve.values[curve.r == 4] == 1 and curve.values.sum() == 1


def test_chords_that_cross_the_end_are_joined_or_left_out():
    labels = np.zeros((2, 2, 10), dtype=np.uint8)
    labels[:, :, [0, 1, 5, 9]] = 1
    wrapped = pores.chord_lengths(Microstructure(labels, periodic=(False, False, True)), 1)
    assert wrapped.values[[0, 2]].tolist() == [0.5, 0.5]  # one voxel, and three across the end
    assert pores.chord_lengths(Microstructure(labels), 1).values[0] == 1


@pytest.mark.slow
@measured
def test_local_thickness_of_a_ball(sphere):
    ms, radius = sphere
    assert pores.local_thickness(ms, 1).max() == pytest.approx(2 * radius, rel=0.15)
    curve = pores.pore_sizes(ms, 1)
    assert curve.values.sum() == pytest.approx(1)


# --- with gradients ---------------------------------------------------------------------------------------------


def test_soft_descriptors_agree_with_hard_ones_on_labels(spinodal):
    ms = spinodal[0]
    p = torch.from_numpy(ms.labels.astype(np.float64))[None]
    assert soft.soft_volume_fraction(p).item() == pytest.approx(metrics.volume_fraction(ms))
    curve = metrics.two_point_correlation(ms)
    assert soft.soft_two_point(p)[0].numpy() == pytest.approx(curve.values, abs=1e-9)
    assert soft.soft_lineal_path(p, 0)[0].numpy() == pytest.approx(metrics.lineal_path(ms, 1, 0).values)
    assert soft.soft_absorption(p).item() == pytest.approx(graspi.absorption(ms, 1))


@pytest.mark.parametrize("name", [n for n, d in DESCRIPTORS.items() if d.differentiable and n.endswith("_1")])
def test_soft_descriptors_have_true_gradients(name):
    p = torch.rand(1, 6, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    assert torch.autograd.gradcheck(DESCRIPTORS[name].soft, p)


def test_the_soft_area_is_that_of_smooth_shares(sphere):
    ms, radius = sphere
    p = torch.sigmoid(torch.from_numpy(ms.field))[None]
    truth = 4 * math.pi * radius**2 / math.prod(ms.size)
    assert soft.soft_interface(p).item() == pytest.approx(truth, rel=0.05)
    assert soft.soft_interface(torch.from_numpy(ms.labels).float()[None]).item() > 1.03 * truth


# --- the registry -----------------------------------------------------------------------------------------------


def test_names_of_phases_and_letters():
    assert canonical("tau_D") == "tau_0" and canonical("drel_A") == "drel_1" and canonical("vf_M") == "vf_2"
    assert DESCRIPTORS["tau_D"] is DESCRIPTORS["tau_0"] and "tau_D" not in DESCRIPTORS
    with pytest.raises(InvalidArgument, match="unknown descriptor 'tau_9'; did you mean"):
        canonical("tau_9")
    with pytest.raises(InvalidArgument, match="curves"):
        measure_all([channels()], ["S2_1"])


def test_a_fourth_phase_has_no_names():
    ms = Microstructure(np.arange(4).reshape(2, 2, 1))
    with pytest.raises(InvalidArgument, match=r"none for \[3\]; choose a phase"):
        measure(ms)
    assert measure(ms, phase=1)["vf_1"] == measure(ms, ["vf_D"])["vf_D"] == 0.25


@measured
def test_the_transport_of_a_phase_is_solved_once(monkeypatch):
    from suffuse_materials3d.descriptors import registry

    asked = []
    monkeypatch.setattr(registry, "transport", lambda some, k, **kw: asked.append((k, kw)) or transport(some, k, **kw))
    found = measure(channels(0.25), ["tau_1", "vf_1", "drel_A", "drel_0"], device="cpu")
    assert asked == [(1, {"device": "cpu"}), (0, {"device": "cpu"})]
    assert list(found) == ["tau_1", "vf_1", "drel_A", "drel_0"]
    assert found["tau_1"] == pytest.approx(found["vf_1"] / found["drel_A"])


@measured
def test_taufactor_measures_with_the_voxel_or_says_that_it_does_not():
    flat = Microstructure(channels().labels, (1, 1, 0.5))
    with pytest.raises(InvalidArgument, match="must be cubes"):
        measure(flat, ["sv_cubes"])
    assert measure(flat, ["sv_faces"])["sv_faces"] == pytest.approx(1 / 8)
    for name in ("sv_gradient", "sv_cubes"):
        with pytest.raises(InvalidArgument, match="needs more layers"):
            measure(Microstructure(channels().labels[..., :1]), [name])
    labels = np.zeros((4, 4, 4), dtype=np.uint8)
    labels[:2, 2:], labels[2:, 2:] = 1, 2  # they meet in one line along z: 4 of the 4 (3 3) + 2 (4 3 3) inner edges
    for spacing in ((1, 1, 1), (1, 1, 0.5)):
        assert measure(Microstructure(labels, spacing), ["tpb"])["tpb"] == pytest.approx(4 / 108)


@pytest.mark.slow
@measured
def test_every_descriptor_measures_a_structure_of_three_phases():
    rng = np.random.default_rng(1)
    coarse = rng.integers(0, 3, (4, 4, 4))
    ms = Microstructure(coarse.repeat(3, 0).repeat(3, 1).repeat(3, 2), spacing=(0.5,) * 3, unit="um")
    found = measure(ms, DESCRIPTORS)
    for name, value in found.items():
        d = DESCRIPTORS[name]
        values = value.values if d.curve else np.array([value])
        assert (values >= d.low - 1e-6).all() and (values <= d.high + 1e-6).all(), name
    assert sum(found[f"vf_{k}"] for k in range(3)) == pytest.approx(1)
    pairs = found["interface_01"] + found["interface_02"] + found["interface_12"]
    assert pairs == pytest.approx(found["sv"])
    assert found["sv_faces"] > 0


@measured
def test_areas_by_other_definitions_are_named_apart(sphere):
    ms, radius = sphere
    truth = 4 * math.pi * radius**2 / math.prod(ms.size)
    assert measure(ms, ["sv"])["sv"] == pytest.approx(truth, rel=0.03)
    assert measure(ms, ["sv_faces"])["sv_faces"] == pytest.approx(1.5 * truth, rel=0.05)
    assert measure(ms, ["sv_gradient"])["sv_gradient"] == pytest.approx(truth, rel=0.1)


def test_a_missing_extra_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "taufactor", None)
    with pytest.raises(MissingExtra, match=r"suffuse-materials3d\[measure\]"):
        transport(channels(), 1)
