"""The solver with fitted coefficients: better where it was fitted, and refused where it was not."""

import dataclasses
import json
from itertools import pairwise

import pytest
import torch

from suffuse.analysis import GaussianStatistics
from suffuse.benchmarks.truths import gaussian, ring2d
from suffuse.errors import InvalidArgument
from suffuse.samplers import DEIS, FittedMultistep, Teleport
from suffuse.schedules import RectifiedFlow


def noise(denoiser, size, seed):
    generator = torch.Generator().manual_seed(seed)
    return denoiser.schedule.sigma(1.0) * torch.randn(size, *denoiser.event, generator=generator, dtype=torch.float64)


def distance(sampler, denoiser, x):
    """Mean distance to the ODE's solution from noise that the fit has not seen."""
    solution = DEIS(120, grid="karras")(denoiser, x=x, dtype=torch.float64)
    return float((sampler(denoiser, x=x, dtype=torch.float64) - solution).norm(dim=-1).mean())


@pytest.mark.parametrize("make", [gaussian, ring2d])
def test_from_the_same_levels_it_ends_nearer_to_the_solution(make):
    denoiser = make()
    fitted = FittedMultistep.fit(denoiser, 8, (128, *denoiser.event), generator=torch.Generator().manual_seed(1))
    x = noise(denoiser, 200, seed=2)
    plain = distance(DEIS(8, grid="karras-open"), denoiser, x)
    assert distance(fitted, denoiser, x) < 0.6 * plain


def test_below_a_jump_it_is_better_than_the_jump_alone():
    denoiser = ring2d()
    statistics = GaussianStatistics.fit(denoiser.sample(2000, torch.Generator().manual_seed(3)))
    generator = torch.Generator().manual_seed(1)
    fitted = FittedMultistep.fit(denoiser, 10, (128, *denoiser.event), statistics, generator=generator)
    assert isinstance(fitted, Teleport)
    assert fitted.nfe(denoiser.schedule) == 10
    alone = Teleport(DEIS(10, grid="karras-open"), statistics, fitted.kappa)
    x = noise(denoiser, 200, seed=2)
    assert distance(fitted, denoiser, x) < 0.8 * distance(alone, denoiser, x)


def test_on_a_flow_it_starts_from_pure_noise():
    denoiser = ring2d(RectifiedFlow())
    fitted = FittedMultistep.fit(denoiser, 6, (64, 2), generator=torch.Generator().manual_seed(1))
    x = noise(denoiser, 100, seed=2)
    assert distance(fitted, denoiser, x) < 0.8 * distance(DEIS(6, grid="karras-open"), denoiser, x)


def test_with_the_coefficients_of_deis_it_is_deis():
    denoiser = gaussian()
    deis = DEIS(6, order=3, grid="karras-open")
    levels = deis.levels(denoiser.schedule)
    table = [deis.coefficients(t, s, levels[:i][::-1])[2:] for i, (t, s) in enumerate(pairwise(levels))]
    same = FittedMultistep(grid=[level.t for level in levels[:-1]], table=table)
    x = noise(denoiser, 5, seed=0)
    torch.testing.assert_close(same(denoiser, x=x), deis(denoiser, x=x))


def test_its_fields_survive_json():
    denoiser = ring2d()
    fitted = FittedMultistep.fit(denoiser, 4, (32, 2), generator=torch.Generator().manual_seed(1))
    again = FittedMultistep(**json.loads(json.dumps(dataclasses.asdict(fitted))))
    assert again == fitted


def test_it_runs_only_from_where_it_was_fitted():
    denoiser = ring2d()
    fitted = FittedMultistep.fit(denoiser, 4, (32, 2), generator=torch.Generator().manual_seed(1))
    with pytest.raises(InvalidArgument, match=r"fitted to run from t=1"):
        fitted(denoiser, (3, 2), stop=0.1)
    with pytest.raises(InvalidArgument, match="start=0.5"):
        fitted(denoiser, init=torch.zeros(3, 2), start=0.5)
    with pytest.raises(InvalidArgument, match="a row for each time"):
        FittedMultistep(steps=4)
