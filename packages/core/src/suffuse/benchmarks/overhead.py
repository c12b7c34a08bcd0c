"""What a sampler costs beside the network: time and memory of a step when the denoiser is trivial."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any, TypeAlias

from suffuse.bench import Run, benchmark
from suffuse.threads import one_thread

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

    from suffuse.benchmarks.peers import Peer
    from suffuse.schedules import Schedule

    #: A run of a sampler, from the posterior mean as a function of x alone, and x.
    Sample: TypeAlias = Callable[[Callable[[Tensor], Tensor], Tensor], Tensor]

STEPS = 50
REPEATS = {"quick": 15, "full": 60}
DATASET = "D = x / 2, x (16, 64) in float32"
#: Samplers drawn beside those of other libraries that do the same.
DRAWN = (
    "ddim",
    "euler",
    "edm-heun",
    "dpmpp-2m",
    "dpmpp-3m",
    "unipc-2",
    "unipc-3",
    "deis-2",
    "deis-3",
    "vab-3",
    "evodiff",
)
ALIASES = {"heun": "edm-heun", "xeab-3": "dpmpp-3m", "zeab-2": "deis-2", "zeab-3": "deis-3"}


@benchmark(
    "core/overhead",
    paper="Lu et al. 2022, DPM-Solver++, arXiv:2211.01095; Zhao et al. 2023, UniPC, arXiv:2302.04867",
    claim="A step of DPM-Solver++(2M) takes at most 40 microseconds and half of the time it takes in the fastest other "
    "library, a step of UniPC at most a quarter of its time in diffusers.",
    peers=("diffusers", "k-diffusion", "azula"),
    extras=("suffuse[diffusers]",),
)
@one_thread()
def overhead(run: Run) -> None:
    """Every sampler and every peer takes 50 steps with the denoiser D = x / 2, in one process and on one thread, in
    turns; the time is that of the fastest run, over the number of steps (Heun's have two evaluations). The bare loop
    does the same evaluations and two multiplications.

    Memory is counted in tensors of the size of x that are alive while the denoiser runs, its input included and the
    caller's x not. The last table shows what a state in bfloat16 would cost: the difference to float64 on a mixture,
    after 20 steps, when only the denoiser's output is rounded, and when x is as well.
    """
    import torch

    from suffuse.benchmarks.peers import missing, peers
    from suffuse.samplers import SAMPLERS
    from suffuse.schedules import EDM

    x = torch.randn(16, 64, generator=torch.Generator().manual_seed(run.seed)).to(run.device)
    others = {name: peer for name, peer in peers().items() if peer.own_levels is None}
    for library in missing():
        run.note(f"{library} is not installed; its rows are missing.")

    def samplers(steps: int) -> dict[str, Sample]:
        ours = {name: _ours(name, steps, EDM()) for name in SAMPLERS}
        return ours | {name: _theirs(peer, steps) for name, peer in others.items()}

    with run.stage("time"):
        calls: dict[str, Callable[[], Any]] = {"bare loop (reference)": lambda: _bare(x)}
        calls |= {name: partial(sample, half, x) for name, sample in samplers(STEPS).items()}
        microseconds = {name: 1e6 / STEPS * s for name, s in fastest(calls, REPEATS[run.profile]).items()}
    for name, value in microseconds.items():
        row(run, name, "us-per-step", value, unit="µs")
    with run.stage("first runs"):
        unseen = (EDM(sigma_max=80 + 1e-9 * k) for k in count())  # nothing is kept of a schedule that was never seen
        first = fastest({"": lambda: _ours("dpmpp-2m", STEPS, next(unseen))(half, x)}, REPEATS[run.profile])
        extra = 1e6 / STEPS * first[""] - microseconds["dpmpp-2m"]
    run.note(f"Levels and coefficients are made in the first run and kept: 2M's takes {extra:.3g} µs a step more.")
    judge(run, microseconds)

    with run.stage("memory"):
        for name, sample in samplers(8).items():
            row(run, name, "tensors-held", held(sample, x))
    with run.stage("precision"):
        for name in ("ddim", "dpmpp-2m", "unipc-2", "deis-3"):
            for what, value in precision(name, run.seed).items():
                run.row(
                    dataset="low-rank mixture, 64-D",
                    method=name,
                    setting={"bfloat16": what},
                    metric="difference to float64",
                    value=value,
                    better="lower",
                )
    run.figure(
        "overhead", draw(microseconds), "Time of a step when the denoiser is trivial; the line is the bare loop."
    )


def row(run: Run, method: str, metric: str, value: float, unit: str = "") -> None:
    run.row(dataset=DATASET, method=method, metric=metric, value=value, better="lower", unit=unit)


def judge(run: Run, microseconds: dict[str, float]) -> None:
    """The claim, with the ratios as rows."""
    verdicts = [f"a 2M step takes {microseconds['dpmpp-2m']:.3g} µs (at most 40)"]
    holds = microseconds["dpmpp-2m"] <= 40
    if others := {name: v for name, v in microseconds.items() if name.endswith("/dpmpp-2m")}:
        best = min(others, key=others.__getitem__)
        ratio = microseconds["dpmpp-2m"] / others[best]
        row(run, "dpmpp-2m", "ratio to the fastest peer", ratio)
        verdicts.append(f"{ratio:.2g} of {best} (at most 0.5)")
        holds &= ratio <= 0.5
    if "diffusers/unipc-2" in microseconds:
        for name in ("unipc-2", "unipc-3"):
            ratio = microseconds[name] / microseconds[f"diffusers/{name}"]
            row(run, name, "ratio to diffusers", ratio)
            verdicts.append(f"{name} {ratio:.2g} of diffusers' (at most 0.25)")
            holds &= ratio <= 0.25
    run.note(f"The claim {'holds' if holds else 'does not hold in full'}: {', '.join(verdicts)}.")


def _bare(x: Tensor) -> Tensor:
    import torch

    with torch.no_grad():
        for _ in range(STEPS):
            x = 0.9 * x + 0.1 * (0.5 * x)
    return x


def half(x: Tensor) -> Tensor:
    return 0.5 * x


def _ours(name: str, steps: int, schedule: Schedule) -> Sample:
    from suffuse import as_denoiser
    from suffuse.samplers import by_name

    sampler = by_name(name, steps=steps)
    return lambda mean, x: sampler(as_denoiser(lambda x, t, cond: mean(x), schedule), x=x)


def _theirs(peer: Peer, steps: int) -> Sample:
    """The peer's own loop, without what our adapter does around it."""
    import torch

    from suffuse.samplers import DDIM
    from suffuse.schedules import EDM

    kappas = [level.kappa for level in DDIM(steps).levels(EDM())]
    run = torch.no_grad()(peer.run)
    return lambda mean, x: run(lambda x, kappa: mean(x), x, kappas)


def fastest(calls: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Seconds of the fastest run of each, all taking turns."""
    import time

    import torch

    best = dict.fromkeys(calls, math.inf)
    for _ in range(repeats):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            best[name] = min(best[name], time.perf_counter() - start)
    return best


def held(sample: Sample, x: Tensor) -> int:
    """The most tensors of the shape of x that are alive in an evaluation, x itself apart."""
    import gc

    import torch

    counts = []

    def mean(y: Tensor) -> Tensor:
        tensors = [t for t in gc.get_objects() if issubclass(type(t), torch.Tensor) and t.shape == x.shape]
        counts.append(len({t.untyped_storage().data_ptr() for t in tensors} - {x.untyped_storage().data_ptr()}))
        return 0.5 * y

    gc.collect()
    gc.freeze()  # what was there before is not listed
    try:
        sample(mean, x)
    finally:
        gc.unfreeze()
    return max(counts)


def precision(name: str, seed: int) -> dict[str, float]:
    """Root mean square difference to a run in float64: of a rounded mean, and of a rounded mean and state."""
    import torch

    from suffuse import as_denoiser
    from suffuse.benchmarks.truths import lr64
    from suffuse.samplers import by_name

    truth, sampler = lr64(), by_name(name, steps=20)
    rounded = as_denoiser(lambda x, t, cond: truth(x, t, cond).to(torch.bfloat16).to(x.dtype), truth.schedule)
    noise = torch.randn(500, *truth.event, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    x = truth.schedule.sigma(1.0) * noise
    exact = sampler(truth, x=x, dtype=torch.float64)
    return {
        what: float((sampler(rounded, x=x, dtype=dtype).double() - exact).square().mean().sqrt())
        for what, dtype in (("network", torch.float32), ("network and state", torch.bfloat16))
    }


def draw(microseconds: dict[str, float]) -> Figure:
    """One line a method, one marker a library."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 0.34 * len(DRAWN) + 1.2), layout="constrained")
    panel = figure.subplots()
    for number, (library, marker) in enumerate(
        {"": "o", "diffusers/": "s", "k-diffusion/": "^", "azula/": "D"}.items()
    ):
        points = [
            (value, DRAWN.index(method))
            for name, value in microseconds.items()
            if name.startswith(library) and ("/" in name) == bool(library)
            if (method := ALIASES.get(name.removeprefix(library), name.removeprefix(library)) if library else name)
            in DRAWN
        ]
        if points:
            panel.plot(*zip(*points, strict=True), marker, color=f"C{number}", label=library.strip("/") or "suffuse")
    panel.axvline(microseconds["bare loop (reference)"], color="0.6", linestyle=":")
    panel.set(xscale="log", xlabel="microseconds per step", yticks=range(len(DRAWN)), yticklabels=DRAWN)
    panel.invert_yaxis()
    panel.grid(axis="y", color="0.9")
    panel.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    return figure
