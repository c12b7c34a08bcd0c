"""Laws of the model, the recipe and the baselines, on a network small enough for seconds."""

import importlib
import re
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

import suffuse
from suffuse import Condition
from suffuse.errors import InvalidArgument
from suffuse_medical import tissue_to_t1 as model
from suffuse_medical.baselines import PatchRegression, UNetRegression
from suffuse_medical.data import WORKING_GRID, Geometry, load_template, read_nifti, write_nifti
from suffuse_medical.nets import SubpixelUNet
from suffuse_medical.recipes import RECIPES

TINY = (8, 16)


@pytest.fixture(scope="module")
def trained(slices, tmp_path_factory):
    """A denoiser after 40 steps, and its checkpoint."""
    out = tmp_path_factory.mktemp("run") / "model"
    metadata = {"recipe": "medical/tissue-to-t1"}
    return model.fit(slices.train, steps=40, channels=TINY, out=out, metadata=metadata, progress=False), out


def test_an_untrained_network_leaves_the_regression(slices):
    """MONAI's UNet starts at zero, so at pure noise the posterior mean starts as the tissue means."""
    denoiser = model.tissue_denoiser(slices.train, TINY)
    test = slices.test[range(3)]
    x = denoiser.schedule.sigma(1.0) * torch.randn(test.image.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        estimate = denoiser(x, 1.0, test.condition)
    torch.testing.assert_close(estimate, denoiser.mean(test.tissue), atol=0.01, rtol=0)


def test_subtracting_a_mean_is_exact(slices):
    """D(x) = m + R(x - alpha m): with the exact R of Gaussian residuals, D is the exact denoiser of the images."""
    denoiser = model.tissue_denoiser(slices.train, TINY)
    denoiser.backbone.forward = lambda x, c_noise, cond: torch.zeros_like(x)
    test, t = slices.test[range(2)], 0.4
    mean, s, sigma = denoiser.mean(test.tissue), denoiser.data_std, denoiser.schedule.sigma(t)
    x = test.image + sigma * torch.randn(test.image.shape, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(denoiser(x, t, test.condition), mean + s**2 / (s**2 + sigma**2) * (x - mean))


def test_training_lowers_the_denoising_loss_on_other_patients(slices, trained):
    fresh, test = model.tissue_denoiser(slices.train, TINY), slices.test[range(0, len(slices.test), 2)]
    objective = suffuse.training.DenoisingObjective(
        time=suffuse.training.LogNormalKappa(float(np.log(fresh.data_std)), 0.8), cond_dropout=0
    )
    with torch.no_grad():
        before, after = (
            objective(d, test.image, test.condition, torch.Generator().manual_seed(0)) for d in (fresh, trained[0])
        )
    assert after < 0.97 * before


def test_a_sample_depends_on_its_seed_and_its_map_only(slices, trained):
    tissue = slices.test.tissue[:3]
    whole = model.predict(trained[0], tissue, n=3, steps=3, seed=5).samples
    fewer = model.predict(trained[0], tissue[:2], n=2, steps=3, seed=6, batch_size=1).samples
    torch.testing.assert_close(whole[1:, :2], fewer, atol=1e-4, rtol=1e-4)
    volume = model.predict(trained[0], tissue, n=3, steps=3, seed=5, together=True).samples
    alone = model.predict(trained[0], tissue[1:2], n=1, steps=3, seed=7).samples
    torch.testing.assert_close(volume[2, 1], alone[0, 0], atol=1e-4, rtol=1e-4)


def test_mean_and_spread_are_those_of_the_samples(slices, trained):
    drawn = model.predict(trained[0], slices.test.tissue[:1], n=4, steps=3)
    torch.testing.assert_close(drawn.mean, drawn.samples.mean(0))
    torch.testing.assert_close(drawn.std, drawn.samples.std(0))
    assert drawn.std.mean() > 0.005 and not model.Prediction(drawn.samples[:1]).std.any()


def test_a_checkpoint_gives_the_same_posterior_mean(slices, trained):
    loaded, test = suffuse.hub.load(trained[1]), slices.test[range(2)]
    assert isinstance(loaded, model.TissueDenoiser)
    x = torch.randn(test.image.shape, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(loaded(x, 0.5, test.condition), trained[0](x, 0.5, test.condition))


def test_any_orientation_gives_the_same_anatomy(trained):
    """The same tissue map stored as LIA is drawn the same, voxel for voxel in world space."""
    working = WORKING_GRID.slab(24, 26)
    tissue = load_template().tissue[..., 24:26]
    turned = np.array([[-1, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 0], [0, 0, 0, 1.0]])  # voxel axes of an LIA file
    sizes = working.shape
    shape = (sizes[0], sizes[2], sizes[1])
    shift = np.eye(4)
    shift[:3, 3] = (sizes[0] - 1, 0, sizes[2] - 1)
    lia = Geometry(working.affine @ shift @ turned, shape)
    stored = tissue.flip(1).permute(0, 1, 3, 2).flip(2)
    assert lia.axcodes == "LIA"
    ras = model.predict_volume(trained[0], tissue, working, working, n=1, steps=2)
    drawn = model.predict_volume(trained[0], stored.contiguous(), lia, working, n=1, steps=2)
    torch.testing.assert_close(drawn.flip(2).permute(0, 1, 3, 2).flip(1), ras, atol=2e-3, rtol=0)


# --- recipe -----------------------------------------------------------------------------------------------------


def test_recipe_trains_and_draws_nifti_where_the_slab_lies(tmp_path):
    recipe = RECIPES[0]
    checkpoint = recipe.train(out=tmp_path / "run", patients=2, steps=2, progress=False, device="cpu")
    assert suffuse.hub.read_config(checkpoint)["metadata"]["recipe"] == recipe.name
    files = recipe.sample(checkpoint, out=tmp_path / "drawn", n=2, steps=2, device="cpu")
    assert [file.name for file in files] == ["sample-0.nii.gz", "sample-1.nii.gz", "mean.nii.gz", "std.nii.gz"]
    volume, geometry = read_nifti(files[2])
    template = load_template()
    first = round((geometry.affine[2, 3] - WORKING_GRID.affine[2, 3]) / 3)
    brain = template.brain[..., first : first + geometry.shape[2]]
    assert geometry.axcodes == "RAS" and geometry.spacing == pytest.approx((3, 3, 3))
    assert volume[brain].mean() > 0.5 > 0.1 > volume[~brain].mean(), "the image is not where the brain is"


def test_recipe_draws_on_the_grid_of_ones_own_maps(trained, tmp_path):
    template = load_template()
    around = WORKING_GRID.slab(22, 26)
    affine = around.affine @ np.diag([-1.0, 1, 1, 1])
    affine[:3, 3] = around.world((around.shape[0] - 1, 0, 0))
    geometry = Geometry(affine, around.shape)
    names = {}
    for name, fraction in zip(("grey", "white", "fluid"), template.tissue[..., 22:26].flip(1), strict=True):
        names[name] = write_nifti(tmp_path / f"{name}.nii.gz", fraction, geometry)
    files = RECIPES[0].sample(trained[1], out=tmp_path / "drawn", n=1, steps=2, device="cpu", **names)
    assert np.allclose(nibabel.load(files[0]).affine, affine, atol=1e-4)
    assert read_nifti(files[0])[1].axcodes == "LAS"
    with pytest.raises(InvalidArgument, match="give all three or none"):
        RECIPES[0].sample(trained[1], out=tmp_path, grey=names["grey"], device="cpu")
    names["white"] = write_nifti(tmp_path / "other.nii.gz", template.tissue[1], WORKING_GRID)
    with pytest.raises(InvalidArgument, match="different grids"):
        RECIPES[0].sample(trained[1], out=tmp_path, device="cpu", **names)


# --- baselines --------------------------------------------------------------------------------------------------


def test_regression_finds_the_levels_that_made_the_images(slices):
    from dataclasses import replace

    levels = torch.tensor([0.3, 0.6, -0.4])
    image = torch.einsum("k,nkhw->nhw", levels, slices.train.tissue)[:, None] - 1
    fitted = PatchRegression(1, ridge=1e-8).fit(replace(slices.train, image=image))
    torch.testing.assert_close(fitted.weight.flatten(), levels, atol=1e-3, rtol=0)
    torch.testing.assert_close(fitted.bias, torch.tensor([-1.0]), atol=1e-3, rtol=0)


def test_a_larger_neighbourhood_fits_the_training_set_better(slices):
    train = slices.train
    fits = [PatchRegression(size).fit(train) for size in (1, 3, 5)]
    errors = [float((fit.predict(train.tissue) - train.image).square().mean()) for fit in fits]
    assert errors == sorted(errors, reverse=True)


def test_unet_regression_learns(slices):
    torch.manual_seed(0)
    fitted = UNetRegression(model.regression_network(TINY), steps=40).fit(slices.train)
    error = (fitted.predict(slices.test.tissue) - slices.test.image).square().mean()
    assert error < 0.5 * slices.test.image.var()


# --- bad input --------------------------------------------------------------------------------------------------


def test_one_clear_error_each(slices, trained):
    denoiser, tissue = trained[0], slices.test.tissue[:2]
    for bad, message in (
        (tissue[:, :2], r"tissue must be \(N, 3, H, W\)"),
        (tissue[0], r"tissue must be \(N, 3, H, W\)"),
        (tissue.clone().fill_(torch.nan), "NaN or infinite"),
        (tissue[..., :63], "not a multiple of factor=2"),
    ):
        with pytest.raises(InvalidArgument, match=message):
            model.predict(denoiser, bad, n=1, steps=1)
    with pytest.raises(InvalidArgument, match="at least 1 sample"):
        model.predict(denoiser, tissue, n=0)
    with pytest.raises(InvalidArgument, match="steps must be"):
        model.predict(denoiser, tissue, steps=0)
    with pytest.raises(InvalidArgument, match="no unconditional part"):
        denoiser(torch.zeros(2, 1, 56, 64), 0.5, None)
    with pytest.raises(InvalidArgument, match="no unconditional part"):
        denoiser(torch.zeros(2, 1, 56, 64), 0.5, Condition(maps={"tissue": tissue}).null())
    with pytest.raises(InvalidArgument, match="factor must be"):
        SubpixelUNet(1, {"tissue": 3}, factor=0)
    with pytest.raises(InvalidArgument, match="odd and positive"):
        PatchRegression(4)
    with pytest.raises(InvalidArgument, match="unknown dataset"):
        RECIPES[0].train(dataset="patients")


def test_the_readme_runs():
    readme = Path(__file__).parents[2] / "packages" / "medical" / "README.md"
    exec(re.search(r"```python\n(.*?)```", readme.read_text(), re.S).group(1), {})


@pytest.mark.slow
def test_the_benchmark_reports_what_it_promises(tmp_path, monkeypatch):
    from suffuse.bench import Run
    from suffuse_medical.benchmarks import BENCHMARKS

    module = importlib.import_module("suffuse_medical.benchmarks.tissue_to_t1")
    monkeypatch.setitem(module.SIZES, "quick", module.Size(6, 3, TINY, samples=3, calls=2, slices=6))
    (benchmark,) = [b for b in BENCHMARKS if b.name == "medical/tissue-to-t1"]
    (tmp_path / "work").mkdir()
    run = Run(benchmark, "quick", 0, "cpu", tmp_path / "work", None, False, tmp_path / "report")
    benchmark(run)
    assert {row.metric for row in run.rows} == {"SSIM", "PSNR", "MAE", "MMD", "coverage error"}
    assert len({row.dataset for row in run.rows}) == 3 and run.figures and run.artifacts
