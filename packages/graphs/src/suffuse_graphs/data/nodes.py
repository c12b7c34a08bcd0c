"""Graphs with labelled nodes, as PyG `Data` with the masks of several splits.

Two come inside packages: Zachary's karate club in PyG, and the mushroom-body connectome of a larval fruit fly in
graspologic, a graph in which half of all edges join different classes. Only graspologic's files are read, so it may be
installed without its own dependencies. The others are PyG's own datasets, read from the folder that SUFFUSE_DATA names,
or from any PyG root, where PyG downloads what is missing.

Every graph comes undirected and without self-loops, with `train_mask`, `val_mask`, `test_mask` of shape (n, splits).
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import shutil
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch_geometric import transforms as T
from torch_geometric.data import Data
from torch_geometric.datasets import (
    Actor,
    HeterophilousGraphDataset,
    KarateClub,
    Planetoid,
    WebKB,
    WikipediaNetwork,
)
from torch_geometric.utils import degree, remove_self_loops, scatter, to_undirected

from suffuse.data import data_root
from suffuse.errors import InvalidArgument, MissingExtra, unknown

#: The benchmark of Platonov et al. (2023), arXiv:2302.11640, with ten splits of 50 / 25 / 25 %, and how it scores.
HETEROPHILOUS = {
    "roman-empire": "accuracy",
    "amazon-ratings": "accuracy",
    "minesweeper": "auroc",
    "tolokers": "auroc",
    "questions": "auroc",
}
#: Chameleon and Squirrel hold nodes twice, which leaks from training to test; these are without, with own splits.
FILTERED = ("chameleon-filtered", "squirrel-filtered")


def _heterophilous(name: str, root: str) -> Any:
    return HeterophilousGraphDataset(root, name)


def _filtered(name: str, root: str) -> list[Data]:
    """PyG has no class for these two; the file is laid out as those of `HeterophilousGraphDataset` are."""
    stem = name.replace("-", "_")
    path = Path(root) / stem / "raw" / f"{stem}.npz"
    if not path.is_file():
        raise InvalidArgument(
            f"dataset {name!r} needs {stem}/raw/{stem}.npz of the heterophilous-graphs benchmark in root"
        )
    with np.load(path) as raw:
        masks = {f"{part}_mask": torch.from_numpy(raw[f"{part}_masks"]).bool().T for part in ("train", "val", "test")}
        x, y = torch.from_numpy(raw["node_features"]).float(), torch.from_numpy(raw["node_labels"]).long()
        return [Data(x=x, y=y, edge_index=torch.from_numpy(raw["edges"]).long().T.contiguous(), **masks)]


#: name -> (folder below `graphs/` of SUFFUSE_DATA, PyG dataset of a root folder)
FILES: dict[str, tuple[str, Callable[[str], Any]]] = {
    "texas": ("webkb", lambda root: WebKB(root, "texas")),
    "wisconsin": ("webkb", lambda root: WebKB(root, "wisconsin")),
    "cornell": ("webkb", lambda root: WebKB(root, "cornell")),
    "cornell-2020": ("webkb_2020", lambda root: WebKB(root, "cornell")),
    "chameleon": ("wikipedia_network", lambda root: WikipediaNetwork(root, "chameleon", geom_gcn_preprocess=True)),
    "squirrel": ("wikipedia_network", lambda root: WikipediaNetwork(root, "squirrel", geom_gcn_preprocess=True)),
    "film": ("actor", lambda root: Actor(root)),
    "cora": ("planetoid", lambda root: Planetoid(root, "Cora", split="geom-gcn")),
    "citeseer": ("planetoid", lambda root: Planetoid(root, "CiteSeer", split="geom-gcn")),
    "pubmed": ("planetoid", lambda root: Planetoid(root, "PubMed", split="geom-gcn")),
    **{name: ("heterophilous", partial(_heterophilous, name)) for name in HETEROPHILOUS},
    **{name: ("heterophilous", partial(_filtered, name)) for name in FILTERED},
}
#: Inside packages: karate in PyG, the connectome (right and left hemisphere) in graspologic.
BUNDLED = ("karate", "drosophila", "drosophila-left")
#: The part of a PyG root that one dataset reads, to be copied; the others keep the whole root for themselves.
SUBFOLDER = {"cornell-2020": "cornell", "cora": "Cora", "citeseer": "CiteSeer", "pubmed": "PubMed", "film": ""}
SUBFOLDER |= {name: name.replace("-", "_") for name in (*HETEROPHILOUS, *FILTERED)}


def load_nodes(name: str, root: str | Path | None = None) -> Data:
    """A graph by name.

    Args:
        name: "karate", "drosophila" (right hemisphere), "drosophila-left"; "texas", "wisconsin", "cornell" (the
            corrected file), "cornell-2020" (the first Geom-GCN release, whose features and labels are those of Texas;
            published results on Cornell presumably used it), "chameleon", "squirrel", "film", "cora", "citeseer",
            "pubmed", all with the ten splits of Geom-GCN; "roman-empire", "amazon-ratings", "minesweeper", "tolokers",
            "questions", "chameleon-filtered", "squirrel-filtered" with those of the heterophilous benchmark.
        root: a PyG root folder to use for the latter group, with PyG's own downloading; by default the files below
            SUFFUSE_DATA are copied to a temporary folder and read there, because PyG writes beside what it reads.

    Returns:
        `Data(x (n, features), edge_index (2, 2E), y (n,), train_mask, val_mask, test_mask (n, splits))`, and `metric`,
        "accuracy" or (minesweeper, tolokers, questions) "auroc". Features are scaled to rows of sum 1, but for those of
        the heterophilous benchmark.
    """
    if name == "karate":
        return check_nodes(_with_splits(T.RemoveSelfLoops()(KarateClub()[0])))
    if name.startswith("drosophila") and name in BUNDLED:
        return check_nodes(_with_splits(_connectome("left" if name.endswith("left") else "right")))
    if name not in FILES:
        raise unknown("dataset", name, [*BUNDLED, *FILES])
    data = _read(name, root)
    steps = [T.ToUndirected(), T.RemoveSelfLoops()] + (
        [] if name in (*HETEROPHILOUS, *FILTERED) else [T.NormalizeFeatures()]
    )
    data = T.Compose(steps)(data)
    data.metric = HETEROPHILOUS.get(name, "accuracy")
    return check_nodes(data)


def check_nodes(data: Data) -> Data:
    """The data itself, or an error that names what is wrong with it."""
    if not data.num_nodes or data.x is None or not len(data.x):
        raise InvalidArgument("the graph is empty: data.x has no rows")
    if not torch.isfinite(data.x).all():
        rows = (~torch.isfinite(data.x)).any(1).nonzero().flatten().tolist()
        raise InvalidArgument(f"data.x has NaN or infinite features at nodes {rows[:5]}; fill or drop them")
    if data.edge_index.numel() and not 0 <= int(data.edge_index.min()) <= int(data.edge_index.max()) < data.num_nodes:
        raise InvalidArgument(f"data.edge_index names a node outside 0..{data.num_nodes - 1}; relabel the nodes")
    if data.y is None or len(data.y) != data.num_nodes:
        raise InvalidArgument("data.y must hold a class for every node")
    for mask in ("train_mask", "val_mask", "test_mask"):
        if data.get(mask) is None:
            raise InvalidArgument(
                f"data.{mask} is missing; add splits, for instance with torch_geometric's RandomNodeSplit"
            )
    return data


def split_of(data: Data, split: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Train, validation and test mask (n,) of one split."""
    masks = [m if m.dim() == 2 else m[:, None] for m in (data.train_mask, data.val_mask, data.test_mask)]
    count = min(m.size(1) for m in masks)
    if not 0 <= split < count:
        raise InvalidArgument(f"split must be in 0..{count - 1} for this dataset, got {split}")
    train, val, test = (m[:, split].bool() for m in masks)
    return train, val, test


def _read(name: str, root: str | Path | None) -> Data:
    folder, dataset = FILES[name]
    with contextlib.redirect_stderr(io.StringIO()):  # PyG reports its processing there
        if root is not None:
            return dataset(str(root))[0]
        source = data_root()
        part = SUBFOLDER.get(name, name)
        if source is None or not (source / "graphs" / folder / part).is_dir():
            raise InvalidArgument(
                f"dataset {name!r} needs files: set SUFFUSE_DATA to a folder with graphs/{folder}/{part}, or pass as "
                f"root a folder for PyG to download to; without files there are {', '.join(BUNDLED)}"
            )
        with tempfile.TemporaryDirectory() as scratch:
            ignore = shutil.ignore_patterns("processed")
            shutil.copytree(source / "graphs" / folder / part, Path(scratch) / part, ignore=ignore, dirs_exist_ok=True)
            return dataset(scratch)[0]


def connectome_folder() -> Path | None:
    """Where graspologic keeps the connectome, found without importing it; None when it is not installed."""
    spec = importlib.util.find_spec("graspologic")
    places = [Path(p) / "datasets" / "drosophila" for p in (spec.submodule_search_locations or [])] if spec else []
    return next((p for p in places if p.is_dir()), None)


def _connectome(side: str) -> Data:
    """Neurons and their synaptic partners, without direction; features are log(1 + partners) and log(1 + synapses).

    Classes are Kenyon cells, input, output and projection neurons (K, I, O, P). The direction of the synapses is left
    out because it gives the classes away: an MLP that knows the in- and out-degrees needs no graph. Data: Eichler et
    al. (2017), "The complete connectome of a learning and memory centre in an insect brain", Nature 548, 175-182.
    """
    folder = connectome_folder()
    if folder is None:
        raise MissingExtra("the connectome comes inside graspologic; run: pip install --no-deps graspologic")
    counts = torch.from_numpy(np.loadtxt(folder / f"{side}_adjacency.csv", dtype=np.float32))
    edge_index = counts.nonzero().T.contiguous()
    synapses = counts[tuple(edge_index)]
    labels = np.loadtxt(folder / f"{side}_cell_labels.csv", dtype=str)
    classes, y = np.unique(labels, return_inverse=True)
    n = len(y)
    edge_index, synapses = to_undirected(*remove_self_loops(edge_index, synapses), num_nodes=n, reduce="add")
    x = torch.stack([degree(edge_index[0], n), scatter(synapses, edge_index[0], dim_size=n)], dim=1).log1p()
    data = Data(x=(x - x.mean(0)) / x.std(0), edge_index=edge_index, edge_weight=synapses, y=torch.from_numpy(y))
    data.class_names = [str(c) for c in classes]
    return data


def _with_splits(data: Data, splits: int = 10) -> Data:
    """Ten class-balanced splits of 48 / 32 / 20 %, drawn from a fixed seed."""
    g = torch.Generator().manual_seed(2022)
    masks = torch.zeros(3, data.num_nodes, splits, dtype=torch.bool)
    for split in range(splits):
        for label in data.y.unique():
            nodes = (data.y == label).nonzero().flatten()
            nodes = nodes[torch.randperm(len(nodes), generator=g)]
            ends = [0, round(0.48 * len(nodes)), round(0.8 * len(nodes)), len(nodes)]
            for part in range(3):
                masks[part, nodes[ends[part] : ends[part + 1]], split] = True
    data.train_mask, data.val_mask, data.test_mask = masks
    return data
