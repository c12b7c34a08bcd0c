"""Reconstruction against the exact posterior of a Gaussian prior, and intervals that cover what they promise."""

import math

import numpy as np
import pytest
import torch

import suffuse
from suffuse.errors import InvalidArgument
from suffuse.exact import GaussianDenoiser
from suffuse.schedules import EDM, VPCosine
from suffuse_medical import reconstruction
from suffuse_medical.baselines import gaussian_posterior, total_variation
from suffuse_medical.data import Geometry
from suffuse_medical.operators import Inpaint, MaskedFourier, kspace_mask
from suffuse_medical.prediction import Prediction
from suffuse_medical.uncertainty import calibrate, sparsification

N, NOISE, FIELDS = 10, 0.02, 8


@pytest.fixture(scope="module")
def problem():
    """A smooth random field behind a k-space mask: prior, truth, measurement and the exact posterior."""
    g = torch.Generator().manual_seed(0)
    grid = torch.stack(torch.meshgrid(torch.arange(N), torch.arange(N), indexing="ij"), -1).flatten(0, 1).double()
    cov = 0.05 * torch.exp(-torch.cdist(grid, grid) / 4) + 1e-4 * torch.eye(N * N, dtype=torch.float64)
    mean = 0.5 * torch.ones(1, N, N, dtype=torch.float64)
    truth = mean + (torch.randn(FIELDS, N * N, generator=g, dtype=torch.float64) @ torch.linalg.cholesky(cov).T).view(
        FIELDS, 1, N, N
    )
    operator = MaskedFourier(kspace_mask((N, N), 2.5, 0.2, generator=g))
    y = operator(truth)
    y = y + NOISE * operator.mask * torch.randn(y.shape, generator=g, dtype=torch.float64)
    exact, covariance = gaussian_posterior(mean, cov, operator, y, NOISE)
    return {
        "mean": mean, "cov": cov, "truth": truth.float(), "operator": operator, "y": y.float(),
        "exact": exact.float(), "covariance": covariance,
    }  # fmt: skip


def psnr(x, truth):
    return 10 * math.log10(1 / float((x - truth).square().mean()))


def test_the_exact_posterior_beats_every_other_estimate(problem):
    best = psnr(problem["exact"], problem["truth"])
    for other in (
        problem["operator"].pseudo_inverse(problem["y"]),
        total_variation(problem["operator"], problem["y"], 0.003),
        problem["mean"].float().expand_as(problem["truth"]),
    ):
        assert psnr(other, problem["truth"]) < best - 0.3


def test_total_variation_beats_zero_filling_and_minimises_its_objective(problem):
    operator, y, truth = problem["operator"], problem["y"], problem["truth"]
    x = total_variation(operator, y, 0.003, iterations=300)
    assert psnr(x, truth) > psnr(operator.adjoint(y), truth)

    def objective(x):
        down, right = (torch.nn.functional.pad(x.diff(dim=d), p) for d, p in ((-2, (0, 0, 0, 1)), (-1, (0, 1))))
        return float((operator(x) - y).square().sum() / 2 + 0.003 * (down**2 + right**2 + 1e-4).sqrt().sum())

    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    assert all(objective(x) < objective(x + s * noise) for s in (1e-2, -1e-2))


@pytest.mark.parametrize("schedule", [VPCosine(), EDM(0.002, 80.0)], ids=["vp", "ve"])
def test_posterior_samples_are_exact_for_a_gaussian_prior(problem, schedule):
    """Mean within 0.7 dB of the exact posterior mean, one sample 3 dB below it, coverage within 3% of nominal."""
    prior = GaussianDenoiser(problem["mean"], problem["cov"], schedule)
    drawn = reconstruction.predict(
        prior, problem["operator"], problem["y"], noise_std=NOISE, n=40, steps=15, iterations=15, batch_size=320
    )
    truth = problem["truth"]
    exact = psnr(problem["exact"], truth)
    assert exact - psnr(drawn.mean, truth) < 0.3
    single = np.mean([psnr(x, truth) for x in drawn.samples])
    assert 2.0 < exact - single < 4.0
    std = torch.from_numpy(np.sqrt(problem["covariance"].diagonal().numpy())).view(1, N, N).float()
    assert abs(float((drawn.std.square().mean(0) / std.square()).mean()) - 1) < 0.06
    # the coverage of draws from the exact posterior, of which there are as many, is what to compare with
    root = torch.linalg.cholesky(problem["covariance"] + 1e-9 * torch.eye(N * N))
    z = torch.randn(40, FIELDS, N * N, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    ideal = Prediction(problem["exact"] + (z @ root.T).view(40, FIELDS, 1, N, N).float())
    mask, patients = torch.ones_like(truth, dtype=torch.bool), [str(i) for i in range(FIELDS)]
    ours, theirs = (reconstruction.evaluate(p, truth, mask, patients)["coverage"].mean() for p in (drawn, ideal))
    assert abs(ours - theirs) < 0.03


@pytest.mark.parametrize("method", ["dds", "score-mri"])
def test_published_methods_beat_zero_filling_and_fit_the_data(problem, method):
    prior = GaussianDenoiser(problem["mean"], problem["cov"], EDM(0.002, 80.0))
    operator, truth = problem["operator"], problem["truth"]
    y = operator(truth)  # both take data as noise-free
    drawn = reconstruction.predict(prior, operator, y, method=method, n=6, steps=30)
    exact, _ = gaussian_posterior(problem["mean"], problem["cov"], operator, y.double(), 1e-4)
    # the mean of six perfect samples is 10 log10(7 / 6) = 0.7 dB below the exact mean
    assert psnr(operator.pseudo_inverse(y), truth) < psnr(drawn.mean, truth) > psnr(exact.float(), truth) - 1.2
    residual = torch.stack([operator.residual(x, y) for x in drawn.samples])
    assert float(residual.max()) < 1e-3
    assert float(drawn.std.mean()) > 0


def test_samples_depend_on_their_own_seed_and_keep_their_geometry(problem, tmp_path):
    prior = GaussianDenoiser(problem["mean"], problem["cov"], EDM(0.002, 80.0))
    geometry = Geometry(np.diag([2.0, 2.0, 3.0, 1.0]), (N, N, 4))
    operator, y = problem["operator"], problem["y"][:4]
    together = reconstruction.predict(prior, operator, y, n=2, steps=4, geometry=geometry)
    apart = reconstruction.predict(prior, operator, y, n=2, steps=4, batch_size=1)
    torch.testing.assert_close(together.samples, apart.samples, atol=1e-4, rtol=1e-4)
    from suffuse_medical.data import read_nifti

    files = together.write(tmp_path)
    assert sorted(f.name for f in files) == ["mean.nii.gz", "sample-0.nii.gz", "sample-1.nii.gz", "std.nii.gz"]
    volume, found = read_nifti(tmp_path / "mean.nii.gz")
    assert found.isclose(geometry)
    torch.testing.assert_close(volume[0].permute(2, 0, 1), together.mean[:, 0])
    with pytest.raises(InvalidArgument, match="geometry"):
        apart.write(tmp_path)
    with pytest.raises(InvalidArgument, match="voxels"):
        Prediction(together.samples[:, :2], geometry)


def test_complex_images_and_a_network_prior():
    g = torch.Generator().manual_seed(0)
    images = 0.2 * torch.randn(12, 2, 8, 8, generator=g)
    prior = reconstruction.fit(images, channels=(8, 16), steps=2, progress=False, device="cpu")
    operator = MaskedFourier(kspace_mask((8, 8), 2.0, 0.3, generator=g), is_complex=True)
    for method in reconstruction.METHODS:
        drawn = reconstruction.predict(prior, operator, operator(images[:2]), method=method, n=2, steps=3)
        assert drawn.samples.shape == (2, 2, 2, 8, 8)


# --- calibration ------------------------------------------------------------------------------------------------


def toy(patients, seed, scale):
    """Truth and samples of a model whose spread is off by ``scale``."""
    g = torch.Generator().manual_seed(seed)
    spread = 0.2 + torch.rand(patients, 1, 8, 8, generator=g)
    mean = torch.randn(patients, 1, 8, 8, generator=g)
    truth = mean + spread * torch.randn(mean.shape, generator=g)
    samples = mean + scale * spread * torch.randn(40, *mean.shape, generator=g)
    return Prediction(samples), truth, torch.ones_like(truth, dtype=torch.bool), [f"p{i}" for i in range(patients)]


@pytest.mark.parametrize("scale", [0.3, 1.0, 2.0])
def test_calibrated_intervals_cover_new_patients(scale):
    fitted = calibrate(*toy(40, 0, scale), level=0.9)
    covered = fitted.coverage(*toy(60, 1, scale))
    assert 0.9 - 0.02 < covered.mean() < 0.97
    assert fitted.width(toy(2, 1, scale)[0]).shape == (2, 1, 8, 8)


def test_sparsification_knows_good_spread_from_none():
    prediction, truth, mask, _ = toy(60, 0, 1.0)
    curve, good = sparsification(prediction, truth, mask)
    assert curve[0].tolist() == pytest.approx([1, 1]) and bool((curve[:, 1].diff() <= 0).all())
    blind = Prediction(
        prediction.mean + 0.3 * torch.randn(20, *truth.shape, generator=torch.Generator().manual_seed(2))
    )
    _, bad = sparsification(blind, truth, mask)
    assert good < bad - 0.1


def test_bad_input_is_named(problem):
    prior = GaussianDenoiser(problem["mean"], problem["cov"], EDM(0.002, 80.0))
    operator, y = problem["operator"], problem["y"]
    few = toy(5, 0, 1.0)
    for call, match in (
        (lambda: reconstruction.predict(prior, operator, y, method="magic"), "method"),
        (lambda: reconstruction.predict(prior, operator, y * math.nan), "NaN"),
        (lambda: reconstruction.predict(prior, operator, y, noise_std=-1.0), "noise_std"),
        (lambda: reconstruction.predict(prior, operator, y, n=0), "sample"),
        (lambda: calibrate(*few), "9 validation patients"),
        (lambda: calibrate(Prediction(few[0].samples[:1]), *few[1:]), "no spread"),
        (lambda: few[0].interval(1.5), "level"),
        (lambda: total_variation(Inpaint(torch.ones(N, N)), problem["truth"], -1.0), "weight"),
        (lambda: reconstruction.DDS(2)(prior, (1, 1, N, N)), "DataConsistency"),
    ):
        with pytest.raises(InvalidArgument, match=match):
            call()
    assert suffuse.__version__


@pytest.mark.parametrize("k", [5, 19, 40])
def test_intervals_of_samples_cover_one_more_draw_as_often_as_they_say(k):
    """Whatever the number of samples: 90%, or all that K samples can reach."""
    draws = torch.randn(k + 1, 20_000, 1, 1, 1, generator=torch.Generator().manual_seed(0))
    found = Prediction(draws[:-1])
    low, high = found.interval(0.9)
    covered = float(((draws[-1] >= low) & (draws[-1] <= high)).float().mean())
    assert covered == pytest.approx(found.nominal(0.9), abs=0.01)
    assert found.nominal(0.9) == min(0.9, (k - 1) / (k + 1))
