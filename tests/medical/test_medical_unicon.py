"""Laws of the joint image-mask model: one network, three questions; an adapter that starts as what it adapts."""

import pytest
import torch

import suffuse
from suffuse.errors import InvalidArgument
from suffuse.joint import JointNetworkDenoiser, given
from suffuse.nets import MonaiUNet
from suffuse.schedules import VPLinear
from suffuse_medical import unicon
from suffuse_medical.stedm import layout_maps

UNET = {"channels": (16,), "attention_levels": [False], "num_head_channels": 8}


@pytest.fixture(scope="module")
def pairs():
    """64 images of 8 x 8 with a bright square at a random place, and its label map."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.zeros(64, 8, 8, dtype=torch.long)
    for k, (i, j) in enumerate(torch.randint(0, 5, (64, 2), generator=generator).tolist()):
        labels[k, i : i + 4, j : j + 4] = 1
    images = (2.0 * labels - 1)[:, None] * 0.8 + 0.1 * torch.randn(64, 1, 8, 8, generator=generator)
    return images, labels


@pytest.fixture(scope="module")
def trained(pairs, tmp_path_factory):
    out = tmp_path_factory.mktemp("unicon") / "run"
    model = unicon.fit(
        pairs[0], layout_maps(pairs[1], 2), steps=120, lr=1e-2, out=out, device="cpu", progress=False, **UNET
    )
    return model, out


def test_one_model_answers_three_questions(trained, pairs):
    images, labels = pairs
    layout = layout_maps(labels[:8], 2)
    masks = unicon.segment(trained[0], images[:8], n=2, steps=6)
    assert masks.shape == (2, 8, 8, 8)
    assert (masks == labels[:8]).float().mean() > 0.9
    painted = unicon.paint(trained[0], layout, steps=6)[:, 0]
    assert painted[labels[:8] == 1].mean() > 0.4 and painted[labels[:8] == 0].mean() < -0.4
    drawn, drawn_labels = unicon.draw(trained[0], 16, (8, 8), steps=6)
    bright = drawn[:, 0] > 0
    assert (bright == (drawn_labels == 1)).float().mean() > 0.8, "what is drawn together fits together"


def test_half_precision_learns_as_well(trained, pairs):
    options = {"steps": 120, "lr": 1e-2, "device": "cpu", "progress": False, "precision": "bf16-mixed"}
    half = unicon.fit(pairs[0], layout_maps(pairs[1], 2), **options, **UNET)
    pairwise = zip(half.parameters(), trained[0].parameters(), strict=True)
    assert any(not torch.equal(one, two) for one, two in pairwise), "the precision had no effect"
    assert (unicon.segment(half, pairs[0][:8], n=2, steps=6) == pairs[1][:8]).float().mean() > 0.9


def test_noise_on_the_mask_loosens_it(trained, pairs):
    layout = layout_maps(pairs[1][:8], 2)
    truth = pairs[1][:8] == 1
    agreement = [
        float(((unicon.paint(trained[0], layout, t=t, steps=6)[:, 0] > 0) == truth).float().mean()) for t in (0.0, 1.0)
    ]
    assert agreement[0] > 0.85 > 0.8 > agreement[1]


def test_a_checkpoint_and_a_draw_of_its_own(trained, pairs):
    loaded = suffuse.hub.load(trained[1])
    whole = unicon.segment(trained[0], pairs[0][:3], n=1, steps=2)
    torch.testing.assert_close(unicon.segment(loaded, pairs[0][:3], n=1, steps=2, batch_size=1), whole)
    images, labels = unicon.draw(loaded, 2, (8, 8), steps=2, seed=3)
    again, _ = unicon.draw(loaded, 1, (8, 8), steps=2, seed=4)
    torch.testing.assert_close(images[1:], again, atol=1e-4, rtol=1e-4)
    assert labels.shape == (2, 8, 8)


# --- the adapter ------------------------------------------------------------------------------------------------


@pytest.fixture
def base():
    torch.manual_seed(0)
    net = MonaiUNet(
        2, 1, channels=[8, 16], attention_levels=[False, True], num_res_blocks=1, norm_num_groups=8, num_head_channels=8
    )
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return net.eval()


def test_the_adapter_starts_as_the_network_it_adapts(base):
    x, labels = torch.randn(3, 2, 8, 8), torch.randn(3, 2) / 4
    alone = torch.cat([base(x[:, :1], labels[:, 0]), base(x[:, 1:], labels[:, 1])], dim=1)
    paired = unicon.PairedUNet(base).eval()
    torch.testing.assert_close(paired(x, labels), alone, atol=1e-5, rtol=1e-4)
    trainable = {name for name, p in paired.named_parameters() if p.requires_grad}
    assert trainable and all(any(key in name for key in (".down", ".up", ".joint")) for name in trainable)


def test_the_adapter_joins_streams_by_training_its_own_weights_only(base, pairs, tmp_path):
    before = {name: value.clone() for name, value in base.state_dict().items()}
    images, labels = pairs
    denoiser = JointNetworkDenoiser(unicon.PairedUNet(base, rank=2), VPLinear(), {"image": 1, "mask": 1})
    data = torch.cat([images, (2.0 * labels - 1)[:, None]], dim=1)
    from suffuse.joint import IndependentTimes
    from suffuse.training import DenoisingObjective

    fitted = suffuse.training.fit(
        denoiser, data, steps=15, batch_size=8, lr=1e-2, accelerator="cpu", progress=False, ema_decay=0.0,
        objective=DenoisingObjective(time=IndependentTimes((1, 1)), cond_dropout=0),
    )  # fmt: skip
    after = fitted.backbone.base.state_dict()
    for name, value in before.items():
        found = after.get(name, after.get(name.replace(".norm.", ".block.norm.").replace(".attn.", ".block.attn.")))
        if found is not None:
            torch.testing.assert_close(found, value)
    x = torch.randn(2, 1, 8, 8)
    one, two = (given(fitted, {"image": v})(x, 0.5) for v in (images[:2], images[2:4]))
    assert not torch.allclose(one, two, atol=1e-4), "the mask listens to the image"
    loaded = suffuse.hub.load(suffuse.hub.save(fitted, tmp_path / "adapter"))
    torch.testing.assert_close(given(loaded, {"image": images[:2]})(x, 0.5), one, atol=1e-5, rtol=1e-4)


def test_one_clear_error_each(trained, pairs, base):
    images, labels = pairs
    plain = MonaiUNet(2, 1, channels=[8], attention_levels=[False], num_res_blocks=1, norm_num_groups=8)
    plain.unet.middle_block = torch.nn.Identity()
    for call, message in (
        (lambda: unicon.fit(images, layout_maps(labels[:4], 2), progress=False), "must go together"),
        (lambda: unicon.fit(images, 3 * layout_maps(labels, 2), progress=False), "layout must lie"),
        (lambda: unicon.segment(trained[0], images, n=0), "at least 1 sample"),
        (lambda: unicon.segment(trained[0], images.clone().fill_(torch.nan)), "NaN"),
        (lambda: unicon.draw(trained[0], 0, (8, 8)), "at least 1 sample"),
        (lambda: unicon.paint(trained[0], layout_maps(labels, 3)), "stream 'mask' must be"),
        (lambda: unicon.PairedUNet(plain), "no self-attention"),
        (lambda: unicon.PairedUNet(base, rank=0), "rank must be"),
    ):
        with pytest.raises(InvalidArgument, match=message):
            call()
