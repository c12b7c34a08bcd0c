"""Pseudo-patients: real anatomy, deformed and imaged by simulated physics.

    tissue_k = warp(template tissue_k)                         one smooth diffeomorphism per pseudo-patient
    image    = local (sum_k tissue_k S_k + texture)            spin-echo signal S_k of each tissue (physics.py)
    lesion   = some spheres in white matter, a tissue of its own, if asked for
    image    = scanner(image)                                  bias field, blur, ringing, noise, by site; white at 0.8

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
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from suffuse.errors import InvalidArgument, unknown
from suffuse.threads import one_thread

from .deformation import random_displacement, smooth_noise, warp
from .geometry import Geometry, plain
from .physics import BRAIN, LESION, SEQUENCES, Relaxation, SpinEcho
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
        gain: of the receiver; white matter is then at ``gain`` times 0.8.
        gamma: exponent of the contrast curve, which leaves white matter where it is.
        gibbs: truncation of k-space in [0, 1], which rings at edges (MONAI's ``RandGibbsNoise``).
        coarser: voxels this many times larger in the plane, interpolated back.
        histogram: control points of a random monotone intensity curve; 0 for none (``RandHistogramShift``).
    """

    bias: float = 0.0
    noise: float = 0.02
    protocol: float = 0.1
    measured: bool = False
    gain: float = 1.0
    gamma: float = 1.0
    gibbs: float = 0.0
    coarser: int = 1
    histogram: int = 0


SITES = {
    "A": Site(),
    "B": Site(bias=0.06),
    "C": Site(gibbs=0.5, gain=1.3, gamma=0.8),
    "D": Site(noise=0.06, coarser=2),
    "E": Site(histogram=10),
    "T": Site(measured=True),
}


class PhantomCohort(Dataset[dict[str, Any]]):
    """``n`` pseudo-patients, as a dataset of MONAI dictionaries; item i depends on ``(seed, i)`` alone.

    Items hold ``image`` (S, X, Y, Z), one channel per sequence, ``tissue`` (3, X, Y, Z) and ``lesion`` (1, X, Y, Z),
    0 or 1, all MetaTensors on ``geometry``; ``patient_id`` and ``study_id``, the groups to split by; ``site``.
    ``tissue`` is the anatomy without its lesions, as an atlas would give it.

    Args:
        n: number of pseudo-patients.
        sequences: names from :data:`suffuse_medical.data.physics.SEQUENCES`, or :class:`SpinEcho` objects.
        sites: names from :data:`SITES`; each pseudo-patient is imaged at one of them.
        deformation: largest displacement in mm; each pseudo-patient draws its own between a third and all of it.
        biology: relative spread of T1 and T2 between pseudo-patients.
        heterogeneity: relative spread of the signal from place to place within a tissue, correlated over about 6 mm.
        lesions: how many every pseudo-patient has, drawn between these two numbers: spheres of MS-like tissue in white
            matter. The same cohort with ``(0, 0)`` is the same people, healthy.
        lesion_radius: median radius in mm, of a log-normal distribution with a spread of 30 %.
        lesion_contrast: how far the signal goes from the healthy tissue's (0) to that of a full lesion (1).
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
        lesions: tuple[int, int] = (0, 0),
        lesion_radius: float = 7.0,
        lesion_contrast: float = 1.0,
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
        if not 0 <= lesions[0] <= lesions[1] or lesion_radius <= 0 or not 0 < lesion_contrast <= 1:
            raise InvalidArgument(
                f"need lesions (low, high) with 0 <= low <= high, lesion_radius > 0 and lesion_contrast in (0, 1], got "
                f"{lesions}, {lesion_radius}, {lesion_contrast}"
            )
        self.lesions, self.lesion_radius, self.lesion_contrast = lesions, lesion_radius, lesion_contrast
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
        lesion = self._lesions(index, tissue)

        rng = np.random.default_rng((self.seed, index, 1 + self.repeat))  # what the tissue map does not tell
        site = str(rng.choice(self.sites))
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        local = 1 + self.heterogeneity * smooth_noise(
            self.geometry.shape, self.geometry.spacing, generator, smoothness=6.0
        )
        relaxations = [self._vary(relaxation, rng) for relaxation in BRAIN]
        images = []
        for sequence in self.sequences:
            sequence = _vary(sequence, site, rng)
            healthy = t1 if SITES[site].measured else local * _signal(tissue, texture, relaxations, sequence)
            bright = local * sequence.signal(LESION)
            if SITES[site].measured:  # the template's units are not those of the physics: compare with white matter
                white = t1[0][tissue[1] > 0.9].median()
                bright = bright * white / sequence.signal(BRAIN[1])
            images.append(
                scan(healthy + self.lesion_contrast * lesion * (bright - healthy), healthy, tissue, SITES[site], rng)
            )
        return {
            "image": self.geometry.attach(torch.cat(images)),
            "tissue": self.geometry.attach(tissue.clone()),
            "lesion": self.geometry.attach((lesion > 0.5).float()),
            "patient_id": f"phantom-{self.seed}-{index:04d}",
            "study_id": f"phantom-{self.seed}-{index:04d}-{self.repeat}",
            "site": site,
        }

    def _lesions(self, index: int, tissue: Tensor) -> Tensor:
        """Fraction of lesion in every voxel, (1, X, Y, Z): spheres in white matter, their edge a voxel wide."""
        rng = np.random.default_rng((self.seed, index, 1_000_003))
        number = int(rng.integers(self.lesions[0], self.lesions[1] + 1))
        fraction = torch.zeros(1, *self.geometry.shape)
        white = (tissue[1] > 0.7).nonzero()
        if not len(white):
            return fraction
        grid = torch.stack(torch.meshgrid(*(torch.arange(n) for n in self.geometry.shape), indexing="ij"), -1)
        spacing = torch.tensor(self.geometry.spacing)
        edge = float(spacing.min())
        for _ in range(number):
            centre = white[int(rng.integers(len(white)))]
            radius = self.lesion_radius * float(np.exp(0.3 * rng.standard_normal()))
            distance = ((grid - centre) * spacing).norm(dim=-1)
            fraction = torch.maximum(fraction, ((radius - distance) / edge + 0.5).clamp(0, 1)[None])
        return fraction * (tissue.sum(0, keepdim=True) > 0.5)

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


def normalise(image: Tensor, tissue: Tensor, like: Tensor | None = None) -> Tensor:
    """Scale ``image`` (1, X, Y, Z) so that voxels of mostly white matter have the median :data:`WHITE_LEVEL`.

    Args:
        like: the image whose white matter counts; default ``image`` itself.
    """
    white = (image if like is None else like)[0][tissue[1] > 0.9]
    if white.numel() == 0 or white.median() <= 0:
        raise InvalidArgument("tissue holds no white matter with signal (channel 1 above 0.9); check the channel order")
    return image * (WHITE_LEVEL / white.median())


def scan(image: Tensor, healthy: Tensor, tissue: Tensor, site: Site, rng: np.random.Generator) -> Tensor:
    """``image`` (1, X, Y, Z) as ``site`` shows it; white matter of ``healthy``, the same without lesions, is at 0.8."""
    from monai import transforms

    state = np.random.RandomState(rng.integers(2**31))  # MONAI's transforms draw from the older generator

    def through(transform: Any, x: Tensor) -> Tensor:
        transform.set_random_state(state=state)
        return plain(torch.as_tensor(transform(x)))

    image = normalise(image, tissue, like=healthy)
    if site.gamma != 1:
        image = WHITE_LEVEL * (image.clamp(min=0) / WHITE_LEVEL) ** site.gamma
    if site.bias:
        field = transforms.RandBiasField(degree=3, coeff_range=(-site.bias, site.bias), prob=1.0)
        image = normalise(through(field, image), tissue)
    if site.coarser > 1:
        size = [max(1, n // site.coarser) for n in image.shape[1:3]] + [image.shape[3]]
        image = F.interpolate(F.interpolate(image[None], size, mode="area"), image.shape[1:], mode="trilinear")[0]
    if site.gibbs:
        image = through(transforms.RandGibbsNoise(prob=1.0, alpha=(site.gibbs, site.gibbs)), image)
    if site.histogram:
        image = through(transforms.RandHistogramShift(num_control_points=site.histogram, prob=1.0), image)
        image = normalise(image, tissue)
    if site.noise:
        image = through(transforms.RandRicianNoise(prob=1.0, std=site.noise, sample_std=False), image)
    return site.gain * image.float()
