"""Pairs of stretches, and for each attribute apart which one has more of it.

The file layout is that of AlignDiff's released data: ``obs1``, ``act1``, ``obs2``, ``act2`` (N, L, .) and ``pref``
(N, k) with -1 for the first, 0 for a tie and +1 for the second. Dong et al. (2024), arXiv:2310.02054, section 4.1.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from suffuse.errors import InvalidArgument

from ..data.files import replacing
from ..envs import Array


@dataclass(frozen=True)
class Preferences:
    """N answered pairs of stretches of L steps.

    Attributes:
        attributes: k names.
        observations: (N, 2, L, o) in the units of the environment.
        actions: (N, 2, L, a).
        pref: (N, k) of -1 (the first has more), 0 (equal) and +1 (the second).
        annotator: (N,) who answered.
    """

    attributes: tuple[str, ...]
    observations: Array
    actions: Array
    pref: Array
    annotator: Array

    def __post_init__(self) -> None:
        n, k = len(self.observations), len(self.attributes)
        if n == 0 or k == 0:
            raise InvalidArgument("there are no answered pairs; label some first")
        if self.observations.ndim != 4 or self.observations.shape[1] != 2:
            raise InvalidArgument(f"observations must be (N, 2, L, o), got {self.observations.shape}")
        if self.actions.shape[:3] != self.observations.shape[:3] or len(self.annotator) != n:
            raise InvalidArgument(f"actions and annotator must be of the same {n} pairs as the observations")
        if self.pref.shape != (n, k) or not np.isin(self.pref, (-1, 0, 1)).all():
            raise InvalidArgument(f"pref must be ({n}, {k}) of -1, 0 and +1, got shape {self.pref.shape}")
        if not np.isfinite(self.observations).all():
            raise InvalidArgument("observations hold NaN or infinity; drop those pairs")

    def __len__(self) -> int:
        return len(self.observations)

    def __getitem__(self, rows: Array | slice) -> Preferences:
        """Some of the pairs."""
        parts = (self.observations, self.actions, self.pref, self.annotator)
        return Preferences(self.attributes, *(part[rows] for part in parts))

    def split(self, held_out: float = 0.1, *, seed: int = 0) -> tuple[Preferences, Preferences]:
        """Pairs to train on and a share to test on."""
        order = np.random.default_rng(seed).permutation(len(self))
        cut = round(len(self) * (1 - held_out))
        if not 0 < cut < len(self):
            raise InvalidArgument(f"held_out={held_out} of {len(self)} pairs leaves one of the parts empty")
        return self[order[:cut]], self[order[cut:]]

    def pairs(self) -> Tensor:
        """The observations as float32, (N, 2, L, o)."""
        return torch.from_numpy(self.observations).float()

    def answers(self) -> Tensor:
        """y = (pref + 1) / 2, (N, k): 0 the first, 1/2 equal, 1 the second."""
        return torch.from_numpy(self.pref).float().add(1).div(2)

    # --- AlignDiff's files ----------------------------------------------------------------------------------------
    def to_hdf5(self, path: Path | str) -> Path:
        """Write AlignDiff's layout, with the names and annotators as attributes."""
        import h5py

        with replacing(path) as target, h5py.File(target, "w") as file:
            for i in range(2):
                file.create_dataset(f"obs{i + 1}", data=self.observations[:, i].astype(np.float32), compression="gzip")
                file.create_dataset(f"act{i + 1}", data=self.actions[:, i].astype(np.float32), compression="gzip")
            file.create_dataset("pref", data=self.pref.astype(np.int8))
            file.attrs["attributes"] = json.dumps(self.attributes)
            file.attrs["annotator"] = json.dumps([str(a) for a in self.annotator])
        return Path(path)

    @classmethod
    def from_hdf5(cls, path: Path | str, attributes: tuple[str, ...] | None = None) -> Preferences:
        """Read AlignDiff's layout.

        Args:
            path: the file.
            attributes: k names, for files that do not name them.
        """
        import h5py

        if not Path(path).is_file():
            raise InvalidArgument(f"path={str(path)!r} is not a file")
        with h5py.File(path, "r") as file:
            if missing := [name for name in ("obs1", "act1", "obs2", "act2", "pref") if name not in file]:
                raise InvalidArgument(f"{Path(path).name} lacks {missing}; it has {sorted(file)}")
            observations, actions = (
                np.stack([np.asarray(file[f"{name}{i}"], np.float32) for i in (1, 2)], 1) for name in ("obs", "act")
            )
            pref = np.asarray(file["pref"])
            named = json.loads(file.attrs.get("attributes", "null"))
            annotator = json.loads(file.attrs.get("annotator", "null")) or ["unknown"] * len(pref)
        names = tuple(attributes or named or ())
        if not names:
            raise InvalidArgument(f"{Path(path).name} does not name its {pref.shape[1]} attributes; pass attributes=")
        return cls(names, observations, actions, np.rint(pref).astype(int), np.asarray(annotator))
