"""Steps compile as they stand, and cost what the bookkeeping of a step should."""

import sys
import time

import pytest
import torch

from suffuse import as_denoiser
from suffuse.bench import Run
from suffuse.benchmarks.overhead import fastest, held, overhead
from suffuse.samplers import SAMPLERS, by_name
from suffuse.schedules import EDM


def run_of(sampler, x, step):
    """The loop of a sampler without the base class, by a given step function."""
    drawn, shape = torch.Generator().manual_seed(0), x.shape
    state, mean = None, x
    for stage in sampler.plan(sampler.levels(EDM()), EDM()):
        mean = 0.5 * x if stage.t is not None else mean
        x, state = step(x, mean, state, lambda: torch.randn(shape, generator=drawn), stage.coefficients)
    return x


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_step_compiles_without_a_graph_break(name):
    """``fullgraph`` raises at a break. The noise is drawn before the step, as a compiled graph holds no generator."""
    sampler = by_name(name, steps=6)
    torch._dynamo.reset()

    def step(x, mean, state, noise, c):
        return sampler.step(x, mean, state, lambda: noise, c)

    compiled = torch.compile(step, backend="eager", fullgraph=True, dynamic=False)
    x = torch.randn(4, 8, generator=torch.Generator().manual_seed(1))
    eager = run_of(sampler, x, lambda x, mean, state, noise, c: step(x, mean, state, noise(), c))
    with torch._dynamo.config.patch(recompile_limit=64):
        graph = run_of(sampler, x, lambda x, mean, state, noise, c: compiled(x, mean, state, noise(), c))
    torch.testing.assert_close(graph, eager)


@pytest.mark.parametrize("name", ["ddim", "dpmpp-2m", "unipc-2", "deis-3", "vab-3"])
def test_a_step_costs_a_few_additions(name):
    """A few times a bare loop of three multiplications and an addition, on one thread."""
    x, steps = torch.randn(16, 64), 50
    sampler, denoiser = by_name(name, steps=steps), as_denoiser(lambda x, t, cond: 0.5 * x, EDM())

    def bare():
        y = x
        with torch.no_grad():
            for _ in range(steps):
                y = 0.9 * y + 0.1 * (0.5 * y)

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        best = fastest({"bare": bare, "ours": lambda: sampler(denoiser, x=x)}, 30)
    finally:
        torch.set_num_threads(threads)
    assert best["ours"] < 4 * best["bare"]


def test_the_tensors_alive_are_counted():
    def keep_three(mean, x):
        kept = []
        for _ in range(5):
            kept = [*kept[-2:], mean(x + 1)]

    assert held(keep_three, torch.randn(2, 5)) == 4  # three kept ones and the input
    sampler = by_name("dpmpp-2m", steps=8)
    denoiser = lambda mean: as_denoiser(lambda x, t, cond: mean(x), EDM())  # noqa: E731
    assert held(lambda mean, x: sampler(denoiser(mean), x=x), torch.randn(2, 5)) == 2  # x and the mean before


def test_the_fastest_run_of_each_counts():
    waits = iter([0.02, 0.0, 0.02])
    best = fastest({"waits": lambda: time.sleep(next(waits))}, 3)
    assert best["waits"] < 0.01


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers.*")
def test_the_benchmark_reports_every_sampler(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules["suffuse.benchmarks.overhead"].REPEATS, "quick", 1)
    run = Run(overhead, "quick", 0, "cpu", tmp_path, None, False, tmp_path / "report")
    overhead(run)
    timed = {row.method for row in run.rows if row.metric == "us-per-step"}
    assert set(SAMPLERS) < timed
    assert all(row.value > 0 for row in run.rows)
    rounded = {row.setting["bfloat16"]: row.value for row in run.rows if row.method == "ddim" and row.setting}
    assert rounded["network"] < 0.2 * rounded["network and state"]  # a float32 state forgives a rounded network
