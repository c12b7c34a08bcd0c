"""Datasets in files, and volumes turned about their axes."""

import numpy as np
import pytest
import torch

from suffuse.errors import InvalidArgument
from suffuse_medical.data import (
    Geometry,
    MedMNIST,
    PictureFolder,
    VolumeFolder,
    check_splits,
    group_split,
    read_nifti,
    reorient,
    stack,
    write_nifti,
)


def test_reorienting_keeps_every_voxel_where_it_lies(geometry):
    """RAS, LAS, LIA and oblique, to every kind of axes and back."""
    volume = torch.arange(int(np.prod(geometry.shape)), dtype=torch.float32).reshape(1, *geometry.shape)
    for codes in ("RAS", "LPS", "LIA", "SAR"):
        turned, where = reorient(volume, geometry, codes)
        assert where.axcodes == codes and where.shape == tuple(turned.shape[1:])
        assert sorted(where.spacing) == pytest.approx(sorted(geometry.spacing))
        for value in (0, 7, 333, volume.numel() - 1):
            here, there = ((v[0] == value).nonzero()[0].numpy() for v in (volume, turned))
            np.testing.assert_allclose(geometry.world(here), where.world(there), atol=1e-4)
        back, again = reorient(turned, where, geometry.axcodes)
        torch.testing.assert_close(back, volume)
        assert again.isclose(geometry)
    with pytest.raises(InvalidArgument, match="axcodes"):
        reorient(volume, geometry, "RRS")


@pytest.fixture
def folder(tmp_path):
    """Two volumes, one RAS and one LAS, with labels."""
    for name, sign in (("first", 1), ("second", -1)):
        geometry = Geometry(np.diag([sign * 2.0, 2.0, 3.0, 1.0]), (4, 5, 6), dtype="int16")
        volume = torch.zeros(1, 4, 5, 6)
        volume[0, 0 if sign > 0 else 3] = 100  # the patient's left
        write_nifti(tmp_path / "images" / f"{name}.nii.gz", volume, geometry)
        write_nifti(tmp_path / "labels" / f"{name}.nii.gz", (volume > 0).float(), geometry.stored_as("uint8"))
    return tmp_path


def test_volumes_come_in_one_orientation_with_their_labels(folder):
    data = VolumeFolder(folder / "images", folder / "labels")
    assert len(data) == 2 and data.names == ["first", "second"]
    for item in data:
        where, label = Geometry.of(item["image"]), Geometry.of(item["label"])
        assert where.axcodes == "RAS" and where.dtype == "int16" and label.dtype == "uint8" and label.isclose(where)
        assert bool((torch.as_tensor(item["image"])[0, 0] == 100).all())  # left is left
        torch.testing.assert_close(torch.as_tensor(item["label"]), (torch.as_tensor(item["image"]) > 0).float())
        assert item["patient_id"] == item["study_id"]
    assert stack(data).shape == (2, 1, 4, 5, 6)
    sides = group_split([data[0], data[1]], {"train": 0.5, "test": 0.5})
    assert len(sides["train"]) == len(sides["test"]) == 1


@pytest.mark.parametrize("library", ["torch", "monai"])
def test_volumes_come_in_batches(folder, library):
    import monai.data

    loader = (torch.utils.data.DataLoader if library == "torch" else monai.data.DataLoader)(
        VolumeFolder(folder / "images", folder / "labels"), batch_size=2
    )
    (batch,) = loader
    assert batch["image"].shape == (2, 1, 4, 5, 6) and batch["patient_id"] == ["first", "second"]
    if library == "monai":
        first, second = monai.data.decollate_batch(batch)
        assert Geometry.of(first["image"]).dtype == "int16" and Geometry.of(second["label"]).dtype == "uint8"


def test_a_flipped_item_is_written_where_it_lies(folder, tmp_path):
    """The left stays the left: MONAI flips voxels and affine together, and there is no second, stale geometry."""
    from monai.transforms import RandFlipd

    item = RandFlipd(["image", "label"], prob=1, spatial_axis=0)(VolumeFolder(folder / "images", folder / "labels")[0])
    for key, dtype in (("image", "int16"), ("label", "uint8")):
        again, where = read_nifti(write_nifti(tmp_path / f"{key}.nii", item[key], Geometry.of(item[key])))
        assert where.axcodes == "LAS" and where.dtype == dtype
        assert again[0].nonzero()[:, 0].unique().tolist() == [3] and where.world((3, 0, 0))[0] == pytest.approx(0)


def test_only_nifti_files_are_volumes(folder):
    (folder / "images" / "first.nii.json").write_text("{}")
    (folder / "images" / "first.nii.gz.md5").write_text("0")
    assert VolumeFolder(folder / "images").names == ["first", "second"]


def test_bad_folders_are_named(folder):
    with pytest.raises(InvalidArgument, match="mixed orientations"):
        VolumeFolder(folder / "images", orientation=None)
    with pytest.raises(InvalidArgument, match=r"\.nii"):
        VolumeFolder(folder / "nowhere")
    (folder / "labels" / "second.nii.gz").unlink()
    with pytest.raises(InvalidArgument, match="lacks 1 of 2"):
        VolumeFolder(folder / "images", folder / "labels")
    _, geometry = read_nifti(folder / "images" / "first.nii.gz")
    shifted = geometry.affine + np.array([[0, 0, 0, 5.0], [0] * 4, [0] * 4, [0] * 4])
    for name in ("first", "second"):
        write_nifti(folder / "labels" / f"{name}.nii.gz", torch.zeros(4, 5, 6), Geometry(shifted, (4, 5, 6)))
    with pytest.raises(InvalidArgument, match="another grid"):
        VolumeFolder(folder / "images", folder / "labels")[0]


def test_medmnist_archives(tmp_path):
    g = np.random.default_rng(0)
    arrays = {}
    for split, n in (("train", 4), ("val", 2), ("test", 3)):
        arrays[f"{split}_images"] = g.integers(0, 256, (n, 28, 28, 3), dtype=np.uint8)
        arrays[f"{split}_labels"] = g.integers(0, 5, (n, 1), dtype=np.uint8)
    np.savez(tmp_path / "colourmnist.npz", **arrays)
    data = MedMNIST(tmp_path / "colourmnist.npz", "test")
    assert len(data) == 3 and data[0]["image"].shape == (3, 28, 28) and data[2]["study_id"] == "colourmnist-test-00002"
    assert float(data[0]["image"].max()) <= 1
    np.testing.assert_array_equal(np.round(255 * data[1]["image"].permute(1, 2, 0).numpy()), arrays["test_images"][1])
    with pytest.raises(InvalidArgument, match="patient_id"):  # nobody knows which images are of one patient
        group_split([data[0], data[1]], {"train": 0.5, "test": 0.5})
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    for path, split, match in (
        (tmp_path / "other.npz", "train", "no MedMNIST"),
        (tmp_path / "nowhere.npz", "train", "not a file"),
        (tmp_path / "colourmnist.npz", "all", "split"),
    ):
        with pytest.raises(InvalidArgument, match=match):
            MedMNIST(path, split)


def test_pictures_with_masks(tmp_path):
    from PIL import Image

    for part in ("images", "labels"):
        (tmp_path / part).mkdir()
    pixels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3) * 5
    ids = np.arange(16, dtype=np.uint16).reshape(4, 4) * 100
    Image.fromarray(pixels).save(tmp_path / "images" / "a.png")
    Image.fromarray(ids).save(tmp_path / "labels" / "a.tif")
    item = PictureFolder(tmp_path / "images", tmp_path / "labels")[0]
    np.testing.assert_allclose(item["image"].permute(1, 2, 0).numpy() * 255, pixels, atol=1e-4)
    np.testing.assert_array_equal(item["label"][0].numpy(), ids)
    assert "patient_id" not in item
    (tmp_path / "images" / "b.png").write_bytes(b"no picture")
    with pytest.raises(InvalidArgument, match="no mask"):
        PictureFolder(tmp_path / "images", tmp_path / "labels")
    with pytest.raises(InvalidArgument, match="readable"):
        PictureFolder(tmp_path / "images")[1]


def test_white_is_that_of_the_type(tmp_path):
    """Dark pictures stay dark, whatever their largest value; colours are colours, and transparency is none."""
    from PIL import Image

    g = np.random.default_rng(0)
    ramp = np.arange(16).reshape(4, 4)
    red = Image.new("P", (4, 4))
    red.putpalette([0, 0, 0, 255, 0, 0])
    red.putdata(list(ramp.flatten() % 2))
    expected = {
        "bits.png": (Image.fromarray(ramp % 2 == 0), ramp % 2 == 0),
        "bytes.png": (Image.fromarray(ramp.astype(np.uint8)), ramp / 255),
        "dark.png": (Image.fromarray(ramp.astype(np.uint16)), ramp / 65535),
        "dark.tif": (Image.fromarray(ramp.astype(np.uint16)), ramp / 65535),
        "float.tif": (Image.fromarray((ramp / 20).astype(np.float32)), ramp / 20),
        "grey-alpha.png": (Image.fromarray(np.stack([ramp, 255 - ramp], -1).astype(np.uint8), "LA"), ramp / 255),
        "palette.png": (red, np.stack([ramp % 2, 0 * ramp, 0 * ramp])),
    }
    colours = g.integers(0, 256, (4, 4, 4), dtype=np.uint8)
    expected["rgba.png"] = (Image.fromarray(colours), colours.transpose(2, 0, 1)[:3] / 255)
    for name, (picture, _) in expected.items():
        picture.save(tmp_path / name)
    found = PictureFolder(tmp_path)
    for item, file in zip(found, found.files, strict=True):
        values = np.asarray(expected[file.name][1], dtype=np.float32)
        np.testing.assert_allclose(item["image"], values if values.ndim == 3 else values[None], atol=1e-6, err_msg=file)
    assert PictureFolder(tmp_path, tmp_path)[found.files.index(tmp_path / "palette.png")]["label"].max() == 1
    for name, array in (("beyond", np.full((4, 4), 7, np.float32)), ("wide", np.full((4, 4), 7, np.int32))):
        (tmp_path / name).mkdir()
        Image.fromarray(array).save(tmp_path / name / "a.tif")
        with pytest.raises(InvalidArgument, match="nobody knows what is white"):
            PictureFolder(tmp_path / name)[0]


@pytest.mark.data
def test_the_real_sets_can_be_read(suffuse_data):
    root = suffuse_data / "medical"
    hippocampus = VolumeFolder(root / "Task04_Hippocampus" / "imagesTr", root / "Task04_Hippocampus" / "labelsTr")
    assert len(hippocampus) == 260 and set(torch.as_tensor(hippocampus[0]["label"]).unique().tolist()) == {0, 1, 2}
    assert len(MedMNIST(root / "medmnist" / "pneumoniamnist.npz", "test")) == 624
    nuclei = root / "dsb2018_nuclei" / "fluorescence"
    assert int(PictureFolder(nuclei / "images", nuclei / "labels")[0]["label"].max()) > 1


def test_patients_that_cross_splits_are_named():
    items = [{"patient_id": f"p{i % 5}", "study_id": f"s{i}"} for i in range(20)]
    check_splits(group_split(items, {"train": 0.6, "test": 0.4}))
    with pytest.raises(InvalidArgument, match="'patient_id' are in 'train' and in 'test'"):
        check_splits({"train": items[:8], "test": items[8:]})
    with pytest.raises(InvalidArgument, match="'study_id' are in"):
        check_splits({"train": [{"patient_id": "a", "study_id": "s"}], "test": [{"patient_id": "b", "study_id": "s"}]})
    with pytest.raises(InvalidArgument, match="no 'patient_id'"):
        check_splits({"train": [{"study_id": "s"}], "test": []})
