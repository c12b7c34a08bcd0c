"""DICOM: what is written lies where it lay, says what it is, and bad series are named."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from suffuse.errors import InvalidArgument
from suffuse_medical.data import Geometry, LabelSchema, read_nifti, reorient, write_nifti

pydicom = pytest.importorskip("pydicom")
pytest.importorskip("highdicom")

from suffuse_medical.data.dicom import read_dicom, read_dicom_seg, write_dicom, write_dicom_seg  # noqa: E402

SCHEMA = LabelSchema(["background", "anterior", "posterior"])


def marked(geometry):
    """A volume with a bright voxel in the patient's right front upper corner, and its place in the world."""
    volume = torch.arange(int(np.prod(geometry.shape)), dtype=torch.float32).reshape(1, *geometry.shape) % 500
    corner = np.argmax(geometry.world(np.indices(geometry.shape).reshape(3, -1).T) @ (1, 1, 1))
    index = np.unravel_index(corner, geometry.shape)
    volume[(0, *index)] = 2000
    return volume, geometry.world(index)


def brightest(volume, geometry):
    return geometry.world(np.unravel_index(int(volume[0].argmax()), geometry.shape))


def test_series_keep_their_geometry_and_voxels(geometry, tmp_path):
    """RAS, LAS, LIA and oblique: affine, spacing, orientation, units, type, and a marker's place in the patient."""
    volume, place = marked(geometry)
    write_dicom(tmp_path / "series", volume, geometry.stored_as("int16"))
    again, found = read_dicom(tmp_path / "series")
    np.testing.assert_allclose(found.affine, geometry.affine, atol=1e-4)
    assert (found.shape, found.axcodes, found.units, found.dtype) == (geometry.shape, geometry.axcodes, "mm", "int16")
    torch.testing.assert_close(again, volume)
    np.testing.assert_allclose(brightest(again, found), place, atol=1e-3)
    assert found.frame_of_reference


def test_nifti_to_dicom_seg_and_back(geometry, tmp_path):
    """NIfTI in, segmentation out in both formats: all three lie on the same grid."""
    volume, _ = marked(geometry)
    write_nifti(tmp_path / "in.nii.gz", volume, geometry.stored_as("int16"))
    image, where = read_nifti(tmp_path / "in.nii.gz")
    mask = (image > 100).float() + (image > 300).float()
    write_nifti(tmp_path / "out.nii.gz", mask, where.stored_as("uint8"))
    write_dicom_seg(tmp_path / "out.dcm", mask, where, SCHEMA)
    nifti, place = read_nifti(tmp_path / "out.nii.gz")
    seg, seg_place = read_dicom_seg(tmp_path / "out.dcm", SCHEMA, where)
    torch.testing.assert_close(nifti, mask)
    torch.testing.assert_close(seg, mask)
    assert place.isclose(where) and seg_place.isclose(where) and place.dtype == seg_place.dtype == "uint8"
    own, own_place = read_dicom_seg(tmp_path / "out.dcm", SCHEMA)  # on the file's own axes, wherever they point
    turned, turned_place = reorient(own, own_place, where.axcodes)
    torch.testing.assert_close(turned, mask)
    np.testing.assert_allclose(turned_place.affine, where.affine, atol=1e-4)


def test_segmentations_refer_to_their_series(geometry, tmp_path):
    volume, _ = marked(geometry)
    files = write_dicom(tmp_path / "series", volume, geometry)
    image, where = read_dicom(tmp_path / "series")
    mask = (image > 250).float()
    path = write_dicom_seg(
        tmp_path / "seg.dcm", mask, where, LabelSchema(["background", "bright"]), source=files[0].parent
    )
    seg, first = pydicom.dcmread(path), pydicom.dcmread(files[0])
    assert seg.FrameOfReferenceUID == first.FrameOfReferenceUID == where.frame_of_reference
    assert seg.StudyInstanceUID == first.StudyInstanceUID
    referred = {item.ReferencedSOPInstanceUID for item in seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence}
    assert referred == {pydicom.dcmread(file).SOPInstanceUID for file in files}
    assert seg.SegmentSequence[0].SegmentAlgorithmType == "AUTOMATIC"
    assert first.SyntheticData == "YES" and first.PatientID == "SYNTHETIC" and first.ImageType[0] == "DERIVED"


def test_a_segmentation_lies_on_its_series(geometry, tmp_path):
    """Turned axes are the same place; a shift, other voxels or another frame of reference are not."""
    volume, _ = marked(geometry)
    write_dicom(tmp_path / "series", volume, geometry)
    image, where = read_dicom(tmp_path / "series")
    schema = LabelSchema(["background", "bright"])
    turned, place = reorient((image > 250).float(), where, "PIR")
    path = write_dicom_seg(tmp_path / "seg.dcm", turned, place, schema, source=tmp_path / "series")
    torch.testing.assert_close(read_dicom_seg(path, schema, where)[0], (image > 250).float())
    shift = np.eye(4)
    shift[0, 3] = 50
    for other, match in (
        (Geometry(shift @ where.affine, where.shape), "another grid"),
        (Geometry(where.affine @ np.diag([1, 1, 1.1, 1]), where.shape), "another grid"),
        (replace(where, frame_of_reference="1.2.3"), "frame of reference"),
    ):
        with pytest.raises(InvalidArgument, match=match):
            write_dicom_seg(tmp_path / "x.dcm", image > 250, other, schema, source=tmp_path / "series")
    with pytest.raises(InvalidArgument, match="frame of reference"):
        read_dicom_seg(path, schema, replace(where, frame_of_reference="1.2.3"))
    assert read_dicom_seg(path, schema, replace(where, frame_of_reference=None))[1].isclose(where)


def test_micrometres_become_millimetres(tmp_path):
    geometry = Geometry(np.diag([500.0, 500.0, 2000.0, 1.0]), (6, 5, 4), units="micron")
    write_dicom(tmp_path / "series", torch.zeros(6, 5, 4), geometry)
    found = read_dicom(tmp_path / "series")[1]
    assert found.units == "mm" and found.spacing == pytest.approx((0.5, 0.5, 2.0)) and found.isclose(geometry)
    mask = torch.zeros(1, 6, 5, 4)
    write_dicom_seg(tmp_path / "seg.dcm", mask, geometry, SCHEMA, source=tmp_path / "series")
    assert read_dicom_seg(tmp_path / "seg.dcm", SCHEMA)[1].spacing == pytest.approx((0.5, 0.5, 2.0))
    there = read_dicom_seg(tmp_path / "seg.dcm", SCHEMA, geometry)[1]
    assert there.units == "micron" and there.isclose(geometry)


def test_large_label_numbers_can_be_written(tmp_path):
    geometry, schema = Geometry(np.eye(4), (6, 5, 4)), LabelSchema(["background", "cortex"], [0, 1030])
    write_dicom_seg(tmp_path / "seg.dcm", torch.full((1, 6, 5, 4), 1030), geometry, schema)
    labels, where = read_dicom_seg(tmp_path / "seg.dcm", schema)
    again, _ = read_nifti(write_nifti(tmp_path / "seg.nii.gz", labels, where))
    assert bool((again == 1030).all()) and where.dtype == "int16"


def test_hounsfield_units_of_unsigned_images_can_be_written(tmp_path):
    geometry = Geometry(np.diag([1.0, 1.0, 2.0, 1.0]), (6, 5, 4), dtype="uint16")
    for file in write_dicom(tmp_path / "ct", torch.arange(120.0).reshape(6, 5, 4), geometry, modality="CT"):
        change(file, RescaleIntercept="-1024")
    volume, where = read_dicom(tmp_path / "ct")
    assert where.dtype == "int16" and int(volume.min()) == -1024
    again, there = read_nifti(write_nifti(tmp_path / "ct.nii.gz", volume, where))
    torch.testing.assert_close(again, volume)
    assert there.dtype == "int16"


def test_probabilities_are_kept_to_a_255th(tmp_path):
    geometry = Geometry(np.diag([2.0, 2.0, 3.0, 1.0]), (6, 5, 4))
    p = torch.rand(3, 6, 5, 4, generator=torch.Generator().manual_seed(0))
    p = p / p.sum(0)
    write_dicom_seg(tmp_path / "p.dcm", p, geometry, SCHEMA, fractional=True)
    again, _ = read_dicom_seg(tmp_path / "p.dcm", SCHEMA, geometry)
    torch.testing.assert_close(again[1:], p[1:], atol=0.5 / 255 + 1e-3, rtol=0)


def test_real_values_are_stored_in_16_bits(tmp_path):
    geometry = Geometry(np.diag([1.0, 1.0, 2.0, 1.0]), (6, 5, 4))
    volume = torch.randn(1, 6, 5, 4, generator=torch.Generator().manual_seed(0))
    write_dicom(tmp_path, volume, geometry, modality="CT")
    again, found = read_dicom(tmp_path)
    torch.testing.assert_close(again, volume, atol=float(volume.max() - volume.min()) / 65535, rtol=0)
    assert found.dtype == "float32"


@pytest.fixture
def series(tmp_path):
    geometry = Geometry(np.diag([1.0, 1.0, 2.0, 1.0]), (6, 5, 4))
    return write_dicom(tmp_path / "series", torch.ones(6, 5, 4), geometry)


def change(file, **fields):
    dataset = pydicom.dcmread(file)
    for keyword, value in fields.items():
        if value is None:
            delattr(dataset, keyword)
        else:
            setattr(dataset, keyword, value)
    dataset.save_as(file)


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"BurnedInAnnotation": "YES"}, "burned into"),
        ({"ImagePositionPatient": None}, "ImagePositionPatient"),
        ({"ImageOrientationPatient": [1, 0, 0, 0, 0, 1]}, "mixed orientations"),
        ({"ImagePositionPatient": [0, 0, 31]}, "no regular volume"),
        ({"SeriesInstanceUID": "1.2.3"}, "2 series"),
        ({"PatientID": "OTHER"}, "2 patients"),
        ({"PhotometricInterpretation": "MONOCHROME1"}, "images are MONOCHROME1"),
    ],
)
def test_bad_series_are_named(series, fields, match):
    change(series[1], **fields)
    with pytest.raises(InvalidArgument, match=match):
        read_dicom(series[0].parent)
    if "BurnedInAnnotation" in fields:
        assert read_dicom(series[0].parent, allow_burned_in=True)[0].shape == (1, 6, 5, 4)


def test_bad_arguments_are_named(series, tmp_path):
    geometry = Geometry(np.diag([1.0, 1.0, 2.0, 1.0]), (6, 5, 4))
    sheared = np.eye(4)
    sheared[0, 1] = 0.5
    mask = torch.zeros(1, 6, 5, 4)
    (tmp_path / "empty").mkdir()
    for call, match in (
        (lambda: read_dicom(tmp_path / "empty"), "no DICOM"),
        (lambda: read_dicom(tmp_path / "nowhere"), "not a folder"),
        (lambda: write_dicom(tmp_path, mask, None), "Geometry"),
        (lambda: write_dicom(tmp_path, mask, Geometry(sheared, (6, 5, 4))), "sheared"),
        (lambda: write_dicom(tmp_path, mask * torch.nan, geometry), "NaN"),
        (lambda: write_dicom(tmp_path, mask[..., :2], geometry), "fit"),
        (lambda: write_dicom_seg(tmp_path / "x", mask + 5, geometry, SCHEMA), "labels 5"),
        (lambda: write_dicom_seg(tmp_path / "x", mask, geometry, SCHEMA, codes={"liver": ("1", "2", "3")}), "codes"),
        (lambda: write_dicom_seg(tmp_path / "x", mask, None, SCHEMA), "Geometry"),
        (lambda: read_dicom_seg(series[0], SCHEMA), "DICOM-SEG"),
    ):
        with pytest.raises(InvalidArgument, match=match):
            call()


def test_a_prediction_ends_where_its_input_lay(geometry, tmp_path):
    """NIfTI in (four orientations), slices on a working grid, an ensemble of masks, and both formats out."""
    from suffuse_medical.data import mri_percentile, resample, working_grid
    from suffuse_medical.segmentation import SegmentationPrediction

    schema = LabelSchema(["background", "right"])
    place = torch.from_numpy(geometry.world(np.stack(np.indices(geometry.shape), -1))).float()  # (X, Y, Z, 3) in mm
    middle = float(place[..., 0].mean())
    write_nifti(tmp_path / "in.nii.gz", 1000 + 10 * (place[..., 0] - middle), geometry.stored_as("int16"))
    image, where = read_nifti(tmp_path / "in.nii.gz")
    grid = working_grid(where, (20, 24, 16), 2.0)
    slices = resample(image, where, grid).permute(3, 0, 1, 2)  # what a network would be given ...
    assert torch.isfinite(mri_percentile(slices)).all()
    right = (slices > 1000).float()  # ... and a network that knows the patient's right from left
    found = SegmentationPrediction(torch.cat([1 - right, right], 1)[None], grid, schema=schema).on(where)
    found.write_labels(tmp_path / "out.nii.gz")
    mask = found.labels[:, 0].permute(1, 2, 0)[None]
    write_dicom_seg(tmp_path / "out.dcm", mask, where, schema)
    for labels, there in (read_nifti(tmp_path / "out.nii.gz"), read_dicom_seg(tmp_path / "out.dcm", schema, where)):
        assert there.isclose(geometry) and there.axcodes == geometry.axcodes and there.dtype == "uint8"
        np.testing.assert_allclose(there.spacing, geometry.spacing, atol=1e-4)
        sure = (place[..., 0] - middle).abs() > 2.5  # farther from the border than a voxel of the working grid
        sure[[0, -1]] = sure[:, [0, -1]] = sure[..., [0, -1]] = False  # half of what is beside these was not seen
        assert sure.sum() > 100 and bool((labels[0][sure] == (place[..., 0] > middle)[sure]).all())
