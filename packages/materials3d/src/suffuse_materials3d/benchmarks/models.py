"""The models that several benchmarks look at: trained once for all that run together, a process for each."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from suffuse.bench import Run

if TYPE_CHECKING:
    from ..data import Volumes
    from ..microstructure import Microstructure
    from ..pipeline import MicrostructurePipeline

#: The preset by profile, where there is no GPU.
PRESET = {"quick": "quick", "full": "cpu"}
SYSTEMS = ("cahn-hilliard", "flory-huggins-three")
CLOCK = "seconds.json"


@dataclass
class Trained:
    """A trained model and its data; how long simulation, measurement and all training took, by the wall and in
    processor time (which other programs on the machine do not change).
    """

    system: str
    pipeline: MicrostructurePipeline
    train: Volumes
    test: Volumes
    dataset: str
    seconds: float
    processor_seconds: float


def trained(run: Run, system: str) -> Trained:
    """The model of a system; those of all systems are trained at once, unless another benchmark of this run has."""
    from ..data import read_volumes
    from ..pipeline import MicrostructurePipeline

    wanted = {name: _folder(run, name) for name in SYSTEMS}
    if not (wanted[system] / CLOCK).is_file():
        _train_all({name: folder for name, folder in wanted.items() if not (folder / CLOCK).is_file()}, run)
    folder = wanted[system]
    pipeline = MicrostructurePipeline.from_pretrained(folder, device=run.device)
    facts = pipeline.model.facts
    train, test = read_volumes(folder / "data").split(facts["held_out"], facts["split_seed"])
    shape = "x".join(map(str, train.shape))
    clock = json.loads((folder / CLOCK).read_text())
    return Trained(system, pipeline, train, test, f"{system} {shape}", clock["wall"], clock["processor"])


def resimulated(run: Run, model: Trained, test: Any, shape: tuple[int, ...] = ()) -> list[Microstructure]:
    """Each held-out volume simulated again, from its process parameters and another start, in a box of any shape."""
    import numpy as np
    import torch

    from ..data.simulated import SYSTEMS as KNOWN
    from ..data.spinodal import mixed_seed
    from ..microstructure import Microstructure

    system = KNOWN[model.system]
    equation = system.equation(boundary=model.pipeline.model.facts["boundary"])
    made: dict[int, Microstructure] = {}
    ends = [float(t) for t in test.attributes["time"]]
    for rows in np.array_split(np.argsort(ends), math.ceil(len(ends) / 8)):  # alike in time, at once
        drawn = {name: test.attributes[name][rows].float() for name in system.ranges}
        generators = [torch.Generator().manual_seed(mixed_seed(run.seed + 900_000, int(i))) for i in rows]
        u = equation.start(system.mean(drawn), shape or test.shape, generators, system.noise).to(run.device)
        times = sorted({ends[i] for i in rows})
        history = {"chi": drawn["chi"]} if "chi" in drawn else {}
        labels = system.label(equation.run(u, times, history=history)).cpu()
        for i, trajectory in zip(rows, labels, strict=True):
            made[int(i)] = Microstructure(trajectory[times.index(ends[i])].numpy(), periodic=equation.periodic)
    return [made[i] for i in range(len(ends))]


def _preset(run: Run) -> str:
    return "gpu" if run.profile == "full" and run.device != "cpu" else PRESET[run.profile]


def _folder(run: Run, system: str) -> Path:
    return run.out.parents[1] / "materials3d-models" / f"{system}-{_preset(run)}-seed-{run.seed}"


def _train_all(folders: dict[str, Path], run: Run) -> None:
    """A process with one thread for each system (one after the other on a GPU)."""
    running: list[tuple[subprocess.Popen[bytes], Any]] = []
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")
    for system, folder in folders.items():
        arguments = {"dataset": system, "preset": _preset(run), "out": str(folder), "seed": run.seed,
                     "device": run.device, "workers": 1, "progress": False}  # fmt: skip
        log = tempfile.TemporaryFile()  # noqa: SIM115
        command = [sys.executable, "-m", __name__, json.dumps(arguments)]
        process = subprocess.Popen(command, env={**os.environ, **threads}, stdout=subprocess.DEVNULL, stderr=log)
        running.append((process, log))
        if run.device != "cpu":
            process.wait()
    for process, log in running:
        if process.wait():
            log.seek(0)
            text = log.read().decode(errors="replace").strip().splitlines()
            raise RuntimeError(f"training failed: {text[-1] if text else 'no message'}")


def _train(arguments: dict[str, Any]) -> None:
    from ..recipes import ldm

    wall, processor = time.perf_counter(), time.process_time()
    folder = ldm(**arguments)
    clock = {"wall": time.perf_counter() - wall, "processor": time.process_time() - processor}
    (folder / CLOCK).write_text(json.dumps(clock))


if __name__ == "__main__":
    _train(json.loads(sys.argv[1]))
