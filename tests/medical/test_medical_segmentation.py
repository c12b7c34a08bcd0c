"""Labels, ensembles of masks, and measures with known values."""

import numpy as np
import pytest
import torch

from suffuse.errors import InvalidArgument
from suffuse.exact import Covariance, MixtureDenoiser
from suffuse.schedules import EDM
from suffuse_medical import segmentation
from suffuse_medical.baselines import UNetSegmentation
from suffuse_medical.data import Geometry, LabelSchema, read_nifti

SCHEMA = LabelSchema(["background", "anterior", "posterior"], [0, 1, 4])
N = 8


def test_labels_go_to_classes_and_back():
    mask = torch.tensor([[[[0, 1], [4, 4]]]])
    one_hot = SCHEMA.one_hot(mask)
    assert one_hot.shape == (1, 3, 2, 2) and bool((one_hot.sum(1) == 1).all())
    torch.testing.assert_close(SCHEMA.stored(one_hot), mask)
    torch.testing.assert_close(SCHEMA.one_hot(mask.float()), one_hot)


@pytest.mark.parametrize(
    ("mask", "match"),
    [
        (torch.full((1, 1, 2, 2), 3), r"3 \(4 voxels\)"),
        (torch.full((1, 1, 2, 2), 0.5), "fractional"),
        (torch.zeros(2, 2), "mask must be"),
    ],
)
def test_bad_masks_are_named(mask, match):
    with pytest.raises(InvalidArgument, match=match):
        SCHEMA.one_hot(mask)


@pytest.mark.parametrize("bad", [["one"], ["a", "a"]])
def test_bad_schemas(bad):
    with pytest.raises(InvalidArgument, match="names"):
        LabelSchema(bad)
    with pytest.raises(InvalidArgument, match="values"):
        LabelSchema(["a", "b"], [1, 1])


class Annotators(MixtureDenoiser):
    """The exact denoiser of two annotators' masks, whatever the image: one draws small, one draws large."""

    def __init__(self):
        small, large = torch.zeros(2, 1, N, N)
        small[:, 3:5, 3:5] = 1
        large[:, 2:6, 2:6] = 1
        masks = torch.stack([small, large])
        one_hot = torch.cat([1 - masks, masks], 1)
        cov = Covariance.diagonal(torch.full((2, 2 * N * N), 1e-4))
        super().__init__([0.25, 0.75], 2 * one_hot - 1, cov, EDM(0.002, 80.0))
        self.masks = masks
        self.register_parameter("unused", torch.nn.Parameter(torch.zeros(1)))

    def forward(self, x, t, cond=None):
        return super().forward(x, t)


@pytest.fixture(scope="module")
def ensemble():
    denoiser = Annotators()
    schema = LabelSchema(["background", "lesion"])
    geometry = Geometry(np.diag([2.0, 2.0, 3.0, 1.0]), (N, N, 40))
    images = torch.zeros(40, 1, N, N)
    return denoiser, segmentation.predict(denoiser, images, schema, n=8, steps=20, geometry=geometry)


def test_members_are_whole_masks_in_the_annotators_proportions(ensemble):
    denoiser, found = ensemble
    members = found.samples[:, :, 1].flatten(0, 1)
    small, large = denoiser.masks[:, 0]
    is_small, is_large = ((members == m).flatten(1).all(1) for m in (small, large))
    assert float((is_small | is_large).float().mean()) > 0.98  # never a mixture of the two
    assert abs(float(is_large.float().mean()) - 0.75) < 0.08
    assert found.labels.shape == (40, 1, N, N) and set(found.labels.unique().tolist()) == {0, 1}
    ring = (large - small).bool()
    assert (
        float(found.entropy[:, 0][:, ring].mean()) > 0.6 and float(found.entropy[:, 0][:, ~large.bool()].max()) < 1e-6
    )


def test_energy_distance_prefers_the_ensemble_to_its_mean(ensemble):
    denoiser, found = ensemble
    annotators = torch.cat([denoiser.masks[:1, 0].expand(1, 40, N, N), denoiser.masks[1:, 0].expand(3, 40, N, N)])
    samples = found.samples[:, :, 1]
    one = (found.mean[:, 1] > 0.5).float()[None]
    assert float(segmentation.ged(samples, annotators).mean()) < float(segmentation.ged(one, annotators).mean()) - 0.1
    torch.testing.assert_close(segmentation.ged(annotators, annotators), torch.zeros(40), atol=1e-6, rtol=0)


def test_files_lie_where_the_input_lay(ensemble, tmp_path):
    _, found = ensemble
    volume, geometry = read_nifti(found.write_labels(tmp_path / "labels.nii.gz"))
    assert geometry.isclose(found.geometry) and geometry.dtype == "uint8"
    torch.testing.assert_close(volume[0].permute(2, 0, 1)[:, None].long(), found.labels)


def test_measures_have_their_known_values():
    truth = torch.zeros(3, 2, 4, 4)
    truth[:, 0] = 1
    truth[:2, :, :2] = truth[:2, :, :2].flip(1)
    assert segmentation.dice(truth, truth, ["a", "a", "b"]).tolist() == [[1.0], [1.0]]  # b is empty in both
    half = truth.clone()
    half[0] = torch.stack([torch.ones(4, 4), torch.zeros(4, 4)])
    assert segmentation.dice(half, truth, ["a", "a", "b"])[0, 0] == pytest.approx(2 * 8 / (8 + 16))
    p = torch.full((10, 4, 4), 0.3)
    y = (torch.arange(160).view(10, 4, 4) % 10 < 3).float()
    assert segmentation.expected_calibration_error(p, y) < 1e-6
    assert segmentation.expected_calibration_error(p + 0.4, y) == pytest.approx(0.4, abs=1e-6)


def test_an_ensemble_of_annotators_is_calibrated():
    """One in three annotators sees a lesion, and one in three members draws it."""
    schema = LabelSchema(["background", "lesion"])
    drawn = torch.zeros(3, 1, 4, 4)
    drawn[0, :, 1:3, 1:3] = 1
    found = segmentation.SegmentationPrediction(torch.stack([1 - drawn, drawn], dim=2), schema=schema)
    scores = segmentation.evaluate(found, torch.zeros(1, 1, 4, 4), ["a"], annotators=drawn)
    assert scores["ECE"][0] < 1e-6 and scores["GED2"][0] < 1e-6


def test_a_square_is_learned_by_both_networks():
    """Bright squares on dark noise: both find them after some steps."""
    g = torch.Generator().manual_seed(0)
    masks = torch.zeros(64, 1, 16, 16)
    for i, (a, b) in enumerate(torch.randint(2, 9, (64, 2), generator=g).tolist()):
        masks[i, :, a : a + 5, b : b + 5] = 1
    images = 2 * masks - 1 + 0.3 * torch.randn(masks.shape, generator=g)
    schema = LabelSchema(["background", "square"])
    patients = [str(i) for i in range(8)]
    denoiser = segmentation.fit(
        images[8:], masks[8:], schema, channels=(16, 16), steps=60, batch_size=16, progress=False, device="cpu"
    )
    found = segmentation.predict(denoiser, images[:8], schema, n=3, steps=5)
    scores = segmentation.evaluate(found, masks[:8], patients)
    assert scores["Dice"].mean() > 0.8 and scores["GED2"].shape == (8,)
    unet = UNetSegmentation(2, channels=(16, 16), steps=40, batch_size=16).fit(images[8:], schema.one_hot(masks[8:]))
    probability = unet.predict(images[:8])
    assert segmentation.dice(probability.round(), schema.one_hot(masks[:8]), patients).mean() > 0.8


def test_bad_input_is_named():
    images, masks = torch.zeros(4, 1, N, N), torch.zeros(4, 1, N, N)
    schema = LabelSchema(["background", "lesion"])
    for call, match in (
        (lambda: segmentation.fit(images, masks[:2], schema), "masks"),
        (lambda: segmentation.fit(images, masks + 7, schema), "labels 7"),
        (lambda: segmentation.fit(images[0], masks, schema), "slices"),
        (lambda: segmentation.predict(torch.nn.Linear(1, 1), images, schema, n=0), "sample"),
        (lambda: segmentation.dice(images, masks[:2], ["a"] * 4), "one shape"),
    ):
        with pytest.raises(InvalidArgument, match=match):
            call()
