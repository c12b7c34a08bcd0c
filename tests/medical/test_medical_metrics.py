"""Laws of the measures: known answers, and that better is better."""

import pytest
import torch

from suffuse.errors import InvalidArgument
from suffuse_medical import metrics, uncertainty
from suffuse_medical.data import to_intensity
from suffuse_medical.prediction import Prediction


def test_fidelity_of_the_truth_is_perfect_and_noise_lowers_it(slices):
    truth, brain = to_intensity(slices.test.image[:6]), slices.test.brain[:6]
    noise = torch.randn(truth.shape, generator=torch.Generator().manual_seed(0))
    scores = [metrics.fidelity(truth + level * noise, truth, brain) for level in (0.01, 0.05, 0.2)]
    perfect = metrics.fidelity(truth, truth, brain)
    assert torch.allclose(perfect["SSIM"], torch.ones(6), atol=1e-5) and not perfect["MAE"].any()
    for name, better in metrics.FIDELITY.items():
        means = [float(score[name].mean()) for score in scores]
        assert means == sorted(means, reverse=better == "higher")
    assert float(scores[1]["PSNR"].mean()) == pytest.approx(26.0, abs=0.3)  # 20 log10(1 / 0.05)


def test_what_happens_outside_the_brain_does_not_count(slices):
    truth, brain = to_intensity(slices.test.image[:4]), slices.test.brain[:4]
    spoilt = torch.where(brain, truth, truth + 1)
    assert not metrics.fidelity(spoilt, truth, brain)["MAE"].any()


def test_a_patient_counts_once_however_many_slices_it_has():
    values = torch.tensor([1.0, 1.0, 1.0, 5.0])
    assert metrics.summarise(values, ["a", "a", "a", "b"]) == metrics.Summary(3.0, pytest.approx(8**0.5), 2)


def test_a_paired_difference_of_nothing_includes_zero_and_of_something_does_not():
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(40, generator=generator)
    patients = [str(i) for i in range(40)]
    _, low, high = metrics.paired_difference(a, a + 0.1 * torch.randn(40, generator=generator), patients)
    assert low < 0 < high
    difference, low, high = metrics.paired_difference(a + 1, a, patients)
    assert difference == pytest.approx(1) and low > 0.99


def test_kernel_mmd_sees_spread_where_means_agree():
    """MONAI's own MMD is linear in its features: images of equal mean and other spread would pass for equal."""
    generator = torch.Generator().manual_seed(0)
    one, two, wide = (torch.randn(32, 1, 32, 32, generator=generator) * scale for scale in (1.0, 1.0, 1.3))
    same, other = metrics.rbf_mmd(one, two), metrics.rbf_mmd(one, wide)
    assert abs(same) < 0.05 and other > 0.5


def test_coverage_and_penalty_are_nominal_for_exchangeable_draws():
    draws = torch.randn(9, 50, 1, 20, 20, generator=torch.Generator().manual_seed(0))
    brain = torch.ones(50, 1, 20, 20, dtype=torch.bool)
    covered, nominal = metrics.range_coverage(draws[1:], draws[0], brain)
    assert nominal == pytest.approx(7 / 9) and float(covered.mean()) == pytest.approx(nominal, abs=0.02)
    penalty, expected = metrics.sample_penalty(draws[1:], draws[0], brain)
    assert penalty == pytest.approx(expected, abs=0.1)
    timid, _ = metrics.range_coverage(0.3 * draws[1:], draws[0], brain)
    assert timid.mean() < covered.mean() - 0.2


def test_spread_that_follows_the_error_correlates_with_it():
    scale = torch.rand(1, 10, 1, 20, 20, generator=torch.Generator().manual_seed(1)) + 0.05
    draws = scale * torch.randn(9, 10, 1, 20, 20, generator=torch.Generator().manual_seed(0))
    brain = torch.ones(10, 1, 20, 20, dtype=torch.bool)
    assert metrics.error_spread_correlation(draws[1:], draws[0], brain) > 0.2


def test_one_clear_error_each():
    x = torch.zeros(4, 1, 32, 32)
    with pytest.raises(InvalidArgument, match="must have one shape"):
        metrics.fidelity(x, x[:2], x > 0)
    with pytest.raises(InvalidArgument, match="brain is empty"):
        metrics.fidelity(x, x, x > 0)
    with pytest.raises(InvalidArgument, match="at least 4 images"):
        metrics.rbf_mmd(x[:2], x[:2])
    with pytest.raises(InvalidArgument, match="one image many times over"):
        metrics.rbf_mmd(x, x)
    noise = torch.randn(4, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    for real, generated, name in ((noise, noise * torch.nan, "generated"), (noise / 0, noise, "real")):
        for distance in (metrics.rbf_mmd, metrics.fid):
            with pytest.raises(InvalidArgument, match=f"{name} has NaN or infinite voxels"):
                distance(real, generated)


def _calibration_set(patients=10):
    generator = torch.Generator().manual_seed(0)
    samples, truth = torch.randn(5, patients, 1, 4, 4, generator=generator).split([4, 1])
    return samples, truth[0], torch.ones(patients, 1, 4, 4, dtype=torch.bool), [str(k) for k in range(patients)]


def test_intervals_are_not_calibrated_on_nothing():
    samples, truth, mask, patients = _calibration_set()
    bare, spoilt = mask.clone(), truth.clone()
    bare[3], spoilt[2, 0, 0, 0] = False, torch.nan
    assert uncertainty.calibrate(Prediction(samples), truth, mask, patients).scale > 0
    for arguments, message in (
        ((Prediction(samples), truth, bare, patients), r"mask is empty for the patients \['3'\]"),
        ((Prediction(torch.zeros_like(samples)), truth, mask, patients), "no spread to scale"),
        ((Prediction(samples), spoilt, mask, patients), "NaN or infinite voxels inside of mask"),
        ((Prediction(samples), truth, mask, patients[:-1]), "a name each"),
    ):
        with pytest.raises(InvalidArgument, match=message):
            uncertainty.calibrate(*arguments)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_measures_are_the_same_on_a_gpu():
    samples, truth, mask, patients = _calibration_set()
    images = torch.randn(2, 8, 1, 32, 32, generator=torch.Generator().manual_seed(0))

    def numbers(device):
        prediction, x, m = Prediction(samples.to(device)), truth.to(device), mask.to(device)
        found = uncertainty.calibrate(prediction, x, m, patients)
        return [
            found.scale,
            *found.coverage(prediction, x, m, patients),
            uncertainty.sparsification(prediction, x, m)[1],
            metrics.error_spread_correlation(prediction.samples, x, m),
            *metrics.per_patient(x.mean((1, 2, 3)), patients),
            metrics.rbf_mmd(*images.to(device)),
        ]

    assert numbers("cuda") == pytest.approx(numbers("cpu"), rel=1e-3, abs=1e-4)


def test_fid_of_known_gaussians_and_the_refusal_of_few_images():
    """Two Gaussians of unit covariance a distance m apart are m^2 apart."""
    generator = torch.Generator().manual_seed(0)
    real, moved = torch.randn(4000, 1, 2, 2, generator=generator), 1 + torch.randn(4000, 1, 2, 2, generator=generator)
    found = metrics.fid(real, moved, lambda x: x.flatten(1))
    assert found.value == pytest.approx(4, rel=0.1) and found.real_halves < 0.05
    with pytest.raises(InvalidArgument, match="as many of either set, got 4 and 16"):
        metrics.fid(real, torch.zeros(4000, 1, 4, 4), lambda x: x.flatten(1))
    with pytest.raises(InvalidArgument, match="at least 768 images"):
        metrics.fid(torch.zeros(20, 1, 24, 24), torch.zeros(20, 1, 24, 24))
    with pytest.raises(InvalidArgument, match="at least 20 x 20 pixels"):
        metrics.texture_features(torch.zeros(20, 1, 16, 16))
