"""Data: files with their geometry, one bundled template, pseudo-patients made from it, and splits that do not leak."""

from .deformation import jacobian_determinant, random_displacement, warp
from .folders import MedMNIST, PictureFolder, VolumeFolder, stack
from .geometry import Geometry, plain, reorient, resample
from .intensity import ct_window, mri_percentile, percentiles, undo_percentile, working_grid
from .labelled import PROTOCOLS, TISSUE_CLASSES, LabelledSlices, labelled_phantoms, labelled_volumes, scaled
from .labels import LabelSchema
from .nifti import read_nifti, write_nifti
from .phantoms import SITES, PhantomCohort, Site, normalise
from .physics import SEQUENCES, Relaxation, SpinEcho
from .slices import Slices, Split, axial_slices, cohort_slices, load_slices, template_item, to_intensity, to_network
from .splits import check_leakage, check_splits, group_split, slab_split
from .template import COARSE_GRID, HELD_OUT_SLAB, TISSUES, WORKING_GRID, Template, load_template

__all__ = [
    "COARSE_GRID",
    "HELD_OUT_SLAB",
    "PROTOCOLS",
    "SEQUENCES",
    "SITES",
    "TISSUES",
    "TISSUE_CLASSES",
    "WORKING_GRID",
    "Geometry",
    "LabelSchema",
    "LabelledSlices",
    "MedMNIST",
    "PhantomCohort",
    "PictureFolder",
    "Relaxation",
    "Site",
    "Slices",
    "SpinEcho",
    "Split",
    "Template",
    "VolumeFolder",
    "axial_slices",
    "check_leakage",
    "check_splits",
    "cohort_slices",
    "ct_window",
    "group_split",
    "jacobian_determinant",
    "labelled_phantoms",
    "labelled_volumes",
    "load_slices",
    "load_template",
    "mri_percentile",
    "normalise",
    "percentiles",
    "plain",
    "random_displacement",
    "read_nifti",
    "reorient",
    "resample",
    "scaled",
    "slab_split",
    "stack",
    "template_item",
    "to_intensity",
    "to_network",
    "undo_percentile",
    "warp",
    "working_grid",
    "write_nifti",
]
