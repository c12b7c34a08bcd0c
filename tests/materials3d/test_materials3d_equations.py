"""Flory-Huggins, ternary mixtures, films, noise and process histories obey their laws."""

import math

import pytest
import torch

from suffuse.errors import InvalidArgument
from suffuse_materials3d.simulate import (
    HISTORIES,
    CahnHilliard,
    FloryHuggins,
    History,
    SimulationDiverged,
    Ternary,
    coexistence,
    double_threshold,
    explicit,
    random_history,
)

BLEND = FloryHuggins()


def mixed(equation, mean, shape=(12, 12, 12), seed=0, noise=0.02):
    mean = torch.as_tensor(mean, dtype=torch.float64)
    random = [torch.Generator().manual_seed(seed + i) for i in range(len(mean))]
    return equation.start(mean, shape, random, noise)


# --- explicit differences --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_explicit_step_is_the_seven_point_one(dtype):
    pytest.importorskip("numba")
    equation = CahnHilliard(dt=0.01, kappa=0.8, mobility=0.7, dx=1.1)
    u = torch.randn(2, 5, 4, 3, dtype=dtype).mul(0.3)

    def laplacian(a):
        return (sum(a.roll(s, axis) for axis in (1, 2, 3) for s in (1, -1)) - 6 * a) / 1.1**2

    expected = u
    for _ in range(3):
        mu = expected**3 - expected - 0.8 * laplacian(expected)
        expected = expected + 0.01 * 0.7 * laplacian(mu)
    found = explicit(equation, u, [0.0, 0.03])
    assert torch.equal(found[:, 0], u) and found.dtype == dtype
    torch.testing.assert_close(found[:, 1], expected)
    torch.testing.assert_close(found[:, 1].mean((1, 2, 3)), u.mean((1, 2, 3)))  # matter is conserved


def test_explicit_and_spectral_solutions_agree():
    pytest.importorskip("numba")
    wide = CahnHilliard(dt=0.003, kappa=4.0, order=2)  # interfaces of six voxels
    u = mixed(wide, [0.1], (24, 4, 4), noise=0.3)
    ours, other = wide.run(u, [80.0]), explicit(wide, u, [80.0])
    assert ours.std() > 0.4 and (ours - other).abs().max() < 0.01


@pytest.mark.parametrize(
    ("change", "match"),
    [({"dt": 0.02}, "not stable in an explicit step; take less than 0.0139"), ({"boundary": "film"}, "periodic")],
)
def test_what_an_explicit_step_cannot_do(change, match):
    with pytest.raises(InvalidArgument, match=match):
        explicit(CahnHilliard(**{"dt": 0.01, **change}), torch.zeros(1, 4, 4, 4), [1.0])


# --- the step ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [1, 2])
def test_the_order_of_the_step(order):
    """Halving the step divides the error by 2^order."""
    u = CahnHilliard(dt=0.25).run(mixed(CahnHilliard(), [0.1]), [15.0])[:, 0]
    exact = CahnHilliard(dt=1 / 256, order=2).run(u, [2.0])
    errors = [(CahnHilliard(dt=dt, order=order).run(u, [2.0]) - exact).abs().max() for dt in (1 / 8, 1 / 16)]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.35)


def test_the_second_order_conserves_matter_and_lowers_the_energy():
    equation = CahnHilliard(dt=0.5, order=2)
    path = equation.run(mixed(equation, [0.1], noise=0.05), [5.0 * k for k in range(1, 12)])
    assert (path.mean((2, 3, 4)) - 0.1).abs().max() < 1e-9
    energies = torch.stack([equation.energy(path[:, k]) for k in range(11)])
    assert (energies.diff(dim=0) <= 1e-9).all()
    with pytest.raises(InvalidArgument, match="order must be 1"):
        CahnHilliard(order=2, temperature=0.1)


# --- Flory-Huggins ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chi", [2.6, 3.0, 3.4, 3.8])
def test_a_blend_conserves_matter_lowers_its_energy_and_reaches_coexistence(chi):
    u = mixed(BLEND, [0.5])
    path = BLEND.run(u, [5.0 * k for k in range(1, 25)], history={"chi": torch.tensor([chi])})
    assert (path.mean((2, 3, 4)) - 0.5).abs().max() < 1e-9
    energies = torch.stack([BLEND.energy(path[:, k], chi=chi) for k in range(path.shape[1])])
    assert (energies.diff(dim=0) <= 1e-10).all() and energies[-1] < energies[0] - 0.01
    low = coexistence(chi)
    assert path[0, -1].min() == pytest.approx(low, abs=0.03) and path[0, -1].max() == pytest.approx(1 - low, abs=0.03)


def test_coexisting_compositions_are_where_the_potential_vanishes():
    for chi in (2.2, 2.6, 3.8):
        p = coexistence(chi)
        assert 0 < p < 0.5 and math.log(p / (1 - p)) + chi * (1 - 2 * p) == pytest.approx(0, abs=1e-9)
    assert coexistence(1.9) == 0.5


def test_the_potential_is_the_slope_of_the_energy_also_where_it_is_continued():
    p = torch.linspace(-0.1, 1.1, 25, dtype=torch.float64).view(25, 1, 1, 1).requires_grad_()
    BLEND.density(p, {}).sum().backward()
    assert torch.allclose(p.grad, BLEND.potential(p.detach(), {}), atol=1e-9)


def test_a_blend_below_the_spinodal_stays_mixed():
    u = BLEND.run(mixed(BLEND, [0.5]), [50.0], history={"chi": torch.tensor([1.9])})
    assert u.std() < 1e-3


def test_each_volume_has_its_own_chi():
    """A batch of different chi gives what each gives alone."""
    u = mixed(BLEND, [0.5, 0.5])
    chi = torch.tensor([2.6, 3.8])
    both = BLEND.run(u, [20.0], history={"chi": chi})
    alone = BLEND.run(u[1:], [20.0], history={"chi": chi[1:]})
    assert torch.allclose(both[1:], alone, atol=1e-12)
    assert not torch.allclose(both[0], both[1], atol=0.05)


def test_a_fixed_stabiliser_that_does_not_follow_chi_diverges_and_says_so():
    equation = FloryHuggins(stabiliser=0.0, dt=2.0)
    with pytest.raises(SimulationDiverged, match="S must follow chi"):
        equation.run(mixed(equation, [0.5]), [200.0], history={"chi": torch.tensor([3.8])})


def test_two_thresholds_make_three_phases():
    p = torch.tensor([0.05, 0.2, 0.5, 0.8, 0.95])
    assert double_threshold(p).tolist() == [1, 2, 2, 2, 0]
    with pytest.raises(InvalidArgument, match="low < high"):
        double_threshold(p, 0.8, 0.2)


# --- three components -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("barrier", [1.0, 4.0])
def test_three_components_sum_to_one_and_keep_their_means(barrier):
    equation = Ternary(barrier=barrier)
    u = mixed(equation, [[0.4, 0.3, 0.3]])
    path = equation.run(u, [10.0 * k for k in range(1, 11)])
    assert (path.sum(2) - 1).abs().max() < 1e-9
    assert (path.mean((3, 4, 5)) - u.mean((2, 3, 4))[:, None]).abs().max() < 1e-9
    energies = torch.stack([equation.energy(path[:, k]) for k in range(10)])
    assert (energies.diff(dim=0) <= 1e-10).all()
    assert {0, 1, 2} == set(equation.phases(path[:, -1]).unique().tolist())


def test_the_names_of_components_do_not_matter():
    equation = Ternary()
    u = mixed(equation, [[0.3, 0.3, 0.4]])
    order = [2, 0, 1]
    assert torch.allclose(equation.run(u[:, order], [30.0]), equation.run(u, [30.0])[:, :, order], atol=1e-9)


def test_means_of_three_components_must_sum_to_one():
    with pytest.raises(InvalidArgument, match="sum to 1"):
        Ternary().start(torch.tensor([[0.5, 0.4, 0.3]]), (4, 4, 4))


# --- films ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("equation", [CahnHilliard(boundary="film"), FloryHuggins(boundary="film")], ids=["ch", "fh"])
def test_a_film_is_half_of_its_mirrored_box(equation):
    mean = 0.0 if isinstance(equation, CahnHilliard) else 0.5
    u = mixed(equation, [mean], (8, 8, 6))
    film = equation.run(u, [15.0])[:, 0]
    whole = type(equation)().run(torch.cat([u, u.flip(-1)], -1), [15.0])[:, 0]
    assert torch.allclose(film, whole[..., :6], atol=1e-10)
    assert film.mean() == pytest.approx(mean, abs=1e-9)
    assert equation.periodic == (True, True, False)


def test_a_substrate_attracts():
    plain, sticky = CahnHilliard(boundary="film"), CahnHilliard(boundary="film", substrate=0.5)
    u = mixed(plain, [0.0, 0.0, 0.0], (12, 12, 12))
    a, b = (equation.run(u, [40.0])[:, 0].mean((0, 1, 2)) for equation in (plain, sticky))
    assert b[0] > a[0] + 0.3 and b.mean() == pytest.approx(0, abs=1e-9)
    with pytest.raises(InvalidArgument, match="boundary='film'"):
        CahnHilliard(substrate=0.5)


@pytest.mark.parametrize("boundary", ["periodic", "film"])
def test_thermal_noise_conserves_matter_and_depends_on_its_seed(boundary):
    equation = CahnHilliard(temperature=0.02, boundary=boundary)
    u = mixed(equation, [0.1], (8, 8, 8))
    one, two, other = (equation.run(u, [5.0], generator=torch.Generator().manual_seed(s)) for s in (0, 0, 1))
    assert torch.equal(one, two) and not torch.allclose(one, other)
    assert one.mean() == pytest.approx(0.1, abs=1e-9)


# --- histories --------------------------------------------------------------------------------------------------


def test_a_history_is_straight_between_its_nodes():
    history = History(torch.tensor([0.0, 10.0, 20.0]), torch.tensor([[1.0, 3.0, 3.0], [0.0, 0.0, 4.0]]))
    assert history.at(torch.tensor([-5.0, 5.0, 15.0, 99.0])).tolist() == [[1, 0], [2, 0], [3, 2], [3, 4]]
    with pytest.raises(InvalidArgument, match="must ascend"):
        History(torch.tensor([0.0, 0.0]), torch.ones(1, 2))
    with pytest.raises(InvalidArgument, match=r"values \(B, T\)"):
        History(torch.tensor([0.0, 1.0]), torch.ones(2))


def test_a_constant_history_is_a_constant():
    u = mixed(BLEND, [0.5])
    held = History(torch.tensor([0.0, 20.0]), torch.tensor([[3.2, 3.2]]))
    a, b = BLEND.run(u, [20.0], history={"chi": held}), BLEND.run(u, [20.0], history={"chi": torch.tensor([3.2])})
    assert torch.allclose(a, b, atol=1e-6)


def test_mobility_is_the_pace_of_time():
    """M = 2 for half the time is M = 1, up to the error of the step."""
    slow, u = CahnHilliard(dt=0.02, stabiliser=0.0), mixed(CahnHilliard(), [0.0])
    a = slow.run(u, [4.0])
    b = slow.run(u, [2.0], history={"mobility": torch.tensor([2.0])})
    assert torch.allclose(a, b, atol=2e-3) and (a - u).abs().max() > 0.01


@pytest.mark.parametrize("kind", sorted(HISTORIES))
def test_random_histories_stay_in_their_range(kind):
    for seed in range(5):
        name, history = random_history(50.0, 2.4, 3.8, [kind], torch.Generator().manual_seed(seed))
        assert name == kind and history.times[-1] == 50
        assert history.values.min() >= 2.4 and history.values.max() <= 3.8
    assert (history.values.std() == 0) == (kind == "hold")


@pytest.mark.parametrize(
    ("history", "message"),
    [
        ({"chi": torch.tensor([3.0])}, "does not have"),
        ({"mobility": torch.tensor([-1.0])}, "mobility positive"),
        ({"mobility": torch.tensor([1.0, 2.0, 3.0])}, "3 courses for a batch of 1"),
    ],
)
def test_histories_that_an_equation_does_not_take(history, message):
    with pytest.raises(InvalidArgument, match=message):
        CahnHilliard().run(mixed(CahnHilliard(), [0.0], (4, 4, 4)), [2.0], history=history)
