"""Distributions with known denoisers, and the benchmark of samplers on them."""

import dataclasses
import sys

import pytest
import torch

from suffuse.bench import Run
from suffuse.benchmarks import samplers_exact as benchmark
from suffuse.benchmarks.truths import gaussian, image_mixture, lr64, ring2d
from suffuse.exact import GaussianDenoiser
from suffuse.samplers import DEIS, SAMPLERS
from suffuse.schedules import VPLinear

module = sys.modules["suffuse.benchmarks.samplers_exact"]
TRUTHS = [gaussian, ring2d, lr64, lambda schedule=None: image_mixture(8, schedule)]


@pytest.mark.parametrize("make", TRUTHS, ids=["gaussian", "ring2d", "lr64", "image_mixture"])
def test_truths_are_always_the_same_and_their_denoisers_are_exact(make):
    """Tweedie: D = (x + sigma^2 grad log p_t) / alpha."""
    one, other = make(), make(schedule=VPLinear())
    x = one.sample(20, torch.Generator().manual_seed(0))
    assert torch.equal(x, other.sample(20, torch.Generator().manual_seed(0)))
    noisy = one.schedule.add_noise(x, 0.6, torch.randn_like(x)).requires_grad_()
    (gradient,) = torch.autograd.grad(one.log_prob(noisy, 0.6).sum(), noisy)
    torch.testing.assert_close(one.score(noisy, 0.6), gradient, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize(
    ("make", "std", "largest"), [(ring2d, 0.7, 0.7), (lr64, 0.36, 1.1), (lambda: image_mixture(16), 0.46, 7.5)]
)
def test_truths_have_the_scale_they_are_described_with(make, std, largest):
    """Standard deviation of a coordinate, and of the first principal component."""
    x = make().sample(1000, torch.Generator().manual_seed(0)).flatten(1)
    assert float(x.std()) == pytest.approx(std, rel=0.1)
    assert float(torch.linalg.svdvals(x - x.mean(0))[0] / len(x) ** 0.5) == pytest.approx(largest, rel=0.15)


def test_pictures_are_smooth_and_grey():
    """Neighbouring pixels are alike, and so are colours."""
    x = image_mixture(16).sample(300, torch.Generator().manual_seed(0))
    assert (x[..., 1:] - x[..., :-1]).square().mean() < 0.5 * x.square().mean()
    assert (x[:, 0] - x[:, 1]).square().mean() < 0.3 * x.square().mean()


def test_the_closed_form_of_an_exact_sampler_is_zero():
    """KL and W2 of the Gaussian's own flow vanish; of a coarse sampler they agree with its samples' moments."""
    from suffuse.benchmarks.contest import Entry

    denoiser = gaussian(6)
    judge = module.Judge(denoiser, 1, 4000, torch.Generator().manual_seed(0))
    exact = Entry("flow", "", 0, lambda x: denoiser(denoiser.flow(x, 1.0, 0.0), 0.0))
    assert judge.closed_form(exact)["KL"][0] < 2e-3  # the start is 80 z, which leaves out the data
    assert judge.closed_form(exact)["Wasserstein"][0] < 5e-2
    coarse = Entry("coarse", "", 4, lambda x: DEIS(4, order=1)(denoiser, x=x, dtype=torch.float64))
    x = coarse.draw(judge.noise)
    mean, cov = denoiser.means[0], denoiser.cov.apply(lambda s: s, torch.eye(6, dtype=torch.float64)[:, None])[:, 0]
    fitted = torch.distributions.MultivariateNormal(x.mean(0), x.T.cov())
    truth = torch.distributions.MultivariateNormal(mean, cov)
    kl = float(torch.distributions.kl_divergence(fitted, truth))
    assert judge.closed_form(coarse)["KL"][0] == pytest.approx(kl, rel=0.1)
    bent = Entry("bent", "", 0, lambda x: x.abs())
    assert judge.closed_form(bent) == {}


def test_the_reference_has_converged():
    """Twice as many evaluations move the solution less than anything that is reported."""
    pytest.importorskip("ot")
    denoiser = lr64()
    judge = module.Judge(denoiser, 1, 50, torch.Generator().manual_seed(0))
    twice = DEIS(600, grid="karras")(denoiser, x=judge.noise, dtype=torch.float64)
    assert float((twice - judge.solution).square().mean().sqrt()) < 1e-4
    closed = module.Judge(gaussian(), 1, 50, torch.Generator().manual_seed(0))
    assert isinstance(closed.denoiser, GaussianDenoiser)
    solved = DEIS(300, grid="karras")(closed.denoiser, x=closed.noise, dtype=torch.float64)
    torch.testing.assert_close(closed.solution, solved, rtol=0, atol=1e-4)


@pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers.*")
def test_the_benchmark_reports_every_sampler_and_who_is_best(tmp_path, monkeypatch):
    pytest.importorskip("ot")
    target = dataclasses.replace(module.TARGETS["quick"][0], samples=20, budgets=(5, 10), grids=("karras-open",))
    monkeypatch.setitem(module.TARGETS, "quick", (target,))
    run = Run(benchmark, "quick", 0, "cpu", tmp_path / "work", None, False, tmp_path / "report")
    benchmark(run)
    errors = {(r.method, r.setting["nfe"]): r.value for r in run.rows if r.metric == "mean error"}
    ours = {name for name, _ in errors if "/" not in name}
    assert {"fitted", "teleport+fitted"} <= ours
    assert ours - {f"teleport+{name}" for name in (*SAMPLERS, "fitted")} - {"fitted"} == set(SAMPLERS) - {
        "ddpm", "dpmpp-2m-sde", "dpmpp-3m-sde", "predictor-corrector"
    }  # fmt: skip
    assert all(errors[name, 10] < errors[name, 5] for name in ("ddim", "dpmpp-2m", "unipc-2", "deis-3", "vab-3"))
    assert errors["ddim", 10] == pytest.approx(errors["euler", 10])
    assert errors["teleport+deis-3", 5] < errors["deis-3", 5]
    kl = {r.method for r in run.rows if r.metric == "KL"}
    assert "ddim" in kl
    assert "evodiff" not in kl  # not affine
    assert len([note for note in run.notes if "mean error" in note]) >= 2
