"""The labelled hippocampus volumes of the Medical Segmentation Decathlon, where the data folder has them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from suffuse.bench import Run
    from suffuse_medical.data import VolumeFolder


def hippocampus(run: Run) -> VolumeFolder | None:
    """The volumes, or None and a note in the report."""
    from suffuse_medical.data import VolumeFolder

    folder = None if run.data is None else run.data / "medical" / "Task04_Hippocampus"
    if folder is None or not folder.is_dir():
        run.note("The hippocampus was left out: SUFFUSE_DATA is not set, or has no medical/Task04_Hippocampus.")
        return None
    return VolumeFolder(folder / "imagesTr", folder / "labelsTr")
