"""How fast is it? A training step and a guided forecast beside the official TSDiff code, in one process.

Both have the published small network (3 blocks of 64 channels, 128 states), the same windows and batch. The peer comes
from a checkout that the user names; see ``official``.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from suffuse.bench import benchmark

from ..quiet import quiet

if TYPE_CHECKING:
    from torch import Tensor

    from suffuse.bench import Run

__all__ = ["speed"]

CONTEXT, HORIZON, SCALE = 312, 48, 2.0
STEPS = 6  # of the diffusion: the time of a forecast is that of a step times their number


@benchmark(
    "timeseries/speed",
    paper="Kollovieh et al. 2023, arXiv:2307.11494 (code: amazon-science/unconditional-time-series-diffusion)",
    claim="A training step and a guided forecast each take at most half the time of the official code.",
    peers=("TSDiff, official code, pure-torch S4",),
)
@quiet()
def speed(run: Run) -> None:
    """Times of one training step (loss, gradients, clipping, optimiser; ours also averages the weights) and of a
    forecast by DDPM with quantile guidance, of windows of 360 steps; the median of interleaved repetitions, in one
    process and, on a CPU, one thread. Ours is guided as the paper writes it, from the posterior mean that the step
    needs anyway; the official code evaluates the network once for the step and again for the guidance after it.
    ``post-step`` is our sampler doing the same, which compares the networks alone; around one network and from one seed
    the two then draw the same samples, and ``difference`` is the largest between them.
    """
    import torch

    from .official import VARIABLE, checkout

    source = checkout()
    if source is None:
        run.skip(f"set {VARIABLE} to a checkout of amazon-science/unconditional-time-series-diffusion")
    try:
        import einops  # noqa: F401
    except ImportError:
        run.skip("the official code needs einops: pip install einops")

    threads = torch.get_num_threads()
    if run.device == "cpu":
        torch.set_num_threads(1)
    try:
        for channels, batch in ((1, 64),) if run.quick else ((1, 64), (11, 64)):
            with run.stage(f"{channels} channels"):
                compare(run, source, channels, batch, repetitions=3 if run.quick else 9)
    finally:
        torch.set_num_threads(threads)


def compare(run: Run, source: object, channels: int, batch: int, repetitions: int) -> None:
    import torch

    from suffuse.schedules import DiscreteBetas

    from ..tsdiff import Forecasting, quantile_levels
    from ..tsdiff.module import TSDiffModule
    from .official import Official

    torch.manual_seed(run.seed)
    theirs = Official(source, channels, CONTEXT, HORIZON, STEPS, run.device)  # type: ignore[arg-type]
    ours = TSDiffModule(
        context_length=CONTEXT,
        prediction_length=HORIZON,
        lags_seq=list(range(1, channels)),
        schedule=DiscreteBetas.linear(1e-4, 0.1, steps=STEPS).to_config(),
        backbone={"width": 64, "depth": 3, "state": 128},
        forecasting=vars(Forecasting("q", "ddpm", STEPS, SCALE)),
        condition_dropout=1.0,
    ).to(run.device)

    past = torch.randn(batch, ours.past_length, device=run.device)
    future = torch.randn(batch, HORIZON, device=run.device)
    gluonts = {
        "past_target": past,
        "past_observed_values": torch.ones_like(past),
        "future_target": future,
        "future_observed_values": torch.ones_like(future),
    }
    w = ours.window(past, torch.ones_like(past))
    levels = quantile_levels(batch).to(past)
    last = (w.values.mT.contiguous(), w.known.mT.contiguous())  # channels last, as theirs has it
    ours.on_fit_start()
    optimizer = ours.configure_optimizers()

    def train() -> None:
        optimizer.zero_grad()
        ours.loss(gluonts).backward()
        torch.nn.utils.clip_grad_norm_(ours.parameters(), 0.5)
        optimizer.step()
        ours._average[0].update(ours.denoiser, 1)

    def forecast(post_step: bool) -> Callable[[], Tensor]:
        def guided() -> Tensor:
            ours.forecasting = Forecasting("q", "ddpm", STEPS, SCALE, post_step=post_step)
            return ours.complete(w.values, w.known, levels)

        return guided

    pairs: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
        "training step": (train, lambda: theirs.train_step(last[0])),
        "guided forecast": (forecast(False), lambda: theirs.forecast(*last, SCALE)),
        "guided forecast, post-step": (forecast(True), lambda: theirs.forecast(*last, SCALE)),
    }
    for what, pair in pairs.items():
        ours.requires_grad_(what == "training step")
        a, b = race(*pair, repetitions=repetitions, device=run.device)
        setting = {"batch": batch, "channels": channels, "length": CONTEXT + HORIZON, "steps": STEPS}
        for method, seconds in (("suffuse", a), ("official", b)):
            run.row(
                dataset=what, method=method, metric="milliseconds", value=1e3 * seconds, better="lower", unit="ms",
                setting=setting,
            )  # fmt: skip
        run.row(dataset=what, method="suffuse", metric="ratio-to-official", value=b / a, better="higher", unit="x",
                setting=setting)  # fmt: skip
        run.note(f"{what}, {channels} channels: {b / a:.1f} times as fast as the official code.")

    if channels == 1:  # with more the layouts differ, and with them the order of the draws
        torch.nn.init.normal_(ours.denoiser.backbone.head[-1].weight, std=0.1)  # type: ignore[union-attr, index, arg-type]
        theirs.use(ours.denoiser)
        drawn = []
        for sample in (forecast(True), lambda: theirs.forecast(*last, SCALE).mT):
            torch.manual_seed(run.seed)
            drawn.append(sample())
        run.row(dataset="guided forecast, post-step", method="suffuse", metric="difference", better="lower",
                value=float((drawn[0] - drawn[1]).abs().max()), setting=setting)  # fmt: skip


def race(a: Callable[[], object], b: Callable[[], object], repetitions: int, device: str) -> tuple[float, float]:
    """Median seconds of two functions called in turn, so that both see the same machine."""
    import numpy as np
    import torch

    times: tuple[list[float], list[float]] = ([], [])
    for i in range(repetitions + 1):
        for function, kept in zip((a, b), times, strict=True):
            start = time.perf_counter()
            function()
            if device.startswith("cuda"):
                torch.cuda.synchronize()
            if i:  # the first call of each warms up
                kept.append(time.perf_counter() - start)
    return float(np.median(times[0])), float(np.median(times[1]))
