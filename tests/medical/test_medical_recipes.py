"""Train and sample by name: NIfTI in, NIfTI (and DICOM-SEG) out, on the grid of the file."""

import numpy as np
import pytest
import torch

from suffuse.errors import InvalidArgument
from suffuse.recipes import get_recipe
from suffuse_medical.data import (
    Geometry,
    LabelSchema,
    ct_window,
    mri_percentile,
    percentiles,
    read_nifti,
    undo_percentile,
    write_nifti,
)
from suffuse_medical.segmentation import SegmentationPrediction

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
            if name == "medical/reconstruction" and "std" not in path.name:
                assert found.dtype == geometry.dtype == "int16"
            if "labels" in path.name:
                assert found.dtype == "uint8" and set(data.unique().tolist()) <= {0.0, 1.0}
        else:
            from suffuse_medical.data import LabelSchema
            from suffuse_medical.data.dicom import read_dicom_seg

            seg, where = read_dicom_seg(path, LabelSchema(["background", "blob"]), geometry)
            torch.testing.assert_close(seg, read_nifti(tmp_path / "out" / "labels.nii.gz")[0])
            assert where.isclose(geometry)


def test_what_the_network_did_not_see_is_air(tmp_path):
    """Beyond the working grid a volume of 256 mm has air and background, not grey."""
    geometry = Geometry(np.diag([8.0, 8, 8, 1]), (32, 32, 32), dtype="int16")
    x = torch.stack(torch.meshgrid(*[torch.linspace(-1, 1, 32)] * 3, indexing="ij")).square().sum(0).sqrt()
    write_nifti(tmp_path / "in" / "a.nii.gz", (1000 * (x < 0.6).float() + 40)[None], geometry)
    recipe = get_recipe("medical/reconstruction")
    checkpoint = recipe(images=tmp_path / "in", out=tmp_path / "run", **RUN)
    recipe.sample(checkpoint, out=tmp_path / "out", image=tmp_path / "in" / "a.nii.gz", n=2, steps=2, device="cpu")
    for name in ("mean", "zero-filled/mean"):
        volume, _ = read_nifti(tmp_path / "out" / f"{name}.nii.gz")
        assert volume[0, :2].sub(40).abs().max() < 1e-3, f"{name} is in the unit of the file, and air outside"
    assert read_nifti(tmp_path / "out" / "std.nii.gz")[1].dtype == "float32"
    inside = read_nifti(tmp_path / "out" / "zero-filled" / "mean.nii.gz")[0][0, 14:18, 14:18, 14:18]
    assert 500 < float(inside.mean()) < 1500

    schema = LabelSchema(["background", "ball"])
    grid = Geometry.centred((4, 4, 2), 3.0, (0, 0, 0))
    samples = torch.zeros(2, 2, 2, 4, 4)
    samples[:, :, 1] = 1
    wide = SegmentationPrediction(samples, grid, schema=schema).on(Geometry.centred((8, 8, 4), 3.0, (0, 0, 0)))
    assert wide.mean[0, :, 0, 0].tolist() == [1, 0] and wide.mean[1, :, 4, 4].tolist() == [0, 1]
    assert int(wide.labels.sum()) == 4 * 4 * 2


def test_pairs_are_drawn_by_name(volume, tmp_path):
    """Images and labels on one grid; in the style of a volume, or of no volume in particular."""
    small = {"patients": 3, **RUN}
    image = volume[0] / "images" / "a.nii.gz"
    cases = (
        ("medical/joint", {}, {}),
        ("medical/style", {"style_images": 2}, {"image": image}),
        ("medical/style", {"source": "none"}, {}),
    )
    for k, (name, options, sample) in enumerate(cases):
        recipe = get_recipe(name)
        run = recipe(out=tmp_path / str(k), **small, **options)
        written = recipe.sample(run, out=run / "drawn", n=3, steps=2, device="cpu", **sample)
        assert [path.name for path in written[:2]] == ["image-0.nii.gz", "label-0.nii.gz"] and len(written) == 6
        images, labels = (read_nifti(path) for path in written[:2])
        assert images[1].isclose(labels[1]) and labels[1].dtype == "uint8"
        assert torch.isfinite(images[0]).all() and set(labels[0].unique().tolist()) <= {0.0, 1.0, 2.0, 3.0}


def test_bad_input_comes_before_the_work(volume, tmp_path):
    folder, geometry = volume
    recipe = get_recipe("medical/segmentation")
    with pytest.raises(InvalidArgument, match="together"):
        recipe(images=folder / "images", out=tmp_path, **RUN)
    write_nifti(tmp_path / "labels" / "a.nii.gz", torch.full(geometry.shape, 7.0), geometry.stored_as("uint8"))
    with pytest.raises(InvalidArgument, match="labels 7"):
        recipe(images=folder / "images", labels=tmp_path / "labels", out=tmp_path, **RUN)
    tiny = Geometry(np.diag([0.004, 0.004, 0.004, 1]), (4, 4, 4))
    write_nifti(tmp_path / "tiny" / "a.nii.gz", torch.rand(1, 4, 4, 4), tiny)
    with pytest.raises(InvalidArgument, match="spacing"):
        get_recipe("medical/anomaly")(images=tmp_path / "tiny", out=tmp_path / "never", **RUN)
    if not torch.cuda.is_available():
        with pytest.raises(InvalidArgument, match="no GPU"):
            get_recipe("medical/anomaly").sample(
                tmp_path, out=tmp_path, image=folder / "images" / "a.nii.gz", device="cuda"
            )


def test_intensities():
    volume = torch.linspace(0, 1000, 1001).view(1, 7, 11, 13)
    scaled = mri_percentile(volume)
    assert float(scaled.min()) == -1 and float(scaled.max()) > 0.6
    torch.testing.assert_close(mri_percentile(3 * volume + 5), scaled, atol=1e-4, rtol=0)  # the unit means nothing
    torch.testing.assert_close(undo_percentile(scaled, *percentiles(volume))[scaled > -1], volume[scaled > -1])
    assert ct_window(torch.tensor([-1000.0, 40.0, 240.0, 3000.0])).tolist() == [-1, 0, 1, 1]
    for bad, match in ((torch.ones(1, 2, 2, 2), "constant"), (volume * torch.nan, "NaN")):
        with pytest.raises(InvalidArgument, match=match):
            mri_percentile(bad)
