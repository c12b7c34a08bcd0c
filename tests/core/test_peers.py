"""Samplers of other libraries on our denoisers: the same method on the same levels gives the same samples."""

import sys

import pytest
import torch

from suffuse import Condition
from suffuse.benchmarks.peers import LIBRARIES, missing, peers
from suffuse.errors import InvalidArgument
from suffuse.exact import Covariance, MixtureDenoiser
from suffuse.samplers import DDIM, by_name
from suffuse.schedules import CLEAN, EDM, DiscreteBetas, RectifiedFlow, VPCosine, VPLinear

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers.*")

SCHEDULES = [VPLinear(), VPCosine(), EDM(), DiscreteBetas.linear()]
#: Peers that are a sampler of ours under another name.
SAME = {
    "diffusers/ddim": "ddim",
    "diffusers/euler": "ddim",
    "diffusers/dpmpp-2m": "dpmpp-2m",
    "diffusers/unipc-2": "unipc-2",
    "diffusers/unipc-3": "unipc-3",
    "diffusers/deis-2": "deis-2",
    "diffusers/deis-3": "deis-3",
    "diffusers/heun": "edm-heun",
    "k-diffusion/euler": "ddim",
    "k-diffusion/heun": "edm-heun",
    "k-diffusion/dpmpp-2m": "dpmpp-2m",
    "azula/ddim": "ddim",
    "azula/heun": "edm-heun",
    "azula/zeab-2": "deis-2",
    "azula/zeab-3": "deis-3",
    "azula/vab-2": "vab-2",
    "azula/vab-3": "vab-3",
}


def peer(name):
    if name not in peers():
        pytest.skip(f"{name.partition('/')[0]} is not installed")
    return peers()[name]


def mixture(schedule, **options):
    means = torch.tensor([[-1.0, 0.5], [1.0, -0.5]])
    return MixtureDenoiser([1.0, 2.0], means, Covariance.diagonal(torch.full((2, 2), 0.05)), schedule, **options)


class Counted(torch.nn.Module):
    def __init__(self, denoiser):
        super().__init__()
        self.denoiser, self.schedule, self.calls = denoiser, denoiser.schedule, 0

    def forward(self, x, t, cond=None):
        self.calls += 1
        return self.denoiser(x, t, cond)


def start(denoiser, n=16, dtype=torch.float64):
    noise = torch.randn(n, *denoiser.event, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return (denoiser.schedule.sigma(1.0) * noise).to(dtype)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("name", SAME)
def test_one_method_gives_the_same_samples_in_every_library(name, schedule):
    """To the float32 in which some of the libraries step."""
    theirs, denoiser = peer(name), mixture(schedule)
    ours = by_name(SAME[name], steps=8, grid="karras")
    x = start(denoiser)
    torch.testing.assert_close(
        theirs.sample(denoiser, x, ours.levels(schedule)),
        ours(denoiser, x=x, dtype=torch.float64),
        rtol=1e-3,
        atol=2e-4,
    )


@pytest.mark.parametrize("name", peers())
def test_a_peer_spends_the_evaluations_it_says(name):
    method, denoiser = peers()[name], Counted(mixture(VPCosine()))
    x = start(denoiser.denoiser, dtype=torch.float32)
    for budget in (4, 9, 10):
        steps, denoiser.calls = method.steps_within(budget), 0
        y = method.sample(denoiser, x, DDIM(steps).levels(denoiser.schedule))
        assert denoiser.calls == method.evaluations(steps) <= budget < method.evaluations(steps + 1)
        assert torch.isfinite(y).all()
        assert y.dtype == torch.float32
        if not method.stochastic:
            assert torch.equal(method.sample(denoiser, x, DDIM(steps).levels(denoiser.schedule)), y)


@pytest.mark.parametrize("name", peers())
def test_peers_sample_the_distribution_of_the_data(name):
    denoiser = mixture(VPLinear())
    torch.manual_seed(0)
    y = peers()[name].sample(denoiser, start(denoiser, 1500), DDIM(30, grid="karras").levels(denoiser.schedule))
    right = y[:, 0] > 0
    assert right.double().mean() == pytest.approx(2 / 3, abs=0.05)
    torch.testing.assert_close(y[right].mean(0), torch.tensor([1.0, -0.5], dtype=torch.float64), atol=0.05, rtol=0)
    torch.testing.assert_close(y[right].var(0), torch.full((2,), 0.05, dtype=torch.float64), atol=0.02, rtol=0)


def test_the_condition_reaches_the_denoiser():
    denoiser = mixture(VPLinear(), classes=[0, 1])
    cond = Condition(tokens={"class": torch.eye(2)[torch.arange(16) % 2][:, None]})
    for method in peers().values():
        y = method.sample(denoiser, start(denoiser), DDIM(12, grid="karras").levels(denoiser.schedule), cond)
        assert torch.equal(y[:, 0] > 0, torch.arange(16) % 2 == 1), method.name


def test_default_levels_are_those_of_the_scheduler():
    method = peer("diffusers/dpmpp-2m-default")
    levels = method.own_levels(DiscreteBetas.linear(), 5)
    assert [round(level.t * 1000) - 1 for level in levels[:-1]] == [999, 799, 599, 400, 200]
    assert levels[-1] is CLEAN
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DPMSolverMultistepScheduler(prediction_type="sample")
    scheduler.set_timesteps(5)
    denoiser = mixture(DiscreteBetas.linear())
    x = y = start(denoiser)
    for k in scheduler.timesteps:
        y = scheduler.step(denoiser(y, (int(k) + 1) / 1000), k, y).prev_sample
    torch.testing.assert_close(method.sample(denoiser, x, DDIM(5).levels(denoiser.schedule)), y, rtol=1e-4, atol=1e-4)


def test_peers_cannot_start_at_infinity():
    denoiser = mixture(RectifiedFlow())
    for method in peers().values():
        with pytest.raises(InvalidArgument, match="kappa is infinite"):
            method.sample(denoiser, start(denoiser), DDIM(5).levels(denoiser.schedule))


def test_what_is_not_installed_is_named():
    found = {name.partition("/")[0] for name in peers()}
    assert found | set(missing()) == set(LIBRARIES)
    assert not found & set(missing())


def test_loading_k_diffusion_leaves_no_stand_ins():
    peer("k-diffusion/euler")
    assert getattr(sys.modules.get("torchvision"), "__file__", "real") is not None
    package = sys.modules.get("k_diffusion")
    assert package is None or package.__file__
