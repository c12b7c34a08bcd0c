"""Sets of labelled volumes, and their files.

A set is a folder of HDF5 files ``part_*.h5``. Each volume is one dataset at the root of a file, (X, Y, Z) labels, and
what is known of it (descriptors, process parameters, its simulation) are attributes of that dataset, as in the files of
MicroGen3D, which are read as well. The root has ``suffuse_format``, ``axis_order``, ``spacing``, ``unit`` and
``periodic``.

Volumes of one simulation are alike, so a set is split by ``trajectory_id``, never by volume.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from suffuse.errors import InvalidArgument

from ..io import GREY, labelled, replacing
from ..microstructure import Microstructure

__all__ = ["Volumes", "read_volumes", "symmetries", "without_channel", "write_part"]

FORMAT = 1
AXES = "XYZ"


@dataclass(frozen=True)
class Volumes:
    """N labelled volumes of one shape.

    Args:
        labels: (N, X, Y, Z) uint8.
        attributes: name -> (N,), numbers; NaN where not known.
        trajectory: (N,), which simulation (or slab of a tomogram) each is from.
        phases: K, how many labels there can be.
        spacing, unit, periodic: as of ``Microstructure``.
        histories: name -> (N, T), process histories at equal steps from time 0 to the end of the simulation.
        rejected: how many volumes were simulated and left out.
    """

    labels: Tensor
    attributes: Mapping[str, Tensor]
    trajectory: Tensor
    phases: int
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)
    unit: str = "voxel"
    periodic: tuple[bool, bool, bool] = (True, True, True)
    histories: Mapping[str, Tensor] = dataclasses.field(default_factory=dict)
    rejected: int = 0

    def __post_init__(self) -> None:
        if self.labels.ndim != 4 or self.labels.dtype != torch.uint8:
            raise InvalidArgument(
                f"labels must be uint8 (N, X, Y, Z), got {self.labels.dtype} {tuple(self.labels.shape)}"
            )
        if len(self.labels) and int(self.labels.max()) >= self.phases:
            raise InvalidArgument(
                f"labels go up to {int(self.labels.max())}, but phases={self.phases}; two phases are 0 and 1"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: Tensor | slice | Sequence[int]) -> Volumes:
        """Some of the volumes."""
        return dataclasses.replace(
            self,
            labels=self.labels[rows],
            attributes={k: v[rows] for k, v in self.attributes.items()},
            trajectory=self.trajectory[rows],
            histories={k: v[rows] for k, v in self.histories.items()},
        )

    @property
    def shape(self) -> tuple[int, int, int]:
        return tuple(self.labels.shape[1:])  # type: ignore[return-value]

    def split(self, held_out: float = 0.2, seed: int = 0) -> tuple[Volumes, Volumes]:
        """(train, held out), with no simulation on both sides."""
        if not 0 < held_out < 1:
            raise InvalidArgument(f"held_out must lie in (0, 1), got {held_out}")
        names = torch.unique(self.trajectory)
        if len(names) < 2:
            raise InvalidArgument(f"a split needs at least 2 simulations, got {len(names)}")
        count = min(max(round(held_out * len(names)), 1), len(names) - 1)
        chosen = names[torch.randperm(len(names), generator=torch.Generator().manual_seed(seed))[:count]]
        test = torch.isin(self.trajectory, chosen)
        return self[~test], self[test]

    def table(self, names: Sequence[str]) -> Tensor:
        """(N, len(names)) attributes.

        Raises:
            InvalidArgument: for one that was not measured.
        """
        if missing := [n for n in names if n not in self.attributes]:
            raise InvalidArgument(f"the volumes have no {missing}; they have {sorted(self.attributes)}")
        return torch.stack([self.attributes[n].float() for n in names], 1)

    def microstructures(self) -> list[Microstructure]:
        """Each volume with its facts."""
        return [
            Microstructure(
                self.labels[i].numpy(),
                self.spacing,
                self.unit,
                self.periodic,
                {k: float(v[i]) for k, v in self.attributes.items()},
            )
            for i in range(len(self))
        ]

    def measured(self, names: Sequence[str]) -> Volumes:
        """With descriptors measured (those that are not there yet)."""
        from ..descriptors import measure_all

        missing = [n for n in names if n not in self.attributes]
        found = measure_all(self.microstructures(), missing) if missing else {}
        extra = {k: torch.from_numpy(v) for k, v in found.items()}
        return dataclasses.replace(self, attributes={**self.attributes, **extra})


def symmetries(
    periodic: Sequence[bool], shape: Sequence[int], film: bool = False
) -> list[tuple[tuple[int, ...], bool]]:
    """(axes to flip, whether to exchange x and y): the forms of a volume that are as likely as itself.

    The thickness z is never touched for a film. x and y are exchanged where they are of one length and kind.
    """
    flips: list[tuple[int, ...]] = [(), (0,), (1,), (0, 1)]
    if not film:
        flips += [(*f, 2) for f in flips]
    turn = (False, True) if shape[0] == shape[1] and periodic[0] == periodic[1] else (False,)
    return [(f, t) for f in flips for t in turn]


# --- files ------------------------------------------------------------------------------------------------------


def write_part(
    path: Path,
    labels: NDArray[np.uint8],
    attributes: Sequence[Mapping[str, Any]],
    *,
    spacing: Sequence[float] = (1.0, 1.0, 1.0),
    unit: str = "voxel",
    periodic: Sequence[bool] = (True, True, True),
    phases: int = 2,
    facts: Mapping[str, Any] | None = None,
) -> Path:
    """Write one file of volumes (N, X, Y, Z), each with its attributes; it appears once it is complete."""
    import h5py

    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial, h5py.File(partial, "w") as file:
        file.attrs.update(
            suffuse_format=FORMAT,
            axis_order=AXES,
            spacing=np.asarray(spacing, dtype=np.float64),
            unit=unit,
            periodic=np.asarray(periodic, dtype=bool),
            phases=phases,
            **(facts or {}),
        )
        for i, (volume, known) in enumerate(zip(labels, attributes, strict=True)):
            name = f"t{int(known.get('trajectory_id', 0)):06d}_{i:05d}"
            dataset = file.create_dataset(name, data=volume, compression="gzip", compression_opts=3, shuffle=True)
            dataset.attrs.update(known)
    return path


def read_volumes(paths: str | Path | Iterable[str | Path], limit: int | None = None) -> Volumes:
    """Read a set of volumes.

    Volumes that are not labels but a field in [0, 1] (one channel, as MicroGen3D stores them) are cut at one half into
    two phases, or rounded to three where they hold 0, 0.5 and 1, with a warning. A few values that are not 0, 1, ...
    (0 and 255, say) become labels in their order, the same in all volumes, as in ``read_volume``.

    Args:
        paths: a folder of ``part_*.h5`` (or of any ``*.h5``), one file, or several.
        limit: read at most so many volumes.

    Raises:
        InvalidArgument: where there is no such file, for volumes of different shapes, voxels or kinds, with values that
            are no labels (below 0, above 255, or too many), or some of which have a history and others none.
    """
    import h5py

    files = _files(paths)
    labels: list[NDArray[Any]] = []
    known: list[dict[str, Any]] = []
    heads: list[dict[str, Any]] = []
    rejected, cut = 0, False
    for number, path in enumerate(files):
        try:
            with h5py.File(path, "r") as file:
                heads.append(dict(file.attrs))
                rejected += int(file.attrs.get("rejected", 0))
                for name, dataset in file.items():
                    if limit is not None and len(labels) >= limit:
                        break
                    if not isinstance(dataset, h5py.Dataset) or dataset.ndim < 3:
                        continue
                    values = without_channel(dataset[()], f"{path.name}/{name}")
                    if values.dtype.kind == "f":
                        values, cut = _cut(values), True
                    labels.append(_small(values, f"{path.name}/{name}"))
                    known.append({"trajectory_id": number * 10**6 + len(labels), **dict(dataset.attrs)})
        except OSError as error:
            raise InvalidArgument(f"{path} cannot be read as HDF5: {error}") from error
    if not labels:
        raise InvalidArgument(f"no volumes in {[p.name for p in files]}; each must be a dataset (X, Y, Z) at the root")
    if len({v.shape for v in labels}) > 1:
        raise InvalidArgument(f"volumes have different shapes, {sorted({v.shape for v in labels})}; cut them alike")
    if cut:
        warnings.warn("fields were cut into phases at one half (or rounded to 0, 0.5, 1)", UserWarning, stacklevel=2)
    stacked = np.stack(labels)
    stated = [int(head["phases"]) for head in heads if "phases" in head]
    if len(stated) < len(files) or max(stated) > GREY:  # not labels by all that is known
        stacked, _ = labelled(stacked, files[0].name if len(files) == 1 else f"{len(files)} files")
        stated = [int(stacked.max()) + 1]
    names = sorted({k for row in known for k, v in row.items() if np.ndim(v) == 0 and _number(v)})
    columns = {k: torch.tensor([float(row.get(k, np.nan)) for row in known], dtype=torch.float64) for k in names}
    trajectory = columns.pop("trajectory_id").long()
    return Volumes(
        torch.from_numpy(stacked),
        columns,
        trajectory,
        max(stated),
        tuple(float(d) for d in _common(heads, "spacing", (1.0,) * 3)),  # type: ignore[arg-type]
        str(_common(heads, "unit", "voxel")),
        tuple(bool(p) for p in _common(heads, "periodic", (False,) * 3)),  # type: ignore[arg-type]
        _histories(known),
        rejected,
    )


def without_channel(values: NDArray[Any], name: str) -> NDArray[Any]:
    """(X, Y, Z) of a volume that may have axes of one channel, (1, X, Y, Z)."""
    values = values.squeeze() if values.ndim > 3 else values
    if values.ndim != 3 or values.size == 0:
        raise InvalidArgument(
            f"{name} has shape {values.shape}; each volume must be (X, Y, Z), with at least one voxel"
        )
    return values


def _small(values: NDArray[Any], name: str) -> NDArray[np.uint8]:
    if values.dtype.kind not in "biu" or values.min() < 0 or values.max() > 255:
        raise InvalidArgument(
            f"{name} must hold whole labels in 0 ... 255, got {values.dtype} {values.min()} ... {values.max()}; number "
            f"the phases from 0"
        )
    return values.astype(np.uint8)


def _common(heads: Sequence[Mapping[str, Any]], key: str, default: Any) -> Any:
    """What all files say alike."""
    values = [np.asarray(head.get(key, default)).tolist() for head in heads]
    if any(value != values[0] for value in values):
        different = sorted({str(value) for value in values})
        raise InvalidArgument(f"the files differ in {key} ({', '.join(different)}); read those that are alike")
    return values[0]


def _histories(known: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
    """Name -> (N, T)."""
    found: dict[str, Tensor] = {}
    for name in sorted({k for row in known for k, v in row.items() if k.startswith("history_") and np.ndim(v) == 1}):
        lengths = {len(row[name]) if name in row else 0 for row in known}
        if len(lengths) > 1:
            raise InvalidArgument(
                f"{name} has {sorted(lengths)} values in different volumes, 0 where there is none; read those apart"
            )
        found[name.removeprefix("history_")] = torch.from_numpy(np.stack([row[name] for row in known]))
    return found


def _files(paths: str | Path | Iterable[str | Path]) -> list[Path]:
    given = [Path(paths)] if isinstance(paths, str | Path) else [Path(p) for p in paths]
    files: list[Path] = []
    for path in given:
        if path.is_dir():
            files += sorted(path.glob("part_*.h5")) or sorted(path.glob("[!.]*.h5"))
        elif path.is_file():
            files.append(path)
        else:
            raise InvalidArgument(f"path={str(path)!r} is neither a file nor a folder")
    if not files:
        raise InvalidArgument(f"no .h5 files in {[str(p) for p in given]}")
    return files


def _cut(values: NDArray[Any]) -> NDArray[np.uint8]:
    if not np.isfinite(values).all():
        raise InvalidArgument("a volume has NaN or infinite values; leave it out, or fill what is missing")
    if set(np.unique(values).tolist()) <= {0.0, 0.5, 1.0} and 0.5 in values:
        return np.select([values < 0.25, values > 0.75], [0, 1], 2).astype(np.uint8)
    if (values == np.round(values)).all() and values.min() >= 0 and values.max() <= 255:
        return values.astype(np.uint8)
    return (values > 0.5).astype(np.uint8)


def _number(value: Any) -> bool:
    return isinstance(value, int | float | np.number | np.bool_ | bool)
