"""Attribute strengths: the loss, the scale, and labels that know where they belong."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from suffuse import Condition, hub
from suffuse.errors import CheckpointError, InvalidArgument
from suffuse_rl_planning.attributes import (
    Attributes,
    AttributeScale,
    BradleyTerry,
    StrengthEnsemble,
    Strengths,
)
from suffuse_rl_planning.preferences import label

NAMES = ("speed", "height")


@pytest.fixture(scope="module")
def answered(episodes):
    return label(episodes, NAMES, n=400, length=20, seed=0)


@pytest.fixture(scope="module")
def attributes(answered):
    seen, _ = answered.split(0.25)
    return Attributes.fit(
        seen, env_id="HalfCheetah-v5", steps=120, batch_size=64, lr=3e-3, width=16, members=2, patch=4, shortest=16,
        accelerator="cpu", progress=False,
    )  # fmt: skip


def test_the_loss_is_that_of_bradley_and_terry():
    """Against the formula written out, on a model whose strength is the first observation."""

    class First(torch.nn.Module):
        def forward(self, observations):
            return observations[:, 0, :1]

    model = StrengthEnsemble(("a",), [0.0, 0.0], [1.0, 1.0], members=1, width=8)
    model.members = torch.nn.ModuleList([First()])
    pairs = torch.randn(5000, 2, 4, 2)
    y = torch.randint(3, (5000, 1)) / 2
    cond = Condition(tokens={"answers": y[:, None]})
    loss = BradleyTerry(shortest=0)(model, pairs, cond, torch.Generator().manual_seed(0))
    p = torch.sigmoid(pairs[:, 0, 0, :1] - pairs[:, 1, 0, :1])
    expected = -((1 - y) * p.log() + y * (1 - p).log()).mean()
    assert loss == pytest.approx(float(expected), rel=0.03)  # members draw their pairs with replacement


def test_strengths_order_unseen_pairs_as_measured(attributes, answered):
    _, unseen = answered.split(0.25)
    found = attributes.accuracy(unseen)
    assert list(found) == list(NAMES) and min(found.values()) > 0.8


def test_a_stretch_of_any_length_has_a_strength(attributes, episodes):
    for length in (16, 33, 60):
        assert attributes.raw(torch.from_numpy(episodes.observations[None, :length])).shape == (1, 2)
    with pytest.raises(InvalidArgument, match="fewer than the patch"):
        attributes.raw(torch.zeros(1, 2, 17))


def test_strength_is_bounded():
    model = StrengthEnsemble(("a",), [0.0] * 3, [1.0] * 3, members=2, width=8)
    with torch.no_grad():
        for member in model.members:
            member.head.bias.fill_(1e4)
    assert model(torch.randn(5, 6, 3)).max() <= 20


@pytest.mark.parametrize("kind", ["minmax", "quantile"])
def test_a_scale_keeps_order_and_fills_the_unit_interval(kind):
    z = torch.randn(999, 2, generator=torch.Generator().manual_seed(0)).exp()
    v = AttributeScale.fit(z, kind)(z)
    assert v.shape == z.shape and v.min() == 0 and v.max() == 1
    for k in range(2):
        assert (v[z[:, k].argsort(), k].diff() >= 0).all()
    if kind == "quantile":
        np.testing.assert_allclose(torch.quantile(v, 0.8, dim=0), 0.8, atol=0.01)
    else:
        torch.testing.assert_close(v, (z - z.min(0).values) / (z.max(0).values - z.min(0).values))


def test_a_scale_survives_json_and_clips_what_is_beyond():
    scale = AttributeScale.fit(torch.rand(50, 3), "quantile")
    again = AttributeScale.from_config(scale.to_config())
    x = 3 * torch.randn(4, 5, 3)
    assert torch.equal(scale(x), again(x)) and scale(x).min() >= 0 and scale(x).max() <= 1


def test_relabelling_is_keyed_by_episode_and_start(attributes, episodes):
    """Labels of a shuffled and thinned set of windows are those of the windows one by one."""
    windows = episodes.windows(16, measure=20)
    labelled, found = attributes.relabel(episodes, windows)
    order = torch.randperm(len(windows), generator=torch.Generator().manual_seed(0))[:50]
    some = dataclasses.replace(
        windows, trajectories=windows.trajectories[order], episode=windows.episode[order], start=windows.start[order]
    )
    again = attributes.apply(some, found)
    for name in NAMES:
        assert torch.equal(again.behaviour[name], labelled.behaviour[name][order])
    first, last = windows.measured[7]
    direct = attributes(torch.from_numpy(episodes.observations[None, first:last]))[0]
    torch.testing.assert_close(torch.stack([labelled.behaviour[n][7] for n in NAMES]), direct.float())


def test_labels_of_another_horizon_are_refused_not_misaligned(attributes, episodes):
    found = attributes.strengths(episodes, episodes.windows(32, measure=32))
    with pytest.raises(InvalidArgument, match="windows have no strength.*another dataset, horizon or stride"):
        attributes.apply(episodes.windows(16, measure=32), found)


def test_strengths_survive_the_disk(attributes, episodes, tmp_path):
    found = attributes.strengths(episodes, episodes.windows(16, stride=7))
    again = Strengths.load(found.save(tmp_path / "strengths.safetensors"))
    assert again.attributes == NAMES
    for name in ("episode", "start", "values"):
        assert torch.equal(getattr(again, name), getattr(found, name))


def test_a_checkpoint_keeps_the_scale(attributes, episodes, tmp_path):
    attributes.relabel(episodes, episodes.windows(16, stride=7))
    again = Attributes.load(attributes.save(tmp_path / "attributes"))
    observations = torch.from_numpy(episodes.observations[None, :40])
    assert torch.equal(again(observations), attributes(observations)) and again.names == NAMES


def test_without_a_scale_nothing_is_saved_or_loaded(answered, tmp_path):
    model = StrengthEnsemble(NAMES, [0.0] * 17, [1.0] * 17, members=1, width=8)
    bare = Attributes(model, env_id="HalfCheetah-v5")
    for call in (lambda: bare(torch.zeros(1, 4, 17)), lambda: bare.save(tmp_path / "x")):
        with pytest.raises(InvalidArgument, match="scale"):
            call()
    hub.save(model, tmp_path / "bare")
    with pytest.raises(CheckpointError, match="no attribute scale"):
        Attributes.load(tmp_path / "bare")


def test_a_model_of_another_robot_is_refused(attributes):
    with pytest.raises(InvalidArgument, match="reads 17 observations, Hopper-v5 has 11"):
        Attributes(attributes.model, env_id="Hopper-v5")
