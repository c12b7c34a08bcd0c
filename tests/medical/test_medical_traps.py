"""What MONAI 1.6.1 does silently, side by side with what is done here; traps of its schedulers: test_medical_monai."""

import nibabel
import numpy as np
import pytest
import torch

import suffuse
from suffuse.errors import InvalidArgument
from suffuse_medical import ldm, metrics
from suffuse_medical.data import Geometry, read_nifti, write_nifti
from suffuse_medical.nets import MonaiDenoiser, MonaiNetwork
from suffuse_medical.prior import fit_prior, gaussian_prior

UNET = {"spatial_dims": 2, "in_channels": 1, "out_channels": 1, "channels": [8], "attention_levels": [False]}


def _network():
    torch.manual_seed(0)
    network = MonaiNetwork("DiffusionModelUNet", num_res_blocks=1, norm_num_groups=8, num_head_channels=8, **UNET)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    return network.eval()


def _noise(n, size, seed):
    return torch.randn(n, 1, size, size, generator=torch.Generator().manual_seed(seed))


def test_trap_the_scale_of_latents_is_lost_with_the_checkpoint(tmp_path):
    """MONAI keeps it as an attribute of an object without a state; here it is part of the configuration."""
    from monai.inferers import LatentDiffusionInferer
    from monai.networks.schedulers import DDPMScheduler

    inferer = LatentDiffusionInferer(DDPMScheduler(num_train_timesteps=10), scale_factor=7.0)
    assert not inferer.scheduler.state_dict() and not hasattr(inferer, "state_dict")
    assert LatentDiffusionInferer(DDPMScheduler(num_train_timesteps=10)).scale_factor == 1.0  # the next run's

    images = torch.tanh(_noise(8, 8, 0))
    net = ldm.make_autoencoder(images, factor=2, width=8, latent_channels=2).eval()
    options = {"channels": (8,), "num_head_channels": 8, "device": "cpu", "progress": False}
    model = ldm.fit(images, net, steps=1, batch_size=4, **options)
    assert model.latent_scale != 1.0
    again = suffuse.hub.load(model.save(tmp_path / "model"))
    assert again.latent_scale == model.latent_scale
    torch.testing.assert_close(again.sample(2, steps=2), model.sample(2, steps=2))


def test_trap_the_inferer_takes_no_solver_of_diffusers():
    """Here any sampler runs on a MONAI network, and a scheduler of diffusers says which noise it was trained with."""
    diffusers = pytest.importorskip("diffusers")
    from monai.inferers import DiffusionInferer

    from suffuse.interop.diffusers import schedule_of

    network, noise = _network(), _noise(1, 8, 0)
    for kind in ("DPMSolverMultistepScheduler", "DDIMScheduler"):
        scheduler = getattr(diffusers, kind)(num_train_timesteps=100)
        scheduler.set_timesteps(4)
        with pytest.raises((ValueError, AttributeError, TypeError)):  # it unpacks their output object as a pair
            DiffusionInferer(scheduler).sample(noise, network, verbose=False)
        schedule = schedule_of(scheduler)
        denoiser = MonaiDenoiser(network, schedule, train_timesteps=100)
        drawn = suffuse.samplers.DPMSolverPP(steps=4)(denoiser, x=noise)
        assert drawn.shape == noise.shape


def test_trap_the_kernel_of_mmd_is_linear_and_sees_means_only():
    from monai.metrics import MMDMetric

    real, wide, moved = _noise(32, 32, 0), 1.3 * _noise(32, 32, 1), 0.05 + _noise(32, 32, 2)
    monai = {name: float(MMDMetric()(real, x)) for name, x in (("wide", wide), ("moved", moved))}
    ours = {name: metrics.rbf_mmd(real, x) for name, x in (("wide", wide), ("moved", moved))}
    assert monai["moved"] > monai["wide"] + 1  # a shift of 0.05 counts, a third more noise does not
    assert ours["wide"] > ours["moved"] + 0.3


def test_trap_fid_of_few_images_is_a_number():
    """Of two samples of one distribution; it measures how few they are."""
    from monai.metrics import FIDMetric

    few = [torch.randn(20, 64, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)]
    assert float(FIDMetric()(*few)) > 50
    with pytest.raises(InvalidArgument, match="FID of 64 features needs at least 128 images in each set, got 20 real"):
        metrics.fid(few[0].view(20, 1, 8, 8), few[1].view(20, 1, 8, 8), lambda x: x.flatten(1))


def test_trap_multi_scale_ssim_refuses_small_images():
    from monai.metrics import MultiScaleSSIMMetric

    small, brain = torch.rand(2, 1, 64, 64, generator=torch.Generator().manual_seed(0)), torch.ones(2, 1, 64, 64) > 0
    with pytest.raises(ValueError, match="must be larger than 160"):
        MultiScaleSSIMMetric(spatial_dims=2)(small, small)
    assert float(metrics.fidelity(small, small, brain)["SSIM"].min()) == pytest.approx(1)


def test_trap_a_plain_tensor_is_saved_with_an_invented_place(tmp_path):
    """An identity affine, marked as measured by a scanner. Here a volume without a geometry cannot be written."""
    from monai.transforms import SaveImage

    volume = torch.rand(1, 4, 5, 6, generator=torch.Generator().manual_seed(0))
    SaveImage(output_dir=tmp_path, output_postfix="", separate_folder=False, print_log=False)(volume)
    (file,) = tmp_path.glob("*.nii.gz")
    saved = nibabel.load(file)
    assert np.array_equal(saved.affine, np.eye(4)) and int(saved.header["sform_code"]) == 1
    with pytest.raises(InvalidArgument, match="geometry must be a Geometry"):
        write_nifti(tmp_path / "ours.nii.gz", volume, None)
    place = Geometry(np.diag([2.0, 3.0, 4.0, 1.0]), (4, 5, 6))
    written = write_nifti(tmp_path / "ours.nii.gz", volume, place)
    assert int(nibabel.load(written).header["sform_code"]) == 2  # "aligned": a scanner never was
    assert read_nifti(written)[1].isclose(place)


def test_trap_a_metatensor_flows_through_every_step():
    """Each step of a sampler then carries and copies the history of the file; here it is left at the door."""
    from monai.data import MetaTensor
    from monai.networks.schedulers import DDIMScheduler

    images = torch.tanh(_noise(16, 8, 0))
    traced = MetaTensor(images, meta={"filename_or_obj": "patient.nii.gz"})
    scheduler = DDIMScheduler(num_train_timesteps=10)
    scheduler.set_timesteps(2)
    moved, _ = scheduler.step(_network()(traced, torch.tensor([5.0])), 5, torch.randn_like(traced))
    assert isinstance(moved, MetaTensor) and moved.meta["filename_or_obj"] == "patient.nii.gz"

    options = {"steps": 1, "batch_size": 4, "device": "cpu", "progress": False}
    prior = fit_prior(traced, channels=(8,), **options)
    net = ldm.make_autoencoder(traced, factor=2, width=8, latent_channels=2).eval()
    model = ldm.fit(traced, net, channels=(8,), num_head_channels=8, **options)
    kept = (*prior.state_dict().values(), *model.state_dict().values(), net.encode(traced), model.encode(traced))
    assert {type(value) for value in kept} == {torch.Tensor}
    exact = gaussian_prior(traced)
    assert type(suffuse.samplers.DDIM(steps=2)(exact, (1, 1, 8, 8))) is torch.Tensor
