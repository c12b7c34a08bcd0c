"""Pandas frequencies, and the lags that carry a season into the window."""

from __future__ import annotations

import functools
import warnings

from suffuse.errors import InvalidArgument

__all__ = ["lags_for", "normalize"]


@functools.lru_cache(maxsize=64)
def normalize(freq: str) -> str:
    """A period frequency in the spelling of pandas 2.2 and later (``H`` becomes ``h``, ``T`` becomes ``min``).

    Raises:
        InvalidArgument: for a string that pandas does not know.
    """
    import pandas as pd

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        try:
            return str(pd.Period("2000-01-03", freq=freq or "?").freqstr)
        except (ValueError, TypeError, AttributeError, KeyError):
            raise InvalidArgument(
                f"freq={freq!r} is not a pandas period frequency; use for instance 'h', '30min', 'D', 'B', 'W', 'M', "
                f"'Q' or 'Y'"
            ) from None


def lags_for(freq: str) -> list[int]:
    """TSDiff's lags: 24 [1..7, 14, 21, 28] steps for hourly, 30 [1..12] for daily and business-day data, none else.

    Kollovieh et al. (2023), arXiv:2307.11494, appendix; the paper runs ``m4_hourly`` and ``wiki2000`` without lags.
    """
    match normalize(freq):
        case "h":
            return [24 * days for days in (1, 2, 3, 4, 5, 6, 7, 14, 21, 28)]
        case "D" | "B":
            return [30 * months for months in range(1, 13)]
        case _:
            return []
