"""Spin-echo contrast: what a tissue looks like under a pulse sequence.

    S = rho (1 - exp(-TR/T1)) exp(-TE/T2)                                     spin echo
    S = rho |1 - 2 exp(-TI/T1) + exp(-TR/T1)| exp(-TE/T2)                     with an inversion pulse TI earlier (FLAIR)

rho: proton density; T1, T2: relaxation times; TR, TE, TI: repetition, echo and inversion time; all times in ms.
A voxel of several tissues has the sum of their signals, weighted by fraction.
Relaxation values are of the kind used for BrainWeb at 1.5 T (Collins et al. 1998, IEEE TMI 17(3)); they are typical
numbers for simulation, not measurements.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Relaxation:
    """T1 and T2 in ms, proton density relative to water."""

    t1: float
    t2: float
    density: float


GREY_MATTER = Relaxation(t1=833, t2=83, density=0.86)
WHITE_MATTER = Relaxation(t1=500, t2=70, density=0.77)
FLUID = Relaxation(t1=2569, t2=329, density=1.00)
BRAIN = (GREY_MATTER, WHITE_MATTER, FLUID)
"""In the channel order of every tissue map."""
LESION = Relaxation(t1=752, t2=237, density=0.76)
"""MS-like: dark on T1-weighted images, bright on T2-weighted and FLAIR."""


@dataclass(frozen=True)
class SpinEcho:
    """A pulse sequence: repetition time ``tr``, echo time ``te`` and, for inversion recovery, ``ti``; all in ms."""

    tr: float
    te: float
    ti: float | None = None

    def signal(self, tissue: Relaxation) -> float:
        """Relative signal in [0, 1] of a voxel full of ``tissue``."""
        recovery = 1 - math.exp(-self.tr / tissue.t1)
        if self.ti is not None:
            recovery = abs(1 - 2 * math.exp(-self.ti / tissue.t1) + math.exp(-self.tr / tissue.t1))
        return tissue.density * recovery * math.exp(-self.te / tissue.t2)


SEQUENCES = {
    "T1w": SpinEcho(tr=500, te=15),
    "PDw": SpinEcho(tr=3000, te=20),
    "T2w": SpinEcho(tr=3000, te=100),
    "FLAIR": SpinEcho(tr=9000, te=100, ti=1700),  # nulls FLUID: ti = T1 log(2 / (1 + exp(-tr / T1)))
}
