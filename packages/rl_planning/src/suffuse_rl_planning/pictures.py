"""Figures of a tracking test: requested against achieved, a strip of the motion, and the motion itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from . import render
from .envs import Array, Rollout

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .evaluate import Tracking

COLOURS = ("#2f6690", "#c8553d", "#8a826a", "#5b8e7d", "#b08ea2")


def requested_against_achieved(trackings: Mapping[str, Tracking], unit: str) -> Figure:
    """A dot per test and a line through the mean of each request; the diagonal is perfect tracking."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6, 4.4), layout="constrained")
    axes = figure.add_subplot()
    first = next(iter(trackings.values()))
    ends = [first.requested.min(), first.requested.max()]
    axes.plot(ends, ends, color="#999999", lw=1, ls="--", label="as requested")
    for k, (colour, (name, tracking)) in enumerate(zip(COLOURS, trackings.items(), strict=False)):
        at = np.unique(tracking.requested)
        mean = [tracking.achieved[tracking.requested == value].mean() for value in at]
        shift = 0.012 * (ends[1] - ends[0]) * (k - (len(trackings) - 1) / 2)
        axes.scatter(tracking.requested + shift, tracking.achieved, s=12, color=colour, alpha=0.5, lw=0)
        axes.plot(at, mean, color=colour, lw=1.8, label=f"{name}: error {tracking.mae:.2f} {unit}")
    axes.set(xlabel=f"requested {first.behaviour} ({unit})", ylabel=f"achieved {first.behaviour} ({unit})")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="upper left")
    return figure


def filmstrip(result: Rollout, rows: Sequence[int], captions: Sequence[str], *, every: float = 1.0) -> Figure:
    """Stick figures every so many seconds on one ruler, an episode a row, so that distance shows speed.

    Args:
        result: the motion.
        rows: which episodes, one panel each.
        captions: one per panel.
        every: seconds between two figures.
    """
    from matplotlib.figure import Figure

    stride = max(round(every / result.dt), 1)
    x = result.qpos[list(rows), :, 0]
    left, right = float(x.min()) - 1.0, float(x.max()) + 1.2
    width = 9.0
    height = width * 1.45 / (right - left)
    figure = Figure(figsize=(width, (height + 0.35) * len(rows) + 0.1))
    for k, (row, caption) in enumerate(zip(rows, captions, strict=True)):
        total = figure.get_figheight()
        bottom = total - (k + 1) * (height + 0.35)
        axes = figure.add_axes((0, bottom / total, 1, height / total))
        ends, radii, bodies = render.capsules(result.env_id, result.qpos[row, : result.length[row] + 1 : stride])
        axes.set(xlim=(left, right), ylim=(-0.2, 1.25))
        axes.axhspan(-1, 0, color="#e8e4da", zorder=0)
        for mark in np.arange(np.ceil(left), right):
            axes.text(mark, -0.16, f"{mark:.0f} m", fontsize=7, ha="center", color="#6f6853")
            axes.vlines(mark, -0.05, 0, color="#b0a890", lw=1)
        for i, at in enumerate(ends):
            render.draw(axes, at, radii, bodies, alpha=0.25 + 0.75 * i / max(len(ends) - 1, 1))
        axes.text(left + 0.01 * (right - left), 1.22, caption, fontsize=10, va="bottom")
        axes.set_axis_off()
    return figure


def film(
    result: Rollout, rows: Sequence[int], captions: Sequence[str], *, stop: int | None = None, backend: str = "auto"
) -> tuple[list[Array], str]:
    """Pictures of several episodes, one above the other, every second control step, with the speed of the moment.

    Returns:
        the pictures, and the backend that drew them; play them at ``1 / (2 dt)`` per second.
    """
    columns: list[list[Array]] = []
    used = backend
    speed = result.series()["speed"]
    for row, caption in zip(rows, captions, strict=True):
        last = min(result.length[row], stop or result.length[row])
        steps = np.arange(0, last, 2)
        pictures, used = render.frames(result.env_id, result.qpos[row, steps], backend=used)
        now = [speed[row, max(t - 20, 0) : t + 1].mean() for t in steps]
        columns.append([render.label(p, f"{caption}   now {v:+.1f} m/s") for p, v in zip(pictures, now, strict=True)])
    return [np.concatenate(pictures) for pictures in zip(*columns, strict=False)], used


def summary_rows(requested: Array, wanted: Sequence[float]) -> list[int]:
    """For each wanted request the first test with the nearest one."""
    return [int(np.abs(np.asarray(requested) - value).argmin()) for value in wanted]


def fps(result: Rollout) -> float:
    """Pictures per second at which ``film`` plays in real time."""
    return 1 / (2 * result.dt)


def caption(behaviour: str, value: float, unit: str, who: str = "") -> str:
    """The line above a picture."""
    return f"{who + ': ' if who else ''}requested {behaviour} {value:+.1f} {unit}"
