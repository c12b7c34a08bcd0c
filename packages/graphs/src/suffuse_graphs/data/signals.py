"""Signals on a fixed graph: many fields over the same nodes, some to learn from and later ones to be judged on.

    digits      1797 handwritten digits on the 8 x 8 pixel grid, edges between neighbouring pixels; scikit-learn's
    los-loop    speeds in mph of 207 loop detectors on the freeways of Los Angeles, one week of March 2012 in steps of
                5 minutes; edges between detectors that are close on the road (files of SUFFUSE_DATA; gaps were filled
                by linear interpolation at the source)
    montevideo  passengers per hour at 675 bus stops of Montevideo over 31 days, as log(1 + passengers); edges between
                stops that follow each other on a line (SUFFUSE_DATA)
    chickenpox  weekly cases (standardised at the source) in the 20 counties of Hungary, 2005-2015; edges between
                adjacent counties (SUFFUSE_DATA)

Time series are split by time, never at random. Values are standardised by statistics of the training part.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch_geometric.utils import grid, to_undirected

from suffuse import Condition
from suffuse.data import data_root
from suffuse.errors import InvalidArgument, unknown

DATASETS = ("digits", "los-loop", "montevideo", "chickenpox")


@dataclass(frozen=True)
class GraphSignals:
    """Signals on a graph.

    Attributes:
        name: of the dataset.
        edge_index: (2, edges), both directions.
        edge_weight: (edges,) positive.
        train, test: (N, 1, n) standardised signals.
        mean, std: (n,), so that `mean + std * x` is in `unit`.
        unit: of the original values.
        positions: (n, 2) where to draw the nodes.
        labels: a name for every node.
    """

    name: str
    edge_index: Tensor
    edge_weight: Tensor
    train: Tensor
    test: Tensor
    mean: Tensor
    std: Tensor
    unit: str
    positions: Tensor
    labels: tuple[str, ...]

    @property
    def num_nodes(self) -> int:
        return self.train.size(-1)

    def raw(self, x: Tensor) -> Tensor:
        """Standardised (..., n) -> original unit."""
        return self.mean + self.std * x

    @property
    def score_unit(self) -> tuple[float, str]:
        """What a standardised error of 1 is: a number of `unit` if all nodes share a scale, else one deviation."""
        common = bool((self.std == self.std[0]).all())
        return (float(self.std[0]), self.unit) if common else (1.0, "std")


def load_signals(name: str, root: Path | None = None) -> GraphSignals:
    """Signals by name.

    Args:
        name: "digits", "los-loop", "montevideo" or "chickenpox".
        root: folder with `timeseries/` for all but digits; by default that of SUFFUSE_DATA.
    """
    if name not in DATASETS:
        raise unknown("dataset", name, DATASETS)
    if name in BUNDLED:
        return BUNDLED[name]()
    root = data_root() if root is None else root
    folder, file, read = FILES[name]
    if root is None or not (root / "timeseries" / folder / file).is_file():
        raise InvalidArgument(
            f"dataset {name!r} needs files: set SUFFUSE_DATA to a folder with timeseries/{folder}/{file}; "
            "'digits' needs none"
        )
    return read(root / "timeseries" / folder)


def _digits() -> GraphSignals:
    from sklearn.datasets import load_digits

    images = torch.from_numpy(load_digits().images).float().flatten(1)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    edge_index, _ = grid(8, 8)
    row, col = torch.arange(64) // 8, torch.arange(64) % 8
    neighbours = (row[edge_index[0]] - row[edge_index[1]]).abs() + (col[edge_index[0]] - col[edge_index[1]]).abs() == 1
    positions = torch.stack([col, 7 - row], 1).float()
    return _signals(
        "digits", edge_index[:, neighbours], None, images[order], 1400, "grey levels", positions, own_mean=False
    )


def _los_loop(folder: Path) -> GraphSignals:
    import pandas as pd

    speed = torch.from_numpy(pd.read_csv(folder / "los_speed.csv.gz").to_numpy(np.float32))
    weight = torch.from_numpy(pd.read_csv(folder / "los_adj.csv.gz", header=None).to_numpy(np.float32))
    close = torch.maximum(weight, weight.T).fill_diagonal_(0)
    edge_index = close.nonzero().T.contiguous()
    return _signals("los-loop", edge_index, close[tuple(edge_index)], speed, 1440, "mph", spectral_layout(close))


def _chickenpox(folder: Path) -> GraphSignals:
    with gzip.open(folder / "chickenpox.json.gz") as file:
        raw = json.load(file)
    edge_index = torch.tensor(raw["edges"]).T
    edge_index = edge_index[:, edge_index[0] != edge_index[1]]
    cases = torch.tensor(raw["FX"], dtype=torch.float32)
    adjacency = torch.zeros(20, 20).index_put((edge_index[0], edge_index[1]), torch.tensor(1.0))
    layout = spectral_layout(torch.maximum(adjacency, adjacency.T))
    return _signals("chickenpox", edge_index, None, cases, 400, "standardised cases", layout)


def _montevideo(folder: Path) -> GraphSignals:
    with gzip.open(folder / "montevideo_bus.json.gz") as file:
        raw = json.load(file)
    stops = {stop["bus_stop"]: i for i, stop in enumerate(raw["nodes"])}
    links = torch.tensor([[stops[link[end]] for end in ("source", "target")] for link in raw["links"]]).T
    edge_index = to_undirected(links[:, links[0] != links[1]])
    passengers = torch.tensor([stop["y"] for stop in raw["nodes"]], dtype=torch.float32).T
    place = torch.tensor([[stop["lon"], stop["lat"]] for stop in raw["nodes"]], dtype=torch.float64)
    place = ((place - place.mean(0)) / place.std()).float()
    return _signals("montevideo", edge_index, None, passengers.log1p(), 558, "log(1 + passengers)", place)


def _signals(
    name: str,
    edge_index: Tensor,
    edge_weight: Tensor | None,
    x: Tensor,
    train: int,
    unit: str,
    positions: Tensor,
    own_mean: bool = True,
    labels: tuple[str, ...] | None = None,
) -> GraphSignals:
    """Split and standardise, every node by its own mean unless told otherwise, all by one standard deviation."""
    past = x[:train]
    mean = past.mean(0) if own_mean else past.mean().expand(x.size(1))
    std = (past - mean).std().expand(x.size(1))
    x = ((x - mean) / std).unsqueeze(1)
    edge_weight = torch.ones(edge_index.size(1)) if edge_weight is None else edge_weight
    labels = tuple(map(str, range(x.size(-1)))) if labels is None else labels
    return GraphSignals(name, edge_index, edge_weight, x[:train], x[train:], mean, std, unit, positions, labels)


def spectral_layout(adjacency: Tensor) -> Tensor:
    """(n, 2): the two smoothest eigenvectors of the normalised Laplacian, scaled by degree."""
    degree = adjacency.sum(1).clamp_min(1e-6).double()
    L = torch.eye(len(degree)) - adjacency.double() / (degree[:, None] * degree).sqrt()
    return (torch.linalg.eigh(L)[1][:, 1:3] / degree[:, None].sqrt()).float()


BUNDLED = {"digits": _digits}
#: name -> (folder below `timeseries/` of SUFFUSE_DATA, a file there, reader of the folder)
FILES: dict[str, tuple[str, str, Callable[[Path], GraphSignals]]] = {
    "los-loop": ("los_loop", "los_speed.csv.gz", _los_loop),
    "montevideo": ("pyg_temporal", "montevideo_bus.json.gz", _montevideo),
    "chickenpox": ("pyg_temporal", "chickenpox.json.gz", _chickenpox),
}


def random_masks(n: int, num_nodes: int, observed: float | tuple[float, float], generator: torch.Generator) -> Tensor:
    """(n, 1, num_nodes) in {0, 1}: each node is observed with a probability that is fixed, or uniform for every row."""
    low, high = (observed, observed) if isinstance(observed, float) else observed
    rate = low + (high - low) * torch.rand(n, 1, 1, generator=generator)
    return (torch.rand(n, 1, num_nodes, generator=generator) < rate).float()


def observation(x: Tensor, mask: Tensor) -> Condition:
    """What is known of signals x (B, C, n) under a mask (B, 1, n): the condition of a `GraphSignalNet`."""
    return Condition(maps={"observed": x * mask, "mask": mask})
