"""The Cahn-Hilliard equation obeys its laws."""

import math

import pytest
import torch

from suffuse.errors import InvalidArgument
from suffuse_materials3d import CahnHilliard
from suffuse_materials3d.data import simulate_spinodal
from suffuse_materials3d.metrics import characteristic_length
from suffuse_materials3d.simulate import SimulationDiverged


def start(equation: CahnHilliard, means: list[float], n: int = 16, seed: int = 0) -> torch.Tensor:
    generator = [torch.Generator().manual_seed(seed + i) for i in range(len(means))]
    return equation.start(torch.tensor(means, dtype=torch.float64), (n, n, n), generator)


@pytest.mark.parametrize("dt", [0.5, 2.0, 10.0])
def test_matter_is_conserved_and_energy_falls(dt):
    equation = CahnHilliard(dt=dt)
    u = start(equation, [-0.2, 0.0, 0.3])
    path = equation.run(u, [dt * k for k in range(0, 60, 3)])
    means = path.mean((2, 3, 4))
    assert (means - torch.tensor([-0.2, 0.0, 0.3])[:, None]).abs().max() < 1e-6
    energies = torch.stack([equation.energy(path[:, k]) for k in range(path.shape[1])])
    assert (energies.diff(dim=0) <= 1e-12).all()
    assert (energies[-1] < energies[0]).all()


@pytest.mark.parametrize("mean", [0.0, 0.3])
@pytest.mark.parametrize("waves", [1, 3])
def test_a_small_wave_grows_at_the_rate_of_linear_theory(mean, waves):
    equation, n = CahnHilliard(dt=0.005, stabiliser=0.0), 16
    k = 2 * math.pi * waves / n
    wave = torch.cos(k * torch.arange(n, dtype=torch.float64)).view(1, n, 1, 1).expand(1, n, n, n)
    path = equation.run(mean + 1e-4 * wave, [0.0, 1.0])
    size = ((path - mean) * wave).sum((2, 3, 4))[0]
    rate = math.log(size[1] / size[0])
    assert rate == pytest.approx(equation.growth_rate(k, mean), rel=0.02)


def test_the_energy_of_a_wave_is_that_of_the_integral():
    """u = cos(kx): <(u^2-1)^2>/4 = 3/32, <|grad u|^2> = k^2/2; with voxels of another size than one."""
    equation, n = CahnHilliard(kappa=2.0, dx=0.5), 32
    k = 2 * math.pi * 2 / (n * 0.5)
    u = torch.cos(k * 0.5 * torch.arange(n, dtype=torch.float64)).view(1, n, 1, 1).expand(1, n, n, n)
    assert equation.energy(u).item() == pytest.approx(3 / 32 + k**2 / 2, rel=1e-9)


def test_domains_coarsen_as_a_power_of_time():
    """L ~ t^(1/3) (Lifshitz, Slyozov, 1961); a small box and early times allow 0.2 to 0.4."""
    data = simulate_spinodal(3, (32, 32, 32), times=(100.0, 400.0), equation=CahnHilliard(), progress=False)
    lengths = [characteristic_length(ms) for ms in data.microstructures()]
    early, late = sum(lengths[0::2]) / 3, sum(lengths[1::2]) / 3
    assert 0.2 < math.log(late / early) / math.log(4) < 0.4


def test_the_first_structure_has_the_fastest_wavelength():
    equation = CahnHilliard(dt=0.5)
    u = equation.run(start(equation, [0.0], n=40), [12.0])[0, 0]
    power = torch.fft.fftn(u).abs().square()
    k = torch.fft.fftfreq(40).square()
    radius = (k.view(-1, 1, 1) + k.view(1, -1, 1) + k.view(1, 1, -1)).sqrt()
    mean = (power * radius).sum() / power.sum()
    assert 1 / mean == pytest.approx(equation.fastest_wavelength(), rel=0.15)


def test_one_simulation_does_not_depend_on_the_batch_around_it():
    equation = CahnHilliard()
    u = start(equation, [0.0, 0.1, -0.2, 0.3])
    together, alone = equation.run(u, [30.0]), equation.run(u[2:3], [30.0])
    assert torch.allclose(together[2:3], alone, atol=1e-10)


def test_without_stabiliser_a_large_step_diverges_and_says_what_to_do():
    equation = CahnHilliard(dt=50.0, stabiliser=0.0, kappa=1e-3)
    with pytest.raises(SimulationDiverged, match="stabiliser"):
        equation.run(start(equation, [0.0], n=8), [50.0 * 400])


# --- the data set -----------------------------------------------------------------------------------------------


def test_volumes_fill_the_requested_range_and_are_reproducible():
    make = lambda: simulate_spinodal(24, (16, 16, 16), volume_fraction=(0.35, 0.65), times=(40.0,), progress=False)  # noqa: E731
    data, again = make(), make()
    assert torch.equal(data.fields, again.fields)
    assert len(data) == 24 and data.fields.shape == (24, 16, 16, 16)
    fraction = (data.fields > 0).float().mean((1, 2, 3))
    assert torch.allclose(fraction, data.volume_fraction)
    assert fraction.min() >= 0.35 and fraction.max() <= 0.65
    assert fraction.min() < 0.45 and fraction.max() > 0.55
    assert torch.allclose(data.fields.mean((1, 2, 3)), data.mean, atol=1e-5)


def test_a_split_has_no_simulation_on_both_sides():
    data = simulate_spinodal(10, (8, 8, 8), times=(20.0, 30.0, 40.0), progress=False)
    train, test = data.split(0.3, seed=1)
    assert len(train) + len(test) == len(data) == 30
    assert not set(train.trajectory.tolist()) & set(test.trajectory.tolist())
    assert len(test) == 9


def test_augmentation_keeps_the_volume_fraction_it_names():
    from suffuse_materials3d.data.spinodal import Augmented

    data = simulate_spinodal(4, (8, 8, 12), times=(30.0,), progress=False)
    rows = Augmented(data, seed=0)
    for row in [0, 1, 2, 3] * 4:
        u, cond = rows[row]
        assert u.shape == (1, 8, 8, 12)
        assert (u > 0).float().mean() == pytest.approx(cond.tokens["volume_fraction"].item(), abs=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"volume_fraction": (0.1, 0.5)}, "volume_fraction"),
        ({"volume_fraction": (0.6, 0.4)}, "volume_fraction"),
        ({"volume_fraction": (0.4, 1.4)}, "volume_fraction"),
        ({"n": 0}, "n and batch_size"),
        ({"shape": (16, 16)}, "shape"),
        ({"times": ()}, "times"),
        ({"times": (40.0, 20.0)}, "times"),
    ],
)
def test_requests_that_cannot_be_simulated(arguments, message):
    with pytest.raises(InvalidArgument, match=message):
        simulate_spinodal(**{"n": 2, "shape": (8, 8, 8), "progress": False, **arguments})


@pytest.mark.parametrize("name", ["kappa", "mobility", "dt", "dx"])
@pytest.mark.parametrize("value", [0.0, -1.0, float("nan")])
def test_constants_must_be_positive(name, value):
    with pytest.raises(InvalidArgument, match=name):
        CahnHilliard(**{name: value})


@pytest.mark.parametrize("times", [[float("nan")], [1.0, float("inf")], [2.0, 1.0], []])
def test_times_must_be_finite_and_ascend(times):
    with pytest.raises(InvalidArgument, match="times must be finite and ascend"):
        CahnHilliard().run(torch.zeros(1, 4, 4, 4), times)


def test_a_field_must_be_a_batch_of_finite_volumes():
    with pytest.raises(InvalidArgument, match=r"\(B, X, Y, Z\)"):
        CahnHilliard().run(torch.zeros(4, 4, 4), [1.0])
    with pytest.raises(InvalidArgument, match="NaN"):
        CahnHilliard().run(torch.full((1, 4, 4, 4), float("nan")), [1.0])
