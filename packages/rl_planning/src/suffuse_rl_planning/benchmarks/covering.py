"""Is the range of an attribute covered as the dataset covers it?"""

from __future__ import annotations

from typing import Any

from suffuse.bench import Run, benchmark

from .lab import DATASETS, PAPER, build, planner, size_of

ENV = "HalfCheetah-v5"


@benchmark(
    "rl_planning/covering",
    paper=PAPER,
    claim="Sweeping one requested strength over its range sweeps the measured behaviour over that of the dataset.",
    peers=("nearest controller",),
)
def covering(run: Run) -> None:
    """Each attribute alone is requested from 0 to 1, from random states of held-out episodes, and measured after the
    first 50 control steps. 'deviation' is from what a strength means on the dataset, 'js-distance' compares the map
    of strength to behaviour with the dataset's own. 'nearest controller' executes in open loop the recorded gait that
    was measured nearest to what is asked: a ceiling for speed.
    """
    from .. import behaviours, metrics, pictures
    from ..envs import rollout
    from ..evaluate import cover, nearest_controller

    size = size_of(run, ENV)
    lab = build(run, ENV, size)
    ours = planner(run, lab)
    n = 16 if run.quick else size.tests
    with run.stage("sweep"):
        found = cover(ours, lab.attributes, lab.maps, lab.test, n=n, seed=run.seed)
    for name, result in found.items():
        common: dict[str, Any] = {"dataset": DATASETS[ENV], "setting": {"behaviour": name}, "n": n}
        unit = behaviours.UNITS[name]
        run.row(method="AlignDiff", metric="spearman", value=result.spearman, better="higher", **common)
        run.row(method="AlignDiff", metric="deviation", value=result.deviation, better="lower", unit=unit, **common)
        run.row(method="AlignDiff", metric="js-distance", value=result.distance, better="lower", **common)
        if name != "speed":
            continue
        oracle = rollout(nearest_controller(ENV, result.expected), env_id=ENV, n=n, steps=150, seed=run.seed).behaviour(
            name, 50
        )
        method = "nearest controller (ceiling)"
        run.row(
            method=method,
            metric="spearman",
            value=metrics.spearman(result.strengths, oracle),
            better="higher",
            **common,
        )
        run.row(
            method=method, metric="deviation", value=metrics.mae(result.expected, oracle), better="lower", unit=unit,
            **common,
        )  # fmt: skip
    run.figure(
        "sweeps", pictures.sweeps(found), "Measured behaviour against the swept strength, over the dataset's own cloud."
    )
