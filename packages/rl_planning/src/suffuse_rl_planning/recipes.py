"""What can be trained here by name; the heavy libraries load when a recipe runs."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from suffuse.errors import CheckpointError, InvalidArgument
from suffuse.recipes import Recipe, recipe

if TYPE_CHECKING:
    from .data import Episodes

NAME = "rl_planning/speed-planner"


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


RECIPES: tuple[Recipe, ...] = (speed_planner,)
