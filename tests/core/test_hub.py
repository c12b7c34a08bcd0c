"""Checkpoints: round trips, and every way a folder can be wrong."""

import json

import pytest
import torch
from torch import nn

from suffuse import NetworkDenoiser, hub
from suffuse.errors import CheckpointError, InvalidArgument
from suffuse.nets import DiT
from suffuse.schedules import DiscreteBetas, VPCosine


@pytest.fixture
def denoiser():
    torch.manual_seed(0)
    net = DiT(1, 2, ndim=1, hidden=16, depth=1, heads=2, tokens={"age": 3})
    nn.init.normal_(net.head.weight)
    return NetworkDenoiser(net, VPCosine(s=0.01), "flow_prediction", data_std=0.3)


@pytest.fixture
def folder(denoiser, tmp_path):
    return hub.save(denoiser, tmp_path / "model", metadata={"recipe": "core/digits"})


def test_a_checkpoint_gives_back_the_model(denoiser, folder):
    again = hub.load(folder)
    assert isinstance(again, NetworkDenoiser)
    assert (again.schedule, again.prediction_type, again.data_std) == (VPCosine(s=0.01), "flow_prediction", 0.3)
    x = torch.randn(2, 1, 8)
    assert torch.equal(again(x, 0.4), denoiser(x, 0.4))
    assert not again.training
    assert hub.read_config(folder)["metadata"] == {"recipe": "core/digits"}
    assert sorted(p.name for p in folder.iterdir()) == ["config.json", "model.safetensors"]


def test_saving_again_replaces_and_leaves_other_files(denoiser, folder):
    (folder / "samples.png").write_text("x")
    hub.save(denoiser, folder, metadata={"second": True})
    assert hub.read_config(folder)["metadata"] == {"second": True}
    assert (folder / "samples.png").exists()


def test_the_hugging_face_mixin_works_on_folders(denoiser, tmp_path):
    denoiser.save_pretrained(tmp_path / "hf")
    again = NetworkDenoiser.from_pretrained(str(tmp_path / "hf"))
    x = torch.randn(2, 1, 8)
    assert torch.equal(again(x, 0.4), denoiser(x, 0.4))


def test_a_discrete_schedule_survives(tmp_path):
    denoiser = NetworkDenoiser(DiT(1, 2, ndim=1, hidden=16, depth=1), DiscreteBetas.linear(steps=50), "epsilon")
    assert hub.load(hub.save(denoiser, tmp_path / "d")).schedule == denoiser.schedule


def test_a_class_of_the_user_can_be_saved_once_marked(tmp_path):
    class Mine(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(width))

        def forward(self, x, c_noise, cond=None):
            return x * self.scale

    with pytest.raises(InvalidArgument, match="decorate the class"):
        hub.save(NetworkDenoiser(Mine(3), VPCosine()), tmp_path / "mine")
    marked = hub.serializable(Mine)
    again = hub.load(hub.save(NetworkDenoiser(marked(3), VPCosine()), tmp_path / "mine"))
    assert again.backbone.scale.shape == (3,)


# --- what can be wrong ------------------------------------------------------------------------------------------


def refused(folder, message):
    with pytest.raises(CheckpointError, match=message):
        hub.load(folder)


def test_a_truncated_file_is_refused(folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    refused(folder, "truncated or was altered")


def test_a_tampered_file_is_refused(folder):
    weights = folder / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))
    refused(folder, "does not match the hash")


def test_a_truncated_configuration_is_refused(folder):
    config = folder / "config.json"
    config.write_text(config.read_text()[:50])
    refused(folder, "truncated or not a suffuse configuration")


def test_missing_files_are_named(folder, tmp_path):
    refused(tmp_path / "nowhere", "has no config.json")
    (folder / "model.safetensors").unlink()
    refused(folder, "has no model.safetensors")


def test_pickles_are_refused(folder, tmp_path):
    refused(tmp_path / "model.pt", "looks like a pickle")
    (folder / "config.json").unlink()
    (folder / "weights.pt").write_text("")
    refused(folder, "pickles are not read")


def edit(folder, change):
    file = folder / "config.json"
    config = json.loads(file.read_text())
    change(config)
    file.write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(format=99), "format 99"),
        (lambda c: c["model"]["backbone"].update(hidden=32), "do not fit its configuration"),
        (lambda c: c["model"]["backbone"].update(widht=32), "config.json does not fit"),
        (lambda c: c["model"].update(prediction_type="eps"), "does not describe a valid model"),
        (lambda c: c["model"].update({"$class": "os:system"}), "not a serializable class"),
        (lambda c: c["model"].update({"$class": "suffuse.nowhere:Net"}), "install its package"),
        (lambda c: c["model"].update({"$class": "suffuse.hub:Path"}), "not a serializable class"),
        (lambda c: c.pop("model"), "lacks the entry 'model'"),
        (lambda c: c.update(model=3), "does not describe a model"),
    ],
)
def test_configurations_that_do_not_fit_are_refused(folder, change, message):
    edit(folder, change)
    refused(folder, message)


def test_a_file_is_not_a_folder(denoiser, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(InvalidArgument, match="is a file"):
        hub.save(denoiser, tmp_path / "file")
