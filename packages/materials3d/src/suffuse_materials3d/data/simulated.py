"""Simulated data sets on disk: many simulations, one process per core, that can be stopped and gone on with.

    simulate_dataset("data/two-phase", system="cahn-hilliard", trajectories=256, descriptors=("vf_1", "drel_1"))

Each ``part_*.h5`` holds some simulations and appears when it is complete, so a run that was stopped goes on with the
parts that are missing. Simulation i depends on (seed, i) alone, except for the times of its snapshots, which a batch
has in common.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from suffuse.bench.row import write_text
from suffuse.errors import InvalidArgument, SuffuseError, unknown

from ..microstructure import Microstructure
from ..progress import bar
from ..simulate import (
    HISTORIES,
    CahnHilliard,
    FloryHuggins,
    History,
    PhaseField,
    Ternary,
    double_threshold,
    random_history,
)
from .volumes import read_volumes, write_part

__all__ = ["SYSTEMS", "System", "simulate_dataset"]

#: Shares outside of this range are no two-phase (or three-phase) structures, and are left out and counted.
SHARES = {2: (0.05, 0.95), 3: (0.02, 0.95)}
SETTINGS = "dataset.json"


@dataclass(frozen=True)
class System:
    """What is simulated, and over which process parameters.

    Args:
        equation: keyword arguments (boundary, substrate) -> the equation.
        phases: number of phases.
        ranges: parameter -> (low, high), drawn evenly.
        times: (first, last) time of snapshots; drawn evenly in log time.
        mean: parameters (B,) by name -> the mean of the start.
        label: fields -> labels.
    """

    equation: Callable[..., PhaseField]
    phases: int
    ranges: Mapping[str, tuple[float, float]]
    times: tuple[float, float]
    mean: Callable[[Mapping[str, Tensor]], Tensor]
    label: Callable[[Tensor], Tensor]
    noise: float = 0.05

    @property
    def parameters(self) -> tuple[str, ...]:
        """The process parameters of a structure: what was drawn, and the natural logarithm of the time."""
        return (*self.ranges, "log_time")


_BLEND = {"phi": (0.40, 0.62), "chi": (2.6, 3.8)}

#: Systems by name.
SYSTEMS: dict[str, System] = {
    "cahn-hilliard": System(
        CahnHilliard,
        2,
        {"mean": (-0.30, 0.36)},
        (100.0, 800.0),
        lambda p: p["mean"],
        lambda u: (u > 0).to(torch.uint8),
    ),
    "flory-huggins": System(
        FloryHuggins, 2, _BLEND, (20.0, 320.0), lambda p: p["phi"], lambda u: (u < 0.5).to(torch.uint8), 0.01
    ),
    "flory-huggins-three": System(FloryHuggins, 3, _BLEND, (20.0, 320.0), lambda p: p["phi"], double_threshold, 0.01),
    "ternary": System(
        Ternary,
        3,
        {"mean_0": (0.25, 0.45), "mean_1": (0.25, 0.35)},
        (60.0, 480.0),
        lambda p: torch.stack([p["mean_0"], p["mean_1"], 1 - p["mean_0"] - p["mean_1"]], -1),
        Ternary.phases,
        0.02,
    ),
}


def simulate_dataset(
    out: str | Path,
    system: str = "cahn-hilliard",
    *,
    trajectories: int = 128,
    shape: Sequence[int] = (32, 32, 16),
    snapshots: int = 4,
    descriptors: Sequence[str] = (),
    boundary: str = "periodic",
    substrate: float = 0.0,
    histories: Sequence[str] = (),
    spacing: Sequence[float] = (1.0, 1.0, 1.0),
    unit: str = "voxel",
    seed: int = 0,
    batch_size: int = 8,
    part_size: int = 32,
    workers: int | None = None,
    device: str = "cpu",
    progress: bool = True,
) -> Path:
    """Simulate a set of volumes into a folder, or go on with one.

    Args:
        out: the folder.
        system: a name in ``SYSTEMS``.
        trajectories: simulations.
        shape: voxels (X, Y, Z).
        snapshots: volumes of each simulation, at times even in log time; they are alike (see ``Volumes.split``).
        descriptors: numbers to measure of each volume and to keep with it.
        boundary: "periodic", or "film" with walls at both ends of z.
        substrate: attraction of the first phase to the wall at z = 0, for films.
        histories: families (``simulate.HISTORIES``) of courses of chi over [2.4, 3.8] instead of a constant chi; the
            course of each simulation is kept with its volumes.
        spacing, unit: size to give to the voxels.
        seed: of parameters and starts.
        batch_size: simulations at once.
        part_size: simulations per file.
        workers: processes; default one per core. A GPU is used by one.
        device: cpu or cuda.
        progress: show a progress bar.

    Raises:
        InvalidArgument: for an unknown system, descriptor, history or device, sizes that make no sense, or a folder
            with another set.
        SuffuseError: when a process fails; finished parts stay.

    Warns:
        UserWarning: when structures are longer than a third of the shortest edge along which the box repeats.
    """
    from suffuse.bench.runner import resolve_device

    from ..descriptors import DESCRIPTORS, canonical

    if system not in SYSTEMS:
        raise unknown("system", system, SYSTEMS)
    if curves := [name for name in descriptors if DESCRIPTORS[canonical(name)].curve]:
        raise InvalidArgument(f"descriptors {curves} are curves; only numbers are kept with a volume")
    if min(trajectories, snapshots, batch_size, part_size) < 1 or (workers is not None and workers < 1):
        raise InvalidArgument(
            f"trajectories, snapshots, batch_size, part_size and workers must be at least 1, got {trajectories}, "
            f"{snapshots}, {batch_size}, {part_size}, {workers}"
        )
    if seed < 0:
        raise InvalidArgument(f"seed must not be negative, got {seed}")
    if len(shape) != 3 or min(shape) < 4:
        raise InvalidArgument(f"shape must be three sizes (X, Y, Z) of at least 4 voxels, got {tuple(shape)}")
    if histories and "chi" not in SYSTEMS[system].ranges:
        raise InvalidArgument(f"histories drive chi, which {system!r} does not have; take a flory-huggins system")
    for kind in histories:
        if kind not in HISTORIES:
            raise unknown("history", kind, HISTORIES)
    # these refuse what does not fit, before there is anything on disk
    SYSTEMS[system].equation(boundary=boundary, substrate=substrate)
    spacing = Microstructure(np.zeros((1, 1, 1)), tuple(spacing), unit).spacing  # type: ignore[arg-type]
    device = resolve_device(device)
    settings = {
        "system": system, "trajectories": trajectories, "shape": list(shape), "snapshots": snapshots,
        "descriptors": list(descriptors), "boundary": boundary, "substrate": substrate, "histories": list(histories),
        "spacing": list(spacing), "unit": unit, "seed": seed, "batch_size": batch_size, "part_size": part_size,
    }  # fmt: skip
    folder = Path(out)
    _note(folder, settings)
    count = math.ceil(trajectories / part_size)
    todo = [k for k in range(count) if not (folder / _part(k)).is_file()]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    crew = min(workers if workers is not None else (1 if device != "cpu" else cores), len(todo))
    with bar(f"simulating {system}", count, progress) as move:
        move(count - len(todo))
        if crew <= 1:
            for k in todo:
                _make_part(folder, settings, k, device)
                move(sum((folder / _part(i)).is_file() for i in range(count)))
        else:
            _run_crew(
                folder, todo, crew, device, lambda: move(sum((folder / _part(i)).is_file() for i in range(count)))
            )
    _check_size(folder)
    return folder


def _part(k: int) -> str:
    return f"part_{k:04d}.h5"


def _note(folder: Path, settings: Mapping[str, Any]) -> None:
    """Write the settings of a set into its folder, or compare them with those of the parts that are there."""
    file = folder / SETTINGS
    if not any(folder.glob("part_*.h5")):
        write_text(file, json.dumps(settings, indent=2) + "\n")
        return
    try:
        old = json.loads(file.read_text())
        changed = [f"{k}: {old.get(k)!r} then, {v!r} now" for k, v in settings.items() if old.get(k) != v]
    except (OSError, ValueError, AttributeError) as error:
        raise InvalidArgument(
            f"out={str(folder)!r} holds parts, but its {SETTINGS} cannot be read ({error}); choose another out, or "
            f"remove the folder"
        ) from error
    if changed:
        raise InvalidArgument(f"out={str(folder)!r} holds another data set ({'; '.join(changed)}); choose another")


def _check_size(folder: Path) -> None:
    """Warn when the last structures of the first simulations are longer than a third of the box."""
    from ..metrics import characteristic_length

    try:
        some = read_volumes(folder / _part(0), limit=16)
    except InvalidArgument:  # all of them were left out
        return
    lengths = [characteristic_length(ms) for ms in some.microstructures() if 1 in ms.phases and len(ms.phases) > 1]
    edge = min(n * d for n, d, p in zip(some.shape, some.spacing, some.periodic, strict=True) if p)
    if lengths and max(lengths) > edge / 3:
        warnings.warn(
            f"structures are up to {max(lengths):.3g} {some.unit} long in a box of {edge:.3g}: above a third of its "
            f"shortest edge they feel that it repeats; take a larger shape for material properties",
            UserWarning,
            stacklevel=3,
        )


# --- one part ---------------------------------------------------------------------------------------------------


def _make_part(folder: Path, settings: Mapping[str, Any], k: int, device: str) -> None:
    """Simulate the k-th part, measure it, write it."""
    from ..descriptors import measure_all

    system = SYSTEMS[settings["system"]]
    equation = system.equation(boundary=settings["boundary"], substrate=settings["substrate"])
    first, last = k * settings["part_size"], min((k + 1) * settings["part_size"], settings["trajectories"])
    low, high = SHARES[system.phases]
    kept: list[Microstructure] = []
    rejected = 0
    for start in range(first, last, settings["batch_size"]):
        names = range(start, min(start + settings["batch_size"], last))
        labels, facts = _simulate(system, equation, names, settings, device)
        for trajectory, known in zip(labels, facts, strict=True):
            for volume, attributes in zip(trajectory, known, strict=True):
                share = [float((volume == p).float().mean()) for p in range(system.phases)]
                if min(share) < low or max(share) > high:
                    rejected += 1
                    continue
                kept.append(
                    Microstructure(
                        volume.numpy(), tuple(settings["spacing"]), settings["unit"], equation.periodic, attributes
                    )
                )
    asked = settings["descriptors"]
    columns = measure_all(kept, asked, device=device) if asked and kept else {}
    rows = [
        {**ms.attributes, **{name: float(values[i]) for name, values in columns.items()}} for i, ms in enumerate(kept)
    ]
    shape = tuple(settings["shape"])
    write_part(
        folder / _part(k),
        np.stack([ms.labels for ms in kept]) if kept else np.zeros((0, *shape), dtype=np.uint8),
        rows,
        spacing=settings["spacing"],
        unit=settings["unit"],
        periodic=equation.periodic,
        phases=system.phases,
        facts={"rejected": rejected, "system": settings["system"]},
    )


def _simulate(
    system: System, equation: PhaseField, names: range, settings: Mapping[str, Any], device: str
) -> tuple[Tensor, list[list[dict[str, Any]]]]:
    """Labels (B, T, X, Y, Z) of one batch, and the facts of each volume."""
    from .spinodal import mixed_seed

    random = [torch.Generator().manual_seed(mixed_seed(settings["seed"], i)) for i in names]
    drawn = {
        name: torch.stack([torch.rand((), generator=g) for g in random]) * (high - low) + low
        for name, (low, high) in system.ranges.items()
    }
    n, (first, last) = settings["snapshots"], system.times
    clock = torch.Generator().manual_seed(mixed_seed(settings["seed"], -1 - names[0]))
    strata = (torch.arange(n) + torch.rand(n, generator=clock)) / n
    times = [round(float(first * (last / first) ** s) / equation.dt) * equation.dt for s in strata]
    history: dict[str, History | Tensor] = {}
    courses: list[dict[str, Any]] = [{} for _ in names]
    if settings["histories"]:
        made = [random_history(times[-1], 2.4, 3.8, settings["histories"], g) for g in random]
        values = torch.cat([h.values for _, h in made])
        history["chi"] = History(made[0][1].times, values)
        courses = [
            {"history_chi": h.values[0].numpy(), "history_kind": kind, "history_end": times[-1]} for kind, h in made
        ]
        drawn["chi"] = values.mean(1)
    elif "chi" in drawn:
        history["chi"] = drawn["chi"]
    u = equation.start(system.mean(drawn), settings["shape"], random, system.noise)
    labels = system.label(equation.run(u.to(device), times, history=history)).cpu()
    facts = [
        [
            {
                "trajectory_id": name,
                "time": t,
                "log_time": math.log(t),
                **{key: float(v[i]) for key, v in drawn.items()},
                **courses[i],
            }
            for t in times
        ]
        for i, name in enumerate(names)
    ]
    return labels, facts


# --- several processes ------------------------------------------------------------------------------------------


def _run_crew(folder: Path, todo: Sequence[int], crew: int, device: str, look: Callable[[], None]) -> None:
    """Processes that each make every ``crew``-th missing part, with one thread."""
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")
    logs = [tempfile.TemporaryFile() for _ in range(crew)]  # noqa: SIM115
    running = [
        subprocess.Popen(
            [sys.executable, "-m", __name__, str(folder), device, *map(str, todo[rank::crew])],
            env={**os.environ, **threads},
            stdout=subprocess.DEVNULL,
            stderr=log,
        )
        for rank, log in enumerate(logs)
    ]
    try:
        while any(process.poll() is None for process in running):
            if any(process.poll() not in (None, 0) for process in running):
                break
            look()
            time.sleep(0.2)
        look()
        for process, log in zip(running, logs, strict=True):
            if process.poll() not in (None, 0):
                log.seek(0)
                tail = log.read().decode(errors="replace").strip().splitlines()[-1:]
                raise SuffuseError(f"a simulating process failed: {''.join(tail)}; finished parts are in {folder}")
    finally:
        for process in running:
            if process.poll() is None:
                process.terminate()
                process.wait()
        for log in logs:
            log.close()


def _work(folder: Path, device: str, parts: Sequence[int]) -> None:
    torch.set_num_threads(1)
    settings = json.loads((folder / SETTINGS).read_text())
    for k in parts:
        _make_part(folder, settings, k, device)


if __name__ == "__main__":
    _work(Path(sys.argv[1]), sys.argv[2], [int(k) for k in sys.argv[3:]])
