"""Real series that travel inside statsmodels, cut into training part and rolling test windows.

statsmodels (BSD-3-Clause) is a small, maintained dependency whose datasets are plain files in the wheel, so nothing is
downloaded and a dataset never changes under a benchmark.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from ..frequency import normalize

if TYPE_CHECKING:
    from gluonts.dataset.common import TrainDatasets

__all__ = ["BUNDLED", "rolling"]


def elnino() -> TrainDatasets:
    """Sea-surface temperature of the tropical Pacific in degrees Celsius, monthly, 1950-2010 (statsmodels ``elnino``).

    Horizon 12 months; the test windows are the ten years 2001-2010.
    """
    import statsmodels.datasets as datasets

    table = datasets.elnino.load_pandas().data
    series = table.drop(columns="YEAR").to_numpy(dtype=np.float32).ravel()  # 61 years x 12 months
    return rolling({"sst": series}, start=f"{int(table['YEAR'].iloc[0])}-01", freq="M", horizon=12, windows=10)


def co2() -> TrainDatasets:
    """Atmospheric CO2 at Mauna Loa in ppm, weekly (ending on Saturdays), 1958-2001, with 59 missing weeks left missing
    (statsmodels ``co2``; Keeling and Whorf, Scripps Institution of Oceanography).

    Horizon 26 weeks; ten test windows, the last five years.
    """
    import statsmodels.datasets as datasets

    series = datasets.co2.load_pandas().data["co2"]
    values = series.asfreq("W-SAT").to_numpy(dtype=np.float32)
    return rolling({"co2": values}, start=str(series.index[0].date()), freq="W-SAT", horizon=26, windows=10)


def sunspots() -> TrainDatasets:
    """Yearly sunspot numbers, 1700-2008 (statsmodels ``sunspots``). Horizon 11 years; five test windows."""
    import statsmodels.datasets as datasets

    values = datasets.sunspots.load_pandas().data["SUNACTIVITY"].to_numpy(dtype=np.float32)
    return rolling({"sunspots": values}, start="1700", freq="Y", horizon=11, windows=5)


BUNDLED: dict[str, Callable[[], TrainDatasets]] = {"elnino": elnino, "co2": co2, "sunspots": sunspots}


def rolling(series: dict[str, np.ndarray], *, start: str, freq: str, horizon: int, windows: int) -> TrainDatasets:
    """Hold out the last ``windows * horizon`` steps of each series as consecutive forecast windows.

    Args:
        series: item id -> values (T,), NaN where missing.
        start: the first period, as pandas reads it.
        freq: pandas frequency.
        horizon: prediction length H.
        windows: number of test windows, the last of which ends with the series.
    """
    from gluonts.dataset.common import MetaData, TrainDatasets

    freq = normalize(freq)
    first = pd.Period(start, freq=freq)

    def entries(cuts: Iterable[int]) -> list[dict[str, object]]:
        return [
            {"start": first, "target": values[: len(values) - cut], "item_id": item}
            for cut in cuts
            for item, values in series.items()
        ]

    return TrainDatasets(
        metadata=MetaData(freq=freq, prediction_length=horizon),
        train=entries([windows * horizon]),
        test=entries(horizon * k for k in reversed(range(windows))),
    )
