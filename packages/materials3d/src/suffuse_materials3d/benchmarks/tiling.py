"""Volumes larger than those of training: tiles that fit exactly, no seams, memory that does not grow."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

from suffuse.bench import Run, benchmark

from .models import resimulated, trained

if TYPE_CHECKING:
    from pathlib import Path

    from .models import Trained

EDGE = {"quick": 96, "full": 256}
STEPS = {"quick": 6, "full": 10}
#: Boxes in which requests are followed, and how many requests.
ASKED = {"quick": ((32, 32, 16), 12), "full": ((128, 128, 64), 32)}


@benchmark(
    "materials3d/tiling",
    paper="Bar-Tal et al. 2023, MultiDiffusion, arXiv:2302.08113",
    claim="Volumes far beyond the training size are made in parts, with no seams and in little memory.",
    extras=("suffuse-materials3d[io,measure]",),
)
def tiling(run: Run) -> None:
    """`decode-difference` compares decoding in tiles with decoding the whole, over the range of the logits, and
    `labels-that-differ` the phases. `seam-over-bulk` is the share of voxel faces with an interface on planes between
    tiles, over that elsewhere. `peak-memory` is that of a process that loads the model and makes the volume.
    `r2` and `r2-vf-residual` are of requests in a box larger than those of training, as in `materials3d/parity`: what
    simulations of that size have, with the process parameters of the held-out ones. `vf-only` is the cubic that fits
    these very simulations best, so that it is not undersold.
    """
    import torch

    from .. import metrics, plots
    from ..descriptors import measure
    from ..io import read_volume
    from ..windows import decode_tiles

    with run.stage("train"):
        model = trained(run, "cahn-hilliard")
    pipeline = model.pipeline
    codec, device = pipeline.model.autoencoder, next(pipeline.model.autoencoder.parameters()).device
    cells = 64 // codec.factor
    z = torch.randn(1, codec.latent_channels, cells, cells, cells, generator=torch.Generator().manual_seed(run.seed))
    with run.stage("decode"), torch.no_grad():
        whole = codec.decode_stage_2_outputs(z.to(device))
        parts = torch.empty_like(whole)
        for place, logits in decode_tiles(codec, z.to(device), 6, codec.periodic):
            parts[:, :, *place] = logits
    difference = float((whole - parts).abs().max() / (whole.max() - whole.min()))
    labels = float((whole.argmax(1) != parts.argmax(1)).double().mean())
    for metric, value in (("decode-difference", difference), ("labels-that-differ", labels)):
        run.row(dataset="64x64x64", method="tiles", metric=metric, value=value, better="lower")

    with run.stage("windows"):
        arguments = {"shape": (64, 64, 64), "steps": STEPS[run.profile], "seed": run.seed, "measured": False}
        one, several = pipeline(None, **arguments)[0], pipeline(None, window=4, **arguments)[0]
    run.row(
        dataset="64x64x64", method="windows", metric="labels-that-differ", better="lower",
        value=float((one.labels != several.labels).mean()), setting={"window": 4},
    )  # fmt: skip

    edge, steps = EDGE[run.profile], STEPS[run.profile]
    target = run.out / "large.zarr"
    wanted = float(model.train.attributes["vf_1"].median())
    with run.stage(f"generate {edge}^3"):
        facts = _generate(pipeline, run, target, edge, steps, wanted)
    large = read_volume(target)
    dataset = "x".join([str(edge)] * 3)
    rows: dict[str, tuple[float, str]] = {
        "peak-memory": (facts["peak"] / 2**30, "GiB"),
        "seconds": (facts["seconds"], "s"),
        "vf-error": (abs(float(large.labels.mean()) - wanted), ""),
        "seam-over-bulk": (seam_over_bulk(large.labels, 64), ""),
    }
    for metric, (value, unit) in rows.items():
        run.row(
            dataset=dataset, method="to-zarr", metric=metric, value=value, better="lower", unit=unit,
            setting={"steps": steps},
        )  # fmt: skip
    with run.stage("small"):
        small = pipeline({"vf_1": wanted}, n=8, steps=steps, seed=run.seed + 9, measured=False)
    area = [measure(ms, ["sv"])["sv"] for ms in small]
    block = _block(large, 64)
    run.row(
        dataset=dataset, method="to-zarr", metric="sv-over-training-size", better="lower",
        value=measure(block, ["sv"])["sv"] / (sum(area) / len(area)), setting={"steps": steps},
    )  # fmt: skip
    curves = [metrics.two_point_correlation(ms, 1).values[:9] for ms in small]
    ours = metrics.two_point_correlation(block, 1).values[: len(curves[0])]
    mean = sum(curves) / len(curves)
    run.row(
        dataset=dataset, method="to-zarr", metric="s2-distance", better="lower", value=float(abs(ours - mean).mean()),
        setting={"steps": steps},
    )  # fmt: skip
    with run.stage("requests"):
        _requests(run, model)
    run.figure("large", plots.sections(large, title=f"{edge} voxels an edge"), "The middle slices of a large volume.")


def _requests(run: Run, model: Trained) -> None:
    """Requests in a larger box, measured."""
    import numpy as np
    import torch

    from ..descriptors import measure_all
    from ..parity import ParityReport

    shape, count = ASKED[run.profile]
    process = model.pipeline.model.facts["process"]
    names = tuple(a for a in model.pipeline.names if a not in process)
    rows = torch.randperm(len(model.test), generator=torch.Generator().manual_seed(run.seed))[:count]
    real = resimulated(run, model, model.test[rows], shape)
    found = measure_all(real, list(names))
    requested = np.stack([found[name] for name in names], 1)
    report = ParityReport(names, requested, real, requested)
    asked = {name: requested[:, i].tolist() for i, name in enumerate(names)}
    for method, guided in (("ldm", True), ("ldm (network alone)", False)):
        start = time.perf_counter()
        made = model.pipeline(asked, shape=shape, seed=run.seed + 1, predictor_guidance=guided, measured=False)
        report.add(method, made, (time.perf_counter() - start) / count)
    for row in report.rows():
        run.row(dataset="x".join(map(str, shape)), n=count, **row)


def _generate(pipeline: Any, run: Run, target: Path, edge: int, steps: int, wanted: float) -> dict[str, float]:
    """Make a volume in a process of its own, and say how long that took and how much memory."""
    folder = run.out / "model"
    pipeline.model.save(folder, {"recipe": "materials3d/ldm"})
    code = (
        "import json, resource, sys, time, torch\n"
        "torch.set_num_threads(1)\n"
        "from suffuse_materials3d import MicrostructurePipeline\n"
        "folder, target, edge, steps, wanted, seed, device = json.loads(sys.argv[1])\n"
        "pipeline = MicrostructurePipeline.from_pretrained(folder, device=device)\n"
        "start = time.perf_counter()\n"
        "pipeline.to_zarr(target, {'vf_1': wanted}, shape=(edge,) * 3, steps=steps, seed=seed, progress=False)\n"
        "peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024\n"
        "print(json.dumps({'seconds': time.perf_counter() - start, 'peak': peak}))\n"
    )
    arguments = json.dumps([str(folder), str(target), edge, steps, wanted, run.seed, run.device])
    done = subprocess.run([sys.executable, "-c", code, arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the generating process failed: {done.stderr.strip().splitlines()[-1]}")
    facts: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return facts


def seam_over_bulk(labels: Any, tile: int) -> float:
    """Share of voxel faces with an interface on planes between tiles, over that on all other planes, for all axes."""
    seams: list[float] = []
    bulk: list[float] = []
    for axis in range(3):
        n = labels.shape[axis]
        for i in range(n):
            a, b = labels.take(i, axis), labels.take((i + 1) % n, axis)
            (seams if (i + 1) % tile == 0 else bulk).append(float((a != b).mean()))
    return sum(seams) / len(seams) / (sum(bulk) / len(bulk))


def _block(ms: Any, edge: int) -> Any:
    from ..microstructure import Microstructure

    return Microstructure(ms.labels[:edge, :edge, :edge], ms.spacing, ms.unit)
