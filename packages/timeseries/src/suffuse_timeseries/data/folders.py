"""Folders in GluonTS's own layout: ``metadata.json`` beside ``train/`` and ``test/`` of JSON lines or Arrow files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from suffuse.errors import InvalidArgument

from ..frequency import normalize

if TYPE_CHECKING:
    from gluonts.dataset.common import TrainDatasets

__all__ = ["read_folder", "stored"]


def stored(root: Path | None) -> dict[str, Path]:
    """Dataset folders below ``root/timeseries/gluonts``, by name; empty without a root."""
    if root is None:
        return {}
    return {path.parent.name: path.parent for path in sorted((root / "timeseries" / "gluonts").glob("*/metadata.json"))}


def read_folder(folder: Path) -> TrainDatasets:
    """Read a folder written by ``gluonts.dataset.repository`` or ``TrainDatasets.save``.

    Some published archives say ``time_granularity`` where GluonTS says ``freq``; both are understood.
    """
    from gluonts.dataset.common import FileDataset, MetaData, TrainDatasets

    try:
        meta = json.loads((folder / "metadata.json").read_text())
    except FileNotFoundError:
        raise InvalidArgument(f"{folder} is no GluonTS dataset: it has no metadata.json") from None
    freq, horizon = meta.get("freq") or meta.get("time_granularity"), meta.get("prediction_length")
    if not freq or not horizon:
        raise InvalidArgument(f"{folder / 'metadata.json'} must give freq and prediction_length, got {sorted(meta)}")
    freq = normalize(freq)
    parts = {}
    for part in ("train", "test"):
        if not (folder / part).is_dir():
            raise InvalidArgument(f"{folder} has no {part}/ folder; GluonTS datasets hold train/ and test/")
        parts[part] = FileDataset(folder / part, freq=freq)
    return TrainDatasets(metadata=MetaData(freq=freq, prediction_length=int(horizon)), **parts)
