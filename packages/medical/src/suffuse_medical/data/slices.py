"""Axial slices as training pairs: a tissue map and the T1-weighted image that goes with it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from suffuse import Condition
from suffuse.errors import InvalidArgument, unknown

from .geometry import Geometry, plain, spatial_shape
from .phantoms import PhantomCohort, normalise
from .splits import group_split, slab_split
from .template import HELD_OUT_SLAB, WORKING_GRID, load_template

MIN_BRAIN = 0.1
"""Slices with a smaller fraction of brain are left out."""


@dataclass(frozen=True, eq=False)
class Slices:
    """N axial slices.

    Args:
        image: (N, 1, H, W) in [-1, 1]: air -1, white matter 0.6 (network units, ``2 x intensity - 1``).
        tissue: (N, 3, H, W) fractions in the order of ``TISSUES``.
        patient: N group names; slices of one name never cross a split.
        z: N axial positions in mm.
        lesion: (N, 1, H, W), 0 or 1, where the items said so.
    """

    image: Tensor
    tissue: Tensor
    patient: tuple[str, ...]
    z: tuple[float, ...]
    lesion: Tensor | None = None

    def __len__(self) -> int:
        return len(self.patient)

    def __getitem__(self, index: Sequence[int]) -> Slices:
        keep = list(index)
        lesion = None if self.lesion is None else self.lesion[keep]
        return Slices(self.image[keep], self.tissue[keep], _pick(self.patient, keep), _pick(self.z, keep), lesion)

    @property
    def brain(self) -> Tensor:
        """(N, 1, H, W) bool: more than half of the voxel is brain or fluid."""
        return self.tissue.sum(1, keepdim=True) > 0.5

    @property
    def condition(self) -> Condition:
        """What the denoiser is told: the tissue map."""
        return Condition(maps={"tissue": self.tissue})


def _pick(values: Sequence[Any], keep: Sequence[int]) -> tuple[Any, ...]:
    return tuple(values[i] for i in keep)


def to_network(intensity: Tensor) -> Tensor:
    """Intensity (air 0, white matter 0.8) to network units in [-1, 1]."""
    return 2 * intensity - 1


def to_intensity(x: Tensor) -> Tensor:
    """The inverse of :func:`to_network`."""
    return (x + 1) / 2


def axial_slices(items: Iterable[Mapping[str, Any]], geometry: Geometry = WORKING_GRID) -> Slices:
    """The axial slices with enough brain of MONAI dictionaries (``image``, ``tissue``, ``patient_id``) on one grid.

    Args:
        items: with (C, X, Y, Z) each. A MetaTensor must lie on ``geometry``; plain tensors are taken to.
        geometry: of all items, with its last axis along the patient.
    """
    if geometry.axcodes[2] not in "SI":
        raise InvalidArgument(f"geometry has axes {geometry.axcodes}: slices are not axial; reorient volumes to RAS")
    images, tissues, patients, positions, lesions = [], [], [], [], []
    z = geometry.world([(0, 0, k) for k in range(geometry.shape[2])])[:, 2]
    for item in items:
        for name in ("image", "tissue", "lesion"):
            if name in item:
                _check(item[name], f"{name} of {item['patient_id']!r}", geometry)
        image, tissue = plain(item["image"]), plain(item["tissue"])
        enough = (tissue.sum(0) > 0.5).float().mean((0, 1)) >= MIN_BRAIN
        for k in enough.nonzero().flatten().tolist():
            images.append(to_network(image[:1, :, :, k]))
            tissues.append(tissue[:, :, :, k])
            patients.append(str(item["patient_id"]))
            positions.append(float(z[k]))
            if "lesion" in item:
                lesions.append(plain(item["lesion"])[:, :, :, k])
    if not images:
        raise InvalidArgument("items hold no axial slice with brain; the dataset is empty or misplaced on the grid")
    if lesions and len(lesions) != len(images):
        raise InvalidArgument("some items have a lesion mask and others none; give all or none")
    lesion = torch.stack(lesions) if lesions else None
    return Slices(torch.stack(images), torch.stack(tissues), tuple(patients), tuple(positions), lesion)


def _check(volume: Any, name: str, geometry: Geometry) -> None:
    """Raise unless a volume is finite and lies on ``geometry``."""
    where = Geometry.of(volume) if hasattr(volume, "affine") else None
    if spatial_shape(volume) != geometry.shape or (where is not None and not where.isclose(geometry, tolerance=1e-3)):
        axes = "" if where is None else f", axes {where.axcodes}"
        raise InvalidArgument(
            f"{name} lies on another grid ({spatial_shape(volume)} voxels{axes}) than geometry ({geometry.shape}, axes "
            f"{geometry.axcodes}); resample it there, or pass the geometry of the items"
        )
    if not torch.isfinite(volume).all():
        raise InvalidArgument(f"{name} has NaN or infinite voxels; mask or fill them first")


def cohort_slices(cohort: PhantomCohort) -> Slices:
    """The axial slices of all pseudo-patients of a cohort, on its own grid."""
    return axial_slices((cohort[i] for i in range(len(cohort))), cohort.geometry)


def template_item(geometry: Geometry = WORKING_GRID) -> dict[str, Any]:
    """The undeformed template as one item, with the real T1 intensities."""
    template = load_template(geometry)
    return {
        "image": normalise(template.t1, template.tissue),
        "tissue": template.tissue,
        "patient_id": "mni152-template",
    }


DATASETS = ("phantoms", "template")


class Split(NamedTuple):
    """Slices to train on, and two ways to be tested.

    Args:
        train: some pseudo-patients, everywhere but in and near the held-out slab.
        test: other pseudo-patients, at the same heights. As all are made from one template, their anatomy is new only
            as far as the deformation goes.
        unseen: other pseudo-patients, in the held-out slab: anatomy of which training has seen nothing.
    """

    train: Slices
    test: Slices
    unseen: Slices


def load_slices(dataset: str = "phantoms", *, patients: int = 48, seed: int = 0) -> Split:
    """The slices of a bundled dataset, split by pseudo-patient and by slab.

    ``"phantoms"``: pseudo-patients, five in six to train on. ``"template"``: the one real template, of which only the
    slab can be held out; ``test`` is then the same as ``unseen``. The slab is :data:`HELD_OUT_SLAB`, and 15 mm on
    either side of it belong to no part.
    """
    if dataset == "template":
        everything = axial_slices([template_item()])
        train, slab = slab_split(everything.z, HELD_OUT_SLAB)
        return Split(everything[train], everything[slab], everything[slab])
    if dataset != "phantoms":
        raise unknown("dataset", dataset, DATASETS)
    if patients < 2:
        raise InvalidArgument(f"patients must be at least 2 (one to train on, one to test on), got {patients}")
    cohort = PhantomCohort(patients, seed=seed)
    everything = axial_slices(cohort[i] for i in range(patients))
    items = [{"patient_id": name, "row": i} for i, name in enumerate(everything.patient)]
    sides = group_split(items, {"train": 5 / 6, "test": 1 / 6}, seed=seed)
    outside, inside = map(set, slab_split(everything.z, HELD_OUT_SLAB))

    def select(side: str, rows: set[int]) -> Slices:
        return everything[[item["row"] for item in sides[side] if item["row"] in rows]]

    return Split(select("train", outside), select("test", outside), select("test", inside))
