"""Fan plots: history, truth, median and central bands of sample forecasts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from gluonts.dataset import DataEntry
    from gluonts.model.forecast import Forecast
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["fan", "fans"]

BANDS = ((0.05, 0.95, 0.2), (0.25, 0.75, 0.4))  # lower and upper quantile, opacity


def fan(axes: Axes, forecast: Forecast, entry: DataEntry | None = None, history: int = 96, color: str = "C0") -> None:
    """Draw one forecast.

    Args:
        axes: where.
        forecast: any GluonTS forecast, of H steps.
        entry: the series, ended where the horizon ends (then the truth is drawn too) or where it starts.
        history: steps to show before the forecast.
        color: of the fan.
    """
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

    horizon = forecast.index.to_timestamp()
    for low, high, opacity in BANDS:
        name = f"{round(100 * (high - low))} %"
        band = forecast.quantile(low), forecast.quantile(high)
        axes.fill_between(horizon, *band, color=color, alpha=opacity, linewidth=0, label=name)
    axes.plot(horizon, forecast.quantile(0.5), color=color, linewidth=1.6, label="median")
    if entry is not None:
        import pandas as pd

        target = np.asarray(entry["target"])
        stamps = pd.period_range(entry["start"], periods=len(target), freq=forecast.start_date.freq)
        shown = stamps >= forecast.start_date - history
        axes.plot(stamps[shown].to_timestamp(), target[shown], color="black", linewidth=1.1, label="observed", zorder=3)
    axes.axvline(horizon[0], color="0.6", linewidth=0.8, linestyle=":")
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
    locator = AutoDateLocator(minticks=3, maxticks=9)
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))


def fans(
    rows: Sequence[tuple[str, Sequence[Forecast]]], entries: Sequence[DataEntry], history: int = 96, ylabel: str = ""
) -> Figure:
    """A grid of fan plots: one row per named method, one column per entry; forecasts in the order of the entries."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * len(entries), 2.3 * len(rows)), layout="constrained")
    grid = figure.subplots(len(rows), len(entries), sharex="col", sharey="col", squeeze=False)
    for axis_row, (name, forecasts) in zip(grid, rows, strict=True):
        for axes, forecast, entry in zip(axis_row, forecasts, entries, strict=True):
            fan(axes, forecast, entry, history)
        axis_row[0].set_ylabel(f"{name}\n{ylabel}" if ylabel else name)
    for axes, forecast in zip(grid[0], rows[0][1], strict=True):
        axes.set_title(f"{forecast.item_id or ''} from {forecast.start_date.start_time.date()}".strip(), fontsize=9)
    grid[0][0].legend(fontsize=7, frameon=False, loc="best")
    return figure
