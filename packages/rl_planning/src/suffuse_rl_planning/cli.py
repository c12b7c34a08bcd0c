"""The command line of behaviour planning: ``suffuse-rl collect | label | train | evaluate | render``.

Each command is a typed function: those below, and the recipe ``rl_planning/aligndiff`` with its film. The recipe also
collects and labels, if it is given neither a dataset nor preferences.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from suffuse.errors import InvalidArgument, SuffuseError


def collect(
    dataset: str,
    *,
    env_id: str = "HalfCheetah-v5",
    episodes: int = 400,
    steps: int = 200,
    action_noise: float = 0.1,
    switch: float = 0.25,
    contaminate: float = 0.0,
    seed: int = 0,
    overwrite: bool = False,
) -> None:
    """Record the bundled gaits of a robot as a Minari dataset.

    Args:
        dataset: id, namespace/name-vN.
        env_id: the robot.
        episodes: how many.
        steps: control steps of each.
        action_noise: standard deviation of the noise on motor commands.
        switch: share of the episodes in which one gait takes over from another.
        contaminate: share of further episodes of random motion.
        seed: of everything.
        overwrite: replace a dataset of this id.
    """
    from .collect import collect as record

    made = record(
        dataset, env_id=env_id, episodes=episodes, steps=steps, action_noise=action_noise, switch=switch,
        contaminate=contaminate, seed=seed, overwrite=overwrite,
    )  # fmt: skip
    print(f"{made.spec.dataset_id}: {made.total_episodes} episodes, {made.total_steps} steps")


def label(
    dataset: str,
    out: Path,
    *,
    attributes: list[str] | None = None,
    pairs: int = 2000,
    length: int = 50,
    margin: float = 0.02,
    noise_rate: float = 0.0,
    temperature: float = 0.0,
    people: bool = False,
    answers: list[Path] | None = None,
    seed: int = 0,
) -> None:
    """Answer pairs of stretches by measured behaviour, or let people do it.

    Args:
        dataset: id of a local Minari dataset.
        out: file of the preferences (.hdf5); with --people the folder of the session.
        attributes: what is compared; those of the robot if none.
        pairs: how many.
        length: steps of a stretch.
        margin: below this share of the interquartile range two stretches are equal.
        noise_rate: probability of the wrong answer.
        temperature: doubt, in interquartile ranges.
        people: write a page with clips to label; open it in a browser, and collect the files that it saves.
        answers: such files; with --people their preferences are written to preferences.hdf5 in the session's folder.
        seed: which pairs.
    """
    from . import preferences
    from .data import Episodes
    from .envs import robot

    if people and answers:
        answered, records = preferences.read_answers(out, answers)
        path = answered.to_hdf5(out / "preferences.hdf5")
        print(f"{path}: {len(answered)} pairs")
        print(f"repeated questions answered alike by the same person: {preferences.consistency(records):.2f}")
        print(f"questions answered alike by two people: {preferences.agreement(records):.2f}")
        return
    episodes = Episodes.from_minari(dataset)
    names = tuple(attributes or robot(episodes.env_id).attributes)
    if people:
        page = preferences.prepare(out, episodes, names, n=pairs, length=length, seed=seed)
        print(f"open {page}")
        return
    answered = preferences.label(
        episodes,
        names,
        n=pairs,
        length=length,
        margin=margin,
        noise_rate=noise_rate,
        temperature=temperature,
        seed=seed,
    )
    print(f"{answered.to_hdf5(out)}: {len(answered)} pairs of {length} steps, {', '.join(names)}")


def evaluate(
    checkpoint: Path,
    dataset: str,
    *,
    out: Path = Path("evaluation"),
    tests: int = 100,
    law: str = "uniform",
    segment: int = 50,
    candidates: int = 16,
    replan: int = 4,
    seed: int = 0,
    device: str = "auto",
) -> None:
    """Random requests from random states of a dataset: errors by the planner's own judge and by physical measure.

    Args:
        checkpoint: folder of an AlignDiff planner.
        dataset: id of a local Minari dataset; starts are drawn from its test split if it has one.
        out: folder for evaluation.json and evaluation.md.
        tests: how many.
        law: uniform, or dataset_joint.
        segment: control steps of each of the three segments.
        candidates: plans per decision.
        replan: control steps between decisions.
        seed: of tests and noise.
        device: cpu, cuda, or auto.
    """
    from suffuse.bench.runner import resolve_device

    from . import metrics
    from .baselines import Constant
    from .collect import RandomPolicy
    from .data import Episodes
    from .data.files import replacing
    from .envs import robot
    from .evaluate import MeasureMap, draw_tests, judge, measured_errors, run_tests
    from .evaluate.matching import SEGMENTS
    from .planners import AlignDiff

    planner = AlignDiff.load(
        checkpoint, device=resolve_device(device), candidates=candidates, replan=replan, seed=seed, guidance_scale=3.0
    )
    everything = Episodes.from_minari(dataset)
    if everything.env_id != planner.env_id:
        raise InvalidArgument(f"the dataset is of {everything.env_id}, the planner of {planner.env_id}")
    try:
        held_out = Episodes.from_minari(dataset, split="test")
    except InvalidArgument:
        held_out = everything
    maps = MeasureMap.fit(planner.attributes, everything, length=segment)
    drawn = draw_tests(planner.attributes, held_out, n=tests, law=law, length=segment, seed=seed)
    policies: dict[str, Any] = {
        "AlignDiff": planner,
        "constant (floor)": Constant.middling(everything),
        "random (floor)": RandomPolicy(robot(planner.env_id).joints, seed),
    }
    rows: list[dict[str, Any]] = []
    for name, policy in policies.items():
        result = run_tests(policy, drawn, env_id=planner.env_id, segment=segment, seed=seed)
        measured, details = measured_errors(result, drawn, maps)
        for who, judgement in (("own", judge(result, drawn, planner.attributes)), ("measured", measured)):
            for segments in SEGMENTS:
                error = judgement.of(segments)
                rows.append(
                    {
                        "method": name, "judge": who, "segments": segments, "targets": law, "tests": tests,
                        "area": metrics.area(error), "mae": float(error.mean()),
                        "area_interval": metrics.interval(error, metrics.area),
                    }
                )  # fmt: skip
        for attribute, detail in details.items():
            rows.append(
                {
                    "method": name, "judge": "measured", "attribute": attribute, "targets": law,
                    "physical_error": float(detail["error"].mean()),
                    "spearman": metrics.spearman(detail["requested"], detail["achieved"]),
                }
            )  # fmt: skip
    lines = ["| method | judge | segments | area | 95% | mean error |", "| --- | --- | --- | --: | --: | --: |"]
    for row in rows:
        if "area" in row:
            low, high = row["area_interval"]
            lines.append(
                "| {method} | {judge} | {segments} | {area:.3f} ".format(**row)
                + f"| {low:.3f} to {high:.3f} | {row['mae']:.3f} |"
            )
    for name, text in (("evaluation.json", json.dumps(rows, indent=2)), ("evaluation.md", "\n".join(lines))):
        with replacing(Path(out) / name) as target:
            target.write_text(text + "\n")
    print("\n".join(lines))


def main(arguments: list[str] | None = None) -> int:
    """Run a command; errors that a user can mend are one line on standard error."""
    from jsonargparse import auto_cli

    from .envs import headless
    from .recipes import aligndiff, render_aligndiff

    headless()
    commands: Any = {
        "collect": collect, "label": label, "train": aligndiff.train, "evaluate": evaluate, "render": render_aligndiff,
    }  # fmt: skip
    try:
        made = auto_cli(commands, args=arguments, prog="suffuse-rl")
    except SuffuseError as error:
        print(f"suffuse-rl: {error}", file=sys.stderr)
        return 2
    for path in made if isinstance(made, list) else [made] if made else []:
        print(path)
    return 0
