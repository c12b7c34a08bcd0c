"""Datasets as GluonTS knows them: real series that need no download, and folders that GluonTS has written.

A dataset here is GluonTS's own ``TrainDatasets``: ``metadata`` (freq, prediction_length), ``train`` (series up to the
first forecast) and ``test`` (one entry per series and rolling window, cut where that window's horizon ends).
"""

from .bundled import BUNDLED
from .folders import read_folder, stored
from .registry import available, load

__all__ = ["BUNDLED", "available", "load", "read_folder", "stored"]
