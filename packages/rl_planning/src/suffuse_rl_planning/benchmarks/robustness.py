"""How much do fewer labels, and a spoilt dataset, cost?"""

from __future__ import annotations

import dataclasses
from typing import Any

from suffuse.bench import Run, benchmark

from .lab import DATASETS, PAPER, build, planner, size_of

ENV = "HalfCheetah-v5"


@benchmark(
    "rl_planning/robustness",
    paper=PAPER,
    claim="AlignDiff loses little with a fifth of the labels, and loses more the more of the dataset is random motion.",
)
def robustness(run: Run) -> None:
    """The whole pipeline is repeated with fewer labelled pairs, and with further episodes of random motion in the
    dataset, which are also labelled. Judged by physical measure, which none of this touches, and by the independent
    judge, which learned from the same dataset with the full number of pairs.
    """
    from .. import metrics
    from ..evaluate import draw_tests, judge, measured_errors, run_tests

    size = dataclasses.replace(size_of(run, ENV), candidates=4)
    if not run.quick:
        size = dataclasses.replace(size, steps=size.steps // 2)
    pairs = [size.pairs, size.pairs // 4, size.pairs // 20]
    variants = [(count, 0.0) for count in pairs] + [(size.pairs, share) for share in (0.2, 0.5)]
    if run.quick:
        variants = [variants[0], variants[2], variants[4]]
    for count, share in variants:
        lab = build(run, ENV, size, contaminate=share, pairs=count)
        ours = planner(run, lab, name="robust", steps=size.steps)
        ours.candidates = size.candidates
        tests = draw_tests(lab.attributes, lab.test, n=size.tests, length=size.length, seed=1000 + run.seed)
        with run.stage("roll out"):
            result = run_tests(ours, tests, env_id=ENV, segment=size.length, seed=run.seed)
        measured, _ = measured_errors(result, tests, lab.maps)
        common: dict[str, Any] = {"dataset": DATASETS[ENV], "method": "AlignDiff", "n": size.tests}
        setting: dict[str, Any] = {
            "pairs": count,
            "contaminated": share,
            "targets": "uniform",
            "segments": "mean",
            "candidates": 4,
        }
        for who, judgement in (("independent", judge(result, tests, lab.judge)), ("measured", measured)):
            error = judgement.of("mean")
            where = {**setting, "judge": who}
            run.row(metric="area", value=metrics.area(error), better="higher", setting=where, **common)
            run.row(
                metric="mae", value=float(error.mean()), std=float(error.std()), better="lower", setting=where, **common
            )
        accuracy = sum(lab.accuracy.values()) / len(lab.accuracy)
        run.row(metric="label-accuracy", value=accuracy, better="higher", setting=setting, **common)
