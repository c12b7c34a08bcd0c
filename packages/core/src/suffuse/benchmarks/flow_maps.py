"""Flow maps in one, two and four evaluations, beside solvers on the denoiser that they are distilled from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from suffuse.bench import Run, benchmark
from suffuse.threads import one_thread

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from torch import Tensor, nn

    from suffuse.training.objective import Objective

M = TypeVar("M", bound="nn.Module")
BUDGETS = (1, 2, 4)
#: Evaluations that show what the solver comes to.
MORE = (8, 16)
GRIDS = ("time", "logsnr", "karras-open")
STEPS = {"quick": 1, "full": 10}
SAMPLES = {"quick": 2000, "full": 10000}
FRESH = "flow map, distilled, fresh noise"
LINES = {"flow map, distilled": "C3-o", FRESH: "C3:s", "flow map, from data": "C1-o", "DPM-Solver++(2M)": "C0--^"}


@dataclass(frozen=True)
class Case:
    """Data, and the network that learns them.

    Attributes:
        title: of the data.
        train, test: samples (N, *event) to learn from and to compare with.
        hidden, depth, octaves: of the network.
        steps: of training the denoiser, and of each flow map (quick profile).
    """

    title: str
    train: Tensor
    test: Tensor
    hidden: int
    depth: int
    octaves: int
    steps: tuple[int, int]


@benchmark(
    "core/flow-maps",
    paper="Boffi et al. 2024, Flow Map Matching, arXiv:2406.07507",
    claim="A flow map distilled from a denoiser is nearer to the data with 1, 2 and 4 evaluations than DPM-Solver++ on "
    "that denoiser with as many, on the better of its grids.",
    peers=("DPM-Solver++(2M)",),
    extras=("suffuse[bench]",),
)
@one_thread()
def flow_maps(run: Run) -> None:
    """A small network learns to denoise, on straight paths. A flow map of the same size is then distilled from it, and
    another is learned from the data alone, without the denoiser, both by the semigroup identity. All draw with the same
    few evaluations; the solver is given the best of three grids each time. "Fresh noise" is multistep consistency
    sampling: jump to the clean end, add noise, jump again. The energy distance is to exact draws (eight modes on a
    circle) or to held-out images (8 x 8 digits); it is unbiased, so near zero it can be negative.
    """
    from suffuse.metrics import energy_distance

    shown: dict[str, dict[str, dict[int, float]]] = {}
    pictures: dict[str, dict[str, Tensor]] = {}
    for case in cases(run):
        draws = learn(run, case)
        curves: dict[str, dict[int, float]] = {}
        with run.stage(f"{case.title}: sample and score"):
            floor = energy_distance(case.train[: len(case.test)], case.test)
            report(run, case, "training data (floor)", floor)
            pictures[case.title] = {"data": case.test}
            for method, draw_with in draws.items():
                for nfe in (*BUDGETS, *MORE) if method.startswith("DPM") else BUDGETS:
                    if method == FRESH and nfe == 1:
                        continue  # there is no second jump
                    scored = [(energy_distance(x, case.test), x, setting) for x, setting in draw_with(nfe)]
                    value, samples, setting = min(scored, key=lambda entry: entry[0])
                    report(run, case, method, value, {"nfe": nfe, **setting})
                    curves.setdefault(method, {})[nfe] = value
                    if (method, nfe) in (("DPM-Solver++(2M)", 4), ("flow map, distilled", 1)):
                        pictures[case.title][f"{method},\n{nfe} evaluation{'s' if nfe > 1 else ''}"] = samples
        shown[case.title] = curves
        conclude(run, case, curves)
    caption = "Energy distance to the data against evaluations, and what is drawn."
    run.figure("flow-maps", draw(shown, pictures), caption)


def cases(run: Run) -> list[Case]:
    """Eight modes on a circle, and small digits."""
    import torch

    from suffuse.benchmarks.truths import ring2d
    from suffuse.digits import load_digits

    ring, digits = ring2d(), load_digits()
    generator = torch.Generator().manual_seed(run.seed)
    train, test = (ring.sample(n, generator).float() for n in (20000, SAMPLES[run.profile]))
    return [
        Case("eight modes, 2-D", train, test, hidden=64, depth=2, octaves=3, steps=(600, 1000)),
        Case("digits 8 x 8", digits.images, digits.test_images, hidden=192, depth=3, octaves=0, steps=(800, 800)),
    ]


def learn(run: Run, case: Case) -> dict[str, Callable[[int], list[tuple[Tensor, dict[str, Any]]]]]:
    """Method -> evaluations -> the candidates: samples, and with what setting they were drawn."""
    import torch

    from suffuse import NetworkDenoiser
    from suffuse.distillation import FlowMapNetwork, FlowMapObjective
    from suffuse.nets import MLP
    from suffuse.samplers import DPMSolverPP, FlowMapSampler, Sampler
    from suffuse.schedules import RectifiedFlow
    from suffuse.training import DenoisingObjective

    schedule, data_std = RectifiedFlow(), float(case.train.std())

    def network(tokens: dict[str, int] | None = None) -> MLP:
        torch.manual_seed(run.seed)
        return MLP(case.train[0].numel(), case.hidden, case.depth, case.octaves, tokens)

    def flow_map() -> FlowMapNetwork:
        return FlowMapNetwork(network({"target": FlowMapNetwork.TARGET}), schedule, data_std)

    with run.stage(f"{case.title}: train the denoiser"):
        plain = NetworkDenoiser(network(), schedule, data_std=data_std)
        denoiser = trained(run, case, plain, DenoisingObjective(), case.steps[0])
    with run.stage(f"{case.title}: distil"):
        distilled = trained(run, case, flow_map(), FlowMapObjective(teacher=denoiser), case.steps[1])
    with run.stage(f"{case.title}: learn a flow map from data"):
        direct = trained(run, case, flow_map(), FlowMapObjective(), case.steps[1])

    def samples(sampler: Sampler, model: Any) -> Tensor:
        generator = torch.Generator().manual_seed(run.seed + 1)
        x: Tensor = sampler(model, (SAMPLES[run.profile], *case.train.shape[1:]), generator=generator).cpu()
        return x

    def solved(nfe: int) -> list[tuple[Tensor, dict[str, Any]]]:
        return [(samples(DPMSolverPP(nfe, grid), denoiser), {"grid": grid}) for grid in GRIDS]

    return {
        "DPM-Solver++(2M)": solved,
        "flow map, distilled": lambda nfe: [(samples(FlowMapSampler(nfe), distilled), {})],
        FRESH: lambda nfe: [(samples(FlowMapSampler(nfe, gamma=1.0), distilled), {})],
        "flow map, from data": lambda nfe: [(samples(FlowMapSampler(nfe), direct), {})],
    }


def trained(run: Run, case: Case, model: M, objective: Objective, steps: int) -> M:
    """The average weights after training, on the run's device."""
    from suffuse.training import fit

    fitted = fit(
        model,
        case.train,
        steps=steps * STEPS[run.profile],
        batch_size=256,
        lr=3e-3,
        objective=objective,
        ema_decay=0.99,
        seed=run.seed,
        accelerator=run.device,
        progress=run.progress,
    )
    return fitted.to(run.device)


def report(run: Run, case: Case, method: str, value: float, setting: dict[str, Any] | None = None) -> None:
    run.row(
        dataset=case.title, method=method, metric="energy distance", value=value, better="lower", setting=setting or {}
    )


def conclude(run: Run, case: Case, curves: dict[str, dict[int, float]]) -> None:
    """Does the claim hold, and how many evaluations does the solver need for what the map does in one?"""
    ours, theirs = curves["flow map, distilled"], curves["DPM-Solver++(2M)"]
    holds = all(ours[nfe] < theirs[nfe] for nfe in BUDGETS)
    enough = [nfe for nfe, value in theirs.items() if value <= ours[1]]
    needs = f"needs {enough[0]}" if enough else f"does not get there with {max(theirs)}"
    run.note(
        f"{case.title}: the claim {'holds' if holds else 'does not hold'} at 1, 2 and 4 evaluations. For the distance "
        f"of one evaluation of the distilled map, {ours[1]:.2g}, DPM-Solver++ {needs}."
    )


def draw(shown: dict[str, dict[str, dict[int, float]]], pictures: dict[str, dict[str, Tensor]]) -> Figure:
    """One row per data set: the curves, then samples."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 3.6 * len(shown)), layout="constrained")
    panels = figure.subplots(len(shown), 4, squeeze=False, width_ratios=(1.4, 1, 1, 1))
    for row, (title, curves) in zip(panels, shown.items(), strict=True):
        for method, values in curves.items():
            drawn = [max(value, 1e-3) for value in values.values()]
            row[0].plot(list(values), drawn, LINES[method], markersize=5, label=method)
        row[0].set(title=title, xlabel="evaluations", ylabel="energy distance (below 0.001: noise)")
        row[0].set(xscale="log", yscale="log")
        ticks = (*BUDGETS, *MORE)
        row[0].set_xticks(ticks, [str(tick) for tick in ticks], minor=False)
        row[0].minorticks_off()
        row[0].grid(alpha=0.3)
        for panel, (name, samples) in zip(row[1:], pictures[title].items(), strict=True):
            panel.set_title(name, fontsize=10)
            picture(panel, samples)
    panels[0][0].legend(fontsize=8)
    return figure


def picture(panel: Axes, samples: Tensor) -> None:
    """Points of a plane, or the first images as a mosaic."""
    import torch

    if samples.ndim == 2:
        panel.scatter(samples[:1000, 0], samples[:1000, 1], s=2, alpha=0.5, color="black", linewidths=0)
        panel.set(xlim=(-1.5, 1.5), ylim=(-1.5, 1.5), aspect="equal")
    else:
        tiles = torch.nn.functional.pad(samples[:64, 0].clamp(-1, 1), (1, 1, 1, 1), value=-1.0)
        side = tiles.shape[-1]
        mosaic = tiles.reshape(8, 8, side, side).permute(0, 2, 1, 3).reshape(8 * side, 8 * side)
        panel.imshow(mosaic.numpy(), cmap="gray_r", vmin=-1, vmax=1)
    panel.set_xticks([])
    panel.set_yticks([])
