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
    peers=("goal-conditioned cloning", "nearest controllers"),
)
def switching(run: Run) -> None:
    """Speed and torso height are requested together, and change every 200 control steps as in the paper's figure 6.
    Settling time is until the running mean over 20 steps stays within 5% of the dataset's range of the level that it
    ends at; steady error is from that level to what the strength means on the dataset; overshoot is beyond that level,
    as a share of the range. Settling is of each episode (median), and of the mean over episodes, which wavers
    less. 'nearest controllers' are the recorded gaits nearest to each request, one after another, as a ceiling.
    """
    import numpy as np

    from .. import behaviours, pictures
    from ..baselines import BehaviourCloning
    from ..collect import CPG, controllers
    from ..data import Scale
    from ..envs import control_step, robot
    from ..evaluate import nearest, switch
    from ..evaluate.switching import SCHEDULES

    size = size_of(run, ENV)
    lab = build(run, ENV, size)
    ours = planner(run, lab)
    unit = {name: Scale(0.0, 1.0) for name in lab.attributes.names}
    with run.stage("train goal-conditioned cloning"):
        cloning = BehaviourCloning.fit(lab.windows, env_id=ENV, steps=size.steps, scales=unit, seed=run.seed)
    n, every = 8 if run.quick else size.tests, 200
    schedules = {name: values for name, values in SCHEDULES.items() if name in lab.maps}
    wanted = {name: lab.maps[name](np.array(values)) for name, values in schedules.items()}
    gaits = np.tile(controllers(ENV)[nearest(ENV, wanted)], (n, 1, 1))
    times = np.tile(every * np.arange(1, gaits.shape[1]), (n, 1))
    policies: dict[str, Any] = {
        "AlignDiff": ours,
        "goal-conditioned cloning": cloning,
        "nearest controllers (ceiling)": CPG(robot(ENV), gaits, control_step(ENV), at=times),
    }
    found = {}
    for name, policy in policies.items():
        with run.stage(f"roll out {name}"):
            found[name] = switch(
                policy, lab.maps, env_id=ENV, schedules=schedules, every=every, n=n, seed=run.seed
            )  # fmt: skip
        for behaviour, result in found[name].items():
            setting: dict[str, Any] = {"behaviour": behaviour, "every": every}
            common: dict[str, Any] = {"dataset": DATASETS[ENV], "method": name, "n": n}
            # the first phase starts from rest, and is no switch
            for of, steps in (("episode", result.settling[:, 1:]), ("mean", result.together[1:])):
                run.row(
                    metric="settling", value=float(np.median(steps)), std=float(steps.std()), better="lower",
                    unit="control steps", setting={**setting, "of": of}, **common,
                )  # fmt: skip
            common["setting"] = setting
            run.row(
                metric="steady-error", value=float(result.steady.mean()), std=float(result.steady.std()),
                better="lower", unit=behaviours.UNITS[behaviour], **common,
            )  # fmt: skip
            run.row(metric="overshoot", value=float(result.overshoot.mean()), better="lower", **common)
    run.figure(
        "traces", pictures.traces(found, control_step(ENV)),
        "The robot at the end of each phase, and running means; bands span the episodes, the dashed line is asked for.",
    )  # fmt: skip
    settled = [
        f"{policy} in {', '.join(f'{np.median(of.together[1:]):.0f} ({name})' for name, of in results.items())}"
        for policy, results in found.items()
    ]
    run.note(
        f"The mean over {n} episodes settles, in control steps and as the median over changes: {'; '.join(settled)}. "
        "The paper's figure shows about 30 to 100 for its walker."
    )
