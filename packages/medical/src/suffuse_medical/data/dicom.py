"""DICOM in, DICOM and DICOM-SEG out; needs the extra ``dicom`` (pydicom, highdicom).

DICOM counts in L, P, S and stores slices of rows of columns; :class:`Geometry` counts in R, A, S with array axes
(X, Y, Z) = (column, row, slice). This module is the one place where the two meet,

    affine_RAS = diag(-1, -1, 1, 1)  affine_LPS  (slice, row, column) -> (column, row, slice).

Nothing identifying is copied to what is written: patients are named after nobody, UIDs are fresh, and images say that
they are derived and synthetic (DICOM PS3.3, attributes Synthetic Data, Image Type, Derivation Description).
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from suffuse.errors import InvalidArgument, require
from suffuse.version import __version__

from .geometry import Geometry, reorient, spatial_shape, voxel_type
from .labels import LabelSchema

__all__ = ["read_dicom", "read_dicom_seg", "write_dicom", "write_dicom_seg"]

Code = tuple[str, str, str]
#: (value, scheme, meaning) of what a segment is, where nothing better is said: SNOMED CT's tissue.
TISSUE: Code = ("85756007", "SCT", "Tissue")
GREY = "MONOCHROME2"
MODALITIES = {"MR": "1.2.840.10008.5.1.4.1.1.4", "CT": "1.2.840.10008.5.1.4.1.1.2"}


def _libraries() -> tuple[Any, Any]:
    return (require(name, extra="dicom", package="suffuse-medical") for name in ("pydicom", "highdicom"))  # type: ignore[return-value]


# --- geometry ---------------------------------------------------------------------------------------------------


def _to_lps(geometry: Geometry) -> np.ndarray:
    """The affine (4, 4) from (slice, row, column) to LPS, in mm."""
    geometry = geometry.in_mm()
    directions = geometry.affine[:3, :3] / np.array(geometry.spacing)
    if np.abs(directions.T @ directions - np.eye(3)).max() > 1e-3:
        raise InvalidArgument("geometry is sheared, and DICOM has no such grids; resample it to an orthogonal one")
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ geometry.affine[:, [2, 1, 0, 3]]


def _from_lps(affine: np.ndarray, shape: Sequence[int], **fields: Any) -> Geometry:
    slices, rows, columns = shape
    ras = np.diag([-1.0, -1.0, 1.0, 1.0]) @ np.asarray(affine, dtype=np.float64)[:, [2, 1, 0, 3]]
    return Geometry(ras, (columns, rows, slices), **fields)


# --- images -----------------------------------------------------------------------------------------------------


def read_dicom(
    folder: str | Path, *, series: str | None = None, allow_burned_in: bool = False
) -> tuple[Tensor, Geometry]:
    """One series of single-frame images and where it lies.

    Args:
        folder: with the files of the series; others may lie there too.
        series: its UID, where there are several.
        allow_burned_in: read images that say text is burned into their pixels. Look at them first: such text names
            patients, and a model learns it.

    Returns:
        volume (1, X, Y, Z) float32 = (1, columns, rows, slices) in the scanner's units (rescaled), slices in the order
        of their instance numbers where these follow the positions, and its geometry, in millimetres, with the frame of
        reference.
    """
    pydicom, highdicom = _libraries()
    datasets = _read_series(pydicom, Path(folder), series)
    if not allow_burned_in and any(str(d.get("BurnedInAnnotation", "NO")).upper() == "YES" for d in datasets):
        raise InvalidArgument(
            "the series says that annotation is burned into its pixels (0028,0301); remove it, or pass "
            "allow_burned_in=True after looking at the images"
        )
    return _volume(highdicom, datasets)


def _volume(highdicom: Any, datasets: list[Any]) -> tuple[Tensor, Geometry]:
    """The voxels of a series and where they lie."""
    first = datasets[0]
    if (patients := len({str(d.get("PatientID") or "") for d in datasets})) > 1:
        raise InvalidArgument(f"the series has images of {patients} patients; split it by PatientID")
    for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"):
        if missing := sum(keyword not in d for d in datasets):
            raise InvalidArgument(
                f"{missing} of {len(datasets)} images have no {keyword}, so nobody knows where they lie; a picture "
                f"without geometry can be read with PictureFolder"
            )
    if int(first.get("SamplesPerPixel", 1)) != 1 or int(first.get("NumberOfFrames", 1)) != 1:
        raise InvalidArgument("need grey single-frame images; export the series anew, one image a file")
    if other := {str(d.get("PhotometricInterpretation", GREY)) for d in datasets} - {GREY}:
        raise InvalidArgument(  # MONOCHROME1 shows large values dark: whether they mean more or less is not said
            f"images are {', '.join(sorted(other))}, need {GREY}, where larger values are brighter; convert them"
        )
    orientations = {tuple(round(float(v), 3) for v in d.ImageOrientationPatient) for d in datasets}
    if len(orientations) > 1:
        raise InvalidArgument(f"the series has mixed orientations ({len(orientations)} planes); split it by plane")
    datasets = _ordered(datasets)
    try:
        volume = highdicom.get_volume_from_series(datasets, dtype=np.float64)
    except (ValueError, RuntimeError) as error:
        raise InvalidArgument(
            f"the {len(datasets)} images are no regular volume (missing, doubled or tilted slices): {error}"
        ) from error
    array = np.asarray(volume.array)
    if not np.isfinite(array).all():
        raise InvalidArgument("the series has NaN or infinite voxels; check its rescale slope")
    geometry = _from_lps(
        volume.affine, array.shape[:3],
        dtype=voxel_type(array, first.pixel_array.dtype),
        frame_of_reference=str(first.FrameOfReferenceUID) if "FrameOfReferenceUID" in first else None,
    )  # fmt: skip
    data = torch.from_numpy(np.ascontiguousarray(array.transpose(2, 1, 0)).astype(np.float32))[None]
    origin, direction = geometry.affine[:3, 3], geometry.affine[:3, 2]
    if geometry.shape[2] > 1:  # highdicom chooses an end to start from; files were numbered from one
        at = np.array([_position(d) for d in datasets])
        along = (at - origin) @ direction / (direction @ direction)
        if along[0] > along[-1]:
            affine = geometry.affine.copy()
            affine[:3, 2], affine[:3, 3] = -direction, geometry.world((0, 0, geometry.shape[2] - 1))
            geometry, data = replace(geometry, affine=affine), data.flip(3)
    return data, geometry


def _read_series(pydicom: Any, folder: Path, series: str | None) -> list[Any]:
    if not folder.is_dir():
        raise InvalidArgument(f"folder {folder.name!r} is not a folder; give the one that holds the series")
    found: dict[str, list[Any]] = {}
    for file in sorted(f for f in folder.iterdir() if f.is_file()):
        try:
            dataset = pydicom.dcmread(file)
        except pydicom.errors.InvalidDicomError:
            continue
        if "PixelData" in dataset:
            found.setdefault(str(dataset.get("SeriesInstanceUID", "")), []).append(dataset)
    if series is not None:
        found = {series: found.get(series, [])}
    if not any(found.values()):
        raise InvalidArgument(f"folder {folder.name!r} has no DICOM images" + (" of that series" if series else ""))
    if len(found) > 1:
        listed = ", ".join(f"{uid} ({len(group)} images)" for uid, group in sorted(found.items()))
        raise InvalidArgument(f"folder {folder.name!r} has {len(found)} series, {listed}; pass series=")
    return next(iter(found.values()))


def _position(dataset: Any) -> np.ndarray:
    """Of the first voxel, in RAS."""
    return np.array([-1.0, -1.0, 1.0]) * np.array([float(v) for v in dataset.ImagePositionPatient])


def _ordered(datasets: list[Any]) -> list[Any]:
    """By position along the normal, upwards or downwards as the instance numbers go."""
    row, column = np.split(np.array([float(v) for v in datasets[0].ImageOrientationPatient]), 2)
    normal = np.array([-1.0, -1.0, 1.0]) * np.cross(row, column)
    ordered = sorted(datasets, key=lambda d: float(_position(d) @ normal))
    numbers = [int(d.InstanceNumber) for d in ordered if d.get("InstanceNumber") is not None]
    return ordered[::-1] if len(numbers) == len(ordered) and numbers == sorted(numbers, reverse=True) else ordered


def write_dicom(
    folder: str | Path,
    volume: Tensor,
    geometry: Geometry,
    *,
    modality: str = "MR",
    description: str = "synthetic",
) -> list[Path]:
    """Write ``volume`` (1, X, Y, Z) or (X, Y, Z) as a series of single-frame images that say they are synthetic.

    Integers that fit 16 bits are stored as they are; other values over the whole range of 16 bits, with slope and
    intercept (an error of 1/65535 of the range).
    """
    pydicom, _ = _libraries()
    if modality not in MODALITIES:
        raise InvalidArgument(f"modality must be one of {sorted(MODALITIES)}, got {modality!r}")
    data = _checked(volume, geometry)
    array = data.numpy().astype(np.float64)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    slope, intercept = 1.0, 0.0
    signed = geometry.dtype.startswith("int") or array.min() < 0
    low, high = (-32768, 32767) if signed else (0, 65535)
    if not np.equal(array, np.round(array)).all() or array.min() < low or array.max() > high:
        signed, low = False, 0
        intercept = float(array.min())
        slope = float(array.max() - array.min()) / 65535 or 1.0
    stored = np.rint((array - intercept) / slope).astype(np.int16 if signed else np.uint16)
    written = []
    for k, dataset in enumerate(_headers(pydicom, geometry, modality, description)):
        plane = np.ascontiguousarray(stored[:, :, k].T)
        dataset.RescaleSlope, dataset.RescaleIntercept = _decimal(pydicom, slope), _decimal(pydicom, intercept)
        if modality == "MR":
            dataset.RescaleType = "US"
        dataset.PixelRepresentation = int(signed)
        dataset.PixelData = plane.tobytes()
        path = folder / f"{k + 1:04d}.dcm"
        dataset.save_as(path, enforce_file_format=True)
        written.append(path)
    return written


def _checked(volume: Tensor, geometry: Geometry) -> Tensor:
    if not isinstance(geometry, Geometry):
        raise InvalidArgument(f"geometry must be a Geometry, got {type(geometry).__name__}; files need a place")
    volume = torch.as_tensor(volume).detach().cpu()
    volume = volume[None] if volume.ndim == 3 else volume
    if len(volume) != 1 or spatial_shape(volume) != geometry.shape:
        raise InvalidArgument(f"volume {tuple(volume.shape)} does not fit geometry {(1, *geometry.shape)}")
    if not torch.isfinite(volume).all():
        raise InvalidArgument("volume has NaN or infinite voxels; refusing to write it")
    return volume[0]


def _decimal(pydicom: Any, value: float) -> Any:
    return pydicom.valuerep.DSfloat(value, auto_format=True)


def _headers(pydicom: Any, geometry: Geometry, modality: str, description: str) -> list[Any]:
    """A dataset for every slice, without pixels."""
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    affine = _to_lps(geometry)
    columns, rows, slices = geometry.shape
    spacing = np.linalg.norm(affine[:3, :3], axis=0)  # of slices, rows, columns
    cosines = [*(affine[:3, 2] / spacing[2]), *(affine[:3, 1] / spacing[1])]
    study, series = generate_uid(), generate_uid()
    frame = geometry.frame_of_reference or generate_uid()
    now = datetime.datetime.now()
    made = []
    for k in range(slices):
        uid = generate_uid()
        meta = pydicom.dataset.FileMetaDataset()
        meta.MediaStorageSOPClassUID = MODALITIES[modality]
        meta.MediaStorageSOPInstanceUID = uid
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        d = pydicom.dataset.Dataset()
        d.file_meta = meta
        d.SOPClassUID, d.SOPInstanceUID = MODALITIES[modality], uid
        d.StudyInstanceUID, d.SeriesInstanceUID, d.FrameOfReferenceUID = study, series, frame
        d.PatientName, d.PatientID, d.PatientBirthDate, d.PatientSex = "Synthetic^", "SYNTHETIC", "", "O"
        d.PatientIdentityRemoved, d.DeidentificationMethod = "YES", "no patient data were copied"
        d.StudyID, d.AccessionNumber, d.ReferringPhysicianName = "1", "", ""
        d.StudyDate = d.SeriesDate = d.ContentDate = now.strftime("%Y%m%d")
        d.StudyTime = d.SeriesTime = d.ContentTime = now.strftime("%H%M%S")
        d.Modality, d.SeriesNumber, d.InstanceNumber = modality, 1, k + 1
        d.Manufacturer, d.ManufacturerModelName, d.SoftwareVersions = "suffuse", "suffuse-medical", __version__
        d.SeriesDescription = description[:64]
        d.ImageType, d.SyntheticData = ["DERIVED", "SECONDARY", "OTHER"], "YES"
        d.DerivationDescription, d.BurnedInAnnotation = description, "NO"
        if modality == "MR":
            d.ScanningSequence, d.SequenceVariant, d.ScanOptions, d.MRAcquisitionType = "RM", "NONE", "", "3D"
            d.RepetitionTime = d.EchoTime = d.EchoTrainLength = None
        d.PositionReferenceIndicator, d.PatientPosition = "", "HFS"
        d.PixelSpacing = [_decimal(pydicom, spacing[1]), _decimal(pydicom, spacing[2])]
        d.SliceThickness = d.SpacingBetweenSlices = _decimal(pydicom, spacing[0])
        d.ImageOrientationPatient = [_decimal(pydicom, c) for c in cosines]
        d.ImagePositionPatient = [_decimal(pydicom, p) for p in (affine @ (k, 0, 0, 1))[:3]]
        d.Rows, d.Columns, d.SamplesPerPixel = rows, columns, 1
        d.PhotometricInterpretation = GREY
        d.BitsAllocated = d.BitsStored = 16
        d.HighBit, d.PixelRepresentation = 15, 0
        made.append(d)
    return made


# --- segmentations ----------------------------------------------------------------------------------------------


def write_dicom_seg(
    path: str | Path,
    mask: Tensor,
    geometry: Geometry,
    schema: LabelSchema,
    *,
    source: str | Path | None = None,
    codes: Mapping[str, Code] | None = None,
    algorithm: str = "suffuse-medical",
    fractional: bool = False,
) -> Path:
    """Write a segmentation as a DICOM-SEG object, a segment for every foreground class.

    Args:
        mask: labels (1, X, Y, Z) of the schema; or, with ``fractional``, the probability of every class,
            (C, X, Y, Z) in [0, 1] with the background first, such as the mean of an ensemble.
        geometry: where it lies, as of the image that was segmented.
        source: folder of the DICOM series that was segmented, on the same grid: the object then belongs to its study
            and refers to its images. Without one, a study of its own is named, in the geometry's frame of reference.
        codes: class name -> (value, scheme, meaning) of what it is, for instance
            ``("4421005", "SCT", "Cell")``; default tissue.
        algorithm: the name of what segmented.
        fractional: store probabilities, to 1/255, instead of labels.
    """
    pydicom, highdicom = _libraries()
    if not isinstance(geometry, Geometry):
        raise InvalidArgument(f"geometry must be a Geometry, got {type(geometry).__name__}; files need a place")
    mask = torch.as_tensor(mask).detach().cpu()
    channels = len(schema) if fractional else 1
    if mask.ndim != 4 or len(mask) != channels or spatial_shape(mask) != geometry.shape:
        raise InvalidArgument(
            f"mask must be {(channels, *geometry.shape)} to fit its geometry, got {tuple(mask.shape)}"
        )
    if fractional:
        if not bool(((mask >= 0) & (mask <= 1)).all()):
            raise InvalidArgument("mask must hold probabilities in [0, 1] where fractional=True")
        array = mask[1:].permute(3, 2, 1, 0).numpy().astype(np.float32)  # (slice, row, column, segment)
    else:
        array = schema.index(mask[0]).permute(2, 1, 0).numpy().astype(np.uint8)
    if unknown := set(codes or {}) - set(schema.names[1:]):
        raise InvalidArgument(f"codes name {sorted(unknown)}, which are no foreground classes of {schema.names}")
    sources = _headers(pydicom, geometry, "MR", "segmented volume")
    if source is not None:
        sources = _read_series(pydicom, Path(source), None)
        _check_place(mask, geometry, _volume(highdicom, sources)[1])
    frame = str(sources[0].FrameOfReferenceUID)
    segments = [
        highdicom.seg.SegmentDescription(
            segment_number=i,
            segment_label=name,
            segmented_property_category=highdicom.sr.CodedConcept(*TISSUE),
            segmented_property_type=highdicom.sr.CodedConcept(*(codes or {}).get(name, TISSUE)),
            algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=highdicom.AlgorithmIdentificationSequence(
                name=algorithm,
                version=__version__,
                family=highdicom.sr.CodedConcept("123110", "DCM", "Artificial Intelligence"),
            ),
        )
        for i, name in enumerate(schema.names)
        if i
    ]
    channel = {"SegmentNumber": list(range(1, len(schema)))} if fractional else None
    volume = highdicom.Volume(array, _to_lps(geometry), "PATIENT", frame_of_reference_uid=frame, channels=channel)
    kind = "FRACTIONAL" if fractional else "BINARY"
    seg = highdicom.seg.Segmentation(
        source_images=sources, pixel_array=volume, segmentation_type=kind, segment_descriptions=segments,
        series_instance_uid=highdicom.UID(), series_number=100, sop_instance_uid=highdicom.UID(), instance_number=1,
        manufacturer="suffuse", manufacturer_model_name="suffuse-medical", software_versions=__version__,
        device_serial_number="0", omit_empty_frames=False, content_description="segmentation"[:64],
    )  # fmt: skip
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    seg.save_as(path)
    return path


def _check_place(mask: Tensor, geometry: Geometry, source: Geometry) -> None:
    """Raise unless ``geometry`` is the grid of ``source``, but for flipped and transposed axes."""
    if geometry.frame_of_reference not in (None, source.frame_of_reference):
        raise InvalidArgument("source has another frame of reference than geometry; give the series that was segmented")
    if not reorient(mask, geometry, source.axcodes)[1].isclose(source, tolerance=1e-3):
        raise InvalidArgument(
            "source lies on another grid than geometry; give the series that was segmented, or resample the mask to "
            "the geometry that read_dicom(source) returns"
        )


def read_dicom_seg(path: str | Path, schema: LabelSchema, geometry: Geometry | None = None) -> tuple[Tensor, Geometry]:
    """A segmentation and where it lies.

    Args:
        path: the file.
        schema: its foreground classes are found by the labels of the segments.
        geometry: of the image it belongs to: flips and transpositions towards it are exact; default the file's own.
            One of another frame of reference is refused: nobody knows how the two spaces lie to each other.

    Returns:
        labels (1, X, Y, Z), or for a fractional object the probability of every class (C, X, Y, Z), and its geometry.
    """
    pydicom, highdicom = _libraries()
    path = Path(path)
    try:
        seg = highdicom.seg.segread(path)
    except (pydicom.errors.InvalidDicomError, OSError, ValueError) as error:
        raise InvalidArgument(f"path {path.name!r} is no readable DICOM-SEG object: {error}") from error
    numbers = {seg.get_segment_description(n).segment_label: n for n in seg.segment_numbers}
    if missing := [name for name in schema.names[1:] if name not in numbers]:
        raise InvalidArgument(f"path {path.name!r} has no segments {missing}; it has {sorted(numbers)}")
    volume = seg.get_volume(
        segment_numbers=[numbers[name] for name in schema.names[1:]], rescale_fractional=True, dtype=np.float32
    )
    if geometry is not None:
        if geometry.frame_of_reference not in (None, str(seg.FrameOfReferenceUID)):
            raise InvalidArgument(
                f"path {path.name!r} has another frame of reference than geometry; give the image that was segmented"
            )
        wanted = highdicom.VolumeGeometry(
            _to_lps(geometry), geometry.shape[::-1], "PATIENT", frame_of_reference_uid=volume.frame_of_reference_uid
        )
        try:
            volume = volume.match_geometry(wanted)
        except (ValueError, RuntimeError) as error:
            raise InvalidArgument(f"path {path.name!r} lies on another grid than geometry: {error}") from error
    stack = torch.from_numpy(np.ascontiguousarray(np.asarray(volume.array, dtype=np.float32).transpose(3, 2, 1, 0)))
    where = _from_lps(volume.affine, volume.spatial_shape, frame_of_reference=str(seg.FrameOfReferenceUID))
    if geometry is not None:
        where = replace(geometry, frame_of_reference=where.frame_of_reference)
    background = (1 - stack.sum(0, keepdim=True)).clamp(min=0)
    probability = torch.cat([background, stack])
    if str(seg.SegmentationType) == "FRACTIONAL":
        return probability, where.stored_as("float32")
    labels = schema.stored(probability[None])[0].float()
    return labels, where.stored_as(voxel_type(np.array(schema.values), np.dtype("uint8")))
