"""Style-Extracting Diffusion Models (STEDM): known layouts drawn in the style of images that nobody has labelled."""

from .data import StyleSets, layout_maps
from .denoiser import StyleLayoutUNet
from .segmentation import PatientScores, fit_segmenter, patient_scores, segment
from .style import StyleAggregator, StyleEncoder
from .synthesis import fit, leak, style_sets, synthesise

__all__ = [
    "PatientScores",
    "StyleAggregator",
    "StyleEncoder",
    "StyleLayoutUNet",
    "StyleSets",
    "fit",
    "fit_segmenter",
    "layout_maps",
    "leak",
    "patient_scores",
    "segment",
    "style_sets",
    "synthesise",
]
