"""Denoisers that start from a Gaussian: exact for it without any training, in one stream and in several."""

import pytest
import torch

import suffuse
from suffuse.errors import InvalidArgument
from suffuse.exact import GaussianDenoiser
from suffuse.joint import JointMonaiUNet, given
from suffuse.nets import MonaiUNet
from suffuse.schedules import EDM, VPCosine
from suffuse_medical.nets import (
    ESTIMATE,
    GaussianPart,
    JointResidualDenoiser,
    ResidualDenoiser,
    gaussian_part,
    unet_settings,
)
from suffuse_medical.noise import CoarseNoise, Whitened

SHAPE = (1, 4, 6)


def _images(n, shape=SHAPE):
    """Of three directions, a variance of its own in every voxel, and a mean."""
    size = torch.Size(shape).numel()
    directions, detail, mean = torch.randn(3, size), 0.1 + 0.2 * torch.rand(size), 2 * torch.randn(size)
    return (mean + torch.randn(n, 3) @ directions + detail * torch.randn(n, size)).unflatten(1, shape)


def _unet(channels=1):
    return MonaiUNet(2, channels, maps={ESTIMATE: channels}, **unet_settings((8,)))


def _covariance(gaussian):
    basis = gaussian.basis
    return basis @ gaussian.variances.diag() @ basis.T + gaussian.psi.flatten().diag()


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def test_it_finds_mean_directions_and_detail():
    images = _images(4000)
    gaussian = gaussian_part(images, 3)
    sample = images.flatten(1).T.cov()
    assert torch.allclose(gaussian.mean, images.mean(0), atol=1e-5)
    assert (_covariance(gaussian) - sample).norm() < 0.02 * sample.norm()
    assert gaussian.std == pytest.approx(float(sample.trace() / 24) ** 0.5, rel=0.01)
    assert gaussian_part(images[:16], 16).rank == 2 and gaussian_part(images, None).mean.shape == (1, 1, 1)


@pytest.mark.parametrize("schedule", [VPCosine(), EDM(0.01, 50)])
@pytest.mark.parametrize("rank", [0, 3])
def test_without_training_it_is_the_exact_denoiser_of_its_gaussian(schedule, rank):
    gaussian = gaussian_part(_images(500), rank)
    denoiser = ResidualDenoiser(_unet(), schedule, gaussian, gaussian.std)  # MONAI's output starts at zero
    exact = GaussianDenoiser(gaussian.mean, _covariance(gaussian), schedule)
    for t in (0.1, torch.tensor([0.2, 0.5, 0.9])):
        x = gaussian.mean + torch.randn(3, *SHAPE)
        assert torch.allclose(denoiser(x, t), exact(x, t).to(x.dtype), atol=2e-4)


@pytest.mark.parametrize("rank", [0, 3])
@pytest.mark.parametrize("shape", [(1, 4, 6), (2, 5, 3)])
def test_under_coloured_noise_it_is_exact_as_well(rank, shape):
    """Against the closed form of noise that was made white: D(x) = K^(1/2) D_w(K^(-1/2) x)."""
    noise, schedule, size = CoarseNoise(octaves=2, wavelength=4.0), EDM(0.01, 50), torch.Size(shape).numel()
    gaussian = gaussian_part(noise.colour(_images(500, shape)), rank, noise.spectrum(shape[1:]))
    denoiser = ResidualDenoiser(_unet(shape[0]), schedule, gaussian, gaussian.std)
    rest = gaussian._multiply(gaussian.psi, torch.eye(size).unflatten(1, shape)).flatten(1)
    cov = gaussian.basis @ gaussian.variances.diag() @ gaussian.basis.T + rest
    assert torch.allclose(cov.diagonal().view(shape), gaussian.variance, rtol=1e-3)
    white = noise.colour(noise.colour(cov.view(size, *shape), inverse=True).flatten(1).T.reshape(size, *shape), True)
    mean = noise.colour(gaussian.mean, inverse=True)
    white = white.flatten(1).double()
    exact = Whitened(GaussianDenoiser(mean, (white + white.T) / 2, schedule), noise)
    for t in (0.3, torch.tensor([0.4, 0.6, 0.9])):
        x = gaussian.mean + torch.randn(3, *shape)
        torch.testing.assert_close(denoiser(x, t), exact(x, t).to(x.dtype), atol=2e-3, rtol=1e-3)
        level = schedule.level(t, like=x)
        kappa = torch.as_tensor(level.sigma / level.alpha).flatten().tolist()
        hidden = torch.linalg.inv(noise.colour(torch.eye(size).view(size, *shape)).flatten(1).matrix_power(2))
        for k, found in zip(kappa, gaussian.spread(level.alpha, level.sigma), strict=True):
            posterior = torch.linalg.inv(torch.linalg.inv(cov.double()) + hidden.double() / k**2)
            torch.testing.assert_close(found.flatten().double(), posterior.diagonal().sqrt(), atol=1e-3, rtol=1e-2)


def test_the_network_is_scaled_to_what_the_gaussian_does_not_know():
    images, schedule = _images(4000), EDM(0.01, 50)
    gaussian = gaussian_part(images, 3)
    for kappa in (0.1, 1.0):
        t = torch.tensor([schedule.t_of_kappa(kappa)])
        level = schedule.level(t, like=images)
        x = schedule.add_noise(images, t, torch.randn_like(images))
        error = images - gaussian.posterior(gaussian.deviation(x, level.alpha), level.alpha, level.sigma)
        normalised = error / gaussian.spread(level.alpha, level.sigma)
        assert torch.allclose(normalised.square().mean(0), torch.ones(SHAPE), atol=0.15)


def test_a_checkpoint_keeps_its_gaussian_and_refuses_other_sizes(tmp_path):
    gaussian = gaussian_part(_images(64, (1, 8, 8)), 4)
    denoiser = ResidualDenoiser(_unet(), EDM(), gaussian, gaussian.std).eval()
    suffuse.hub.save(denoiser, tmp_path)
    x = torch.randn(2, 1, 8, 8)
    assert torch.equal(suffuse.hub.load(tmp_path)(x, 0.5), denoiser(x, 0.5))
    with pytest.raises(InvalidArgument, match="rank=None"):
        denoiser(torch.randn(2, 1, 16, 16), 0.5)
    anywhere = ResidualDenoiser(_unet(), EDM(), GaussianPart((1, 1, 1)), 1.0)
    assert anywhere(torch.randn(2, 1, 16, 16), 0.5).shape == (2, 1, 16, 16)
    with pytest.raises(InvalidArgument, match="rank"):
        gaussian_part(x, -1)


@pytest.mark.parametrize("t", [0.0, 0.4, 1.0])
def test_what_is_held_tells_the_other_stream_as_in_the_gaussian_of_both(t):
    """Against the closed form for one noise level per stream: the Gaussian of (x, y) given y + kappa n."""
    streams, images = {"image": 1, "mask": 2}, _images(400, (3, 4, 6))
    images[:, 1:] = 5 * images[:, 1:]  # another unit
    gaussian = gaussian_part(images, 3)
    backbone = JointMonaiUNet(2, streams, maps={ESTIMATE: 3}, **unet_settings((8,)))
    joint = JointResidualDenoiser(backbone, EDM(1e-4, 50), streams, gaussian, {"image": 1.0, "mask": 5.0})
    mask, x, kappa, own = torch.randn(2, 2, 4, 6), torch.randn(2, *SHAPE), EDM(1e-4, 50).kappa(t), 0.6
    found = joint(torch.cat([x, mask], 1), joint.streams.times({"image": own, "mask": t}, 2, x.device))[:, :1]
    noise = torch.cat([torch.full((24,), joint.schedule.kappa(own)), torch.full((48,), kappa)]).double().square()
    cov, mean = _covariance(gaussian).double(), gaussian.mean.flatten().double()
    y = torch.cat([x, mask], 1).flatten(1).double() - mean
    exact = mean + torch.linalg.solve(cov + noise.diag(), y.T).T @ cov
    assert torch.allclose(found.flatten(1).double(), exact[:, :24], atol=2e-3)
    held = given(joint, {"mask": mask}, t=0.0)(x, own)
    assert torch.allclose(held, found, atol=1e-4) == (t == 0)
    level = joint.schedule.level(torch.rand(2, 3, dtype=torch.float64), like=images[:2])
    assert joint.coefficients(level)[1].shape == (2, 3, 4, 6)
