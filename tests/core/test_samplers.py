"""Samplers: orders of convergence, identities between them, and what the base class promises of all of them."""

import dataclasses
import math
from itertools import pairwise

import pytest
import torch

from suffuse import Condition, as_denoiser
from suffuse.errors import InvalidArgument, SamplingDiverged
from suffuse.exact import Covariance, GaussianDenoiser, MixtureDenoiser
from suffuse.random import generators
from suffuse.samplers import (
    DDIM,
    DDPM,
    DEIS,
    GRIDS,
    SAMPLERS,
    STOP,
    DPMSolverPP,
    EDMHeun,
    Euler,
    EVODiff,
    Heun,
    Inpaint,
    PredictorCorrector,
    UniPC,
    VelocityAB,
    by_name,
)
from suffuse.samplers.weights import exponential_weights
from suffuse.schedules import EDM, DiscreteBetas, RectifiedFlow, VPCosine, VPLinear

SCHEDULES = [VPLinear(), VPCosine(), EDM(), RectifiedFlow(), DiscreteBetas.linear()]
#: Order of accuracy; the corrector of UniPC adds one, and EVODiff is of first order as published.
ODE_SAMPLERS = {
    "ddim": 1,
    "euler": 1,
    "heun": 2,
    "edm-heun": 2,
    "dpmpp-2m": 2,
    "dpmpp-3m": 3,
    "unipc-1": 2,
    "unipc-2": 3,
    "unipc-3": 4,
    "deis-2": 2,
    "deis-3": 3,
    "vab-2": 2,
    "vab-3": 3,
    "evodiff": 1,
}
DIM = 4


def name(value):
    return type(value).__name__


def served(sampler, schedule):
    """Solvers in kappa do not start at infinity."""
    return not (isinstance(schedule, RectifiedFlow) and isinstance(sampler, EDMHeun | EVODiff))


def gaussian(schedule, scale=1.0):
    g = torch.Generator().manual_seed(0)
    a = torch.randn(DIM, DIM, dtype=torch.float64, generator=g)
    return GaussianDenoiser(scale * torch.ones(DIM), scale**2 * (a @ a.T / DIM + 0.02 * torch.eye(DIM)), schedule)


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
@pytest.mark.parametrize("sampler", ODE_SAMPLERS)
def test_order_of_convergence(sampler, schedule):
    """Halving the step on an exact denoiser divides the error against the closed-form flow by 2^order.

    Multistep solvers of third order begin with one step of the first, which costs them h^2; the data are narrow against
    the first level, so that this step is nearly exact, as it is in practice.
    """
    order = ODE_SAMPLERS[sampler]
    denoiser = gaussian(schedule, scale=0.1)
    start, stop = schedule.t_of_kappa(20.0), schedule.t_of_kappa(0.05)
    noise = torch.randn(64, DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    x = noise * schedule.sigma(start)
    truth = denoiser.flow(x, start, stop)
    errors = []
    for steps in (20, 40, 80):
        solver = by_name(sampler, steps=steps, grid="logsnr")
        y = solver(denoiser, x=x, start=start, stop=stop, dtype=torch.float64)
        errors.append(float((y - truth).square().mean(-1).median().sqrt()))
    slopes = [math.log2(a / b) for a, b in pairwise(errors)]
    assert slopes[-1] > order - 0.2, slopes
    if order == 1:
        assert slopes[-1] < 1.2, slopes


@pytest.mark.parametrize("sampler", ODE_SAMPLERS)
def test_ode_solvers_do_not_depend_on_the_schedule(sampler):
    """The same kappa grid gives the same samples in any schedule, up to the scale of x."""
    kappas = torch.logspace(1, -1.5, 12, dtype=torch.float64)
    noise = torch.randn(8, DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    results = []
    for schedule in (VPLinear(), VPCosine(), EDM(), RectifiedFlow()):
        grid = [schedule.t_of_kappa(float(k)) for k in kappas]
        x = noise * schedule.sigma(grid[0])
        # the same point in the coordinates x / alpha
        x = x * (10.0 * schedule.alpha(grid[0]) / schedule.sigma(grid[0]))
        results.append(by_name(sampler, grid=grid)(gaussian(schedule), x=x, dtype=torch.float64, start=grid[0]))
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=name)
def test_ddim_with_full_noise_is_the_ddpm_posterior(schedule):
    """The coefficients agree to rounding, and so do samples of the same seed."""
    levels = DDIM(12).levels(schedule)
    a = [stage.coefficients for stage in DDIM(12, eta=1.0).plan(levels, schedule)]
    b = [stage.coefficients for stage in DDPM(12).plan(levels, schedule)]
    for one, other in zip(a, b, strict=True):
        assert one == pytest.approx(other, rel=1e-9, abs=1e-12)
    draws = [
        s(gaussian(schedule), (3, DIM), generator=torch.Generator().manual_seed(4), dtype=torch.float64)
        for s in (DDIM(12, eta=1.0), DDPM(12))
    ]
    torch.testing.assert_close(*draws)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=name)
def test_solvers_of_order_one_are_ddim_and_ddpm(schedule):
    denoiser, x = gaussian(schedule), torch.randn(5, DIM, dtype=torch.float64) * schedule.sigma(1.0)

    def draw(sampler):
        return sampler(denoiser, x=x, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    for first in (
        Euler(7), DPMSolverPP(7, order=1), DEIS(7, order=1), VelocityAB(7, order=1), UniPC(7, order=1, corrector=False),
        PredictorCorrector(7, predictor=DDIM, corrections=0),
    ):  # fmt: skip
        torch.testing.assert_close(draw(first), draw(DDIM(7)))
    torch.testing.assert_close(draw(DPMSolverPP(7, order=1, eta=1.0)), draw(DDPM(7)))
    for solver in (by_name(key, steps=1) for key in ODE_SAMPLERS):
        if served(solver, schedule):
            torch.testing.assert_close(draw(solver), draw(DDIM(1)))


@pytest.mark.parametrize("schedule", SCHEDULES, ids=name)
@pytest.mark.parametrize(
    "sampler",
    [
        DDPM(400), DDIM(400, eta=0.5), DPMSolverPP(40), Heun(40), DPMSolverPP(60, eta=1.0),
        DPMSolverPP(60, order=3, eta=1.0), PredictorCorrector(80), UniPC(20), DEIS(20), VelocityAB(20),
    ],
    ids=lambda s: f"{type(s).__name__}-{s.steps}",
)  # fmt: skip
def test_samples_have_the_distribution_of_the_data(sampler, schedule):
    denoiser = bimodal(schedule)
    x = sampler(denoiser, (3000, 2), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    right = x[:, 0] > 0
    assert right.double().mean() == pytest.approx(2 / 3, abs=0.04)
    torch.testing.assert_close(x[right].mean(0), torch.tensor([1.0, -0.5], dtype=torch.float64), atol=0.03, rtol=0)
    torch.testing.assert_close(x[right].var(0), torch.full((2,), 0.05, dtype=torch.float64), atol=0.01, rtol=0)


@pytest.mark.parametrize(
    ("scheduler", "options", "ours"),
    [
        ("DPMSolverMultistepScheduler", {"solver_order": 2, "timestep_spacing": "linspace"}, DPMSolverPP()),
        ("UniPCMultistepScheduler", {"solver_order": 2}, UniPC()),
    ],
)
def test_multistep_solvers_are_those_of_diffusers(scheduler, options, ours):
    """On the same noise levels and denoiser, the samples are the same up to the scheduler's float32."""
    diffusers = pytest.importorskip("diffusers")
    theirs = getattr(diffusers, scheduler)(num_train_timesteps=1000, prediction_type="sample", **options)
    theirs.set_timesteps(10)
    times = [(int(k) + 1) / 1000 for k in theirs.timesteps]
    denoiser = gaussian(DiscreteBetas.linear())
    x = torch.randn(6, DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y = x.clone()
    for timestep, t in zip(theirs.timesteps, times, strict=True):
        y = theirs.step(denoiser(y.double(), t), timestep, y).prev_sample
    result = dataclasses.replace(ours, grid=times)(denoiser, x=x, start=times[0], dtype=torch.float64)
    torch.testing.assert_close(result, y.double(), rtol=1e-5, atol=1e-5)


# --- what holds for all -----------------------------------------------------------------------------------------


@pytest.fixture(params=SAMPLERS, ids=str)
def sampler(request):
    return by_name(request.param, steps=6, grid="logsnr")


def evaluations(sampler, steps):
    return 2 * steps - 1 if isinstance(sampler, Heun | EDMHeun | PredictorCorrector) else steps


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("schedule", SCHEDULES, ids=name)
def test_the_number_of_evaluations_is_the_one_asked_for(sampler, schedule, grid):
    sampler = dataclasses.replace(sampler, grid=grid)
    denoiser = Counted(gaussian(schedule))
    if not served(sampler, schedule):
        with pytest.raises(InvalidArgument, match="kappa is infinite"):
            sampler(denoiser, (2, DIM))
        return
    seen = []
    x = sampler(denoiser, (2, DIM), callback=lambda state: seen.append(state))
    assert denoiser.calls == sampler.nfe(schedule) == evaluations(sampler, 6)
    assert [s.i for s in seen] == list(range(1, 7))
    assert seen[-1].nfe == denoiser.calls
    assert torch.equal(seen[-1].x, x)
    assert torch.isfinite(x).all()
    levels = sampler.levels(schedule)
    assert levels[0].t == 1.0
    assert all(a.log_kappa > b.log_kappa for a, b in pairwise(levels))


def test_given_times_may_end_above_the_clean_end():
    denoiser, seen = gaussian(EDM()), []
    DDIM(grid=[1.0, 0.8, 0.6])(denoiser, (2, DIM), stop=0.5, callback=lambda state: seen.append(state.level.t))
    assert seen == [0.8, 0.6, 0.5]


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


# --- particular solvers -----------------------------------------------------------------------------------------


def test_the_order_falls_towards_the_clean_end():
    """The last step knows one mean, the one before two; a run that stops above the clean end keeps its order."""
    sampler, schedule = DPMSolverPP(8, order=3), VPLinear()

    def weights(stop):
        return [len(s.coefficients) - 2 for s in sampler.plan(sampler.levels(schedule, stop=stop), schedule)]

    assert weights(0.0) == [1, 2, 3, 3, 3, 3, 2, 1]
    assert weights(0.1) == [1, 2, 3, 3, 3, 3, 3, 3]


def test_exponential_weights_are_the_integrals():
    """Constants and powers are integrated exactly: the weights of f(z) = z^k sum to its moment."""
    nodes, rate = [0.0, -0.7, -1.9], 1.3
    weights = exponential_weights(nodes, rate)
    grid = torch.linspace(0, 1, 20001, dtype=torch.float64)
    for k in range(3):
        moment = torch.trapezoid(torch.exp(rate * (grid - 1)) * grid**k, grid)
        assert sum(w * z**k for w, z in zip(weights, nodes, strict=True)) == pytest.approx(float(moment), rel=1e-8)
    assert exponential_weights([0.0, -1.0], 0.0) == pytest.approx([1.5, -0.5])  # Adams-Bashforth


def test_churn_raises_and_forgets_the_noise():
    """With churn the samples depend on the generator and still have the distribution of the data."""
    denoiser = bimodal(EDM())
    sampler = EDMHeun(40, churn=20.0)
    assert sampler.nfe(EDM()) == EDMHeun(40).nfe(EDM()) == 79
    x = torch.randn(3000, 2, dtype=torch.float64) * 80
    a, b = (sampler(denoiser, x=x, generator=torch.Generator().manual_seed(k), dtype=torch.float64) for k in (0, 1))
    assert not torch.allclose(a, b)
    assert float((a[:, 0] > 0).double().mean()) == pytest.approx(2 / 3, abs=0.04)
    right = a[a[:, 0] > 0]
    torch.testing.assert_close(right.var(0), torch.full((2,), 0.05, dtype=torch.float64), atol=0.01, rtol=0)


def test_langevin_corrections_mend_a_poor_predictor():
    """Five DDIM steps leave the wrong covariance; Langevin steps at each level bring it nearer."""
    denoiser = gaussian(VPLinear())
    truth = denoiser.sample(20000, torch.Generator().manual_seed(9)).T.cov()

    def off(sampler):
        x = sampler(denoiser, (20000, DIM), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        return float((x.T.cov() - truth).norm())

    assert off(PredictorCorrector(5, predictor=DDIM, corrections=40)) < 0.7 * off(DDIM(5))


@pytest.mark.parametrize("solver", ["unipc-2", "evodiff"])
def test_correctors_keep_what_a_constraint_did(solver):
    """A constraint that shifts x by a constant shifts the corrected x by as much: correcting is adding a difference."""
    known, mask = torch.tensor([[0.5, 0, 0, 0]]), torch.tensor([True, False, False, False])
    seen = []
    by_name(solver, steps=8, grid="logsnr")(
        gaussian(EDM()), (4, DIM), constraint=Inpaint(known, mask, noised=False), callback=lambda s: seen.append(s.x)
    )
    assert all(bool((x[:, 0] == 0.5).all()) for x in seen)


# --- errors -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: DDIM(0), "steps must be"),
        (lambda: DDIM(2.5), "steps must be"),
        (lambda: DDIM(5, grid="karas"), "did you mean 'karras'"),
        (lambda: DDIM(eta=2), "eta must lie"),
        (lambda: DPMSolverPP(order=4), "order must be"),
        (lambda: DPMSolverPP(eta=-1), "eta must not"),
        (lambda: DPMSolverPP(rule="mid"), "rule must be"),
        (lambda: DEIS(order=0), "order must be"),
        (lambda: UniPC(order=4), "order must be"),
        (lambda: UniPC(variant="bh3"), "variant must be"),
        (lambda: EDMHeun(churn=-1), "churn >= 0"),
        (lambda: PredictorCorrector(snr=0), "snr > 0"),
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
