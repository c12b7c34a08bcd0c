"""Samplers: orders of convergence, identities between them, and what the base class promises of all of them."""

import itertools
import math

import pytest
import torch

from suffuse import Condition, as_denoiser
from suffuse.errors import InvalidArgument, SamplingDiverged
from suffuse.exact import Covariance, GaussianDenoiser, MixtureDenoiser
from suffuse.random import generators
from suffuse.samplers import DDIM, DDPM, SAMPLERS, STOP, DPMSolverPP, Euler, Heun, Inpaint, by_name
from suffuse.schedules import EDM, DiscreteBetas, RectifiedFlow, VPCosine, VPLinear

SCHEDULES = [VPLinear(), VPCosine(), EDM(), RectifiedFlow(), DiscreteBetas.linear()]
ODE_SAMPLERS = [(DDIM, 1), (Euler, 1), (Heun, 2), (DPMSolverPP, 2)]
DIM = 4


def name(value):
    return value[0].__name__ if isinstance(value, tuple) else type(value).__name__


def gaussian(schedule):
    g = torch.Generator().manual_seed(0)
    a = torch.randn(DIM, DIM, dtype=torch.float64, generator=g)
    return GaussianDenoiser(torch.ones(DIM), a @ a.T / DIM + 0.02 * torch.eye(DIM), schedule)


def bimodal(schedule):
    means = torch.tensor([[-1.0, 0.5], [1.0, -0.5]])
    return MixtureDenoiser([1.0, 2.0], means, Covariance.diagonal(torch.full((2, 2), 0.05)), schedule)


class Counted(torch.nn.Module):
    def __init__(self, denoiser):
        super().__init__()
        self.denoiser, self.schedule, self.calls = denoiser, denoiser.schedule, 0

    def forward(self, x, t, cond=None):
        self.calls += 1
        return self.denoiser(x, t, cond)


# --- accuracy ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", SCHEDULES, ids=name)
@pytest.mark.parametrize("case", ODE_SAMPLERS, ids=name)
def test_order_of_convergence(case, schedule):
    """Halving the step on an exact denoiser divides the error against the closed-form flow by 2^order."""
    sampler, order = case
    denoiser = gaussian(schedule)
    start, stop = schedule.t_of_kappa(20.0), schedule.t_of_kappa(0.05)
    noise = torch.randn(64, DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    x = noise * schedule.sigma(start)
    truth = denoiser.flow(x, start, stop)
    errors = []
    for steps in (40, 80, 160):
        y = sampler(steps)(denoiser, x=x, start=start, stop=stop, dtype=torch.float64)
        errors.append(float((y - truth).square().mean().sqrt()))
    slopes = [math.log2(a / b) for a, b in itertools.pairwise(errors)]
    assert slopes[-1] == pytest.approx(order, abs=0.15), slopes


@pytest.mark.parametrize("case", ODE_SAMPLERS, ids=name)
def test_ode_solvers_do_not_depend_on_the_schedule(case):
    """The same kappa grid gives the same samples in any schedule, up to the scale of x."""
    sampler, _ = case
    kappas = torch.logspace(1, -1.5, 12, dtype=torch.float64)
    noise = torch.randn(8, DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    results = []
    for schedule in (VPLinear(), VPCosine(), EDM(), RectifiedFlow()):
        grid = [schedule.t_of_kappa(float(k)) for k in kappas]
        x = noise * schedule.sigma(grid[0])
        # the same point in the coordinates x / alpha
        x = x * (10.0 * schedule.alpha(grid[0]) / schedule.sigma(grid[0]))
        results.append(sampler(grid=grid)(gaussian(schedule), x=x, dtype=torch.float64, start=grid[0]))
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=name)
def test_ddim_with_full_noise_is_the_ddpm_posterior(schedule):
    """The coefficients agree to rounding, and so do samples of the same seed."""
    levels = DDIM(12).levels(schedule)
    a = [stage.coefficients for stage in DDIM(12, eta=1.0).plan(levels)]
    b = [stage.coefficients for stage in DDPM(12).plan(levels)]
    for one, other in zip(a, b, strict=True):
        assert one == pytest.approx(other, rel=1e-9, abs=1e-12)
    draws = [
        s(gaussian(schedule), (3, DIM), generator=torch.Generator().manual_seed(4), dtype=torch.float64)
        for s in (DDIM(12, eta=1.0), DDPM(12))
    ]
    torch.testing.assert_close(*draws)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=name)
def test_euler_is_ddim_and_a_one_step_2m_too(schedule):
    denoiser, x = gaussian(schedule), torch.randn(5, DIM, dtype=torch.float64) * schedule.sigma(1.0)
    ddim = DDIM(7)(denoiser, x=x, dtype=torch.float64)
    torch.testing.assert_close(Euler(7)(denoiser, x=x, dtype=torch.float64), ddim)
    one = [s(1)(denoiser, x=x, dtype=torch.float64) for s in (DDIM, DPMSolverPP, Heun)]
    torch.testing.assert_close(one[0], one[1])
    torch.testing.assert_close(one[0], one[2])


@pytest.mark.parametrize("schedule", SCHEDULES, ids=name)
@pytest.mark.parametrize("sampler", [DDPM(400), DDIM(400, eta=0.5), DPMSolverPP(40), Heun(40)], ids=name)
def test_samples_have_the_distribution_of_the_data(sampler, schedule):
    denoiser = bimodal(schedule)
    x = sampler(denoiser, (3000, 2), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    right = x[:, 0] > 0
    assert right.double().mean() == pytest.approx(2 / 3, abs=0.04)
    torch.testing.assert_close(x[right].mean(0), torch.tensor([1.0, -0.5], dtype=torch.float64), atol=0.03, rtol=0)
    torch.testing.assert_close(x[right].var(0), torch.full((2,), 0.05, dtype=torch.float64), atol=0.01, rtol=0)


def test_2m_is_diffusers_2m():
    """On the same sigmas, our DPM-Solver++(2M) gives the samples of diffusers' scheduler."""
    diffusers = pytest.importorskip("diffusers")
    steps, schedule = 10, DiscreteBetas.linear()
    theirs = diffusers.DPMSolverMultistepScheduler(
        num_train_timesteps=1000, prediction_type="sample", solver_order=2, final_sigmas_type="zero",
        timestep_spacing="linspace", lower_order_final=True, algorithm_type="dpmsolver++",
    )  # fmt: skip
    theirs.set_timesteps(steps)
    times = [(int(k) + 1) / 1000 for k in theirs.timesteps]
    denoiser = gaussian(schedule)
    x = torch.randn(6, DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ours = DPMSolverPP(grid=times)(denoiser, x=x, start=times[0], dtype=torch.float64)
    y = x.clone()
    for timestep, t in zip(theirs.timesteps, times, strict=True):
        y = theirs.step(denoiser(y.double(), t), timestep, y).prev_sample
    torch.testing.assert_close(ours, y.double(), rtol=1e-3, atol=1e-4)


# --- what holds for all -----------------------------------------------------------------------------------------


@pytest.fixture(params=SAMPLERS, ids=str)
def sampler(request):
    return by_name(request.param, steps=6)


@pytest.mark.parametrize("grid", ["logsnr", "karras", "time"])
@pytest.mark.parametrize("schedule", SCHEDULES, ids=name)
def test_the_number_of_evaluations_is_the_one_asked_for(sampler, schedule, grid):
    sampler = type(sampler)(steps=6, grid=grid)
    denoiser = Counted(gaussian(schedule))
    seen = []
    x = sampler(denoiser, (2, DIM), callback=lambda state: seen.append(state))
    assert denoiser.calls == sampler.nfe(schedule) == (11 if isinstance(sampler, Heun) else 6)
    assert [s.i for s in seen] == list(range(1, 7))
    assert seen[-1].nfe == denoiser.calls
    assert torch.equal(seen[-1].x, x)
    assert torch.isfinite(x).all()
    levels = sampler.levels(schedule)
    assert levels[0].t == 1.0
    assert all(a.log_kappa > b.log_kappa for a, b in itertools.pairwise(levels))


def test_the_last_step_returns_the_posterior_mean(sampler):
    last = []
    x = sampler(gaussian(VPLinear()), (2, DIM), callback=lambda s: last.append(s.mean))
    torch.testing.assert_close(x, last[-1])


def test_a_sample_depends_on_its_own_seed_only(sampler):
    """Sample 3 of a batch of 8 equals sample 3 drawn alone."""
    denoiser = gaussian(VPLinear())
    batch = sampler(denoiser, (8, DIM), generator=generators(range(8)))
    alone = sampler(denoiser, (1, DIM), generator=generators([3]))
    torch.testing.assert_close(batch[3:4], alone)


def test_the_same_seed_gives_the_same_bytes(sampler):
    draws = [
        sampler(gaussian(EDM()), (4, DIM), generator=torch.Generator().manual_seed(5)).numpy().tobytes()
        for _ in range(2)
    ]
    assert draws[0] == draws[1]


def test_the_trajectory_starts_at_the_noise_and_ends_at_the_sample(sampler):
    x = torch.randn(3, DIM)
    y, trajectory = sampler(gaussian(VPLinear()), x=x, return_trajectory=True)
    assert trajectory.shape == (7, 3, DIM)
    assert torch.equal(trajectory[0], x)
    assert torch.equal(trajectory[-1], y)


def test_inpainting_keeps_what_is_known(sampler):
    known, mask = torch.tensor([[0.3, 0.0, 0.0, -2.0]]), torch.tensor([True, False, False, True])
    for noised in (True, False):
        x = sampler(gaussian(VPCosine()), (5, DIM), constraint=Inpaint(known, mask, noised=noised))
        torch.testing.assert_close(x[:, mask], known[:, mask].expand(5, -1))
    levels = []
    sampler(
        gaussian(VPCosine()), (5, DIM), constraint=Inpaint(known, mask, noised=False),
        callback=lambda s: levels.append(s.x[:, 3]),
    )  # fmt: skip
    assert all(bool((x == -2.0).all()) for x in levels)


def test_a_callback_may_replace_x_or_stop(sampler):
    zero = sampler(gaussian(EDM()), (2, DIM), callback=lambda s: torch.zeros_like(s.x) if s.i == 6 else None)
    assert bool((zero == 0).all())
    seen = []

    def stop(state):
        seen.append(state.i)
        return STOP if state.i == 2 else None

    sampler(gaussian(EDM()), (2, DIM), callback=stop)
    assert seen == [1, 2]


def test_partial_noise_stays_near_the_start(sampler):
    init = gaussian(VPLinear()).sample(64, torch.Generator().manual_seed(0)).float()
    near = sampler(gaussian(VPLinear()), init=init, start=0.05, generator=torch.Generator().manual_seed(1))
    far = sampler(gaussian(VPLinear()), init=init, start=1.0, generator=torch.Generator().manual_seed(1))
    assert (near - init).square().mean() < 0.2 * (far - init).square().mean()


def test_gradients_flow_only_when_asked(sampler):
    x = torch.randn(2, DIM, requires_grad=True)
    assert not sampler(gaussian(EDM()), x=x).requires_grad
    y = sampler(gaussian(EDM()), x=x, grad=True)
    y.sum().backward()
    assert x.grad is not None


def test_progress_does_not_change_the_result(sampler):
    draws = [
        sampler(gaussian(EDM()), (2, DIM), generator=torch.Generator().manual_seed(0), progress=progress)
        for progress in (False, True)
    ]
    assert torch.equal(*draws)


def test_the_dtype_asked_for_is_kept(sampler):
    assert sampler(gaussian(EDM()), (2, DIM), dtype=torch.float64).dtype == torch.float64


# --- errors -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: DDIM(0), "steps must be"),
        (lambda: DDIM(2.5), "steps must be"),
        (lambda: DDIM(5, grid="karas"), "did you mean 'karras'"),
        (lambda: DDIM(eta=2), "eta must lie"),
        (lambda: by_name("dimm"), "did you mean 'ddim'"),
        (lambda: DDIM(5)(gaussian(EDM())), "exactly one of"),
        (lambda: DDIM(5)(gaussian(EDM()), (0, DIM)), "shape must be"),
        (lambda: DDIM(5)(gaussian(EDM()), (2, DIM), start=0.3, stop=0.4), "stop < start"),
        (lambda: DDIM(grid=[0.5, 0.7])(gaussian(EDM()), (2, DIM)), "strictly decreasing"),
        (lambda: DDIM(grid=[0.5, -0.1])(gaussian(EDM()), (2, DIM)), "must lie in"),
        (lambda: DDIM(5)(gaussian(VPLinear()), (2, DIM), start=1e-4), "start higher"),
        (lambda: DDIM(5)(gaussian(EDM()), x=torch.full((2, DIM), torch.nan)), "NaN"),
        (lambda: DDIM(5)(gaussian(EDM()), (2, DIM), generator=generators([1])), "one per sample"),
        (
            lambda: DDIM(5)(gaussian(EDM()), (2, DIM), cond=Condition(tokens={"class": torch.ones(3, 1, 1)})),
            "batch size 3",
        ),
    ],
)
def test_bad_arguments_say_what_is_wrong(call, message):
    with pytest.raises(InvalidArgument, match=message):
        call()


def test_a_denoiser_that_breaks_is_reported():
    broken = as_denoiser(lambda x, t, cond: x / 0, EDM())
    with pytest.raises(SamplingDiverged, match="not finite"):
        DDIM(3)(broken, (2, DIM))
