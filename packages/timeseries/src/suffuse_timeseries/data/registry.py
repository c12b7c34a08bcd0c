"""One name for every dataset that is at hand."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from suffuse.data import data_root
from suffuse.errors import InvalidArgument, unknown

from .bundled import BUNDLED
from .folders import read_folder, stored

if TYPE_CHECKING:
    from gluonts.dataset.common import TrainDatasets

__all__ = ["available", "load"]

#: The eight datasets of the TSDiff paper; they are read from SUFFUSE_DATA and never downloaded.
PAPER = (
    "solar_nips",
    "electricity_nips",
    "traffic_nips",
    "exchange_rate_nips",
    "m4_hourly",
    "uber_tlc_hourly",
    "kdd_cup_2018_without_missing",
    "wiki2000_nips",
)


def available(root: Path | None = None) -> list[str]:
    """Names ``load`` understands now: the bundled series, then the folders below ``root`` (default: SUFFUSE_DATA)."""
    return [*BUNDLED, *stored(root or data_root())]


def load(name: str, root: Path | None = None) -> TrainDatasets:
    """A dataset by name or by the path of a folder in GluonTS's layout.

    Args:
        name: ``elnino``, ``co2``, ``sunspots`` (bundled), the name of a folder in ``<root>/timeseries/gluonts`` such as
            ``m4_hourly`` or ``exchange_rate_nips``, or a path.
        root: where stored datasets are; default the folder named by SUFFUSE_DATA.

    Raises:
        InvalidArgument: for an unknown name, listing what exists.
    """
    if name in BUNDLED:
        return BUNDLED[name]()
    root = root or data_root()
    folders = stored(root)
    if name in folders:
        return read_folder(folders[name])
    if (Path(name) / "metadata.json").is_file():
        return read_folder(Path(name))
    if name in PAPER:
        place = f"{root}/timeseries/gluonts" if root else "<SUFFUSE_DATA>/timeseries/gluonts, and SUFFUSE_DATA is unset"
        raise InvalidArgument(
            f"dataset {name!r} is not bundled and not in {place}; known here: {', '.join(available(root))}"
        )
    raise unknown("dataset", name, available(root))
