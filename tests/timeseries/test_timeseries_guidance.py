"""Observation self-guidance against a Gaussian, for which the answer is known."""

import pytest
import torch

from suffuse import samplers, schedules
from suffuse.errors import InvalidArgument
from suffuse.exact import GaussianDenoiser
from suffuse_timeseries.tsdiff import ObservationSelfGuidance, quantile_levels
from suffuse_timeseries.tsdiff.self_guidance import LineSearch, PostStep, ancestral

SCHEDULE = schedules.VPCosine()
LENGTH = 6


def correlated():
    """A random-walk-like Gaussian over (1, L): neighbours resemble each other."""
    steps = torch.arange(LENGTH, dtype=torch.float64)
    cov = torch.exp(-(steps[:, None] - steps).abs() / 3)
    return GaussianDenoiser(torch.zeros(1, LENGTH, dtype=torch.float64), cov, SCHEDULE), cov


def observations(rows):
    """The first half is seen and is 1.5."""
    observed = torch.zeros(rows, 1, LENGTH, dtype=torch.float64)
    observed[..., : LENGTH // 2] = 1
    return 1.5 * observed, observed


def test_scale_zero_is_the_identity():
    denoiser, _ = correlated()
    x = torch.randn(4, 1, LENGTH, dtype=torch.float64)
    guided = ObservationSelfGuidance(denoiser, *observations(4), guidance_scale=0.0)
    assert torch.equal(guided(x, 0.4), denoiser(x, 0.4))


@pytest.mark.parametrize("kind", ["ms", "q"])
@pytest.mark.parametrize("t", [0.3, torch.tensor([0.2, 0.4, 0.6, 0.8], dtype=torch.float64)], ids=["float", "tensor"])
def test_the_guided_score_is_the_score_plus_the_gradient_of_the_likelihood(kind, t):
    """score' = score - s dE/dx, the gradient by central differences."""
    denoiser, _ = correlated()
    levels = quantile_levels(4).double() if kind == "q" else None
    guided = ObservationSelfGuidance(denoiser, *observations(4), guidance_scale=0.7, levels=levels)
    x = torch.randn(4, 1, LENGTH, dtype=torch.float64)
    gradient = torch.zeros_like(x)
    for i in range(LENGTH):
        for sign in (1, -1):
            moved = x.clone()
            moved[..., i] += sign * 1e-5
            for row in range(4):
                one = torch.zeros(4, 1, 1, dtype=torch.float64)
                one[row] = 1
                mean = denoiser(moved, t)
                energy = guided.energy(one * mean + (1 - one) * guided.values)
                gradient[row, 0, i] += sign * energy / 2e-5
    torch.testing.assert_close(guided.score(x, t), denoiser.score(x, t) - 0.7 * gradient, rtol=1e-5, atol=1e-5)


def test_mean_square_guidance_moves_samples_to_the_conditional_mean():
    denoiser, cov = correlated()
    rows, half = 512, LENGTH // 2
    values, observed = observations(rows)
    exact = cov[half:, :half] @ torch.linalg.solve(cov[:half, :half], torch.full((half,), 1.5, dtype=torch.float64))

    def horizon(scale):
        guided = ObservationSelfGuidance(denoiser, values, observed, guidance_scale=scale)
        g = torch.Generator().manual_seed(0)
        x = samplers.DDIM(steps=40)(guided, shape=values.shape, generator=g, dtype=torch.float64)
        return x[:, 0, half:].mean(0)

    free, weak, enough, too_much = ((horizon(s) - exact).norm().item() for s in (0.0, 0.05, 0.3, 2.0))
    assert free > weak > enough
    assert enough < 0.1 * free
    assert too_much > 0.5 * free  # E is a sum over correlated entries: a large s overshoots


def test_quantile_guidance_orders_the_samples_of_a_forecast_by_level():
    """High levels are punished for lying below the observations, low ones for lying above."""
    denoiser, _ = correlated()
    rows = 600
    values, observed = observations(rows)
    levels = torch.tensor([0.05, 0.95], dtype=torch.float64).repeat_interleave(rows // 2)
    guided = ObservationSelfGuidance(denoiser, 0 * values, observed, guidance_scale=2.0, levels=levels)
    g = torch.Generator().manual_seed(0)
    x = samplers.DDIM(steps=25)(guided, shape=values.shape, generator=g, dtype=torch.float64)
    low, high = x[: rows // 2, 0].mean(), x[rows // 2 :, 0].mean()
    assert high - low > 0.3


@pytest.mark.parametrize("post_step", [False, True], ids=["paper", "official code"])
@pytest.mark.parametrize("kind", ["ms", "q"])
def test_ddpm_is_guided_as_published(kind, post_step):
    """The chain written out with betas and indices, as in the paper and in its code, gives the same samples."""
    steps, rows, s = 12, 4, 1.3
    chain = schedules.DiscreteBetas.linear(1e-3, 0.3, steps=steps)
    denoiser = correlated()[0].with_schedule(chain)
    values, observed = observations(rows)
    levels = quantile_levels(rows).double() if kind == "q" else None
    sampler = samplers.DDPM(steps=steps, grid="time")
    visited = sampler.levels(chain)
    scale = 1.0 if post_step else ancestral(s, visited)
    guided = ObservationSelfGuidance(denoiser, values, observed, guidance_scale=scale, levels=levels)
    start = torch.randn(values.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ours = sampler(
        denoiser if post_step else guided,
        x=start,
        generator=torch.Generator().manual_seed(1),
        constraint=PostStep(guided, s, visited) if post_step else None,
        dtype=torch.float64,
    )

    beta = torch.tensor(chain.betas, dtype=torch.float64)
    bar = torch.cumprod(1 - beta, 0)
    before = torch.cat([torch.ones(1, dtype=torch.float64), bar[:-1]])
    generator, x = torch.Generator().manual_seed(1), start
    for i in reversed(range(steps)):
        t = (i + 1) / steps
        variance = beta[i] * (1 - before[i]) / (1 - bar[i])
        moved = (x - beta[i] / (1 - bar[i]).sqrt() * denoiser.eps(x, t)) / (1 - beta[i]).sqrt()
        if i:
            moved = moved + variance.sqrt() * torch.randn(x.shape, generator=generator, dtype=torch.float64)
        at = moved if post_step else x
        x = moved - s * variance * guided.mean_and_gradient(at, t)[1]
    torch.testing.assert_close(ours, x, rtol=1e-6, atol=1e-8)


def test_on_a_fine_grid_the_papers_scale_is_nearly_constant_and_between_levels_it_is_defined():
    visited = samplers.DDPM(steps=500, grid="time").levels(SCHEDULE)
    scale = ancestral(1.0, visited)
    assert [scale(level) == pytest.approx(1, abs=0.05) for level in visited[50:450]] == [True] * 400
    t, r = visited[100], visited[101]
    between = SCHEDULE.level((t.t + r.t) / 2)
    assert scale(between) == pytest.approx((r.sigma**2 / r.alpha) / (between.sigma**2 / between.alpha))
    with pytest.raises(InvalidArgument, match="one t for the whole batch"):
        guided = ObservationSelfGuidance(correlated()[0], *observations(2), guidance_scale=scale)
        guided(torch.zeros(2, 1, LENGTH, dtype=torch.float64), torch.tensor([0.2, 0.3], dtype=torch.float64))


def test_the_last_step_of_the_papers_chain_is_not_guided():
    visited = samplers.DDPM(steps=5, grid="time").levels(SCHEDULE)
    scale = ancestral(2.0, visited)
    assert scale(visited[-2]) == 0
    assert [0 < scale(level) < 2 for level in visited[:-2]] == [True] * 4


@pytest.mark.parametrize("samples", [1, 20, 24, 100])
def test_levels_are_centred_for_every_number_of_samples(samples):
    levels = quantile_levels(samples)
    assert len(levels) == samples and levels.mean().item() == pytest.approx(0.5)
    assert (levels.diff() > 0).all() and levels[0] > 0 and levels[-1] < 1


def test_guidance_works_without_grad_and_says_so_under_inference_mode():
    denoiser, _ = correlated()
    guided = ObservationSelfGuidance(denoiser, *observations(2))
    x = torch.randn(2, 1, LENGTH, dtype=torch.float64)
    with torch.no_grad():
        assert not guided(x, 0.5).requires_grad
    with torch.inference_mode(), pytest.raises(InvalidArgument, match="no_grad"):
        guided(x, 0.5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"guidance_scale": -1.0}, "guidance_scale"),
        ({"levels": torch.tensor([0.5])}, "levels"),
        ({"levels": torch.tensor([0.0, 0.5])}, "levels"),
        ({"observed": torch.ones(2, 1, 3)}, "observed"),
    ],
)
def test_bad_arguments_are_named(changes, message):
    denoiser, _ = correlated()
    values, observed = observations(2)
    with pytest.raises(InvalidArgument, match=message):
        ObservationSelfGuidance(denoiser, values, changes.pop("observed", observed), **changes)


@pytest.mark.parametrize("kind", ["ms", "q"])
def test_a_line_search_ends_where_the_energy_along_the_gradient_is_least(kind):
    levels = quantile_levels(8).double() if kind == "q" else None
    denoiser, _ = correlated()
    plan = samplers.DDIM(steps=5).levels(SCHEDULE)
    guided = ObservationSelfGuidance(denoiser, *observations(8), guidance_scale=LineSearch(plan), levels=levels)
    level = plan[2]
    x = torch.randn(8, 1, LENGTH, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    plain, end = denoiser(x, level.t), guided(x, level.t)
    share = 1 - plan[3].kappa / level.kappa
    move = share * (end - plain)  # what a step makes of it
    assert move.abs().sum() > 0.1
    grid = torch.linspace(0, 3, 601, dtype=torch.float64)
    for row in range(8):
        one = torch.zeros(8, 1, 1, dtype=torch.float64)
        one[row] = 1  # other rows at their observations, without energy
        along = [float(guided.energy(one * (plain + a * move) + (1 - one) * guided.values)) for a in grid]
        assert along[200] <= min(along) + 1e-9  # a = 1
        assert along[200] < along[0] or move[row].abs().sum() == 0


@pytest.mark.parametrize("kind", ["ms", "q"])
@pytest.mark.parametrize("steps", [3, 10])
def test_a_line_search_reaches_the_observations_where_a_large_scale_diverges(kind, steps):
    denoiser, _ = correlated()
    levels = quantile_levels(64).double() if kind == "q" else None
    sampler = samplers.DDIM(steps=steps)
    plan = sampler.levels(SCHEDULE)
    noise = torch.randn(64, 1, LENGTH, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def error(scale):
        guided = ObservationSelfGuidance(denoiser, *observations(64), guidance_scale=scale, levels=levels)
        samples = sampler(guided, x=SCHEDULE.sigma(1.0) * noise, dtype=torch.float64)
        return float((samples[..., : LENGTH // 2] - 1.5).abs().mean())

    assert error(LineSearch(plan)) < 0.35 * error(0.0)
    assert error(LineSearch(plan)) < 0.5 * error(ancestral(200.0, plan))


def test_a_line_search_without_observations_leaves_the_model_alone():
    denoiser, _ = correlated()
    plan = samplers.DDIM(steps=5).levels(SCHEDULE)
    nothing = torch.zeros(4, 1, LENGTH, dtype=torch.float64)
    for levels in (None, quantile_levels(4).double()):
        guided = ObservationSelfGuidance(denoiser, nothing, nothing, guidance_scale=LineSearch(plan), levels=levels)
        x = torch.randn(4, 1, LENGTH, dtype=torch.float64)
        assert torch.equal(guided(x, 0.4), denoiser(x, 0.4))
