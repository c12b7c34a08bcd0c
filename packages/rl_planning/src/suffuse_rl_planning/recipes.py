"""What can be trained here by name; the heavy libraries load when a recipe runs."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from suffuse.errors import CheckpointError, InvalidArgument
from suffuse.recipes import Recipe, recipe

if TYPE_CHECKING:
    from .data import Episodes

NAME = "rl_planning/speed-planner"
ALIGNDIFF = "rl_planning/aligndiff"


@contextlib.contextmanager
def datasets_in(folder: Path) -> Iterator[Path]:
    """Let Minari keep its datasets in a folder for a while."""
    before = os.environ.get("MINARI_DATASETS_PATH")
    folder.mkdir(parents=True, exist_ok=True)
    os.environ["MINARI_DATASETS_PATH"] = str(folder.absolute())
    try:
        yield folder
    finally:
        if before is None:
            del os.environ["MINARI_DATASETS_PATH"]
        else:
            os.environ["MINARI_DATASETS_PATH"] = before


def load_or_collect(dataset: str, *, episodes: int, seed: int) -> Episodes:
    """The local Minari dataset of this id; the default one is collected first where it is missing."""
    import minari

    from .collect import DATASET_ID, collect
    from .data import Episodes

    if dataset == DATASET_ID and dataset not in minari.list_local_datasets(compatible_minari_version=False):
        collect(dataset, episodes=episodes, seed=seed)
    return Episodes.from_minari(dataset)


def sample(
    checkpoint: Path,
    *,
    out: Path,
    speeds: tuple[float, ...] = (),
    n: int = 2,
    control_steps: int = 150,
    steps: int = 5,
    guidance_scale: float = 2.0,
    replan: int = 4,
    candidates: int = 1,
    seed: int = 0,
    device: str = "auto",
) -> list[Path]:
    """Roll the planner out at requested speeds; write what was measured as JSON and the motion as GIF.

    Args:
        checkpoint: folder that `train` wrote.
        out: folder for rollout.json and rollout.gif.
        speeds: requested speeds in m/s; one slow, one fast if empty.
        n: rollouts per speed, each from its own initial state.
        control_steps: length of a rollout, in control steps of 0.05 s.
        steps: sampling steps per decision.
        guidance_scale: 1 is the plain conditional model.
        replan: control steps between decisions.
        candidates: plans per decision, of which the one measured nearest to the request is executed.
        seed: of initial states and noise.
        device: cpu, cuda, or auto.
    """
    from suffuse.bench.runner import resolve_device

    from . import behaviours, evaluate, pictures, render
    from .planners import DiffusionPlanner, few_steps

    if n < 1:
        raise InvalidArgument(f"n must be at least 1 rollout per speed, got {n}")
    planner = DiffusionPlanner.load(
        checkpoint,
        device=resolve_device(device),
        sampler=few_steps(steps),
        guidance_scale=guidance_scale,
        replan=replan,
        candidates=candidates,
        seed=seed,
    )
    if "speed" not in planner.scales:
        raise CheckpointError(f"this planner knows {', '.join(planner.scales)}, not speed")
    scale = planner.scales["speed"]
    wanted = list(speeds) or [scale.low + share * (scale.high - scale.low) for share in (0.65, 0.9)]
    tracking = evaluate.track(
        planner,
        wanted,
        env_id=planner.env_id,
        scale=scale,
        repeats=n,
        steps=control_steps,
        settle=control_steps // 3,
        seed=seed,
    )
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    unit = behaviours.UNITS["speed"]
    (out / "rollout.json").write_text(json.dumps(evaluate.summary(tracking), indent=2) + "\n")
    rows = [k * n for k in range(len(wanted))]
    film, _ = pictures.film(tracking.rollout, rows, [pictures.caption("speed", v, unit) for v in wanted])
    render.write_gif(out / "rollout.gif", film, fps=pictures.fps(tracking.rollout))
    return [out / "rollout.json", out / "rollout.gif"]


@recipe(NAME, sample=sample)
def speed_planner(
    *,
    dataset: str = "suffuse/halfcheetah/cpg-v0",
    out: Path = Path("runs/speed-planner"),
    behaviours: tuple[str, ...] = ("speed",),
    episodes: int = 400,
    horizon: int = 8,
    measure: int = 50,
    steps: int = 6000,
    batch_size: int = 128,
    lr: float = 2e-3,
    hidden: int = 128,
    depth: int = 3,
    seed: int = 0,
    device: str = "auto",
    progress: bool = True,
) -> Path:
    """A diffusion planner that makes a cheetah run as fast as asked; some minutes on two CPU cores.

    Args:
        dataset: id of a local Minari dataset; the default is collected by simulated controllers if it is missing.
        out: folder of the checkpoint and logs.
        behaviours: what can be requested: speed, height, energy; any subset of these at run time.
        episodes: how many to collect, if the default dataset is missing.
        horizon: control steps in a plan.
        measure: control steps over which behaviour is measured for training.
        steps: optimiser steps.
        batch_size: windows per step.
        lr: learning rate.
        hidden: width of the transformer.
        depth: number of its blocks.
        seed: of data, weights and noise.
        device: cpu, cuda, or auto.
        progress: show a progress bar.
    """
    from .planners import DiffusionPlanner

    data = load_or_collect(dataset, episodes=episodes, seed=seed)
    windows = data.windows(horizon, names=behaviours, measure=max(measure, horizon))
    planner = DiffusionPlanner.fit(
        windows,
        env_id=data.env_id,
        steps=steps,
        batch_size=batch_size,
        lr=lr,
        hidden=hidden,
        depth=depth,
        out=out,
        seed=seed,
        accelerator=device,
        progress=progress,
    )
    return planner.save(out, metadata={"recipe": NAME, "dataset": data.name, "episodes": len(data)})


def render_aligndiff(
    checkpoint: Path,
    *,
    out: Path = Path("samples"),
    words: str = "",
    strengths: dict[str, float] | None = None,
    then: str = "",
    n: int = 4,
    control_steps: int = 200,
    steps: int = 0,
    candidates: int = 16,
    guidance_scale: float = 3.0,
    replan: int = 4,
    backend: str = "auto",
    seed: int = 0,
    device: str = "auto",
) -> list[Path]:
    """Ask for a behaviour, by words or by numbers; write what came out as JSON and GIF.

    Args:
        checkpoint: folder that `train` wrote.
        out: folder for rollout.json and rollout.gif.
        words: for instance "fast, crouched, low energy".
        strengths: attribute -> strength in [0, 1], in place of words or beside them.
        then: words of a second request, which replaces the first in the middle of the episode.
        n: rollouts, each from its own initial state; the first is drawn.
        control_steps: length of a rollout.
        steps: sampling steps per decision; those of the planner's formulation if 0.
        candidates: plans per decision, of which the director chooses.
        guidance_scale: 1 is the plain conditional model.
        replan: control steps between decisions.
        backend: gl for MuJoCo's renderer, stick for figures that need no OpenGL, auto for the first that works.
        seed: of initial states and noise.
        device: cpu, cuda, or auto.
    """
    import dataclasses

    import numpy as np

    from suffuse import hub
    from suffuse.bench.runner import resolve_device

    from . import language, pictures, render
    from .envs import rollout
    from .evaluate.switching import Changing
    from .planners import AlignDiff

    planner = AlignDiff.load(
        checkpoint, device=resolve_device(device), candidates=candidates, guidance_scale=guidance_scale, replan=replan,
        seed=seed,
    )  # fmt: skip
    if steps:
        planner.sampler = dataclasses.replace(planner.sampler, steps=steps)
    if n < 1:
        raise InvalidArgument(f"n must be at least 1 rollout, got {n}")
    asked = dict(strengths or {})
    if words or not asked:
        asked = {**language.parse(words or "fast", planner.scales), **asked}
    phases = [asked]
    if then:
        phases.append({**asked, **language.parse(then, planner.scales, asked)})
    schedule = {name: [phase[name] for phase in phases if name in phase] for name in phases[-1]}
    schedule = {name: values if len(values) == len(phases) else [np.nan, *values] for name, values in schedule.items()}
    every = -(-control_steps // len(phases))
    result = rollout(Changing(planner, schedule, every), env_id=planner.env_id, n=n, steps=control_steps, seed=seed)
    meaning = hub.read_config(checkpoint)["metadata"].get("meaning", {})
    grid = np.linspace(0, 1, 41)
    report: list[dict[str, Any]] = []
    film: list[Any] = []
    for k, phase in enumerate(phases):
        first, last = k * every, min((k + 1) * every, control_steps)
        known = {name: v for name, v in phase.items() if name in meaning}
        means = {name: float(np.interp(v, grid, meaning[name])) for name, v in known.items()}
        report.append(
            {
                "steps": [first, last],
                "strengths": phase,
                "requested": means,
                "obtained": {name: result.behaviour(name, (first + last) // 2, last).tolist() for name in means},
            }
        )
        shown, _ = pictures.obedient_film(
            result, 0, {name: (phase[name], value) for name, value in means.items()}, stop=last, backend=backend
        )
        film += shown[first // 2 :]
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    (out / "rollout.json").write_text(json.dumps({"env_id": planner.env_id, "phases": report}, indent=2) + "\n")
    tallest = max(picture.shape[0] for picture in film)
    film = [np.pad(p, ((tallest - p.shape[0], 0), (0, 0), (0, 0))) for p in film]
    render.write_gif(out / "rollout.gif", film, fps=pictures.fps(result))
    return [out / "rollout.json", out / "rollout.gif"]


@recipe(ALIGNDIFF, sample=render_aligndiff)
def aligndiff(
    *,
    env_id: str = "HalfCheetah-v5",
    dataset: str = "",
    preferences: Path | None = None,
    out: Path = Path("runs/aligndiff"),
    attributes: tuple[str, ...] = (),
    episodes: int = 400,
    pairs: int = 2000,
    horizon: int = 16,
    measure: int = 50,
    scale: str = "minmax",
    formulation: str = "v",
    label_steps: int = 500,
    steps: int = 4000,
    batch_size: int = 128,
    lr: float = 2e-3,
    hidden: int = 128,
    depth: int = 3,
    bins: int = 0,
    seed: int = 0,
    device: str = "auto",
    progress: bool = True,
) -> Path:
    """AlignDiff whole: collect, label, learn attribute strengths, relabel, and train a planner that can be asked.

    Args:
        env_id: the robot, if a dataset is to be collected.
        dataset: id of a local Minari dataset; collected from the bundled gaits if empty.
        preferences: file of answered pairs in AlignDiff's layout; labelled by measured behaviour if none.
        out: folder of the checkpoint and logs.
        attributes: behaviours to compare, if the pairs are labelled here; those of the robot if none.
        episodes: how many to collect.
        pairs: how many to label.
        horizon: control steps in a plan.
        measure: control steps over which a window's strength is judged.
        scale: minmax, or quantile.
        formulation: v, vp_ddim (the paper's) or edm (its released code's).
        label_steps: optimiser steps of the attribute model.
        steps: optimiser steps of the planner.
        batch_size: windows per step.
        lr: learning rate.
        hidden: width of the transformer.
        depth: number of its blocks.
        bins: strengths as one of so many bins (100 in the paper), or smoothly if 0.
        seed: of data, weights and noise.
        device: cpu, cuda, or auto.
        progress: show a progress bar.
    """
    import numpy as np

    from .attributes import Attributes
    from .collect import collect
    from .data import Episodes
    from .envs import robot
    from .evaluate import MeasureMap
    from .planners import AlignDiff
    from .preferences import Preferences, label

    out = Path(out)
    if dataset:
        data = Episodes.from_minari(dataset)
    else:
        with datasets_in(out / "minari"):
            name = f"suffuse/{env_id.partition('-')[0].lower()}/cpg-v0"
            data = Episodes.from_minari(collect(name, env_id=env_id, episodes=episodes, seed=seed, overwrite=True))
    if preferences is None:
        names = attributes or robot(data.env_id).attributes
        answered = label(data, names, n=pairs, length=measure, seed=seed)
        answered.to_hdf5(out / "preferences.hdf5")
    else:
        answered = Preferences.from_hdf5(preferences, attributes or None)

    windows = data.windows(horizon, names=("speed",), measure=max(measure, horizon))
    seen, unseen = answered.split(0.1, seed=seed)
    model = Attributes.fit(
        seen, env_id=data.env_id, steps=label_steps, batch_size=128, lr=1e-3, width=48, patch=4,
        out=out / "attributes", seed=seed, accelerator=device, progress=progress,
    )  # fmt: skip
    windows, strengths = model.relabel(data, windows, kind=scale)
    strengths.save(out / "strengths.safetensors")
    planner = AlignDiff.fit(
        windows, env_id=data.env_id, attributes=model, formulation=formulation, steps=steps,
        batch_size=batch_size, lr=lr, hidden=hidden, depth=depth, bins=bins, out=out, seed=seed, accelerator=device,
        progress=progress,
    )  # fmt: skip
    length = min(measure, int(np.diff(data.offsets).max()))
    grid = np.linspace(0, 1, 41)
    meaning = {name: u(grid).tolist() for name, u in MeasureMap.fit(model, data, length=length).items()}
    facts = {
        "recipe": ALIGNDIFF, "dataset": data.name, "episodes": len(data), "pairs": len(answered),
        "accuracy": model.accuracy(unseen), "meaning": meaning,
    }  # fmt: skip
    return planner.save(out, metadata=facts)


RECIPES: tuple[Recipe, ...] = (speed_planner, aligndiff)
