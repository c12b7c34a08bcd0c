"""Laws of where voxels lie: what goes in comes out at the same place in the patient."""

import nibabel
import numpy as np
import pytest
import torch

from suffuse.errors import InvalidArgument
from suffuse_medical.data import WORKING_GRID, Geometry, read_nifti, resample, working_grid, write_nifti


def ramp(geometry):
    """A volume (1, X, Y, Z) whose value is a linear function of the world position."""
    index = np.stack(np.meshgrid(*map(np.arange, geometry.shape), indexing="ij"), axis=-1)
    return torch.tensor(geometry.world(index) @ (0.5, -1.0, 2.0), dtype=torch.float32)[None]


def test_nifti_round_trip_keeps_affine_values_and_orientation(geometry, tmp_path):
    volume = torch.randn(1, *geometry.shape, generator=torch.Generator().manual_seed(0))
    write_nifti(tmp_path / "a.nii.gz", volume, geometry)
    again, there = read_nifti(tmp_path / "a.nii.gz")
    assert there.isclose(geometry) and there.axcodes == geometry.axcodes
    torch.testing.assert_close(again, volume)


def test_a_file_read_and_written_keeps_its_type_and_units(geometry, tmp_path):
    data = np.random.default_rng(0).integers(-300, 3000, geometry.shape).astype(np.int16)
    image = nibabel.Nifti1Image(data, geometry.affine)
    image.header.set_xyzt_units("mm")
    nibabel.save(image, tmp_path / "in.nii")
    write_nifti(tmp_path / "out.nii", *read_nifti(tmp_path / "in.nii"))
    out = nibabel.load(tmp_path / "out.nii")
    assert out.get_data_dtype() == np.int16 and out.header.get_xyzt_units()[0] == "mm"
    np.testing.assert_array_equal(np.asarray(out.dataobj), data)
    np.testing.assert_allclose(out.affine, geometry.affine, atol=1e-4)


@pytest.mark.parametrize(
    ("stored", "slope", "intercept", "dtype"),
    [
        ("int16", 1 / 30000, 0, "float32"),  # fractions
        ("int16", 1, -1024, "int16"),  # whole numbers that still fit
        ("uint8", 1, -10, "int16"),  # that do not
        ("uint8", 300, 0, "int32"),
        ("int64", 1, 0, "int64"),
    ],
)
def test_rescaled_files_keep_what_their_values_mean(stored, slope, intercept, dtype, tmp_path):
    counts = np.arange(240, dtype=stored).reshape(6, 5, 8)
    meant = counts * float(slope) + intercept
    image = nibabel.Nifti1Image(counts, np.eye(4), dtype=stored)
    image.header.set_slope_inter(slope, intercept)
    nibabel.save(image, tmp_path / "in.nii")
    volume, geometry = read_nifti(tmp_path / "in.nii")
    np.testing.assert_allclose(volume[0], meant, rtol=1e-6)
    out = nibabel.load(write_nifti(tmp_path / "out.nii", volume, geometry))
    np.testing.assert_allclose(out.get_fdata(), meant, rtol=1e-6)
    assert out.get_data_dtype() == geometry.dtype == dtype


def test_synthetic_volumes_do_not_claim_a_scanner(geometry, tmp_path):
    write_nifti(tmp_path / "a.nii", torch.zeros(geometry.shape), geometry)
    header = nibabel.load(tmp_path / "a.nii").header
    assert int(header["sform_code"]) == int(header["qform_code"]) == 2
    assert b"synthetic" in header["descrip"].tobytes()
    np.testing.assert_allclose(header.get_qform(), geometry.affine, atol=1e-4)


def test_resampling_a_linear_function_of_space_gives_that_function(geometry):
    inner = Geometry.centred((5, 5, 5), 1.7, tuple(geometry.world([(n - 1) / 2 for n in geometry.shape])))
    torch.testing.assert_close(resample(ramp(geometry), geometry, inner), ramp(inner), atol=1e-3, rtol=0)


def test_a_left_right_marker_stays_where_it_is(geometry):
    volume = torch.zeros(1, *geometry.shape)
    volume[0, 3, 8, 4] = 1
    fine = Geometry.centred((60, 60, 60), 1.0, tuple(geometry.world([(n - 1) / 2 for n in geometry.shape])))
    there = resample(volume, geometry, fine, mode="nearest")[0].nonzero().double().mean(0).numpy()
    np.testing.assert_allclose(fine.world(there), geometry.world((3, 8, 4)), atol=1.0)


def test_labels_are_never_mixed(geometry):
    labels = torch.randint(0, 5, (1, *geometry.shape), generator=torch.Generator().manual_seed(0)).float()
    assert set(resample(labels, geometry, WORKING_GRID, mode="nearest").unique().tolist()) <= {0.0, 1.0, 2.0, 3.0, 4.0}


def test_coarser_grids_average_instead_of_picking():
    fine = Geometry.centred((48, 48, 48), 1.0, (0, 0, 0))
    coarse = Geometry.centred((8, 8, 8), 4.0, (0, 0, 0))
    noise = torch.randn(1, 48, 48, 48, generator=torch.Generator().manual_seed(0))
    assert resample(noise, fine, coarse).std() < 0.4


def test_monai_transforms_understand_the_geometry(geometry):
    """MONAI's own reorientation of an attached volume agrees with resampling in world space."""
    from monai.transforms import Orientation

    turned = Orientation(axcodes="RAS")(geometry.attach(ramp(geometry)))
    torch.testing.assert_close(turned.as_tensor(), ramp(Geometry.of(turned)), atol=1e-3, rtol=0)


def test_what_a_geometry_knows_outlives_monai_transforms(geometry):
    from monai.transforms import Compose, Orientation, RandFlip, Spacing

    known = {"units": "micron", "dtype": "uint8", "frame_of_reference": "1.2.3"}
    small = Geometry(geometry.affine, geometry.shape, **known)
    move = Compose([RandFlip(prob=1, spatial_axis=0), Orientation("LIA"), Spacing((1.5, 1.5, 1.5))])
    found = Geometry.of(move(small.attach(ramp(geometry))))
    assert {key: getattr(found, key) for key in known} == known
    assert found.axcodes == "LIA" and found.spacing == pytest.approx((1.5e-3, 1.5e-3, 1.5e-3))
    again = Geometry.of(small.attach(ramp(geometry)))
    assert again.isclose(small) and {key: getattr(again, key) for key in known} == known


@pytest.mark.parametrize(("units", "mm"), [("micron", 1e-3), ("meter", 1e3)])
def test_units_do_not_change_where_voxels_lie(geometry, units, mm):
    """A grid in micrometres or metres is the grid in millimetres, everywhere but in its affine and its file."""
    affine = geometry.affine.copy()
    affine[:3] /= mm
    same = Geometry(affine, geometry.shape, units=units)
    assert same.isclose(geometry) and not same.isclose(Geometry(geometry.affine, geometry.shape, units=units))
    assert same.spacing == pytest.approx(geometry.spacing) and same.voxel_volume == pytest.approx(geometry.voxel_volume)
    assert same.slab(2, 6).isclose(geometry.slab(2, 6))
    grid = working_grid(geometry, (6, 6, 6), 2.0)
    assert working_grid(same, (6, 6, 6), 2.0).isclose(grid)
    volume = ramp(geometry)
    torch.testing.assert_close(resample(volume, same, grid), resample(volume, geometry, grid), atol=1e-3, rtol=0)


def test_a_slab_lies_where_it_was_cut(geometry):
    for axis in range(3):
        slab = geometry.slab(2, 6, axis)
        torch.testing.assert_close(ramp(geometry).narrow(axis + 1, 2, 4), ramp(slab))


# --- bad input: one clear error each ----------------------------------------------------------------------------


def save(path, data):
    nibabel.save(nibabel.Nifti1Image(np.asarray(data, dtype=np.float32), np.eye(4)), path)
    return path


def test_missing_file(tmp_path):
    with pytest.raises(InvalidArgument, match="is not a file; give a .nii"):
        read_nifti(tmp_path / "nowhere.nii")


def test_truncated_and_foreign_files(tmp_path):
    whole = save(tmp_path / "a.nii.gz", np.random.default_rng(0).random((20, 20, 20)))
    (tmp_path / "b.nii.gz").write_bytes(whole.read_bytes()[:2000])
    (tmp_path / "c.nii").write_text("not an image")
    for name in ("b.nii.gz", "c.nii"):
        with pytest.raises(InvalidArgument, match="not a readable NIfTI file"):
            read_nifti(tmp_path / name)


def test_four_dimensions(tmp_path):
    with pytest.raises(InvalidArgument, match="is 4-D .* need 3-D"):
        read_nifti(save(tmp_path / "a.nii", np.zeros((4, 4, 4, 3))))


def test_nan_voxels(tmp_path):
    data = np.zeros((4, 4, 4))
    data[1, 2, 3] = np.nan
    with pytest.raises(InvalidArgument, match="has 1 NaN or infinite voxels"):
        read_nifti(save(tmp_path / "a.nii", data))


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (np.full((4, 4, 4), 1 + 5j, dtype=np.complex64), "complex"),
        (np.zeros((4, 4, 4), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")]), "coloured"),
    ],
)
def test_voxels_that_are_no_numbers(data, match, tmp_path):
    nibabel.save(nibabel.Nifti1Image(data, np.eye(4)), tmp_path / "a.nii")
    with pytest.raises(InvalidArgument, match=match):
        read_nifti(tmp_path / "a.nii")


def test_other_formats(tmp_path):
    nibabel.save(nibabel.MGHImage(np.zeros((4, 4, 4), dtype=np.float32), np.eye(4)), tmp_path / "a.mgz")
    with pytest.raises(InvalidArgument, match="MGHImage"):
        read_nifti(tmp_path / "a.mgz")
    with pytest.raises(InvalidArgument, match=r"\.nii"):
        write_nifti(tmp_path / "a.mnc", torch.zeros(4, 4, 4), Geometry(np.eye(4), (4, 4, 4)))


def test_files_that_do_not_say_where_they_lie(tmp_path):
    """An affine is not made up: it is given, or there is an error."""
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 4, 4), dtype=np.uint8), None), tmp_path / "a.nii")
    with pytest.raises(InvalidArgument, match="pass affine="):
        read_nifti(tmp_path / "a.nii")
    affine = np.diag([2.0, -2.0, 3.0, 1.0])
    assert read_nifti(tmp_path / "a.nii", affine=affine)[1].isclose(Geometry(affine, (4, 4, 4)))


def test_every_float_of_torch_is_written(tmp_path):
    geometry = Geometry(np.eye(4), (4, 4, 4))
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        volume, _ = read_nifti(write_nifti(tmp_path / "a.nii", torch.full((4, 4, 4), 0.5, dtype=dtype), geometry))
        assert bool((volume == 0.5).all())
    for volume, match in (
        (torch.full((4, 4, 4), 1e40, dtype=torch.float64), "too wide for dtype float32"),
        (torch.zeros(4, 4, 4, dtype=torch.complex64), "complex"),
    ):
        with pytest.raises(InvalidArgument, match=match):
            write_nifti(tmp_path / "a.nii", volume, geometry)


def test_empty_volume(tmp_path):
    with pytest.raises(InvalidArgument, match="holds no voxels"):
        read_nifti(save(tmp_path / "a.nii", np.zeros((0, 4, 4))))


def test_no_geometry_no_file(tmp_path):
    with pytest.raises(InvalidArgument, match="geometry must be a Geometry"):
        write_nifti(tmp_path / "a.nii", torch.zeros(3, 3, 3), None)
    with pytest.raises(InvalidArgument, match="has no geometry"):
        Geometry.of(torch.zeros(1, 3, 3, 3))


def test_volumes_that_do_not_fit(geometry, tmp_path):
    with pytest.raises(InvalidArgument, match="does not fit"):
        write_nifti(tmp_path / "a.nii", torch.zeros(3, 3, 3), geometry)
    with pytest.raises(InvalidArgument, match="too wide for dtype uint8"):
        write_nifti(tmp_path / "a.nii", torch.full(geometry.shape, 300.0), geometry.stored_as("uint8"))
    with pytest.raises(InvalidArgument, match="refusing to write"):
        write_nifti(tmp_path / "a.nii", torch.full(geometry.shape, torch.nan), geometry)


@pytest.mark.parametrize("affine", [np.eye(3), np.zeros((4, 4)), np.full((4, 4), np.nan)], ids=["3x3", "flat", "nan"])
def test_bad_affine(affine):
    with pytest.raises(InvalidArgument, match="affine must be"):
        Geometry(affine, (2, 2, 2))


@pytest.mark.parametrize(("field", "value"), [("units", "furlong"), ("dtype", "banana"), ("dtype", "bool")])
def test_bad_fields(field, value):
    with pytest.raises(InvalidArgument, match=f"unknown {field} '{value}'"):
        Geometry(np.eye(4), (2, 2, 2), **{field: value})
