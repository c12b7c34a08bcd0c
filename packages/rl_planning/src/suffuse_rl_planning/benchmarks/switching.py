"""Does behaviour follow when the request changes in the middle of an episode?"""

from __future__ import annotations

from typing import Any

from suffuse.bench import Run, benchmark

from .lab import DATASETS, PAPER, build, planner, size_of

ENV = "HalfCheetah-v5"


@benchmark(
    "rl_planning/switching",
    paper=PAPER,
    claim="A change of the request in the middle of an episode changes the behaviour, within 100 control steps.",
    peers=("goal-conditioned cloning",),
)
def switching(run: Run) -> None:
    """Speed and torso height are requested together, and change every 200 control steps as in the paper's figure 6.
    Settling time is until the running mean over 20 steps stays within 5% of the dataset's range of the level that it
    ends at; steady error is from that level to what the strength means on the dataset; overshoot is beyond that level,
    as a share of the range.
    """
    import numpy as np

    from .. import behaviours, pictures
    from ..baselines import BehaviourCloning
    from ..data import Scale
    from ..envs import control_step
    from ..evaluate import switch

    size = size_of(run, ENV)
    lab = build(run, ENV, size)
    ours = planner(run, lab)
    unit = {name: Scale(0.0, 1.0) for name in lab.attributes.names}
    with run.stage("train goal-conditioned cloning"):
        cloning = BehaviourCloning.fit(lab.windows, env_id=ENV, steps=size.steps, scales=unit, seed=run.seed)
    policies: dict[str, Any] = {"AlignDiff": ours, "goal-conditioned cloning": cloning}
    found = {}
    for name, policy in policies.items():
        with run.stage(f"roll out {name}"):
            found[name] = switch(policy, lab.maps, env_id=ENV, n=3 if run.quick else 10, seed=run.seed)
        for behaviour, result in found[name].items():
            n = result.settling.size
            setting = {"behaviour": behaviour, "every": result.every}
            common: dict[str, Any] = {"dataset": DATASETS[ENV], "method": name, "setting": setting, "n": n}
            changes = result.settling[:, 1:]  # the first phase starts from rest, and is no switch
            run.row(
                metric="settling", value=float(np.median(changes)), std=float(changes.std()), better="lower",
                unit="control steps", **common,
            )  # fmt: skip
            run.row(
                metric="steady-error", value=float(result.steady.mean()), std=float(result.steady.std()),
                better="lower", unit=behaviours.UNITS[behaviour], **common,
            )  # fmt: skip
            run.row(metric="overshoot", value=float(result.overshoot.mean()), better="lower", **common)
    run.figure(
        "traces", pictures.traces(found, control_step(ENV)),
        "The robot at the end of each phase, and running means; bands span the episodes, the dashed line is asked for.",
    )  # fmt: skip
    settled = {name: float(np.median(result.settling[:, 1:])) for name, result in found["AlignDiff"].items()}
    run.note(
        "AlignDiff settles within "
        + ", ".join(f"{steps:.0f} control steps ({name})" for name, steps in settled.items())
        + ", median over changes and episodes. The paper's figure shows about 30 to 100 for its walker."
    )
