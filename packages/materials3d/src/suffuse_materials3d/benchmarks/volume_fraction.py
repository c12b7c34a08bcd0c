"""Ask for a volume fraction, measure what comes: a conditional voxel diffusion model of spinodal structures."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from suffuse.bench import Run, benchmark

if TYPE_CHECKING:
    from torch import Tensor

    from ..metrics import Curve
    from ..microstructure import Microstructure

T = TypeVar("T")

#: The recipe's arguments by profile.
PROFILES: dict[str, dict[str, Any]] = {
    "quick": {"volumes": 512, "size": 24, "steps": 800, "batch_size": 4},
    "full": {
        "volumes": 8192,
        "size": 32,
        "steps": 20_000,
        "batch_size": 32,
        "widths": (48, 128),
        "blocks": 2,
        "lr": 1e-3,
    },
}
REQUESTS = {"quick": 24, "full": 96}
RANGE = (0.3, 0.7)
#: Simulation i has a seed made of (seed, i); this is far from those of training.
HELD_OUT = 500_000
GUIDED = 1.5


@benchmark(
    "materials3d/volume-fraction",
    paper="Baishnab et al. 2025, 3D multiphase microstructures by conditional latent diffusion, Digital Discovery",
    claim="Asked for a volume fraction, a model gives structures of that fraction with the statistics of simulations.",
    peers=("cut Gaussian field of the same S2", "nearest training volume", "the same model without a request"),
)
def volume_fraction(run: Run) -> None:
    """Requests are the volume fractions of held-out Cahn-Hilliard simulations; one structure is made for each.

    Obtained is what the thresholded volume shows, not what a network predicts of it. Two peers hit the fraction by
    construction, and are there for the rest: a cut Gaussian field knows nothing beyond two points, and a training
    volume of about that fraction is real but not new. `overlap` is the largest correlation with a training volume over
    all shifts; that of the held-out simulations says what is no copy. Structural numbers are means over the requests,
    compared with those of the simulations of the same fractions.
    """
    import numpy as np
    import torch

    from .. import metrics, plots
    from ..baselines import GaussianField, nearest
    from ..data import load, simulate_spinodal
    from ..mesh import to_mesh, write_mesh
    from ..pipeline import MicrostructurePipeline
    from ..recipes import volume_fraction as recipe

    arguments, n = PROFILES[run.profile], REQUESTS[run.profile]
    shape = (arguments["size"],) * 3
    common = {"seed": run.seed, "progress": run.progress}
    with run.stage("train"):
        low, high = RANGE
        folder = recipe(out=run.out / "model", low=low, high=high, device=run.device, **common, **arguments)
    with run.stage("simulate"):
        train = load("spinodal", arguments["volumes"], arguments["size"], RANGE, **common)
        held_out, simulation = _timed(
            n, lambda: simulate_spinodal(n, shape, volume_fraction=RANGE, seed=run.seed + HELD_OUT, progress=False)
        )
    held_out = held_out[held_out.volume_fraction.argsort()]
    requested = [float(v) for v in held_out.volume_fraction]
    real, examples = held_out.microstructures(), train.microstructures()

    pipeline = MicrostructurePipeline.from_pretrained(folder, device=run.device)
    field = GaussianField(examples)

    def gaussian() -> list[Microstructure]:
        seeds = (torch.Generator().manual_seed(run.seed * 1_000_003 + i) for i in range(n))
        return [field(vf, shape, generator) for vf, generator in zip(requested, seeds, strict=True)]

    makers: dict[tuple[str, float | None], Callable[[], list[Microstructure]]] = {
        ("diffusion", 1.0): lambda: pipeline(requested, seed=run.seed),
        ("diffusion", GUIDED): lambda: pipeline(requested, guidance_scale=GUIDED, seed=run.seed),
        ("unconditional", None): lambda: pipeline(None, n=n, seed=run.seed),
        ("gaussian-field", None): gaussian,
        ("nearest-training-volume", None): lambda: [examples[nearest(train, vf)] for vf in requested],
    }
    with run.stage("sample"):
        made = {key: _timed(n, make) for key, make in makers.items()}

    with run.stage("measure"):
        dataset = f"cahn-hilliard-{arguments['size']}"
        curves, means = [metrics.two_point_correlation(ms) for ms in real], _means(real)
        library = train.fields[:512]
        for (method, scale), (structures, seconds) in made.items():
            guidance = {} if scale is None else {"guidance_scale": scale}
            for metric, value, about in _scores(structures, requested, curves, means, library):
                run.row(
                    dataset=dataset,
                    method=method,
                    metric=metric,
                    value=value,
                    better="higher" if metric == "r2" else "lower",
                    setting=guidance | about,
                    n=n,
                    seconds=seconds,
                )
        run.row(
            dataset=dataset,
            method="simulation",
            metric="overlap",
            value=float(metrics.overlap(held_out.fields, library).mean()),
            better="lower",
            n=n,
            seconds=simulation,
        )

    plain, guided = made["diffusion", 1.0][0], made["diffusion", GUIDED][0]
    with run.stage("draw"):
        rows = {"simulated": real, "diffusion": plain, f"guidance {GUIDED:g}": guided}
        rows["cut Gaussian field"] = [dataclasses.replace(ms, field=None) for ms in made["gaussian-field", None][0]]
        shown = [round(i) for i in np.linspace(0, n - 1, 6)]
        titles = [f"requested {requested[i]:.0%}" for i in shown]
        run.figure(
            "slices",
            plots.slice_grid({name: [row[i] for i in shown] for name, row in rows.items()}, titles),
            "A slice of held-out simulations, and of what was made for the same volume fractions.",
        )
        methods = {"diffusion": plain, f"guidance {GUIDED:g}": guided, "no request": made["unconditional", None][0]}
        fractions = {name: [metrics.volume_fraction(ms) for ms in some] for name, some in methods.items()}
        run.figure(
            "parity",
            plots.parity(requested, fractions, "volume fraction"),
            "Volume fraction that was asked for, and that the thresholded structure has.",
        )
        asked, edge = [0.35, 0.65], 2 * arguments["size"]
        large, seconds = _timed(
            len(asked), lambda: pipeline(asked, shape=(edge,) * 3, seed=run.seed, spacing=(0.1,) * 3, unit="um")
        )
        got = [metrics.volume_fraction(ms) for ms in large]
        run.figure(
            "surfaces",
            plots.surface(large, [f"asked {a:.0%}, got {g:.1%}" for a, g in zip(asked, got, strict=True)]),
            f"{edge} voxels an edge, from a network that was trained on {arguments['size']}; caps of the box are pale.",
        )
        run.row(
            dataset=f"cahn-hilliard-{edge}",
            method="diffusion",
            metric="mae",
            value=metrics.mae(asked, got),
            better="lower",
            setting={"guidance_scale": 1.0, "descriptor": "volume_fraction"},
            n=len(asked),
            seconds=seconds,
        )
        file = write_mesh(to_mesh(large[0]), run.out / "structure.glb")
        run.artifact(file, f"Phase 1 of {edge}^3 voxels of 0.1 um, requested volume fraction 0.35; coordinates in um.")
    run.note(
        "Guidance extrapolates from the model without a request, whose structures have the mean fraction, so a scale "
        "above 1 overshoots away from it: for what is itself the mean of the field, scale 1 is right."
    )
    run.note(
        f"A held-out simulation takes {simulation:.3f} s and a sample {made['diffusion', 1.0][1]:.3f} s on this "
        f"device: the model offers a choice of what comes out, not speed."
    )
    run.note("The paper's model works in a latent space on 128 x 128 x 64 voxels, this one on voxels of a small box.")


def _timed(n: int, make: Callable[[], T]) -> tuple[T, float]:
    """The result, and the seconds for each of n."""
    start = time.perf_counter()
    result = make()
    return result, (time.perf_counter() - start) / n


def _scores(
    structures: Sequence[Microstructure],
    requested: Sequence[float],
    curves: Sequence[Curve],
    means: Mapping[str, float],
    library: Tensor,
) -> Iterator[tuple[str, float, dict[str, Any]]]:
    """(metric, value, what it is about) of the structures made for the requests.

    Args:
        structures: one for each request.
        requested: volume fractions.
        curves: S2 of the simulations of the same fractions.
        means: mean descriptors of those.
        library: (M, X, Y, Z), training fields.
    """
    import torch

    from .. import metrics

    obtained = [metrics.volume_fraction(ms) for ms in structures]
    yield "r2", metrics.r2(requested, obtained), {"descriptor": "volume_fraction"}
    yield "mae", metrics.mae(requested, obtained), {"descriptor": "volume_fraction"}
    yield "s2-distance", metrics.curve_distance([metrics.two_point_correlation(ms) for ms in structures], curves), {}
    for name, value in _means(structures).items():
        yield "relative-error-of-mean", abs(value - means[name]) / abs(means[name]), {"descriptor": name}
    fields = torch.stack([torch.as_tensor(ms.field) for ms in structures])
    yield "overlap", float(metrics.overlap(fields, library).mean()), {}


def _means(structures: Sequence[Microstructure]) -> dict[str, float]:
    """Mean descriptors that a volume fraction does not fix."""
    from statistics import fmean

    from .. import metrics

    return {
        "interface_area": fmean(metrics.interface_area(ms) for ms in structures),
        "euler_density": fmean(metrics.euler_density(ms) for ms in structures),
    }
