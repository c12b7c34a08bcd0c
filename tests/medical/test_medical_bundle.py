"""Laws of bundles: MONAI runs what we export, draws the same, and nothing that matters can go missing."""

import json

import numpy as np
import pytest
import torch
from monai.bundle import ConfigWorkflow

import suffuse
from suffuse import Condition
from suffuse.errors import CheckpointError, InvalidArgument
from suffuse_medical import bundle, ldm
from suffuse_medical.model_card import NOT_CLINICAL, ModelCard
from suffuse_medical.nets import MonaiNetwork

UNET = {"channels": (8,), "num_head_channels": 8}


@pytest.fixture(scope="module")
def card():
    return ModelCard(
        name="slices",
        version="0.1.0",
        intended_use="Tests.",
        inputs="T1-weighted slices of 3 mm, RAS",
        outputs="the same, in [-1, 1]",
        training_data="simulated from MNI152; no patients",
        counts={"pseudo-patients": 3},
        split="by pseudo-patient",
        metrics={"MMD": 0.1},
        subgroups={"site A": {"MMD": 0.1}},
        failure_modes="none measured",
        memorisation="none measured",
        uncertainty="none measured",
        determinism="per seed, on one device",
        changes="first version",
        license="Apache-2.0",
    )


@pytest.fixture(scope="module")
def model():
    """A latent model of volumes with a token, hardly trained."""
    torch.manual_seed(0)
    images = torch.tanh(torch.randn(4, 1, 8, 8, 8))
    net = ldm.make_autoencoder(images, "kl", factor=2, width=8, latent_channels=2).eval()
    cond = Condition(tokens={"age": torch.linspace(0, 1, 4)[:, None, None]})
    fitted = ldm.fit(images, net, cond=cond, steps=1, batch_size=2, device="cpu", progress=False, **UNET)
    return fitted, cond


@pytest.fixture
def exported(model, card, tmp_path):
    return bundle.export(model[0], tmp_path / "bundle", card, condition=model[1], steps=2, spacing=(2.0, 2.0, 3.0))


def _workflow(root, **override):
    return ConfigWorkflow(
        config_file=str(root / "configs" / "inference.json"), meta_file=str(root / "configs" / "metadata.json"),
        logging_file=str(root / "configs" / "logging.conf"), workflow_type="inference", bundle_root=str(root),
        device="cpu", **override,
    )  # fmt: skip


def test_monai_runs_it_and_draws_the_same(exported, model):
    workflow = _workflow(exported, n=2, seed=7)
    workflow.initialize()
    assert not workflow.check_properties()
    workflow.run()
    from suffuse_medical.data import read_nifti

    volume, geometry = read_nifti(exported / "samples" / "sample-8.nii.gz")
    direct = model[0].sample(1, cond=model[1][1:2], steps=2, seed=8)
    torch.testing.assert_close(volume.float(), direct[0], atol=1e-5, rtol=1e-4)
    assert geometry.spacing == pytest.approx((2, 2, 3))


def test_scale_and_schedule_come_back(exported, model):
    loaded = bundle.load(exported)
    assert loaded.latent_scale == model[0].latent_scale and loaded.denoiser.schedule == model[0].denoiser.schedule
    config = json.loads((exported / "configs" / "inference.json").read_text())
    assert config["latent_scale"] == model[0].latent_scale and config["prediction_type"] == "v_prediction"


def test_a_plain_denoiser_of_images(card, tmp_path):
    denoiser = _plain_denoiser()
    root = bundle.export(denoiser, tmp_path / "plain", card, shape=(1, 8, 8), steps=2, label_schema={1: "lesion"})
    workflow = _workflow(root, n=1)
    workflow.initialize()
    workflow.run()
    generator = [torch.Generator().manual_seed(0)]
    direct = suffuse.samplers.DPMSolverPP(steps=2)(denoiser, shape=(1, 1, 8, 8), generator=generator)
    np.testing.assert_allclose(np.load(root / "samples" / "sample-0.npy"), direct[0].numpy(), atol=1e-5)
    assert json.loads((root / "configs" / "metadata.json").read_text())["image_classes"] == {"1": "lesion"}


def _plain_denoiser(**maps):
    torch.manual_seed(0)
    net = suffuse.nets.MonaiUNet(2, 1, maps=maps, num_res_blocks=1, norm_num_groups=2, attention_levels=[False], **UNET)
    for parameter in net.parameters():  # MONAI starts the last layer at zero, deaf to what it is asked
        torch.nn.init.normal_(parameter, std=0.1)
    return suffuse.NetworkDenoiser(net, suffuse.schedules.VPLinear()).eval()


def _run(root, **override):
    workflow = _workflow(root, **override)
    workflow.initialize()
    workflow.run()
    return {file.name: file.read_bytes() for file in sorted((root / "samples").iterdir())}


def test_a_sampler_that_adds_noise_draws_it_from_the_seed(model, card, tmp_path):
    """Nothing depends on the global state or on the items drawn before, and the images are those of ``sample``."""
    root = bundle.export(model[0], tmp_path / "b", card, condition=model[1], steps=3, sampler="ddpm")
    both = _run(root, n=2, seed=7)
    torch.randn(5)
    assert _run(root, n=2, seed=7) == both
    drawn = torch.from_numpy(np.load(root / "samples" / "sample-8.npy"))
    direct = model[0].sample(1, cond=model[1][1:2], sampler=suffuse.samplers.DDPM(steps=3), seed=8)
    torch.testing.assert_close(drawn, direct[0], atol=1e-5, rtol=1e-4)


def test_metadata_say_what_really_goes_in_and_comes_out(exported, model):
    form = json.loads((exported / "configs" / "metadata.json").read_text())["network_data_format"]
    inside, outside = form["inputs"]["image"], form["outputs"]["pred"]
    assert (inside["num_channels"], inside["spatial_shape"]) == (2, [4, 4, 4])
    assert (outside["num_channels"], *outside["spatial_shape"]) == tuple(
        model[0].sample(1, cond=model[1][:1]).shape[1:]
    )


def test_the_null_value_of_a_condition_comes_along(card, tmp_path):
    """A model that was trained with one is guided by it."""
    cond = Condition(maps={"side": torch.ones(2, 1, 8, 8)}, nulls={"side": torch.full((1, 8, 8), -1.0)})
    options = {"shape": (1, 8, 8), "steps": 2, "guidance_scale": 3.0}
    root = bundle.export(_plain_denoiser(side=1), tmp_path / "b", card, condition=cond, **options)
    item = bundle.NoiseDataset((1, 8, 8), 1, condition=root / "models" / "condition.safetensors")[0]
    assert torch.equal(item["condition"].nulls["side"], cond.nulls["side"])


def test_what_could_not_be_run_is_not_exported(card, tmp_path):
    plain, stray = _plain_denoiser(), Condition(maps={"nothing": torch.zeros(1, 1, 8, 8)})
    for options, message in (
        ({"shape": (3, 8, 8)}, r"cannot draw shape=\(3, 8, 8\) with no condition"),
        ({"shape": (1, 8, 8), "condition": stray}, r"cond has \['nothing'\]"),
        ({"shape": (1, 8, 8), "spacing": (1.0, 2.0)}, "spacing must be three positive numbers"),
    ):
        with pytest.raises(InvalidArgument, match=message):
            bundle.export(plain, tmp_path / "b", card, **options)
        assert not list(tmp_path.iterdir())


def test_numbers_of_measures_are_numbers_of_the_card(model, card, tmp_path):
    measured = card.to_dict() | {"metrics": {"a": np.float32(0.5), "b": torch.tensor(2.0), "c": (1, np.int64(2))}}
    root = bundle.export(model[0], tmp_path / "b", ModelCard.from_dict(measured), condition=model[1])
    assert bundle.read_card(root).metrics == {"a": 0.5, "b": 2.0, "c": [1, 2]}
    for field, value in (("metrics", {"a": object()}), ("counts", "three"), ("split", {"by": "patient"})):
        with pytest.raises(InvalidArgument, match=field):
            ModelCard.from_dict(card.to_dict() | {field: value}).check()


def test_the_card_is_shipped_as_page_and_as_data(exported, card):
    assert bundle.read_card(exported) == card
    page = (exported / "docs" / "README.md").read_text()
    assert NOT_CLINICAL in page and "## Memorisation" in page and "site A" in page


@pytest.mark.parametrize("field", ["failure_modes", "counts", "memorisation", "license"])
def test_an_incomplete_card_stops_the_export(model, card, tmp_path, field):
    gap = ModelCard.from_dict(card.to_dict() | {field: {} if field == "counts" else " "})
    with pytest.raises(InvalidArgument, match=f"lacks \\['{field}'\\]"):
        bundle.export(model[0], tmp_path / "bundle", gap)
    assert not list(tmp_path.iterdir()), "nothing is left behind"


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("inference", "latent_scale"),
        ("inference", "network_def"),
        ("metadata", "intended_use"),
        ("metadata", "version"),
    ],
)
def test_a_missing_field_is_named(exported, name, field):
    file = exported / "configs" / f"{name}.json"
    content = json.loads(file.read_text())
    del content[field]
    file.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=f"lacks the fields \\['{field}'\\]"):
        bundle.validate(exported)


def test_a_missing_or_broken_file_is_named(exported):
    file = exported / "configs" / "metadata.json"
    file.write_text("{")
    with pytest.raises(CheckpointError, match="not JSON"):
        bundle.validate(exported)
    file.unlink()
    with pytest.raises(CheckpointError, match=r"has no configs/metadata\.json"):
        bundle.validate(exported)


@pytest.mark.parametrize(
    "name", ["models/model.safetensors", "LICENSE", "docs/README.md", "docs/data_license.txt", "configs/logging.conf"]
)
def test_every_file_counts(exported, name):
    (exported / name).unlink()
    with pytest.raises(CheckpointError, match=f"has no {name}"):
        bundle.validate(exported)


def _change(file, change):
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def test_fields_that_are_empty_or_of_another_kind_are_named(exported):
    metadata, card = exported / "configs" / "metadata.json", exported / "docs" / "model_card.json"
    text = card.read_text()
    _change(metadata, lambda c: c.update(intended_use=" ", monai_version=None))
    with pytest.raises(CheckpointError, match=r"lacks the fields \['monai_version', 'intended_use'\]"):
        bundle.validate(exported)
    metadata.write_text("null")
    with pytest.raises(CheckpointError, match=r"metadata\.json of .* is no JSON object"):
        bundle.validate(exported)
    card.unlink()
    with pytest.raises(CheckpointError, match=r"model_card\.json cannot be read as a model card"):
        bundle.read_card(exported)
    for wrong in ("[]", "{", text.replace('"name"', '"nom"')):
        card.write_text(wrong)
        with pytest.raises(CheckpointError, match=r"model_card\.json"):
            bundle.read_card(exported)


@pytest.mark.parametrize("key", ["schedule", "backbone", "model"])
def test_a_model_that_does_not_load_is_not_valid(exported, key):
    def drop(config):
        del (config if key == "model" else config["model"]["denoiser"])[key]

    bundle.validate(exported)
    _change(exported / "models" / "config.json", drop)
    with pytest.raises(CheckpointError, match=key):
        bundle.validate(exported)


# --- bundles of others ------------------------------------------------------------------------------------------


@pytest.fixture
def foreign(tmp_path):
    """A bundle as the model zoo has them: a network with a reference, weights beside it."""
    from monai.networks.nets import DiffusionModelUNet
    from safetensors.torch import save_file

    arguments = {
        "spatial_dims": 2, "in_channels": 1, "out_channels": 1, "channels": [8], "attention_levels": [False],
        "num_res_blocks": 1, "norm_num_groups": 8,
    }  # fmt: skip
    torch.manual_seed(0)
    net = DiffusionModelUNet(**arguments).eval()
    for part in ("configs", "models"):
        (tmp_path / part).mkdir()
    entry = {"_target_": "monai.networks.nets.DiffusionModelUNet", **arguments, "spatial_dims": "@dims"}
    (tmp_path / "configs" / "inference.json").write_text(json.dumps({"dims": 2, "network_def": entry}))
    save_file(net.state_dict(), tmp_path / "models" / "model.safetensors")
    return tmp_path, net


def test_the_network_of_another_bundle(foreign):
    from monai.networks.schedulers import DDPMScheduler

    root, net = foreign
    denoiser = bundle.import_network(root, DDPMScheduler(num_train_timesteps=100))
    assert isinstance(denoiser.backbone, MonaiNetwork)
    x = torch.randn(2, 1, 8, 8)
    torch.testing.assert_close(denoiser.eps(x, 0.5), net(x, torch.full((2,), 49.0)), atol=1e-4, rtol=1e-4)


def test_code_in_a_bundle_is_not_run(foreign):
    from monai.networks.schedulers import DDPMScheduler

    root, _ = foreign
    file = root / "configs" / "inference.json"
    for change, message in (
        ({"dims": "$__import__('os').getcwd()"}, "which is not run"),
        ({"network_def": {"_target_": "os.system", "command": "true"}}, "is none of"),
        ({"network_def": "@nothing"}, "has no network"),
    ):
        file.write_text(json.dumps(json.loads(file.read_text()) | change))
        with pytest.raises(CheckpointError, match=message):
            bundle.import_network(root, DDPMScheduler())


def test_one_clear_error_each(model, card, exported, tmp_path):
    for call, message in (
        (lambda: bundle.export(model[0], exported, card), "not an empty folder"),
        (lambda: bundle.export(torch.nn.Linear(1, 1), tmp_path / "x", card), "must be a denoiser"),
        (lambda: bundle.export(model[0].denoiser, tmp_path / "x", card), "shape is needed"),
        (lambda: bundle.export(model[0], tmp_path / "x", card, sampler="dream"), "unknown sampler"),
        (lambda: bundle.NoiseDataset((1, 4), 0), "at least 1 sample"),
        (lambda: ModelCard.from_dict({"name": "x"}), "not a model card"),
    ):
        with pytest.raises(InvalidArgument, match=message):
            call()
