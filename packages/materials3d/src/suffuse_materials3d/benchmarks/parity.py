"""Ask for fractions and diffusivity, measure what comes: conditional latent diffusion of two and three phases."""

from __future__ import annotations

import dataclasses
import time
from typing import TYPE_CHECKING, Any

from suffuse.bench import Run, benchmark

from .models import SYSTEMS, Trained, resimulated, trained

if TYPE_CHECKING:
    from ..microstructure import Microstructure
    from ..parity import ParityReport

REQUESTS = {"quick": 64, "full": 96}
#: Fixed requests, and structures of each, for diversity.
FIXED = {"quick": (4, 4), "full": (8, 8)}
#: Steps of the voxel model, which gets about the seconds that the latent one has.
VOXEL: dict[str, dict[str, Any]] = {
    "quick": {"steps": 1000, "batch_size": 8, "widths": (16, 32)},
    "full": {"steps": 2400, "batch_size": 8, "widths": (24, 64)},
}
STEPS = 15
#: Of which the best is taken, and the strength of guidance, of two rows.
CANDIDATES, GUIDED = 4, 1.5
ALONE = "ldm (network alone)"


@benchmark(
    "materials3d/parity",
    paper="Baishnab et al. 2025, 3D multiphase microstructures by conditional latent diffusion, Digital Discovery",
    claim="Structures of two and three phases have the requested fractions and transport, beyond what fractions imply.",
    peers=("voxel diffusion", "cut Gaussian field", "nearest training volume", "cubic of the volume fractions"),
    extras=("suffuse-materials3d[measure]",),
)
def parity(run: Run) -> None:
    """Requests are descriptor vectors of held-out simulations, one structure for each; all numbers are measured of the
    thresholded volumes. `vf-only` answers with a cubic of the requested volume fractions, fitted to training volumes:
    D_rel is mostly that, so only what is above it is control of transport, and `r2-vf-residual` is that part alone.
    `ldm` is one structure per request, with all defaults: the network is told the request, and the feature predictor
    corrects it on the way. `ldm (network alone)` has no predictor, `ldm (classifier-free)` has guidance of scale 1.5 in
    its place. `ldm, best of 4` measures four and gives the one nearest to the request. `ldm (vf asked)` is asked for
    the fractions only. `ldm (fraction matched)` moves the thresholds to the requested fractions, which are then met
    by construction. `ldm (process asked)` is asked for the process parameters of the held-out volume, and `resimulated
    (reference)` runs its simulation again with them, from another start. `nearest` is a training volume, real and not
    new. `r2-self` is by the predictor, not measured. `end-to-end-seconds` is a system's simulation, training and whole
    report, with all that is compared here. On a GPU, whose volumes are 64 times as large, other generators,
    classifier-free guidance and diversity are left out.
    """
    from .. import plots

    drawn: dict[str, list[Microstructure]] = {}
    for system in SYSTEMS:
        with run.stage(f"train {system}"):
            model = trained(run, system)
        start = time.perf_counter()
        with run.stage(f"parity {system}"):
            report, names = _report(run, model)
        for row in report.rows():
            run.row(dataset=model.dataset, n=len(report.real), **row)
        if run.device == "cpu":
            with run.stage(f"diversity {system}"):
                _diversity(run, model, names)
        seconds = time.perf_counter() - start
        facts = model.pipeline.model.facts
        run.row(
            dataset=model.dataset, method="ldm", metric="voxel-accuracy", value=facts["voxel_accuracy"], better="higher"
        )
        for metric, value in (
            ("training-seconds", model.seconds), ("training-processor-seconds", model.processor_seconds),
            ("end-to-end-seconds", model.seconds + seconds),
        ):  # fmt: skip
            run.row(dataset=model.dataset, method="ldm", metric=metric, value=value, better="lower", unit="s")
        shown = [m for m in ("ldm", f"ldm, best of {CANDIDATES}", ALONE, "ldm (vf asked)") if m in report.methods]
        run.figure(
            f"parity-{system}",
            report.figure(shown),
            f"{model.dataset}: what was asked for, and what the thresholded structures have.",
        )
        order = report.requested[:, 0].argsort()
        picks = [int(order[round(i * (len(order) - 1) / 5)]) for i in range(6)]
        for name, some in (("held out", report.real), ("ldm", report.methods["ldm"].structures)):
            drawn[f"{name}\n{system}"] = [dataclasses.replace(some[i], field=None) for i in picks]  # as measured
    run.figure("slices", plots.slice_grid(drawn), "Held-out simulations, and what was made for their descriptors.")


def _report(run: Run, model: Trained) -> tuple[ParityReport, tuple[str, ...]]:
    """All methods on the same requests."""
    import numpy as np
    import torch

    from .. import metrics
    from ..baselines import GaussianField
    from ..parity import ParityReport

    pipeline, train = model.pipeline, model.train
    process = pipeline.model.facts["process"]
    names = tuple(a for a in pipeline.names if a not in process)
    count = min(REQUESTS[run.profile], len(model.test))
    rows = torch.randperm(len(model.test), generator=torch.Generator().manual_seed(run.seed))[:count]
    test = model.test[rows]
    requested = test.table(names).double().numpy()
    report = ParityReport(names, requested, test.microstructures(), train.table(names).double().numpy())
    asked = {name: requested[:, i].tolist() for i, name in enumerate(names)}
    fractions = {name: v for name, v in asked.items() if name.startswith("vf_")}

    def add(method: str, targets: Any, **arguments: Any) -> list[Microstructure]:
        start = time.perf_counter()
        made = pipeline(targets, steps=STEPS, seed=run.seed + 1, measured=False, **arguments)
        seconds = (time.perf_counter() - start) / count
        report.add(method, made, seconds)
        return made

    made = add("ldm", asked)
    outside = pipeline.model.scaler.nearest_feasible(pipeline.model.scaler.requested(asked))[1] > 0
    run.row(
        dataset=model.dataset, method="ldm", metric="out-of-hull", value=float(outside.double().mean()),
        better="lower", n=count,
    )  # fmt: skip
    for i, name in enumerate(names):
        guess = np.array([ms.attributes[f"predicted_{name}"] for ms in made])
        run.row(
            dataset=model.dataset, method="ldm", metric="r2-self", value=metrics.r2(requested[:, i], guess),
            better="higher", setting={"descriptor": report.label[name]}, n=count,
        )  # fmt: skip
    add(f"ldm, best of {CANDIDATES}", asked, candidates=CANDIDATES)
    add(ALONE, asked, predictor_guidance=False)
    add("ldm (vf asked)", fractions)
    add("ldm (fraction matched)", asked, match_fraction=True)
    report.add("nearest", train[_nearest(train, names, requested)].microstructures())
    start = time.perf_counter()
    again = resimulated(run, model, test)
    report.add("resimulated (reference)", again, (time.perf_counter() - start) / count)
    if run.device != "cpu":
        return report, names
    add("ldm (classifier-free)", asked, guidance_scale=GUIDED, predictor_guidance=False)
    add("ldm (process asked)", {p: test.attributes[p].tolist() for p in process})
    add("unconditional", None, n=count)
    if train.phases == 2:
        field = GaussianField(train[:128].microstructures())
        random = [torch.Generator().manual_seed(run.seed * 1_000_003 + i) for i in range(count)]
        report.add("gaussian-field", [field(v, train.shape, g) for v, g in zip(fractions["vf_1"], random, strict=True)])
        start = time.perf_counter()
        voxel = _voxel(run, model, names)
        run.row(
            dataset=model.dataset, method="voxel", metric="training-seconds", value=time.perf_counter() - start,
            better="lower", unit="s",
        )  # fmt: skip
        start = time.perf_counter()
        structures = voxel(asked, steps=STEPS, seed=run.seed + 1, measured=False)
        report.add("voxel", structures, (time.perf_counter() - start) / count)
    return report, names


def _nearest(train: Any, names: tuple[str, ...], requested: Any) -> list[int]:
    """The training volume whose descriptors are nearest, in standard deviations."""
    import torch

    table = train.table(names).double()
    std = table.std(0)
    return torch.cdist(torch.from_numpy(requested) / std, table / std).argmin(1).tolist()


def _voxel(run: Run, model: Trained, names: tuple[str, ...]) -> Any:
    """Diffusion on the voxels themselves, with the same attributes."""
    from ..attributes import AttributeScaler
    from ..ldm import MicrostructureLDM, encode, train_denoiser, voxel_codec
    from ..pipeline import MicrostructurePipeline

    sizes, train = VOXEL[run.profile], model.train
    codec = voxel_codec(train)
    values = train.table(names)
    scaler = AttributeScaler(names).fit(values, run.seed)
    z = encode(codec, train, forms=1, progress=False)
    denoiser = train_denoiser(
        z, scaler, values, periodic=train.periodic, widths=sizes["widths"], blocks=1, patch=2, steps=sizes["steps"],
        batch_size=sizes["batch_size"], seed=run.seed, device=run.device, progress=run.progress,
    )  # fmt: skip
    return MicrostructurePipeline(
        MicrostructureLDM(denoiser.to(run.device), codec, scaler, None, None, train.shape, model.pipeline.model.facts)
    )


def _diversity(run: Run, model: Trained, names: tuple[str, ...]) -> None:
    """Spread of the structures of one request over that of simulations of equal process parameters."""
    import torch

    from ..parity import spread

    groups, size = FIXED[run.profile]
    rows = torch.randperm(len(model.test), generator=torch.Generator().manual_seed(run.seed + 7))[:groups]
    test = model.test[rows]
    repeated = [i for i in range(groups) for _ in range(size)]
    asked = {p: test.attributes[p][repeated].tolist() for p in model.pipeline.model.facts["process"]}
    made = model.pipeline(asked, steps=STEPS, seed=run.seed + 2, measured=False)
    real = resimulated(run, model, test[repeated])
    cut = lambda some: [some[g * size : (g + 1) * size] for g in range(groups)]  # noqa: E731
    ours, theirs = spread(cut(made), names), spread(cut(real), names)
    for name, value in ours.items():
        run.row(
            dataset=model.dataset, method="ldm (process asked)", metric="spread-over-simulated",
            value=value / max(theirs[name], 1e-12), better="higher", setting={"descriptor": name}, n=groups * size,
        )  # fmt: skip
