"""Laws of the data: physics that orders tissues, anatomy that is not torn, splits that do not leak."""

import numpy as np
import pytest
import torch

from suffuse.errors import InvalidArgument
from suffuse_medical.data import (
    SEQUENCES,
    TISSUE_CLASSES,
    WORKING_GRID,
    Geometry,
    PhantomCohort,
    Relaxation,
    SpinEcho,
    VolumeFolder,
    axial_slices,
    check_leakage,
    group_split,
    jacobian_determinant,
    labelled_phantoms,
    labelled_volumes,
    load_slices,
    load_template,
    random_displacement,
    slab_split,
    template_item,
    write_nifti,
)
from suffuse_medical.data.phantoms import WHITE_LEVEL
from suffuse_medical.data.physics import FLUID, GREY_MATTER, WHITE_MATTER

SMALL = Geometry.centred((28, 32, 24), 6.0, (0.0, -17.0, 12.0))


# --- physics ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tissue", [GREY_MATTER, WHITE_MATTER, FLUID])
def test_signal_rises_with_repetition_time_and_falls_with_echo_time(tissue):
    rising = [SpinEcho(tr, 15).signal(tissue) for tr in (100, 400, 1600, 6400)]
    falling = [SpinEcho(3000, te).signal(tissue) for te in (5, 20, 80, 320)]
    assert rising == sorted(rising) and falling == sorted(falling, reverse=True)
    assert min(rising + falling) > 0 and max(rising + falling) <= tissue.density


def test_sequences_order_the_tissues_as_radiologists_expect():
    t1, t2 = ([SEQUENCES[s].signal(k) for k in (WHITE_MATTER, GREY_MATTER, FLUID)] for s in ("T1w", "T2w"))
    assert t1 == sorted(t1, reverse=True) and t2 == sorted(t2)


def test_long_repetition_and_short_echo_show_proton_density():
    assert SpinEcho(1e6, 0).signal(GREY_MATTER) == pytest.approx(GREY_MATTER.density)


def test_inversion_nulls_the_tissue_it_is_timed_for():
    tissue = Relaxation(t1=1000, t2=100, density=1)
    assert SpinEcho(tr=1e6, te=0, ti=693.147).signal(tissue) == pytest.approx(0, abs=1e-5)
    assert SEQUENCES["FLAIR"].signal(FLUID) < 0.2 * SEQUENCES["FLAIR"].signal(GREY_MATTER)


# --- template and phantoms --------------------------------------------------------------------------------------


def test_template_fractions_are_fractions_and_follow_intensity():
    template = load_template()
    assert template.tissue.min() >= 0 and template.tissue.sum(0).max() <= 1 + 1e-3
    grey, white, fluid = (template.t1[0][fraction > 0.9].median() for fraction in template.tissue)
    assert fluid < grey < white
    brain = template.brain[0]
    assert not (brain[0] | brain[-1]).any() and not (brain[:, 0] | brain[:, -1]).any(), "the grid cuts the brain"


def test_deformation_never_folds_and_keeps_slices_in_their_plane():
    for seed in range(5):
        u = random_displacement(WORKING_GRID, torch.Generator().manual_seed(seed), amplitude=9.0)
        assert jacobian_determinant(u).min() > 0.2
        assert not u[2].any() and 1 < u.norm(dim=0).max() * 3 < 12


def test_a_pseudo_patient_depends_on_its_own_number_only():
    few, many = PhantomCohort(3, geometry=SMALL), PhantomCohort(20, geometry=SMALL)
    for key in ("image", "tissue"):
        assert torch.equal(few[2][key], many[2][key])
    assert not torch.equal(few[1]["tissue"], few[2]["tissue"])
    assert not torch.equal(few[1]["tissue"], PhantomCohort(3, geometry=SMALL, seed=1)[1]["tissue"])


def test_another_scan_has_the_same_anatomy_and_another_image():
    first, second = (PhantomCohort(2, geometry=SMALL, sites=("B",), repeat=k)[1] for k in (0, 1))
    assert torch.equal(first["tissue"], second["tissue"]) and first["patient_id"] == second["patient_id"]
    assert not torch.allclose(first["image"], second["image"], atol=0.02) and first["study_id"] != second["study_id"]


def test_items_are_monai_dictionaries_on_one_scale():
    from monai.data import MetaTensor
    from monai.transforms import Compose, RandFlipd, ScaleIntensityd

    item = PhantomCohort(1, geometry=SMALL, sequences=("T1w", "T2w"), sites=("A",))[0]
    assert isinstance(item["image"], MetaTensor) and Geometry.of(item["tissue"]).isclose(SMALL)
    assert item["image"].shape == (2, *SMALL.shape) and item["tissue"].shape == (3, *SMALL.shape)
    assert item["image"][0][item["tissue"][1] > 0.9].median() == pytest.approx(WHITE_LEVEL, abs=0.02)
    turned = Compose([RandFlipd(["image", "tissue"], prob=1, spatial_axis=0), ScaleIntensityd("image")])(item)
    assert turned["image"].shape == item["image"].shape and turned["image"].max() == 1


def test_noisier_sites_are_noisier():
    def roughness(site):
        item = PhantomCohort(1, sites=(site,))[0]
        inside = item["tissue"][1] > 0.95
        return float(item["image"][0][inside].std())

    assert roughness("T") < roughness("A") < roughness("D")


# --- splits -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(10))
def test_no_group_crosses_a_split(seed):
    generator = torch.Generator().manual_seed(seed)
    n = int(torch.randint(3, 40, (), generator=generator))
    owners = torch.randint(0, n, (120,), generator=generator).tolist() + [0, 1, 2]
    items = [{"patient_id": f"p{owner}", "row": i} for i, owner in enumerate(owners)]
    parts = group_split(items, {"train": 0.6, "val": 0.1, "test": 0.3}, seed=seed)
    groups = {name: {item["patient_id"] for item in part} for name, part in parts.items()}
    assert all(groups.values())
    assert len(set().union(*groups.values())) == sum(map(len, groups.values()))
    assert sorted(item["row"] for part in parts.values() for item in part) == list(range(len(items)))
    shuffled = [items[i] for i in torch.randperm(len(items), generator=generator)]
    again = group_split(shuffled, {"train": 0.6, "val": 0.1, "test": 0.3}, seed=seed)
    assert {item["patient_id"] for item in again["test"]} == groups["test"], "the order of items matters"


def test_slabs_keep_their_distance():
    positions = [3.0 * k - 60 for k in range(48)]
    train, test = slab_split(positions, (9, 24), gap=15)
    assert min(abs(positions[i] - positions[j]) for i in train for j in test) > 15
    assert all(9 <= positions[i] <= 24 for i in test)


def test_test_slices_share_no_patient_with_training_and_unseen_ones_no_slab_either(slices):
    for part in (slices.test, slices.unseen):
        assert not set(slices.train.patient) & set(part.patient)
    assert min(abs(a - b) for a in slices.train.z for b in slices.unseen.z) > 15
    check_leakage(slices.train.image, slices.unseen.image)


def test_left_and_right_halves_of_the_template_leak():
    whole = axial_slices([template_item()]).image
    left, right = whole[:, :, :28], whole[:, :, 28:]
    with pytest.raises(InvalidArgument, match="split by patient or slab"):
        check_leakage(left, right)


def test_alternating_slices_of_the_template_leak():
    whole = axial_slices([template_item()]).image
    with pytest.raises(InvalidArgument, match="correlates"):
        check_leakage(whole[::2], whole[1::2], threshold=0.95)


def test_the_template_slabs_pass_the_check():
    split = load_slices("template")
    assert check_leakage(split.train.image, split.unseen.image) < 0.98


# --- bad input --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: load_slices("phantom"), "unknown dataset 'phantom'; did you mean 'phantoms'"),
        (lambda: load_slices("phantoms", patients=1), "patients must be at least 2"),
        (lambda: PhantomCohort(0), "n must be at least 1"),
        (lambda: PhantomCohort(1, sites=("Z",)), "unknown site"),
        (lambda: PhantomCohort(1, sites=()), "at least one"),
        (lambda: PhantomCohort(1, sequences=("T3w",)), "unknown sequence"),
        (lambda: PhantomCohort(1, sequences=("T2w",), sites=("T",)), "leave the site out"),
        (lambda: axial_slices([]), "dataset is empty"),
        (lambda: group_split([], {"train": 1.0}), "items is empty"),
        (lambda: group_split([{"id": 1}], {"train": 1.0}), "have no 'patient_id'"),
        (lambda: group_split([{"patient_id": 1}], {"train": 0.5, "test": 0.5}), "cannot fill"),
        (lambda: group_split([{"patient_id": 1}], {"train": 0.5}), "add up to 1"),
        (lambda: slab_split([1, 2], (5, 3)), "low < high"),
        (lambda: slab_split([1, 2], (5, 6)), "0 test slices"),
    ],
)
def test_one_clear_error(call, message):
    with pytest.raises(InvalidArgument, match=message):
        call()


def test_nan_images_are_refused():
    item = template_item()
    item["image"] = item["image"].clone()
    item["image"][0, 20, 20, 20] = torch.nan
    with pytest.raises(InvalidArgument, match="'mni152-template' has NaN"):
        axial_slices([item])


def test_items_on_another_grid_are_refused():
    """Slices of a grid that is not theirs would have the wrong height, or not be axial."""
    from monai.transforms import Orientation

    item = PhantomCohort(1, geometry=SMALL)[0]
    turned = item | {key: Orientation("LIA")(item[key]) for key in ("image", "tissue", "lesion")}
    shifted = Geometry(SMALL.affine + 6 * np.eye(4, k=3), SMALL.shape)
    for wrong, geometry, match in (
        (item, WORKING_GRID, "image of 'phantom-0-0000' lies on another grid"),
        (turned, SMALL, "axes LIA"),
        (turned, Geometry.of(turned["image"]), "not axial"),
        (item | {"tissue": shifted.attach(item["tissue"].as_tensor())}, SMALL, "tissue of .* another grid"),
        (item | {"tissue": item["tissue"].as_tensor()[..., 1:]}, SMALL, "tissue of .* another grid"),
    ):
        with pytest.raises(InvalidArgument, match=match):
            axial_slices([wrong], geometry)


def test_lesions_are_where_their_mask_is():
    """Sick and healthy pseudo-patients of one seed differ in the lesion and a voxel around it; T2w shows it bright."""
    from suffuse_medical.data import PhantomCohort

    options = {"sequences": ("T2w",), "sites": ("A",), "seed": 3, "geometry": SMALL, "lesion_radius": 14.0}
    sick, healthy = (PhantomCohort(2, lesions=n, **options)[1] for n in ((2, 2), (0, 0)))
    mask = torch.as_tensor(sick["lesion"])
    assert mask.sum() > 10 and not torch.as_tensor(healthy["lesion"]).any()
    assert set(mask.unique().tolist()) == {0.0, 1.0}
    near = torch.nn.functional.max_pool3d(mask, 3, 1, 1) > 0
    change = (torch.as_tensor(sick["image"]) - torch.as_tensor(healthy["image"])).abs()
    assert float(change[~near].max()) < 1e-4
    assert float(change[mask > 0].mean()) > 0.3
    torch.testing.assert_close(torch.as_tensor(sick["tissue"]), torch.as_tensor(healthy["tissue"]))


@pytest.mark.parametrize("site", ["A", "B", "C", "D", "E"])
def test_sites_leave_anatomy_and_mark_intensities(site):
    from suffuse_medical.data import SITES, PhantomCohort

    def item(name):
        return PhantomCohort(1, sites=(name,), seed=1, geometry=SMALL)[0]

    image, reference = torch.as_tensor(item(site)["image"]), torch.as_tensor(item("A")["image"])
    tissue = torch.as_tensor(item(site)["tissue"])
    torch.testing.assert_close(tissue, torch.as_tensor(item("A")["tissue"]))
    assert torch.isfinite(image).all()
    white = float(image[0][tissue[1] > 0.9].median())
    assert abs(white - 0.8 * SITES[site].gain) < 0.08
    if site == "A":
        return
    brain = tissue.sum(0) > 0.5
    pair = torch.stack([image[0][brain], reference[0][brain]])
    assert 0.6 < float(torch.corrcoef(pair)[0, 1]) < 0.9999


def test_bad_cohorts():
    from suffuse_medical.data import PhantomCohort

    with pytest.raises(InvalidArgument, match="lesions"):
        PhantomCohort(1, lesions=(3, 1))
    with pytest.raises(InvalidArgument, match="site"):
        PhantomCohort(1, sites=("Q",))


def test_labelled_slices_of_phantoms_and_of_folders(tmp_path):
    found = labelled_phantoms(2, ["T1w", (3000, 20)])
    assert found.images.shape == (len(found.patients), 1, 28, 32) and found.labels.shape == (
        len(found.patients),
        28,
        32,
    )
    assert set(found.labels.unique().tolist()) == set(range(TISSUE_CLASSES)) and len(set(found.patients)) == 2
    one, other = ([p == name for p in found.patients] for name in sorted(set(found.patients)))
    grey, white = ([float(found.images[k, 0][found.labels[k] == c].mean()) for k in (one, other)] for c in (1, 2))
    assert grey[0] < white[0] and grey[1] > white[1], "T1 and proton density have opposite contrast"
    each = labelled_phantoms(3, ["T1w"], ("A", "C"), seed=4)
    for site, who in (("A", (0, 2)), ("C", (1,))):
        alone = labelled_phantoms(3, ["T1w"], (site,), seed=4)
        for k in who:
            rows = [i for i, name in enumerate(each.patients) if name == sorted(set(each.patients))[k]]
            assert torch.equal(each.images[rows], alone.images[rows])
            assert not torch.equal(alone.images[rows], labelled_phantoms(3, ["T1w"], ("E",), seed=4).images[rows])

    geometry = Geometry(np.eye(4), (6, 8, 4))
    label = torch.zeros(1, 6, 8, 4)
    label[0, 2:4, 3:5, 1:3] = 1
    for name, volume in (("images", label + torch.rand(1, 6, 8, 4)), ("labels", label)):
        write_nifti(tmp_path / name / "a.nii.gz", volume, geometry)
    folder = VolumeFolder(tmp_path / "images", tmp_path / "labels")
    axial = labelled_volumes(folder, [0], (8, 8))
    assert axial.images.shape == (2, 1, 8, 8) and axial.patients == ("a", "a")
    assert torch.equal(axial.labels[0, 3:5, 3:5], torch.ones(2, 2, dtype=torch.long)) and axial.labels.sum() == 8
    assert (axial.images[:, :, 0] == -1).all(), "what is padded is air"
    assert len(labelled_volumes(folder, [0], (8, 8), axis=1, every=2, empty=True).images) == 4
    with pytest.raises(InvalidArgument, match="no labels"):
        labelled_volumes(VolumeFolder(tmp_path / "images"), [0], (8, 8))
