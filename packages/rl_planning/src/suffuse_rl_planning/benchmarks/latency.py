"""How many decisions a second, and what do fewer sampling steps cost?"""

from __future__ import annotations

import dataclasses
from typing import Any

from suffuse.bench import Run, benchmark

from .lab import DATASETS, PAPER, build, planner, size_of

ENV = "HalfCheetah-v5"
TICK = 20.0  # control steps per second of the environment


@benchmark(
    "rl_planning/latency",
    paper=PAPER,
    claim="With a few-step sampler, one decision among 64 candidates takes less than a tenth of a second on two CPU "
    "cores, at an error within 10% of the full sampler's.",
)
def latency(run: Run) -> None:
    """Decisions per second for one environment: condition, 64 candidates with guidance, director, choice. 'mae' is the
    error of matching by the independent judge with the same sampler, at fewer candidates and tests to keep it short.
    A warm start begins at the last plan, noised to t = 0.5, with half of the steps.
    """
    import torch

    from suffuse.samplers import DPMSolverPP

    from ..evaluate import draw_tests, judge, run_tests
    from ..evaluate import latency as rate

    size = size_of(run, ENV)
    lab = build(run, ENV, size)
    ours = planner(run, lab)
    threads = torch.get_num_threads()
    common: dict[str, Any] = {"dataset": DATASETS[ENV], "method": "AlignDiff"}

    def speed(candidates: int) -> float:
        ours.candidates = candidates
        with run.stage("decide"):
            return rate(ours, decisions=10 if run.quick else 20)

    errors = {}
    tests = draw_tests(
        lab.attributes, lab.test, n=12 if run.quick else size.tests, length=size.length, seed=2000 + run.seed
    )
    for nfe in (20, 10, 5, 3, 2):
        ours.sampler = DPMSolverPP(steps=nfe, grid="time")
        for candidates in (64, 1) if nfe in (20, 5, 3) else (64,):
            setting = {"nfe": nfe, "candidates": candidates, "compiled": False, "threads": threads}
            run.row(metric="hz", value=speed(candidates), better="higher", unit="Hz", setting=setting, **common)
        if nfe in ((20, 3) if run.quick else (20, 10, 5, 3, 2)):
            ours.candidates = 4
            with run.stage("match"):
                result = run_tests(ours, tests, env_id=ENV, segment=size.length, seed=run.seed)
            errors[nfe] = judge(result, tests, lab.judge).of("mean")
            run.row(
                metric="mae", value=float(errors[nfe].mean()), std=float(errors[nfe].std()), n=len(tests),
                better="lower", setting={"nfe": nfe, "candidates": 4, "judge": "independent"}, **common,
            )  # fmt: skip
    ours.sampler, ours.warm_start, ours.candidates = DPMSolverPP(steps=4, grid="time"), 0.5, 4
    with run.stage("match"):
        result = run_tests(ours, tests, env_id=ENV, segment=size.length, seed=run.seed)
    error = judge(result, tests, lab.judge).of("mean")
    run.row(
        metric="mae", value=float(error.mean()), std=float(error.std()), n=len(tests), better="lower",
        setting={"nfe": 2, "candidates": 4, "judge": "independent", "warm_start": 0.5}, **common,
    )  # fmt: skip
    ours.warm_start = 0.0
    ours.compile()
    for nfe in (5, 3):
        ours.sampler = dataclasses.replace(ours.sampler, steps=nfe)
        setting = {"nfe": nfe, "candidates": 64, "compiled": True, "threads": threads}
        run.row(metric="hz", value=speed(64), better="higher", unit="Hz", setting=setting, **common)
    full, few = errors[20].mean(), errors[3].mean()
    run.note(
        f"The error with 3 evaluations is {few:.3f}, with 20 it is {full:.3f} ({few / full - 1:+.0%}). The cheetah's "
        f"control tick is {TICK:.0f} Hz; a planner that replans every {size.replan} ticks needs "
        f"{TICK / size.replan:.0f} Hz."
    )
