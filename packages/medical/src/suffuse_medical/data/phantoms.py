"""Pseudo-patients: real anatomy, deformed and imaged by simulated physics.

    tissue_k = warp(template tissue_k)                         one smooth diffeomorphism per pseudo-patient
    image    = local (sum_k tissue_k S_k + texture)            spin-echo signal S_k of each tissue (physics.py)
    image    = image x bias field + noise                      the scanner's share, by site; white matter at 0.8

``texture`` is what the template's own T1 shows beyond its tissue fractions (deep nuclei, vessels, partial volume),
scaled to the grey-white contrast of the sequence; ``local`` is a smooth random field around 1, for tissue is nowhere
uniform. Site "T" keeps the template's measured intensities instead of physics.

This is labelled, paired and grouped by pseudo-patient, at any size, from a seed. It is simulated from one template:
report results on it as such, never as results on patients.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from suffuse.errors import InvalidArgument, unknown
from suffuse.threads import one_thread

from .deformation import random_displacement, smooth_noise, warp
from .geometry import Geometry, plain
from .physics import BRAIN, SEQUENCES, Relaxation, SpinEcho
from .template import WORKING_GRID, load_template

WHITE_LEVEL = 0.8
"""Where the median of pure white matter is put, with air at 0: the common intensity scale of all images here."""


@dataclass(frozen=True)
class Site:
    """A scanner's signature.

    Args:
        bias: largest coefficient of the Legendre polynomials (degree 3) in the log of the multiplicative bias field.
        noise: standard deviation of Rician noise, relative to a white-matter level of 0.8.
        protocol: relative spread of TR and TE between pseudo-patients.
        measured: True for the template's own T1 intensities, which only exist for the sequence ``"T1w"``.
    """

    bias: float = 0.0
    noise: float = 0.02
    protocol: float = 0.1
    measured: bool = False


SITES = {"A": Site(), "B": Site(bias=0.06), "D": Site(noise=0.06), "T": Site(measured=True)}


class PhantomCohort(Dataset[dict[str, Any]]):
    """``n`` pseudo-patients, as a dataset of MONAI dictionaries; item i depends on ``(seed, i)`` alone.

    Items hold ``image`` (S, X, Y, Z), one channel per sequence, and ``tissue`` (3, X, Y, Z), both MetaTensors on
    ``geometry``; ``patient_id`` and ``study_id``, the groups to split by; ``site``.

    Args:
        n: number of pseudo-patients.
        sequences: names from :data:`suffuse_medical.data.physics.SEQUENCES`, or :class:`SpinEcho` objects.
        sites: names from :data:`SITES`; each pseudo-patient is imaged at one of them.
        deformation: largest displacement in mm; each pseudo-patient draws its own between a third and all of it.
        biology: relative spread of T1 and T2 between pseudo-patients.
        heterogeneity: relative spread of the signal from place to place within a tissue, correlated over about 6 mm.
        repeat: another number draws anew all that the tissue map does not determine (site, protocol, relaxation times,
            bias, noise) for the same anatomies: samples of the true p(image | tissue), against which models are judged.
    """

    def __init__(
        self,
        n: int,
        *,
        sequences: Sequence[str | SpinEcho] = ("T1w",),
        sites: Sequence[str] = ("A", "B", "T"),
        seed: int = 0,
        geometry: Geometry = WORKING_GRID,
        deformation: float = 9.0,
        biology: float = 0.05,
        heterogeneity: float = 0.05,
        repeat: int = 0,
    ) -> None:
        if n < 1:
            raise InvalidArgument(f"n must be at least 1 pseudo-patient, got {n}")
        for name in sites:
            if name not in SITES:
                raise unknown("site", name, SITES)
        for sequence in sequences:
            if not isinstance(sequence, SpinEcho) and sequence not in SEQUENCES:
                raise unknown("sequence", sequence, SEQUENCES)
        if not sites or not sequences:
            raise InvalidArgument("sites and sequences must each name at least one entry")
        if any(SITES[name].measured for name in sites) and tuple(sequences) != ("T1w",):
            raise InvalidArgument(
                "sites with measured intensities (T) have only sequences=('T1w',); leave the site out"
            )
        self.n, self.sites, self.seed = n, tuple(sites), seed
        self.sequences = tuple(s if isinstance(s, SpinEcho) else SEQUENCES[s] for s in sequences)
        self.geometry, self.repeat = geometry, repeat
        self.deformation, self.biology, self.heterogeneity = deformation, biology, heterogeneity

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < self.n:
            raise IndexError(index)
        with one_thread():  # volumes here are small
            return self._item(index)

    def _item(self, index: int) -> dict[str, Any]:
        tissue, t1, texture = _anatomy(self.geometry, self.seed, index, self.deformation)

        rng = np.random.default_rng((self.seed, index, 1 + self.repeat))  # what the tissue map does not tell
        site = str(rng.choice(self.sites))
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        local = 1 + self.heterogeneity * smooth_noise(
            self.geometry.shape, self.geometry.spacing, generator, smoothness=6.0
        )
        relaxations = [self._vary(relaxation, rng) for relaxation in BRAIN]
        images = []
        for sequence in self.sequences:
            physics = local * _signal(tissue, texture, relaxations, _vary(sequence, site, rng))
            image = t1 if SITES[site].measured else physics
            images.append(scan(image, tissue, SITES[site], rng))
        return {
            "image": self.geometry.attach(torch.cat(images)),
            "tissue": self.geometry.attach(tissue.clone()),
            "patient_id": f"phantom-{self.seed}-{index:04d}",
            "study_id": f"phantom-{self.seed}-{index:04d}-{self.repeat}",
            "site": site,
        }

    def _vary(self, tissue: Relaxation, rng: np.random.Generator) -> Relaxation:
        t1, t2 = np.exp(self.biology * rng.standard_normal(2))
        return Relaxation(tissue.t1 * t1, tissue.t2 * t2, tissue.density)


@lru_cache(maxsize=16)  # scanning somebody again does not deform them again
def _anatomy(geometry: Geometry, seed: int, index: int, deformation: float) -> tuple[Tensor, Tensor, Tensor]:
    """Who pseudo-patient ``index`` is: tissue fractions, template T1 and texture, all on the deformed anatomy."""
    template = load_template(geometry)
    rng = np.random.default_rng((seed, index, 0))
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    displacement = random_displacement(geometry, generator, deformation * rng.uniform(1 / 3, 1))
    anatomy = warp(torch.cat([template.tissue, template.t1, template.texture]), displacement)
    return anatomy[:3], anatomy[3:4], anatomy[4:]


def _vary(sequence: SpinEcho, site: str, rng: np.random.Generator) -> SpinEcho:
    tr, te = np.exp(SITES[site].protocol * rng.standard_normal(2))
    return SpinEcho(sequence.tr * tr, sequence.te * te, sequence.ti)


def _signal(tissue: Tensor, texture: Tensor, relaxations: Sequence[Relaxation], sequence: SpinEcho) -> Tensor:
    signals = torch.tensor([sequence.signal(relaxation) for relaxation in relaxations])
    contrast = signals[1] - signals[0]
    return (torch.einsum("k,kxyz->xyz", signals, tissue)[None] + contrast * texture).clamp(min=0)


def normalise(image: Tensor, tissue: Tensor) -> Tensor:
    """Scale ``image`` (1, X, Y, Z) so that voxels of mostly white matter have the median :data:`WHITE_LEVEL`."""
    white = image[0][tissue[1] > 0.9]
    if white.numel() == 0 or white.median() <= 0:
        raise InvalidArgument("tissue holds no white matter with signal (channel 1 above 0.9); check the channel order")
    return image * (WHITE_LEVEL / white.median())


def scan(image: Tensor, tissue: Tensor, site: Site, rng: np.random.Generator) -> Tensor:
    """``image`` (1, X, Y, Z) with the bias field and noise of ``site``, normalised."""
    from monai.transforms import RandBiasField, RandRicianNoise

    state = np.random.RandomState(rng.integers(2**31))  # MONAI's transforms draw from the older generator
    image = normalise(image, tissue)
    if site.bias:
        field = RandBiasField(degree=3, coeff_range=(-site.bias, site.bias), prob=1.0)
        field.set_random_state(state=state)
        image = normalise(plain(torch.as_tensor(field(image))), tissue)
    if site.noise:
        rician = RandRicianNoise(prob=1.0, std=site.noise, sample_std=False)
        rician.set_random_state(state=state)
        image = plain(torch.as_tensor(rician(image)))
    return image.float()
