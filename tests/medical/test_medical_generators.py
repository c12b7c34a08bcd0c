"""Recipes and benchmarks of the models that draw images: each runs, and reports what it promises."""

import importlib

import pytest
import torch

import suffuse
from suffuse.bench import Run
from suffuse.recipes import get_recipe
from suffuse_medical.data import read_nifti
from suffuse_medical.nets import unet_settings


def test_latent_diffusion_from_the_command_line(tmp_path):
    recipe = get_recipe("medical/latent-diffusion")
    folder = recipe.train(
        dataset="template",
        out=tmp_path / "run",
        autoencoder_steps=1,
        steps=1,
        batch_size=2,
        progress=False,
        device="cpu",
    )
    assert suffuse.hub.read_config(folder)["metadata"]["recipe"] == recipe.name
    files = recipe.sample(folder, out=tmp_path / "drawn", n=2, steps=1, device="cpu")
    volume, geometry = read_nifti(files[1])
    assert [file.name for file in files] == ["slice-0.nii.gz", "slice-1.nii.gz"]
    assert volume.shape == (1, 56, 64, 1) and geometry.spacing == pytest.approx((3, 3, 3))


@pytest.mark.parametrize("name", ["medical/style", "medical/joint"])
def test_the_others_train(name, tmp_path):
    folder = get_recipe(name).train(
        out=tmp_path / "run", patients=2, steps=1, batch_size=2, progress=False, device="cpu"
    )
    assert isinstance(suffuse.hub.load(folder), suffuse.NetworkDenoiser)


def test_a_group_of_one_channel_hides_the_noise_level():
    """A trap of MONAI's residual blocks, and why ``unet_settings`` keeps four channels in a group."""
    from monai.networks.nets.diffusion_model_unet import DiffusionUNetResnetBlock

    x, one, other = torch.randn(2, 8, 4, 4), torch.randn(2, 16), torch.randn(2, 16)
    for groups, hidden in ((8, True), (2, False)):
        block = DiffusionUNetResnetBlock(2, 8, 16, norm_num_groups=groups)
        torch.nn.init.normal_(block.conv2.conv.weight)
        assert torch.allclose(block(x, one), block(x, other), atol=1e-4) == hidden
    for channels in ((8,), (16, 32), (32, 64)):
        assert min(channels) // unet_settings(channels)["norm_num_groups"] >= 4


#: The fields of each benchmark's ``Size``, in their order.
SMALL = {
    "anomaly": (8, 8, (16.0,), 2, 2, ("white", "simplex"), True, 0),
    "segmentation": (3, 3, 2, 3, 0),
    "stedm": (3, 1, 3, 2, 2, 8, 2, 1, ("one protocol", "six protocols on five scanners")),
    "joint": (200, 2, 2, 2, (16,), 2, 2, 8, 2),
    "privacy": (6, 8, 2, 2, (16,), 8, 2),
    "ldm": (3, 2, 2, 8, (16,), 8, 2),
    "samplers": (2, 4, (16,), 8, (2, 4), (4, 6), (4, 5), (6,), (4,), 8),
}
METRICS = {
    "anomaly": {"AP", "AUROC", "Dice", "false positives on healthy"},
    "segmentation": {"Dice", "GED^2", "ECE"},
    "stedm": {"IoU of patients", "spread of IoU over patients", "spread of STEDM minus this", "layout explained (R2)"},
    "joint": {"Dice, image to mask", "MMD, mask to image", "error of the conditional mean, mask to image"},
    "privacy": {"flagged as copies", "membership attack, area"},
    "ldm": {"MMD", "PSNR in lesions", "seconds per image"},
    "samplers": {"MMD", "distance to the converged ODE"},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(SMALL))
def test_the_benchmark_reports_what_it_promises(name, tmp_path, monkeypatch):
    module = importlib.import_module(f"suffuse_medical.benchmarks.{name}")
    monkeypatch.setitem(module.SIZES, "quick", module.Size(*SMALL[name]))
    (tmp_path / "work").mkdir()
    run = Run(getattr(module, name), "quick", 0, "cpu", tmp_path / "work", None, False, tmp_path / "report")
    getattr(module, name)(run)
    assert {row.metric for row in run.rows} >= METRICS[name] and run.figures
