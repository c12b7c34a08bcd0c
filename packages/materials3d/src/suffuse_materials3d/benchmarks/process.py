"""Which process made a structure: process parameters predicted from simulated and from generated volumes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from suffuse.bench import Run, benchmark

from .models import SYSTEMS, Trained, resimulated, trained
from .parity import REQUESTS, STEPS

if TYPE_CHECKING:
    import numpy as np


@benchmark(
    "materials3d/process",
    paper="Baishnab et al. 2025, 3D multiphase microstructures by conditional latent diffusion, Digital Discovery",
    claim="The process parameters of a structure can be told from it, of generated as of simulated volumes.",
    peers=("regression on the descriptors",),
    extras=("suffuse-materials3d[measure]",),
)
def process(run: Run) -> None:
    """`simulated`: the predictor on held-out simulations against their true parameters. `generated`: structures made
    for these parameters. `generated (descriptors asked)`: structures made for the descriptors of those simulations,
    which say less. `descriptors`: a quadratic regression on the requested descriptors, with no look at a structure.
    `coverage-90`: share of the true values inside of the predictor's 90 % interval. `stated`: the r2 that the
    predictor's uncertainty promises. `repeated (ceiling)`: what the noise of the simulation leaves, from pairs of
    simulations with equal parameters: the share of the variance of a prediction, or of a descriptor, that the
    parameters fix. No correlation with the parameters, squared, can be above it.
    """
    import numpy as np
    import torch

    from .. import metrics

    for system in SYSTEMS:
        with run.stage(f"train {system}"):
            model = trained(run, system)
        with run.stage(f"predict {system}"):
            rows = _chosen(run, model)
            test = model.test[rows]
            names = tuple(model.pipeline.model.facts["process"])
            asked = [n for n in model.pipeline.names if n not in names]
            truth = test.table(names).double().numpy()
            mean, std = _predicted(model, test.labels, names)
            scores = {"simulated": mean}
            for method, targets in (("generated", names), ("generated (descriptors asked)", asked)):
                columns = test.table(targets).double().numpy()
                request = {name: columns[:, i].tolist() for i, name in enumerate(targets)}
                made = model.pipeline(request, steps=STEPS, seed=run.seed + 3, measured=False)
                scores[method] = np.array([[ms.attributes[f"predicted_{n}"] for n in names] for ms in made])
            scores["descriptors"] = _regression(
                *(v.double().numpy() for v in (model.train.table(asked), model.train.table(names), test.table(asked)))
            )
            for method, values in scores.items():
                for i, name in enumerate(names):
                    _row(run, model, method, "r2", metrics.r2(truth[:, i], values[:, i]), name, "higher", len(test))
            for i, name in enumerate(names):
                inside = np.abs(truth[:, i] - mean[:, i]) <= 1.645 * std[:, i]
                _row(run, model, "simulated", "coverage-90", float(inside.mean()), name, "higher", len(test))
                promised = 1 - float((std[:, i] ** 2).mean() / truth[:, i].var())
                _row(run, model, "stated", "r2", promised, name, "higher", len(test))
        with run.stage(f"ceiling {system}"):
            from ..descriptors import measure_all

            again = resimulated(run, model, test)
            second, _ = _predicted(model, torch.from_numpy(np.stack([ms.labels for ms in again])), names)
            pairs = {name: (mean[:, i], second[:, i]) for i, name in enumerate(names)}
            pairs |= {name: (test.table([name])[:, 0].numpy(), v) for name, v in measure_all(again, asked).items()}
            for name, pair in pairs.items():
                within = float(((pair[0] - pair[1]) ** 2).mean() / 2)
                total = float(np.concatenate(pair).var(ddof=1))
                fixed = 1 - within / total if total else 0.0  # what never varies tells nothing
                _row(run, model, "repeated (ceiling)", "r2", fixed, name, "higher", len(test))
        run.figure(
            f"process-{system}", _figure(names, truth, mean, std, scores["generated"]),
            f"{model.dataset}: true and predicted process parameters of held-out simulations (bars: one standard "
            "deviation) and of structures that were made for them.",
        )  # fmt: skip


def _chosen(run: Run, model: Trained) -> Any:
    import torch

    count = min(REQUESTS[run.profile], len(model.test))
    return torch.randperm(len(model.test), generator=torch.Generator().manual_seed(run.seed))[:count]


def _predicted(model: Trained, labels: Any, names: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    """(N, P) means and standard deviations of the parameters of simulated volumes (N, X, Y, Z)."""
    import numpy as np
    import torch

    ldm = model.pipeline.model
    device = next(ldm.autoencoder.parameters()).device
    with torch.no_grad():
        z = torch.cat([ldm.autoencoder.encode_stage_2_inputs(part.to(device)) for part in labels.split(16)])
    found = ldm.predict(z)
    pairs = np.array([[row[name] for name in names] for row in found])
    return pairs[..., 0], pairs[..., 1]


def _regression(x: np.ndarray, y: np.ndarray, new: np.ndarray) -> np.ndarray:
    """Least squares on all products of the inputs up to degree two, a column of y at a time."""
    import numpy as np

    from ..parity import VolumeFractionOnly

    centre, scale = x.mean(0), x.std(0)
    x, new = (x - centre) / scale, (new - centre) / scale
    return np.stack([VolumeFractionOnly(x, column, degree=2)(new) for column in y.T], 1)


def _row(run: Run, model: Trained, method: str, metric: str, value: float, name: str, better: Any, n: int) -> None:
    run.row(
        dataset=model.dataset,
        method=method,
        metric=metric,
        value=value,
        better=better,
        setting={"parameter": name},
        n=n,
    )


def _figure(names: tuple[str, ...], truth: Any, mean: Any, std: Any, generated: Any) -> Any:
    from matplotlib.figure import Figure

    picture = Figure(figsize=(3.4 * len(names), 3.5), layout="constrained")
    for i, (axis, name) in enumerate(zip(picture.subplots(1, len(names), squeeze=False)[0], names, strict=True)):
        low, high = truth[:, i].min(), truth[:, i].max()
        axis.plot([low, high], [low, high], color="0.6", linewidth=1, zorder=0)
        axis.errorbar(truth[:, i], mean[:, i], std[:, i], fmt="o", ms=3.5, lw=0.7, alpha=0.8, label="simulated")
        axis.scatter(truth[:, i], generated[:, i], s=14, marker="s", alpha=0.7, color="tab:orange", label="generated")
        axis.set(xlabel=f"true or requested {name}", ylabel="predicted")
        axis.legend(frameon=False, fontsize=7)
    return picture
