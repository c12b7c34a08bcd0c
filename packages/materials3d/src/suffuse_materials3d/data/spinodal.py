"""A data set of spinodal structures over a range of volume fractions, from the Cahn-Hilliard equation.

The volume fraction of a structure is what its thresholded field shows, not what its mean composition suggests: while
the phases still coarsen, a mean of 0.21 gives 66 % and not 60.5 %. So each batch chooses its means by the slope that
the batches before it showed, and structures outside of the range are dropped and counted.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from suffuse import Condition
from suffuse.errors import InvalidArgument, unknown
from suffuse.random import generators

from ..microstructure import Microstructure
from ..progress import bar
from ..simulate import SPINODAL, CahnHilliard

__all__ = ["DATASETS", "Augmented", "SpinodalVolumes", "load", "mixed_seed", "request", "simulate_spinodal"]

#: What can be asked for by name: the time of the snapshot. Domains are about 9 and 12 voxels from one to the next.
DATASETS = {"spinodal": 60.0, "spinodal-coarse": 240.0}


def request(volume_fraction: Tensor | Sequence[float]) -> Condition:
    """The condition that asks for volume fractions (B,): the token ``volume_fraction``, (B, 1, 1), in [0, 1]."""
    return Condition(tokens={"volume_fraction": torch.as_tensor(volume_fraction, dtype=torch.float32).view(-1, 1, 1)})


#: The columns of a data set, one row a volume.
COLUMNS = ("fields", "volume_fraction", "mean", "time", "trajectory")


@dataclass(frozen=True)
class SpinodalVolumes:
    """Simulated volumes.

    Args:
        fields: (N, X, Y, Z) float32, composition in about [-1, 1]; phase 1 where positive.
        volume_fraction: (N,), the measured share of phase 1.
        mean: (N,), the conserved mean composition.
        time: (N,), when the snapshot was taken.
        trajectory: (N,), which simulation it is from; snapshots of one are alike and must stay on one side of a split.
        equation: what was solved.
        rejected: how many snapshots were outside of the range and are not here.
    """

    fields: Tensor
    volume_fraction: Tensor
    mean: Tensor
    time: Tensor
    trajectory: Tensor
    equation: CahnHilliard
    rejected: int = 0

    def __len__(self) -> int:
        return len(self.fields)

    def __getitem__(self, rows: Tensor | slice | Sequence[int]) -> SpinodalVolumes:
        """Some of the volumes."""
        return dataclasses.replace(self, **{name: getattr(self, name)[rows] for name in COLUMNS})

    def split(self, held_out: float = 0.1, seed: int = 0) -> tuple[SpinodalVolumes, SpinodalVolumes]:
        """Volumes to train on and volumes to test on, with no simulation on both sides.

        Args:
            held_out: share of the simulations, in (0, 1); at least one, and one is left.
            seed: of the choice.
        """
        if not 0 < held_out < 1:
            raise InvalidArgument(f"held_out must lie in (0, 1), got {held_out}")
        names = torch.unique(self.trajectory)
        if len(names) < 2:
            raise InvalidArgument(f"a split needs at least 2 simulations, got {len(names)}")
        count = min(max(round(held_out * len(names)), 1), len(names) - 1)
        chosen = names[torch.randperm(len(names), generator=torch.Generator().manual_seed(seed))[:count]]
        test = torch.isin(self.trajectory, chosen)
        return self[~test], self[test]

    def condition(self) -> Condition:
        """The measured volume fractions as a condition of N rows."""
        return request(self.volume_fraction)

    def microstructures(self, spacing: Sequence[float] = (1.0, 1.0, 1.0), unit: str = "voxel") -> list[Microstructure]:
        """Each volume with its facts."""
        return [
            Microstructure.from_field(
                self.fields[i].numpy(),
                spacing=spacing,
                unit=unit,
                attributes={"mean": float(self.mean[i]), "time": float(self.time[i])},
            )
            for i in range(len(self))
        ]


class Augmented(Dataset[Any]):
    """Training rows (field (1, X, Y, Z), condition of one row), each drawn in a random one of its equivalent forms.

    A periodic structure may be shifted, and the equation is the same along every axis of a cube, in both directions,
    and for both phases: u -> -u with the volume fraction f -> 1 - f. Axes of unequal length are not exchanged.

    Args:
        volumes: the data.
        seed: of the choices.
    """

    def __init__(self, volumes: SpinodalVolumes, seed: int = 0) -> None:
        if len(volumes) == 0:
            raise InvalidArgument("volumes is empty; simulate at least one")
        self.volumes = volumes
        self.generator = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return len(self.volumes)

    def _below(self, n: int) -> int:
        return int(torch.randint(n, (), generator=self.generator))

    def __getitem__(self, row: int) -> tuple[Tensor, Condition]:
        u, vf = self.volumes.fields[row], self.volumes.volume_fraction[row]
        u = torch.roll(u, [self._below(n) for n in u.shape], (0, 1, 2))
        u = u.flip([axis for axis in range(3) if self._below(2)])
        if len(set(u.shape)) == 1:
            u = u.permute(*torch.randperm(3, generator=self.generator).tolist())
        if self._below(2):
            u, vf = -u, 1 - vf
        return u[None].contiguous(), request(vf[None])


def simulate_spinodal(
    n: int = 256,
    shape: Sequence[int] = (24, 24, 24),
    *,
    volume_fraction: tuple[float, float] = (0.3, 0.7),
    times: Sequence[float] = (60.0,),
    equation: CahnHilliard | None = None,
    seed: int = 0,
    batch_size: int = 16,
    device: str = "cpu",
    progress: bool = True,
) -> SpinodalVolumes:
    """Simulate until n simulations have given a structure in the range.

    Args:
        n: simulations to keep.
        shape: voxels (X, Y, Z).
        volume_fraction: the range (low, high) of the share of phase 1, filled evenly.
        times: when snapshots are taken; each is a volume.
        equation: default ``CahnHilliard(kappa=0.5)``, whose structures are about 8 voxels from one domain to the next.
        seed: simulation i depends on (seed, i) and the means that were found before it.
        batch_size: simulations at once.
        device: where to compute; the result is on the CPU.
        progress: show a progress bar.

    Raises:
        InvalidArgument: for a range outside of what decomposes spontaneously, n < 1, or a shape that is not 3-D.
    """
    low, high = volume_fraction
    margin = (1 - SPINODAL) / 2
    if not margin < low < high < 1 - margin:
        raise InvalidArgument(
            f"volume_fraction must be (low, high) within ({margin:.3f}, {1 - margin:.3f}), where a mixture decomposes "
            f"by itself, got {tuple(volume_fraction)}"
        )
    if n < 1 or batch_size < 1:
        raise InvalidArgument(f"n and batch_size must be at least 1, got n={n}, batch_size={batch_size}")
    if len(shape) != 3 or min(shape) < 4:
        raise InvalidArgument(f"shape must be three sizes (X, Y, Z) of at least 4 voxels, got {tuple(shape)}")
    equation = equation or CahnHilliard(kappa=0.5)
    parts: list[SpinodalVolumes] = []
    seen_mean, seen_fraction = torch.zeros(0), torch.zeros(0)
    kept = tried = rejected = 0
    with bar("simulating", n, progress) as move:
        while kept < n:
            if tried >= 20 * n + 100:
                raise InvalidArgument(
                    f"only {kept} of {tried} simulations gave a volume fraction in {tuple(volume_fraction)}; widen the "
                    f"range, or take later times than {tuple(times)}"
                )
            seeds = [mixed_seed(seed, tried + i) for i in range(min(batch_size, n - kept))]
            random = generators(seeds)
            wanted = torch.stack([torch.rand((), generator=g) for g in random]) * (high - low) + low
            mean = (wanted - 0.5) / _slope(seen_mean, seen_fraction)
            start = equation.start(mean, shape, random).to(device)
            fields = equation.run(start, times).cpu()
            fraction = (fields > 0).float().mean((2, 3, 4))
            good = ((fraction >= low) & (fraction <= high)).all(1)
            seen_mean, seen_fraction = torch.cat([seen_mean, mean]), torch.cat([seen_fraction, fraction.mean(1)])
            names = torch.arange(tried, tried + len(seeds))
            parts.append(_rows(fields[good], fraction[good], mean[good], times, names[good], equation))
            kept, tried, rejected = (
                kept + int(good.sum()),
                tried + len(seeds),
                rejected + int((~good).sum()) * len(times),
            )
            move(kept)
    columns = {name: torch.cat([getattr(part, name) for part in parts]) for name in COLUMNS}
    return SpinodalVolumes(**columns, equation=equation, rejected=rejected)


def load(name: str, n: int, size: int, volume_fraction: tuple[float, float], **arguments: Any) -> SpinodalVolumes:
    """A data set by its name in ``DATASETS``: n cubes of ``size`` voxels an edge; see ``simulate_spinodal``.

    Raises:
        InvalidArgument: for an unknown name, listing the known ones.
    """
    if name not in DATASETS:
        raise unknown("dataset", name, DATASETS)
    return simulate_spinodal(n, (size,) * 3, volume_fraction=volume_fraction, times=(DATASETS[name],), **arguments)


def mixed_seed(seed: int, i: int) -> int:
    """A seed of simulation i, unlike any that a sampler takes.

    A simulation and a deterministic sampler both grow a structure out of white noise: out of the same noise, much the
    same structure, which would look as if the sampler had learned it by heart.
    """
    return int(
        np.random.SeedSequence([seed, abs(i), int(i < 0)] if i < 0 else [seed, i]).generate_state(1, np.uint64)[0] >> 1
    )


def _slope(mean: Tensor, fraction: Tensor) -> float:
    """d fraction / d mean around the even mixture, by least squares; 1/2 before anything is known."""
    return float((mean * (fraction - 0.5)).sum() / mean.square().sum()) if len(mean) else 0.5


def _rows(
    fields: Tensor, fraction: Tensor, mean: Tensor, times: Sequence[float], names: Tensor, equation: CahnHilliard
) -> SpinodalVolumes:
    """(B, T, X, Y, Z) as B T volumes."""
    b, t = fraction.shape
    return SpinodalVolumes(
        fields.flatten(0, 1),
        fraction.flatten(),
        mean.repeat_interleave(t),
        torch.as_tensor(times, dtype=torch.float32).repeat(b),
        names.repeat_interleave(t),
        equation,
    )
