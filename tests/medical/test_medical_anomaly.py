"""Noise families and anomaly maps: known spectra, exact denoisers, and measures with known values."""

import math

import pytest
import torch

import suffuse
from suffuse.errors import InvalidArgument
from suffuse.exact import GaussianDenoiser
from suffuse.schedules import EDM
from suffuse_medical import anomaly
from suffuse_medical.noise import SIMPLEX_STD, CoarseNoise, SimplexNoise, Whitened, simplex
from suffuse_medical.prior import NOISES, slice_denoiser

N = 16


def radial_power(x, rings=4):
    """Power by radial frequency, octave by octave: the mean of |F x|^2 over rings [2^-k, 2^-k+1) cycles per voxel."""
    power = torch.fft.fft2(x.double(), norm="ortho").abs().square().mean((0, 1))
    size = x.shape[-1]
    f = torch.fft.fftfreq(size).abs()
    radius = (f[:, None] ** 2 + f[None] ** 2).sqrt()
    edges = [0.5 / 2**k for k in range(rings)]
    return torch.stack([power[(radius < high) & (radius >= high / 2)].mean() for high in edges])


# --- noise ------------------------------------------------------------------------------------------------------


def test_simplex_noise_is_zero_on_its_lattice_smooth_and_of_the_stated_variance():
    g = torch.Generator().manual_seed(0)
    points = torch.rand(4, 50_000, 3, generator=g, dtype=torch.float64) * 300
    values = simplex(points, torch.arange(4))
    assert float(values.std()) == pytest.approx(SIMPLEX_STD, rel=0.01)
    assert abs(float(values.mean())) < 0.01 and float(values.abs().max()) <= 1
    # corners of the simplices, at lattice points that are skewed back
    lattice = torch.randint(-20, 20, (1, 100, 3), generator=g).double()
    corners = lattice - lattice.sum(-1, keepdim=True) / 6
    assert float(simplex(corners, torch.tensor([3])).abs().max()) < 1e-9
    line = torch.linspace(0, 4, 8001, dtype=torch.float64)[None, :, None] * torch.tensor([1.0, 0.7, 0.3])
    step = simplex(line.double(), torch.tensor([1])).diff().abs().max()
    assert float(step) < 0.01  # no jump between simplices


def test_one_octave_of_simplex_noise_lives_at_its_wavelength():
    x = SimplexNoise(octaves=1, wavelength=16.0)((60, 1, 64, 64), torch.Generator().manual_seed(0))
    power = radial_power(x)
    assert int(power.argmax()) >= 2  # below 1/8 cycles per voxel
    assert float(power[0]) < 0.01 * float(power.max())


@pytest.mark.parametrize("noise", [SimplexNoise(), CoarseNoise()], ids=["simplex", "coarse"])
def test_octaves_fall_off_with_frequency_and_have_unit_variance(noise):
    x = noise((200, 1, 32, 32), torch.Generator().manual_seed(0))
    assert x.shape == (200, 1, 32, 32) and x.dtype == torch.float32
    assert 0.85 < float(x.std()) < 1.1
    power = radial_power(x)
    assert bool((power.diff() > 0).all())  # coarser is stronger
    white = radial_power(torch.randn(200, 1, 32, 32, generator=torch.Generator().manual_seed(0)))
    assert float(white.max() / white.min()) < 1.1


def test_noise_depends_on_its_own_seed_only():
    def seeds():
        return suffuse.random.generators([5, 6, 7])

    for noise in (SimplexNoise(), CoarseNoise()):
        alone = noise((1, 1, 8, 8), [seeds()[1]])
        torch.testing.assert_close(noise((3, 1, 8, 8), seeds())[1:2], alone)
        assert not torch.allclose(noise((2, 1, 8, 8), suffuse.random.generators([1, 2]))[0], alone[0])


def test_coarse_noise_has_the_covariance_that_it_states():
    noise = CoarseNoise(octaves=3, wavelength=8.0)
    x = noise((4000, 1, 8, 8), torch.Generator().manual_seed(0)).double()
    power = torch.fft.fft2(x, norm="ortho").abs().square().mean((0, 1))
    assert float((power / noise.spectrum((8, 8)) - 1).abs().max()) < 0.15
    torch.testing.assert_close(noise.colour(noise.colour(x), inverse=True), x)


def test_the_spectrum_of_simplex_noise_is_that_of_its_draws():
    noise = SimplexNoise(octaves=3, wavelength=16.0)
    draws = noise((4000, 1, 12, 16), torch.Generator().manual_seed(5)).double()
    power = torch.fft.fft2(draws, norm="ortho").abs().square().mean((0, 1))
    stated = noise.spectrum((12, 16))
    assert stated.shape == (12, 16) and float(stated.mean()) == pytest.approx(1, rel=0.1)
    ratio = (power / stated)[stated > 1e-3 * stated.max()]
    assert float(ratio.log().abs().max()) < 0.3


@pytest.mark.parametrize("noise", ["coarse", "simplex"])
def test_training_starts_from_what_detail_says_of_the_rest(noise):
    """Blobs with their edges: coarse noise leaves the edges, from which an untrained model knows the blob."""
    place = torch.arange(16.0)
    centre = 4 + 8 * torch.rand(300, 2, generator=torch.Generator().manual_seed(0))
    reach = (place - centre[:, :1]).square()[:, :, None] + (place - centre[:, 1:]).square()[:, None]
    images = (2.0 * (reach < 12) - 1)[:, None]
    x, family = images[:64], NOISES[noise]
    noisy = x + 2.0 * family(x.shape, torch.Generator().manual_seed(1))
    errors = []
    for spectrum in (noise, "white"):
        start = slice_denoiser(images, (8,), noise=spectrum, factor=1, rank=32)
        with torch.no_grad():
            errors.append(float((start(noisy, start.schedule.t_of_kappa(2.0)) - x).square().mean()))
    assert errors[0] < 0.7 * errors[1]


def test_spectrum_of_the_reference_implementation():
    """As much power at every radius as the simplex noise that AnoDDPM's code calls, within a third.

    The shares are of opensimplex 0.4.5, three octaves from 16 voxels, 24 fields of 16 x 16 (at milliseconds a voxel
    more would take long); their sampling error is about a tenth.
    """
    reference = torch.tensor([0.0066, 0.0880, 0.9054], dtype=torch.float64)
    noise = SimplexNoise(octaves=3, wavelength=16.0)
    power = radial_power(noise((400, 1, 16, 16), torch.Generator().manual_seed(0)), 3)
    assert float((power / power.sum() / reference).log().abs().max()) < 0.33


# --- maps -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def field():
    """A smooth Gaussian field with its exact denoisers of white and of coarse noise, and a blob to find."""
    noise = CoarseNoise(octaves=4, wavelength=16.0)
    grid = torch.stack(torch.meshgrid(torch.arange(N), torch.arange(N), indexing="ij"), -1).flatten(0, 1).double()
    cov = torch.exp(-(torch.cdist(grid, grid) ** 2) / (2 * 4.0**2)) + 0.01 * torch.eye(N * N, dtype=torch.float64)
    root = torch.linalg.cholesky(cov)
    draws = torch.randn(24, N * N, generator=torch.Generator().manual_seed(0), dtype=torch.float64) @ root.T
    images = draws.view(24, 1, N, N).float()
    schedule = EDM(0.002, 80.0)
    columns = noise.colour(torch.eye(N * N, dtype=torch.float64).view(-1, 1, N, N), inverse=True).flatten(1)
    whitened = columns.T @ cov @ columns
    zero = torch.zeros(1, N, N)
    white = GaussianDenoiser(zero, cov, schedule)
    coarse = Whitened(GaussianDenoiser(zero, (whitened + whitened.T) / 2, schedule), noise)
    lesion = torch.zeros(24, 1, N, N)
    lesion[:12, :, 5:10, 6:11] = 1
    return images, images + 1.5 * lesion, lesion, white, coarse, noise


def test_whitened_denoiser_is_the_posterior_mean_of_coarse_noise(field):
    images, _, _, _, coarse, noise = field
    t = coarse.schedule.t_of_kappa(0.7)
    noisy = images + 0.7 * noise(images.shape, torch.Generator().manual_seed(1))
    error = (coarse(noisy, t) - images).square().mean()
    for factor in (0.9, 1.1):  # the mean has the least error: any change of it has more
        assert float((factor * coarse(noisy, t) - images).square().mean()) > float(error)
    level = coarse.schedule.level(t)
    moved = noise.colour(coarse(noisy, t) - images, inverse=True)
    # orthogonality: the error does not correlate with what was seen
    seen = noise.colour(noisy, inverse=True)
    correlation = (moved * seen).mean() / (moved.std() * seen.std())
    assert abs(float(correlation)) < 0.05 and level.alpha == 1


def test_coarse_noise_finds_what_white_noise_leaves(field, monkeypatch):
    """AnoDDPM's claim, with exact denoisers: no training is in the way."""
    _, images, lesion, white, coarse, noise = field
    monkeypatch.setitem(anomaly.NOISES, "coarse", noise)
    brain = torch.ones_like(lesion, dtype=torch.bool)
    patients = [str(i) for i in range(24)]
    scores = {}
    for name, denoiser in (("white", white), ("coarse", coarse)):
        best = 0.0
        for level in (0.2, 0.5, 1.0):
            maps = anomaly.predict(denoiser, images, noise=name, level=level, steps=6, n=2).map
            best = max(best, float(anomaly.evaluate(maps, lesion, brain, patients)["AP"].mean()))
        scores[name] = best
    assert scores["coarse"] > scores["white"] + 0.1


def test_prediction_of_a_slice_does_not_depend_on_its_batch(field):
    _, images, _, white, _, _ = field
    together = anomaly.predict(white, images[:3], level=0.5, steps=3, n=2, seed=4)
    apart = anomaly.predict(white, images[:3], level=0.5, steps=3, n=2, seed=4, batch_size=1)
    torch.testing.assert_close(together.samples, apart.samples)
    assert together.samples.shape == (2, 3, 1, N, N) and together.map.shape == (3, 1, N, N)
    assert float(together.map_std.max()) > 0


def test_networks_learn_from_healthy_slices_and_from_labels(tmp_path):
    g = torch.Generator().manual_seed(0)
    images = 0.3 * torch.randn(24, 1, 16, 16, generator=g)
    options = {"channels": (8, 16), "steps": 3, "progress": False, "device": "cpu"}
    for noise in ("white", "coarse", "simplex"):
        denoiser = anomaly.fit(images, noise=noise, out=tmp_path / noise, **options)
        again = suffuse.hub.load(tmp_path / noise)
        assert again.noise == noise
        a, b = (anomaly.predict(d, images[:2], steps=2, n=1) for d in (denoiser, again))
        torch.testing.assert_close(a.samples, b.samples)
    healthy = torch.arange(24) % 2 == 0
    denoiser = anomaly.fit_counterfactual(images, healthy, **options)
    found = anomaly.counterfactual(denoiser, images[:2], steps=3)
    assert found.samples.shape == (1, 2, 1, 16, 16) and torch.isfinite(found.map).all()


def test_counterfactual_moves_to_the_healthy_mode_and_leaves_the_healthy_alone():
    """Two exact classes: a blob and no blob. Decoding as healthy takes the blob away."""
    from suffuse.exact import Covariance, MixtureDenoiser

    blob = torch.zeros(1, N, N)
    blob[:, 5:10, 6:11] = 2
    means = torch.stack([torch.zeros(1, N, N), blob])
    cov = Covariance.diagonal(torch.full((2, N * N), 0.05))

    class Labelled(MixtureDenoiser):
        def forward(self, x, t, cond=None):
            from suffuse import Condition

            if cond is not None:
                cond = Condition(tokens={"class": cond.tokens["health"]}, masks={"class": cond.masks["health"]})
            return super().forward(x, t, cond)

    denoiser = Labelled([0.5, 0.5], means, cov, EDM(0.002, 80.0), classes=[0, 1])
    denoiser.register_parameter("unused", torch.nn.Parameter(torch.zeros(1)))
    noise = 0.05**0.5 * torch.randn(4, 1, N, N, generator=torch.Generator().manual_seed(0))
    sick, healthy = blob + noise, noise
    level = 4.0  # noise in which the two modes are one
    mended = anomaly.counterfactual(denoiser, sick, level=level, steps=40, guidance_scale=1.0)
    assert float((mended.mean - noise).abs().mean()) < 0.25 * float(blob.max())
    inside = blob.bool().expand_as(mended.map)
    assert float(mended.map[inside].mean()) > 10 * float(mended.map[~inside].mean())
    kept = anomaly.counterfactual(denoiser, healthy, level=level, steps=40, guidance_scale=1.0)
    assert float(kept.map[inside].mean()) < 0.1 * float(mended.map[inside].mean())


def test_training_in_half_precision_keeps_whole_weights_and_learns():
    images = torch.rand(8, 1, 8, 8, generator=torch.Generator().manual_seed(0)) - 0.5
    options = {"channels": (8, 16), "factor": 1, "steps": 3, "batch_size": 4, "progress": False, "device": "cpu"}
    whole, half = (anomaly.fit(images, noise="coarse", precision=p, **options) for p in ("32-true", "bf16-mixed"))
    pairs = list(zip(whole.parameters(), half.parameters(), strict=True))
    assert all(two.dtype == torch.float32 and bool(two.isfinite().all()) for _, two in pairs)
    assert any(not torch.equal(one, two) for one, two in pairs), "the precision had no effect"
    x = images + 0.3 * torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    one, two = (model(x, model.schedule.t_of_kappa(0.3)) for model in (whole, half))
    torch.testing.assert_close(one, two, atol=0.05, rtol=0.1)


# --- measures ---------------------------------------------------------------------------------------------------


def test_measures_have_their_known_values():
    lesion = torch.zeros(4, 1, 8, 8)
    lesion[:3, :, 2:4, 2:4] = 1
    brain = torch.ones_like(lesion, dtype=torch.bool)
    patients = ["a", "a", "b", "healthy"]
    perfect = anomaly.evaluate(lesion, lesion, brain, patients, threshold=0.5)
    assert len(perfect["AP"]) == 2  # the healthy one has nothing to find
    assert perfect["AP"].min() == perfect["AUROC"].min() == perfect["Dice"].min() == 1
    assert perfect["prevalence"] == pytest.approx([4 / 64, 4 / 64])
    random = torch.rand(lesion.shape, generator=torch.Generator().manual_seed(0))
    assert anomaly.evaluate(random, lesion, brain, patients)["AP"].mean() < 0.2
    assert 0 < anomaly.best_threshold(lesion + 0.1 * random, lesion, brain) < 1
    assert anomaly.false_positive_volume(torch.ones_like(lesion), brain, 0.5, patients, voxel=27.0).tolist() == (
        pytest.approx([128 * 27e-3, 64 * 27e-3, 64 * 27e-3])
    )


def test_answers_are_plain_tensors(field):
    """MONAI's tensors come in, with their history, and do not slow the steps of the sampler."""
    from monai.data import MetaTensor

    images, _, _, white, _, _ = field
    found = anomaly.predict(white, MetaTensor(images[:2]), n=1, steps=1)
    assert type(found.samples) is torch.Tensor and type(found.map) is torch.Tensor


def test_bad_input_is_named(field):
    images, _, lesion, white, _, _ = field
    brain = torch.ones_like(lesion, dtype=torch.bool)
    bad = images.clone()
    bad[0, 0, 0, 0] = math.nan
    for call, match in (
        (lambda: anomaly.predict(white, bad), "NaN"),
        (lambda: anomaly.predict(white, images[0]), "slices"),
        (lambda: anomaly.predict(white, images, level=1e6), "level"),
        (lambda: anomaly.predict(white, images, n=0), "sample"),
        (lambda: anomaly.fit(images, noise="pink"), "noise"),
        (lambda: anomaly.predict(white, images, noise="pink"), "noise"),
        (lambda: anomaly.predict(white, images[:0]), "slices"),
        (lambda: anomaly.fit_counterfactual(images, torch.ones(24, dtype=torch.bool)), "both"),
        (lambda: anomaly.evaluate(lesion, 0.5 * lesion, brain, ["a"] * 24), "0 or 1"),
        (lambda: anomaly.evaluate(lesion, 0 * lesion, brain, ["a"] * 24), "no patient"),
        (lambda: SimplexNoise(octaves=0), "octaves"),
        (lambda: SimplexNoise()((1, 1, 4, 4, 4)), "shape"),
    ):
        with pytest.raises(InvalidArgument, match=match):
            call()
