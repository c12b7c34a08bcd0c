"""Laws of STEDM: what a style vector may depend on, what guidance leaves alone, and scores that count patients."""

import numpy as np
import pytest
import torch

import suffuse
from suffuse import Condition
from suffuse.errors import InvalidArgument
from suffuse_medical import ldm, stedm
from suffuse_medical.stedm import StyleEncoder, StyleSets

UNET = {"channels": (8,), "num_head_channels": 8, "attention_levels": [False]}


@pytest.fixture(scope="module")
def cohort():
    """48 images of 8 patients: a square at a random place, whose brightness is the patient's style."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.zeros(48, 8, 8, dtype=torch.long)
    for k, (i, j) in enumerate(torch.randint(0, 5, (48, 2), generator=generator).tolist()):
        labels[k, i : i + 4, j : j + 4] = 1
    level = torch.linspace(-1, 1, 8).repeat_interleave(6)
    images = (labels * level[:, None, None])[:, None] + 0.02 * torch.randn(48, 1, 8, 8, generator=generator)
    return images, labels, tuple(f"p{k // 6}" for k in range(48))


@pytest.fixture(scope="module")
def trained(cohort, tmp_path_factory):
    images, labels, patients = cohort
    out = tmp_path_factory.mktemp("stedm") / "run"
    layout = stedm.layout_maps(labels, 2)
    model = stedm.fit(
        images, layout, patients, style_images=3, style_dim=8, steps=100, lr=1e-2, out=out, device="cpu",
        progress=False, **UNET,
    )  # fmt: skip
    return model, out


# --- the style encoder ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("aggregation", ["mean", "max", "set"])
def test_a_style_is_a_set(aggregation):
    encoder = StyleEncoder(2, 1, 8, 4, aggregation).eval()
    images = torch.randn(2, 4, 1, 8, 8)
    torch.testing.assert_close(encoder(images), encoder(images[:, [2, 0, 3, 1]]), atol=1e-5, rtol=1e-4)
    assert encoder(images[:, :2]).shape == (2, 8), "any number of images"


def test_the_linear_aggregation_has_places():
    encoder = StyleEncoder(2, 1, 8, 4, "linear").eval()
    images = torch.randn(2, 4, 1, 8, 8)
    assert not torch.allclose(encoder(images), encoder(images[:, [2, 0, 3, 1]]), atol=1e-4)
    with pytest.raises(InvalidArgument, match="built for 4 style images"):
        encoder(images[:, :2])


@pytest.mark.parametrize("blocks", ["all", "middle"])
@pytest.mark.parametrize("dims", [2, 3])
def test_style_images_may_have_another_size_than_what_is_drawn(dims, blocks):
    backbone = stedm.StyleLayoutUNet(
        dims, 1, 2, StyleEncoder(dims, 1, 8, 2), blocks, num_res_blocks=1, norm_num_groups=2, **UNET
    )
    x, style = torch.randn(2, 1, *(8,) * dims), torch.randn(2, 2, 1, *(12,) * dims)
    cond = Condition(maps={"layout": torch.zeros(2, 2, *(8,) * dims), "style": style, "estimate": x})
    assert backbone(x, torch.zeros(2), cond).shape == x.shape


@pytest.mark.parametrize(("blocks", "told"), [("all", True), ("middle", False)])
def test_the_last_block_is_told_the_style_or_not(blocks, told):
    backbone = stedm.StyleLayoutUNet(
        2, 1, 0, StyleEncoder(2, 1, 8, 2), blocks, num_res_blocks=1, norm_num_groups=2, **UNET
    )
    heard = []
    last = backbone.net.unet.up_blocks[-1].resnets[-1]
    last.register_forward_pre_hook(lambda block, args: heard.append(args[1]))
    for _ in range(2):
        style = torch.randn(1, 2, 1, 8, 8)
        backbone(
            torch.ones(1, 1, 8, 8), torch.zeros(1), Condition(maps={"style": style, "estimate": torch.ones(1, 1, 8, 8)})
        )
    assert torch.allclose(*heard) is not told


def test_only_known_blocks_can_be_told():
    with pytest.raises(InvalidArgument, match="style_blocks"):
        stedm.StyleLayoutUNet(2, 1, 0, StyleEncoder(2, 1, 8, 2), "first", num_res_blocks=1, norm_num_groups=2, **UNET)


def test_the_encoder_is_trained_with_the_denoiser(trained, cohort):
    torch.manual_seed(0)
    before = StyleEncoder(2, 1, 8, 3).state_dict()
    after = trained[0].backbone.style.state_dict()
    assert not torch.allclose(before["features.0.weight"], after["features.0.weight"], atol=1e-3)


# --- what is drawn ----------------------------------------------------------------------------------------------


def test_images_have_the_layout_that_was_asked_for_and_the_style_that_was_shown(trained, cohort):
    images, labels, _ = cohort
    layout = stedm.layout_maps(labels[:12], 2)
    means = []
    for patient in (0, 7):  # dark and bright
        style = stedm.style_sets(images[6 * patient : 6 * patient + 6], 12, 3)
        drawn = stedm.synthesise(trained[0], layout, style, guidance_scale=1.0, steps=8)[:, 0]
        inside = labels[:12] == 1
        means.append(float(drawn[inside].mean()))
        assert abs(float(drawn[~inside].mean())) < 0.3
    assert means[1] - means[0] > 0.8


def test_guidance_acts_on_the_style_only(trained, cohort):
    images, labels, _ = cohort
    layout = stedm.layout_maps(labels[:2], 2)
    style = images[:6].reshape(2, 3, 1, 8, 8)
    model, x = trained[0], torch.randn(2, 1, 8, 8)
    cond = Condition(maps={"layout": layout, "style": style})
    guided = suffuse.guidance.ClassifierFree(model, 0.0, names=("style",))
    torch.testing.assert_close(guided(x, 0.5, cond), model(x, 0.5, Condition(maps={"layout": layout})))


def test_a_draw_depends_on_its_own_seed_layout_and_style(trained, cohort):
    images, labels, _ = cohort
    layout, style = stedm.layout_maps(labels[:3], 2), images[:9].reshape(3, 3, 1, 8, 8)
    whole = stedm.synthesise(trained[0], layout, style, steps=3, seed=5)
    alone = stedm.synthesise(trained[0], layout[1:2], style[1:2], steps=3, seed=6)
    torch.testing.assert_close(whole[1:2], alone, atol=1e-4, rtol=1e-4)


def test_a_checkpoint_draws_the_same(trained, cohort):
    images, labels, _ = cohort
    layout, style = stedm.layout_maps(labels[:2], 2), images[:6].reshape(2, 3, 1, 8, 8)
    loaded = suffuse.hub.load(trained[1])
    draws = [stedm.synthesise(m, layout, style, steps=2) for m in (trained[0], loaded)]
    torch.testing.assert_close(*draws)


def test_in_a_latent_space(cohort):
    images, labels, patients = cohort
    net = ldm.make_autoencoder(images, "vq", factor=2, width=8, latent_channels=2)
    layout = stedm.layout_maps(labels, 2)
    model = stedm.fit(
        images, layout, patients, autoencoder=net.eval(), style_images=2, style_dim=8, steps=2, device="cpu",
        progress=False, **UNET,
    )  # fmt: skip
    drawn = stedm.synthesise(model, layout[:2], images[:4].reshape(2, 2, 1, 8, 8), steps=2)
    assert isinstance(model, ldm.LatentDiffusion) and drawn.shape == (2, 1, 8, 8)


# --- style sets -------------------------------------------------------------------------------------------------


def test_style_sets_stay_with_the_patient_and_leave_the_image_out(cohort):
    images, labels, patients = cohort
    sets = StyleSets(images, stedm.layout_maps(labels, 2), patients, n=5, repeats=2)
    image, cond = sets[7]
    own = images[6:12]
    assert torch.equal(image, images[7]) and len(sets) == 96
    for style in cond.maps["style"][0]:
        assert any(torch.equal(style, other) for other in own) and not torch.equal(style, image)
    assert not torch.equal(sets[7][1].maps["style"], sets[7 + 48][1].maps["style"]), "drawn anew in the next pass"
    assert torch.equal(sets[7][1].maps["style"], sets[7][1].maps["style"]), "and the same when asked again"


def test_style_sets_of_a_place_are_of_one_patient_each(cohort):
    images, _, patients = cohort
    sets = stedm.style_sets(images, 20, 4, patients=patients)
    assert sets.shape == (20, 4, *images.shape[1:])
    owners = [{patients[i] for one in group for i in range(48) if torch.equal(images[i], one)} for group in sets]
    assert [len(owner) for owner in owners] == [1] * 20
    assert set.union(*owners) == set(patients)
    few = stedm.style_sets(images[:2], 3, 4, patients=patients[:2])
    assert few.shape == (3, 4, *images.shape[1:])
    with pytest.raises(InvalidArgument, match="patients: expected a name for each of 48 images, got 2"):
        stedm.style_sets(images, 3, 4, patients=patients[:2])


@pytest.mark.parametrize("source", ["nearby", "augmented", "none"])
def test_other_sources(cohort, source):
    images, labels, patients = cohort
    _, cond = StyleSets(images, stedm.layout_maps(labels, 2), patients, n=2, source=source)[8]
    if source == "none":
        assert cond.names == ("layout",)
    elif source == "nearby":
        assert {k for k in range(48) for s in cond.maps["style"][0] if torch.equal(images[k], s)} == {7, 9}
    else:
        for style in cond.maps["style"][0]:
            torch.testing.assert_close(style.flatten().sort().values, images[8].flatten().sort().values)


def test_the_leak_check_finds_a_leak_and_its_absence(cohort):
    images, labels, patients = cohort
    layout = stedm.layout_maps(labels, 2)

    class Telling(StyleEncoder):
        def encode(self, x):
            return torch.nn.functional.adaptive_avg_pool2d((x.abs() > 0.1).float(), 4).flatten(1)

    class Silent(StyleEncoder):
        def encode(self, x):
            return torch.cat([x.amax((1, 2, 3))[:, None], x.amin((1, 2, 3))[:, None]], dim=1)

    assert stedm.leak(Telling(2, 1, 8), images, layout, patients)["own"] > 0.5
    silent = stedm.leak(Silent(2, 1, 8), images, layout, patients)
    assert silent["own"] < 0.1 and silent["others"] < 0.1


# --- segmentation -----------------------------------------------------------------------------------------------


def test_a_patient_counts_once_and_empty_agreement_is_perfect():
    labels = torch.zeros(4, 4, 4, dtype=torch.long)
    labels[:, :2] = 1
    predicted = labels.clone()
    predicted[0] = 0
    scores = stedm.patient_scores(predicted, labels, ("a", "a", "a", "b"), 3)
    assert scores.patients == ("a", "b")
    np.testing.assert_allclose(scores.dice, [(2 * 16 / (16 + 24) + 1) / 2, 1.0], rtol=1e-6)
    np.testing.assert_allclose(scores.iou, [(16 / 24 + 1) / 2, 1.0], rtol=1e-6)


def test_a_segmenter_learns_from_real_and_drawn_pairs(cohort):
    images, labels, patients = cohort
    bright, dark = slice(36, 48), slice(0, 12)
    one = stedm.fit_segmenter(images[bright], labels[bright], 2, channels=(8, 16), steps=25, lr=1e-2, batch_size=8)
    two = stedm.fit_segmenter(
        images[bright],
        labels[bright],
        2,
        drawn=(images[12:24], labels[12:24]),
        channels=(8, 16),
        steps=60,
        batch_size=8,
    )
    seen = stedm.patient_scores(stedm.segment(one, images[bright]), labels[bright], patients[36:], 2).dice.mean()
    assert seen > 0.6
    dice = [
        stedm.patient_scores(stedm.segment(net, images[dark]), labels[dark], patients[:12], 2).dice.mean()
        for net in (one, two)
    ]
    assert dice[1] > dice[0] + 0.1, "images in the other style help on the other style"


def test_one_clear_error_each(cohort):
    images, labels, patients = cohort
    layout = stedm.layout_maps(labels, 2)
    for call, message in (
        (lambda: stedm.layout_maps(labels + 5, 2), "mask has labels 5"),
        (lambda: stedm.layout_maps(labels.float() + 0.5, 2), "fractional values"),
        (lambda: StyleEncoder(2, 1, 8, 4, "median"), "unknown aggregation"),
        (lambda: StyleEncoder(2, 1)(torch.zeros(1, 4, 3, 8, 8)), "style must be"),
        (
            lambda: stedm.StyleLayoutUNet(2, 1, 2, StyleEncoder(2, 1), channels=[8], norm_num_groups=8),
            "takes the style out again",
        ),
        (lambda: StyleSets(images, layout, patients[:3]), "as many"),
        (lambda: StyleSets(images, layout, patients, source="web"), "unknown source"),
        (lambda: StyleSets(images.clone().fill_(torch.inf), layout, patients), "NaN or infinite"),
        (lambda: stedm.style_sets(images[:0], 2, 2), "at least one image"),
        (lambda: stedm.leak(StyleEncoder(2, 1), images, layout, ["one"] * 48), "at least two patients"),
        (lambda: stedm.patient_scores(labels, labels, patients[:4], 2), "must go together"),
        (lambda: stedm.fit_segmenter(images, 2 * labels, 2), "mask has labels 2"),
        (lambda: stedm.fit_segmenter(images, labels, 2, drawn_share=2), "drawn_share"),
        (lambda: stedm.fit_segmenter(images[:, :, :7], labels[:, :7], 2), "multiple"),
        (lambda: stedm.fit(images[:, :, :7], layout[:, :, :7], patients, steps=1, progress=False), "multiple"),
        (lambda: stedm.fit(images[:0], layout[:0], [], steps=1), "empty"),
    ):
        with pytest.raises(InvalidArgument, match=message):
            call()
