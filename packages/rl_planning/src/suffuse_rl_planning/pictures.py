"""Figures of a tracking test: requested against achieved, a strip of the motion, and the motion itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from . import behaviours, render
from .envs import Array, Rollout

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .evaluate import Covering, MeasureMap, Switching, Tracking

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


def requested_and_obtained(details: Mapping[str, Mapping[str, Any]], maps: Mapping[str, MeasureMap]) -> Figure:
    """Measured behaviour against requested strength, a column per attribute; the line is u*(v) of the dataset.

    Args:
        details: policy -> attribute -> requested and achieved (n,), of ``evaluate.measured_errors``.
        maps: attribute -> u*.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.2 * len(maps), 3.1), layout="constrained")
    panels = figure.subplots(1, len(maps), squeeze=False)[0]
    v = np.linspace(0, 1, 100)
    for axes, (name, u) in zip(panels, maps.items(), strict=True):
        axes.plot(v, u(v), color="#999999", lw=1.5, ls="--", label="meant")
        for colour, (policy, found) in zip(COLOURS, details.items(), strict=False):
            if name in found:
                axes.scatter(found[name]["requested"], found[name]["achieved"], s=12, color=colour, lw=0, label=policy)
        axes.set(xlabel=f"requested {name}", ylabel=f"measured {name} ({behaviours.UNITS[name]})")
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].legend(frameon=False, fontsize=7)
    return figure


def error_curves(errors: Mapping[str, Array]) -> Figure:
    """Share of the tests with an error below a threshold, per policy; floors are drawn grey."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2, 3.4), layout="constrained")
    axes = figure.subplots()
    x = np.geomspace(0.01, 1.0, 200)
    colours = iter([*COLOURS, "#7a5195", "#333333"])
    for name, values in errors.items():
        floor = name.endswith("(floor)")
        colour = "#bbbbbb" if floor else next(colours)
        style = ":" if name.startswith("random") else "-"
        axes.plot(x, (values[:, None] < x).mean(0), color=colour, ls=style, lw=1.8, label=name)
    axes.set(xscale="log", xlabel="error", ylabel="share of tests below", ylim=(0, 1.02), xlim=(0.01, 1))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=7)
    return figure


def traces(switched: Mapping[str, Mapping[str, Switching]], dt: float) -> Figure:
    """Behaviour over time under changing requests, a panel per behaviour and a colour per policy; above them the robot
    of the first policy as it moves at the end of each phase.
    """
    from matplotlib.figure import Figure

    names = list(next(iter(switched.values())))
    first = next(iter(switched.values()))[names[0]]
    phases, last = len(first.requested), first.trace.shape[1] * dt
    width, strip, panel, margin = 7.2, 0.8, 1.5, 0.45
    height = strip + (panel + 0.2) * len(names) + margin
    figure = Figure(figsize=(width, height))

    def place(bottom: float, tall: float) -> Any:
        return figure.add_axes((0.09, bottom / height, 0.89, tall / height))

    axes = place(height - strip, strip - 0.05)
    axes.set(xlim=(0, last), ylim=(0, last * (strip - 0.05) / (0.89 * width)))
    per_phase = last / phases
    scale = per_phase / 3.4  # metres of the robot in seconds of the axis
    for phase in range(phases):
        steps = first.every * (phase + 1) - 1 - np.array([8, 0])
        ends, radii, bodies = render.capsules(first.rollout.env_id, first.rollout.qpos[0, steps])
        for k, (pose, step) in enumerate(zip(ends, steps, strict=True)):
            moved = pose - np.array([first.rollout.qpos[0, step, 0], 0.0])
            moved = (moved + np.array([0.95 + 1.5 * k, 0.25])) * scale + np.array([phase * per_phase, 0.0])
            render.draw(axes, moved, radii * scale, bodies, alpha=0.45 + 0.55 * k)
    axes.axhline(0.25 * scale, color="#b0a890", lw=1)
    axes.set_axis_off()
    for i, name in enumerate(names):
        axes = place(margin + (len(names) - 1 - i) * (panel + 0.2), panel)
        for colour, (policy, found) in zip(COLOURS, switched.items(), strict=False):
            trace = found[name].trace
            time = np.arange(1, trace.shape[1] + 1) * dt
            axes.fill_between(time, trace.min(0), trace.max(0), color=colour, alpha=0.2, lw=0)
            axes.plot(time, trace.mean(0), color=colour, lw=1.5, label=policy)
        asked = next(iter(switched.values()))[name].requested
        edges = np.arange(phases + 1) * first.every * dt
        axes.stairs(asked, edges, color="#333333", ls="--", lw=1.2, label="requested", baseline=None)
        axes.set(ylabel=f"{name} ({behaviours.UNITS[name]})", xlim=(0, last))
        axes.spines[["top", "right"]].set_visible(False)
        if i == 0:
            axes.legend(frameon=False, fontsize=7, ncols=3, loc="upper left")
        if i < len(names) - 1:
            axes.set_xticklabels([])
    axes.set(xlabel="time (s)")
    return figure


def sweeps(found: Mapping[str, Covering]) -> Figure:
    """Measured behaviour against swept strength, over the dataset's own cloud."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.2 * len(found), 3.0), layout="constrained")
    panels = figure.subplots(1, len(found), squeeze=False)[0]
    for axes, (name, covering) in zip(panels, found.items(), strict=True):
        axes.scatter(*covering.data, s=4, color="#cccccc", lw=0, label="dataset")
        order = np.argsort(covering.strengths)
        axes.plot(covering.strengths[order], covering.expected[order], color="#333333", ls="--", lw=1.2, label="meant")
        axes.scatter(covering.strengths, covering.achieved, s=14, color=COLOURS[0], lw=0, label="obtained")
        axes.set(xlabel=f"requested {name}", ylabel=f"measured {name} ({behaviours.UNITS[name]})")
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].legend(frameon=False, fontsize=7)
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


def obedient_film(
    result: Rollout,
    row: int,
    asked: Mapping[str, tuple[float, float]],
    *,
    smooth: int = 20,
    stop: int | None = None,
    backend: str = "auto",
) -> tuple[list[Array], str]:
    """One episode, every second control step, with what was asked and what is obtained drawn on it.

    Args:
        asked: behaviour -> strength and the value that it means, in its unit.
        smooth: control steps over which the obtained value is averaged.
        stop: control steps to show.
        backend: of ``render.frames``.
    """
    last = min(int(result.length[row]), stop or int(result.length[row]))
    steps = np.arange(0, last, 2)
    pictures, used = render.frames(result.env_id, result.qpos[row, steps], backend=backend)
    for name in reversed(list(asked)):
        (strength, value), unit = asked[name], behaviours.UNITS.get(name, "1")
        now = [result.behaviour(name, max(int(t) - smooth, 0), int(t) + 1)[row] for t in steps]
        pictures = [
            render.label(picture, f"{name} {strength:.2f} = {value:.4g} {unit}   now {v:.4g} {unit}")
            for picture, v in zip(pictures, now, strict=True)
        ]
    return pictures, used


def summary_rows(requested: Array, wanted: Sequence[float]) -> list[int]:
    """For each wanted request the first test with the nearest one."""
    return [int(np.abs(np.asarray(requested) - value).argmin()) for value in wanted]


def fps(result: Rollout) -> float:
    """Pictures per second at which ``film`` plays in real time."""
    return 1 / (2 * result.dt)


def caption(behaviour: str, value: float, unit: str, who: str = "") -> str:
    """The line above a picture."""
    return f"{who + ': ' if who else ''}requested {behaviour} {value:+.1f} {unit}"
