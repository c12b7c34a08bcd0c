"""Train and sample by name: NIfTI in, NIfTI (and DICOM-SEG) out, on the grid of the file."""

import numpy as np
import pytest
import torch

from suffuse.errors import InvalidArgument
from suffuse.recipes import get_recipe
from suffuse_medical.data import Geometry, ct_window, mri_percentile, read_nifti, write_nifti

RUN = {"steps": 2, "batch_size": 2, "progress": False, "device": "cpu"}


@pytest.fixture(scope="module")
def volume(tmp_path_factory):
    """A file in LIA, anisotropic, of integers."""
    affine = np.array([[-4.0, 0, 0, 60], [0, 0, 5.0, -70], [0, -4.0, 0, 70], [0, 0, 0, 1]])
    geometry = Geometry(affine, (30, 32, 26), dtype="int16")
    g = torch.Generator().manual_seed(0)
    data = torch.nn.functional.interpolate(torch.rand(1, 1, 6, 6, 6, generator=g), geometry.shape, mode="trilinear")[0]
    folder = tmp_path_factory.mktemp("nifti")
    write_nifti(folder / "images" / "a.nii.gz", 1000 * data, geometry)
    write_nifti(folder / "labels" / "a.nii.gz", (data > 0.6).float(), geometry.stored_as("uint8"))
    return folder, geometry


@pytest.mark.parametrize(
    ("name", "options", "sample", "files"),
    [
        ("medical/anomaly", {"noise": "coarse"}, {"n": 2, "steps": 1}, {"mean", "std", "map", "map-std"}),
        ("medical/reconstruction", {}, {"n": 1, "method": "dds", "steps": 2}, {"mean", "sample-0"}),
        (
            "medical/segmentation",
            {"names": "background,blob"},
            {"n": 2, "steps": 1, "dicom": True},
            {"labels", "mean-1"},
        ),
    ],
)
def test_volumes_in_and_out(volume, tmp_path, name, options, sample, files):
    folder, geometry = volume
    recipe = get_recipe(name)
    if name == "medical/segmentation":
        options = options | {"labels": folder / "labels"}
    checkpoint = recipe(images=folder / "images", out=tmp_path / "run", **RUN, **options)
    written = recipe.sample(
        checkpoint, out=tmp_path / "out", image=folder / "images" / "a.nii.gz", device="cpu", **sample
    )
    assert files <= {path.name.split(".")[0] for path in written}
    for path in written:
        if path.suffix == ".gz":
            data, found = read_nifti(path)
            assert found.isclose(geometry) and found.axcodes == "LIA", path.name
            if "labels" in path.name:
                assert found.dtype == "uint8" and set(data.unique().tolist()) <= {0.0, 1.0}
        else:
            from suffuse_medical.data import LabelSchema
            from suffuse_medical.data.dicom import read_dicom_seg

            seg, where = read_dicom_seg(path, LabelSchema(["background", "blob"]), geometry)
            torch.testing.assert_close(seg, read_nifti(tmp_path / "out" / "labels.nii.gz")[0])
            assert where.isclose(geometry)


def test_bad_input_comes_before_the_work(volume, tmp_path):
    folder, geometry = volume
    recipe = get_recipe("medical/segmentation")
    with pytest.raises(InvalidArgument, match="together"):
        recipe(images=folder / "images", out=tmp_path, **RUN)
    write_nifti(tmp_path / "labels" / "a.nii.gz", torch.full(geometry.shape, 7.0), geometry.stored_as("uint8"))
    with pytest.raises(InvalidArgument, match="labels 7"):
        recipe(images=folder / "images", labels=tmp_path / "labels", out=tmp_path, **RUN)


def test_intensities():
    volume = torch.linspace(0, 1000, 1001).view(1, 7, 11, 13)
    scaled = mri_percentile(volume)
    assert float(scaled.min()) == -1 and float(scaled.max()) > 0.6
    torch.testing.assert_close(mri_percentile(3 * volume + 5), scaled, atol=1e-4, rtol=0)  # the unit means nothing
    assert ct_window(torch.tensor([-1000.0, 40.0, 240.0, 3000.0])).tolist() == [-1, 0, 1, 1]
    for bad, match in ((torch.ones(1, 2, 2, 2), "constant"), (volume * torch.nan, "NaN")):
        with pytest.raises(InvalidArgument, match=match):
            mri_percentile(bad)
