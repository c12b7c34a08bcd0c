"""What the benchmarks of AlignDiff share: data, labels, two attribute models, a planner, and baselines of one seed."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from suffuse.bench import Run

if TYPE_CHECKING:
    from ..attributes import Attributes
    from ..data import Episodes, Windows
    from ..evaluate import MeasureMap
    from ..planners import AlignDiff

PAPER = "Dong et al. 2024, AlignDiff, arXiv:2310.02054"
DATASETS = {
    "HalfCheetah-v5": "HalfCheetah-v5 CPG gaits",
    "Walker2d-v5": "Walker2d-v5 CPG gaits",
    "Hopper-v5": "Hopper-v5 CPG gaits",
}


@dataclass(frozen=True)
class Size:
    """How much is collected, labelled, trained and tested.

    Attributes:
        episodes, episode_steps: of the dataset.
        pairs, length: labelled pairs for each attribute model, and the steps of their stretches.
        label_steps: optimiser steps of an attribute model.
        horizon, measure: of plans, and of the stretch that labels a window, in control steps.
        steps, batch_size, hidden, depth: of the planner.
        tests, candidates: of an evaluation.
        replan, guidance_scale: of the planner when it acts: control steps between decisions, and how strongly it is
            guided.
    """

    episodes: int
    episode_steps: int
    pairs: int
    length: int
    label_steps: int
    horizon: int
    measure: int
    steps: int
    batch_size: int
    hidden: int
    depth: int
    tests: int
    candidates: int
    replan: int = 4
    guidance_scale: float = 4.0


SIZES = {
    "quick": Size(100, 150, 600, 50, 200, 16, 50, 800, 128, 96, 2, 24, 4),
    "full": Size(300, 200, 2000, 50, 400, 16, 50, 2000, 128, 128, 3, 100, 8),
}


@dataclass
class Lab:
    """One robot's data and models.

    Attributes:
        train, test: episodes of other controllers each.
        attributes: labelled the training data, and directs.
        judge: learned from other episodes' pairs with another seed.
        windows: of ``train``, with strengths in [0, 1].
        maps: strengths of ``attributes`` to physical units.
        accuracy: of ``attributes`` on held-out pairs, per attribute.
        folder: where all this is kept.
    """

    env_id: str
    size: Size
    train: Episodes
    test: Episodes
    attributes: Attributes
    judge: Attributes
    windows: Windows
    maps: dict[str, MeasureMap]
    accuracy: dict[str, float]
    folder: Path


def folder(run: Run, env_id: str) -> Path:
    """Where the models of a robot lie, for all benchmarks of one report that ask for the same."""
    return run.out.parent.parent / "lab" / f"{env_id}-{run.seed}"


def record(run: Run, env_id: str, size: Size, *, contaminate: float = 0.0) -> tuple[Episodes, Episodes]:
    """Episodes to train on, and episodes of other controllers to test on."""
    import minari

    from ..collect import collect
    from ..data import Episodes
    from ..recipes import datasets_in

    name = f"lab/contaminated-{round(100 * contaminate)}/cpg-v0"
    with datasets_in(folder(run, env_id) / "minari"):
        if name not in minari.list_local_datasets():
            collect(
                name, env_id=env_id, episodes=size.episodes, steps=size.episode_steps, contaminate=contaminate,
                seed=run.seed,
            )  # fmt: skip
        return Episodes.from_minari(name, split="train"), Episodes.from_minari(name, split="test")


def learn_attributes(
    run: Run, episodes: Episodes, size: Size, *, seed: int, pairs: int = 0
) -> tuple[Attributes, dict[str, float]]:
    """An attribute model, without a scale, and its accuracy on pairs that it did not see."""
    from ..attributes import Attributes
    from ..envs import robot
    from ..preferences import label

    names = robot(episodes.env_id).attributes
    answered = label(episodes, names, n=round((pairs or size.pairs) / 0.9), length=size.length, seed=seed)
    seen, unseen = answered.split(0.1, seed=seed)
    model = Attributes.fit(
        seen, env_id=episodes.env_id, steps=size.label_steps, batch_size=64, lr=1e-3, width=48,
        patch=4 if size.length <= 50 else 8, seed=seed, accelerator=run.device, progress=run.progress,
    )  # fmt: skip
    return model, model.accuracy(unseen)


def build(run: Run, env_id: str, size: Size, *, contaminate: float = 0.0, pairs: int = 0) -> Lab:
    """Collect, label, learn attributes twice, relabel; or read what an earlier benchmark of this report made."""
    from suffuse.hub import CONFIG

    from ..attributes import Attributes
    from ..evaluate import MeasureMap

    spoilt = folder(run, env_id) / f"contaminated-{contaminate:g}"
    variant = spoilt / f"pairs-{pairs or size.pairs}"
    with run.stage("collect"):
        train, test = record(run, env_id, size, contaminate=contaminate)
    unlabelled = train.windows(size.horizon, names=("speed",), measure=size.measure)
    halves = [train.select(range(start, len(train), 2)) for start in range(2)]  # pairs of no common episode
    if (spoilt / "judge" / CONFIG).exists():
        judge = Attributes.load(spoilt / "judge", device=run.device)
    else:
        with run.stage("label and learn the judge's attributes"):
            judge, _ = learn_attributes(run, halves[1], size, seed=run.seed + 100)
            judge.relabel(train, train.windows(size.length, names=("speed",), stride=5))
        judge.save(spoilt / "judge")
    known = (variant / "accuracy.json").exists()
    if known:
        attributes = Attributes.load(variant / "attributes", device=run.device)
        accuracy = json.loads((variant / "accuracy.json").read_text())
    else:
        with run.stage("label and learn attributes"):
            attributes, accuracy = learn_attributes(run, halves[0], size, seed=run.seed, pairs=pairs)
    with run.stage("relabel"):
        windows, _ = attributes.relabel(train, unlabelled)
        maps = MeasureMap.fit(attributes, train, length=size.length)
    if not known:
        attributes.save(variant / "attributes")
        (variant / "accuracy.json").write_text(json.dumps(accuracy))
    return Lab(env_id, size, train, test, attributes, judge, windows, maps, accuracy, variant)


def planner(run: Run, lab: Lab, *, name: str = "planner", **options: Any) -> AlignDiff:
    """AlignDiff, trained on the lab's windows, or read if an earlier benchmark of this report trained it."""
    from suffuse.hub import CONFIG

    from ..planners import AlignDiff

    size = lab.size
    acting: dict[str, Any] = {
        "candidates": size.candidates, "replan": size.replan, "guidance_scale": size.guidance_scale
    }  # fmt: skip
    if (lab.folder / name / CONFIG).exists():
        return AlignDiff.load(lab.folder / name, device=run.device, seed=run.seed, **acting)
    settings: dict[str, Any] = {
        "steps": size.steps, "batch_size": size.batch_size, "hidden": size.hidden, "depth": size.depth
    }  # fmt: skip
    with run.stage("train AlignDiff" + ("" if name == "planner" else f" ({name})")):
        made = AlignDiff.fit(
            lab.windows, env_id=lab.env_id, attributes=lab.attributes, seed=run.seed, accelerator=run.device,
            progress=run.progress, **acting, **{**settings, **options},
        )  # fmt: skip
    made.save(lab.folder / name)
    return made.to(run.device)


def size_of(run: Run, env_id: str) -> Size:
    """The profile's size. Robots that fall have shorter control steps, and are watched for more of them; they decide
    more often, and without guidance, which makes them fall: chosen on tests of a seed of their own.
    """
    size = SIZES[run.profile]
    if env_id == "HalfCheetah-v5":
        return size
    steps = 2 * size.episode_steps
    return dataclasses.replace(size, episode_steps=steps, length=100, measure=100, replan=2, guidance_scale=1.0)


def baselines(run: Run, lab: Lab) -> dict[str, Any]:
    """Policies without diffusion, from the same windows."""
    from ..baselines import TD3BC, BehaviourCloning, Constant, DecisionTransformer
    from ..collect import RandomPolicy
    from ..data import Scale
    from ..envs import robot

    unit = {name: Scale(0.0, 1.0) for name in lab.attributes.names}
    common: dict[str, Any] = {"env_id": lab.env_id, "scales": unit, "seed": run.seed}
    out: dict[str, Any] = {}
    for name, fit, steps in (
        ("goal-conditioned cloning", BehaviourCloning.fit, lab.size.steps),
        ("decision transformer", DecisionTransformer.fit, lab.size.steps),
        ("TD3+BC on attribute reward", TD3BC.fit, lab.size.steps),
    ):
        with run.stage(f"train {name}"):
            out[name] = fit(lab.windows, steps=steps, **common)
    out["constant (floor)"] = Constant.middling(lab.train)
    out["random (floor)"] = RandomPolicy(robot(lab.env_id).joints, run.seed)
    return out
