"""The digits recipe: real data in, a checkpoint and a picture out."""

from __future__ import annotations

import pytest
import torch

import suffuse
from suffuse import digits
from suffuse.bench import Run
from suffuse.benchmarks import digits as digits_benchmark
from suffuse.errors import InvalidArgument


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A model that has barely been trained."""
    out = tmp_path_factory.mktemp("digits") / "checkpoint"
    return digits.train(out=out, steps=5, batch_size=16, hidden=16, depth=1, device="cpu", progress=False)


def test_the_split_keeps_real_digits_apart():
    data = digits.load_digits()
    assert data.images.shape == (1197, 1, 8, 8)
    assert data.test_images.shape == (600, 1, 8, 8)
    assert data.images.min() == -1
    assert data.images.max() == 1
    held_out = {tuple(image.flatten().tolist()) for image in data.test_images}
    assert not held_out & {tuple(image.flatten().tolist()) for image in data.images}
    assert data.test_labels.bincount().min() >= 55


def test_the_split_is_always_the_same():
    first, second = digits.load_digits(), digits.load_digits()
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_the_checkpoint_names_its_recipe(checkpoint):
    assert suffuse.hub.read_config(checkpoint)["metadata"]["recipe"] == "core/digits"


def test_samples_are_a_picture(checkpoint, tmp_path):
    from PIL import Image

    (path,) = digits.sample(checkpoint, out=tmp_path / "new", digits=[3, 1], n=4, steps=2, device="cpu")
    assert Image.open(path).size == (4 * 10 * 6, 2 * 10 * 6)


def test_a_digit_depends_on_its_own_seed_only(checkpoint):
    denoiser = suffuse.hub.load(checkpoint)
    labels = torch.tensor([7, 7, 2])
    many = digits.draw(denoiser, labels, steps=3, guidance_scale=2.0, seed=5)
    alone = digits.draw(denoiser, labels[2:], steps=3, guidance_scale=2.0, seed=7)
    torch.testing.assert_close(many[2:], alone, atol=1e-5, rtol=0)
    assert not torch.equal(many[0], many[1])


@pytest.mark.parametrize(
    ("options", "message"), [({"digits": [10]}, "digits"), ({"digits": []}, "digits"), ({"n": 0}, "n: must be")]
)
def test_bad_requests_are_named(checkpoint, tmp_path, options, message):
    with pytest.raises(InvalidArgument, match=message):
        digits.sample(checkpoint, out=tmp_path, **options)


def test_a_gaussian_per_class_has_the_moments_of_its_class():
    data = digits.load_digits()
    draws = digits_benchmark.function.__globals__["gaussians"](data, torch.full((4000,), 3), seed=0)
    real = data.images[data.labels == 3]
    assert (draws.mean(0) - real.mean(0)).abs().max() < 0.1  # clipping moves the mean of nearly constant pixels


@pytest.mark.slow
def test_the_digits_benchmark_tells_the_ceiling_the_baseline_and_the_model(tmp_path, monkeypatch):
    settings = digits_benchmark.function.__globals__
    monkeypatch.setitem(settings["STEPS"], "quick", 20)
    monkeypatch.setitem(settings["SAMPLES"], "quick", 200)
    run = Run(digits_benchmark, "quick", 0, "cpu", tmp_path / "work", None, False, tmp_path / "report")
    digits_benchmark(run)
    value = {(row.method, row.metric, row.setting.get("nfe")): row.value for row in run.rows}
    assert value["held-out real digits (ceiling)", "accuracy", None] > 0.95
    assert abs(value["training digits (floor)", "energy distance", None]) < 0.02
    assert value["Gaussian per class", "energy distance", None] < 0.1
    assert len(run.rows) == 20
    assert len(run.figures) == len(run.notes) == 1
