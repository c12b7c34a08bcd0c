"""Laws of latent diffusion: two players and one loss, a scale that survives the disk, conditions, 2-D and 3-D."""

import pytest
import torch

import suffuse
from suffuse import Condition
from suffuse.errors import InvalidArgument
from suffuse_medical import ldm, unicon
from suffuse_medical.ldm import AutoencoderObjective, WithDiscriminator
from suffuse_medical.prior import fit_prior

TINY = {"width": 8, "latent_channels": 2}
PLAIN = AutoencoderObjective(adversarial_weight=0.0)


@pytest.fixture(scope="module")
def images():
    """40 smooth images (1, 16, 16), in [-1, 1]."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(40, 1, 4, 4, generator=generator)
    return torch.tanh(torch.nn.functional.interpolate(coarse, size=(16, 16), mode="bilinear"))


@pytest.fixture(scope="module")
def volumes():
    generator = torch.Generator().manual_seed(1)
    coarse = torch.randn(6, 1, 2, 2, 2, generator=generator)
    return torch.tanh(torch.nn.functional.interpolate(coarse, size=(8, 8, 8), mode="trilinear"))


@pytest.fixture(scope="module")
def autoencoder(images):
    return ldm.fit_autoencoder(
        images, steps=30, lr=1e-2, batch_size=8, objective=PLAIN, device="cpu", progress=False, **TINY
    )


@pytest.fixture(scope="module")
def asked(images):
    """A map and a token that both say how bright the image is."""
    level = images.mean((1, 2, 3))
    maps = {"side": level[:, None, None, None].expand(-1, 1, 16, 16).contiguous()}
    return Condition(tokens={"level": level[:, None, None].expand(-1, 1, 3).contiguous()}, maps=maps)


@pytest.fixture(scope="module")
def model(images, autoencoder, asked, tmp_path_factory):
    out = tmp_path_factory.mktemp("ldm") / "run"
    fitted = ldm.fit(
        images, autoencoder, cond=asked, channels=(8,), num_head_channels=8, steps=8, batch_size=8, out=out,
        metadata={"note": "x"}, device="cpu", progress=False,
    )  # fmt: skip
    return fitted, out


@pytest.mark.parametrize("kind", ["kl", "vq"])
@pytest.mark.parametrize("factor", [2, 4])
def test_shapes_in_two_and_three_dimensions(kind, factor, images, volumes):
    for x in (images[:2], volumes[:2]):
        net = ldm.make_autoencoder(x, kind, factor=factor, **TINY).eval()
        z = net.encode(x)
        assert net.factor == factor
        assert z.shape == (2, 2, *(n // factor for n in x.shape[2:])) and net.decode(z).shape == x.shape


# --- two players, one loss --------------------------------------------------------------------------------------


def test_each_player_moves_by_its_own_term_only(images):
    pair = WithDiscriminator(ldm.make_autoencoder(images, **TINY), 8, 1)
    drawn = pair.autoencoder(images[:4])
    pair.judge(drawn, frozen=True).mean().backward()
    assert all(p.grad is None for p in pair.discriminator.parameters())
    assert pair.autoencoder.last_weight.grad.abs().sum() > 0
    pair.zero_grad()
    pair.judge(pair.autoencoder(images[:4]).detach()).mean().backward()
    assert all(p.grad is not None for p in pair.discriminator.parameters())
    assert pair.autoencoder.last_weight.grad is None


@pytest.mark.parametrize("kind", ["kl", "vq"])
def test_the_adaptive_weight_makes_both_pull_equally_hard(kind, images):
    torch.manual_seed(0)
    pair = WithDiscriminator(ldm.make_autoencoder(images, kind, **TINY), 8, 1)
    last = pair.autoencoder.last_weight
    coded = pair.autoencoder.code(images[:4])
    nll, fooled = (images[:4] - coded.reconstruction).abs().mean(), -1e-3 * pair.judge(coded.reconstruction, True).sum()
    w = AutoencoderObjective(adversarial_weight=1.0).adaptive_weight(nll, fooled, last)
    pulls = [torch.autograd.grad(term, last, retain_graph=True)[0].norm() for term in (nll, w * fooled)]
    assert float(pulls[1] / pulls[0]) == pytest.approx(1, abs=0.2)  # up to the 1e-4 in the denominator
    assert not w.requires_grad


def test_the_adversary_waits_for_its_start(images):
    torch.manual_seed(0)
    pair = WithDiscriminator(ldm.make_autoencoder(images, **TINY), 8, 1).train()
    objective = AutoencoderObjective(adversarial_start=1)
    weight = pair.discriminator.final_conv.conv.weight
    objective(pair, images[:4]).backward()
    assert not weight.grad.any()
    pair.zero_grad()
    objective(pair, images[:4]).backward()
    assert weight.grad.any() and int(pair.steps) == 2


def test_the_kl_penalty_is_the_divergence_from_a_standard_normal(images):
    net = ldm.make_autoencoder(images, **TINY)
    mean, std = net.net.encode(images[:3])
    exact = torch.distributions.kl_divergence(
        torch.distributions.Normal(mean, std), torch.distributions.Normal(0.0, 1.0)
    ).sum()
    torch.testing.assert_close(net.code(images[:3]).penalty * images[:3].numel(), exact)


def test_stage_one_learns(images, autoencoder):
    error = (autoencoder(images) - images).abs().mean()
    assert error < 0.75 * (images - images.mean()).abs().mean()


def test_both_stages_learn_in_half_precision(images, autoencoder):
    options = {"batch_size": 8, "device": "cpu", "progress": False, "precision": "bf16-mixed"}
    half = ldm.fit_autoencoder(images, steps=30, lr=1e-2, objective=PLAIN, **options, **TINY)
    errors = [float((net(images) - images).square().mean()) for net in (half, autoencoder)]
    assert errors[0] != errors[1], "the precision had no effect"
    assert errors[0] < 1.2 * errors[1]
    model = ldm.fit(images, half, channels=(8,), num_head_channels=8, steps=3, **options)
    assert all(p.dtype == torch.float32 and bool(p.isfinite().all()) for p in model.parameters())
    assert bool(model.sample(2, steps=2).isfinite().all())


def test_the_perceptual_distance_sees_blur_and_has_gradients_everywhere(images):
    x = images[:4]
    assert float(ldm.perceptual_distance(x, x)) == 0
    sharp = x.sign()
    blurred = torch.nn.functional.avg_pool2d(sharp, 3, 1, 1)
    shifted = sharp + (sharp - blurred).abs().mean()  # as far in L1, and looks the same
    assert ldm.perceptual_distance(blurred, sharp) > 1.5 * ldm.perceptual_distance(shifted, sharp)
    flat = torch.zeros(1, 1, 8, 8, requires_grad=True)
    ldm.perceptual_distance(flat, torch.zeros(1, 1, 8, 8)).backward()
    assert torch.isfinite(flat.grad).all()


# --- stage 2 ----------------------------------------------------------------------------------------------------


def test_latents_have_variance_one_and_decode_to_the_reconstruction(images, model):
    ldm_, _ = model
    z = ldm_.encode(images)
    assert float(z.std()) == pytest.approx(1, abs=1e-3)
    torch.testing.assert_close(ldm_.decode(z), ldm_.autoencoder(images), atol=1e-4, rtol=1e-4)


def test_a_checkpoint_keeps_scale_schedule_and_samples(images, asked, model):
    fitted, out = model
    loaded = suffuse.hub.load(out)
    assert isinstance(loaded, ldm.LatentDiffusion)
    assert loaded.latent_scale == fitted.latent_scale != 1.0
    assert suffuse.hub.read_config(out)["model"]["latent_scale"] == fitted.latent_scale
    assert loaded.denoiser.schedule == fitted.denoiser.schedule
    torch.testing.assert_close(loaded.sample(cond=asked[:2], steps=3), fitted.sample(cond=asked[:2], steps=3))


def test_a_draw_depends_on_its_seed_and_its_condition_only(asked, model):
    together = model[0].sample(cond=asked[:3], steps=3, seed=4)
    alone = model[0].sample(cond=asked[1:3], steps=3, seed=5, batch_size=1)
    torch.testing.assert_close(together[1:], alone, atol=1e-4, rtol=1e-4)


def test_conditions_and_guidance_change_what_is_drawn(asked, model):
    plain = model[0].sample(cond=asked[:2], steps=3)
    assert not torch.allclose(plain, model[0].sample(cond=asked[5:7], steps=3), atol=1e-3)
    assert not torch.allclose(plain, model[0].sample(cond=asked[:2], steps=3, guidance_scale=3.0), atol=1e-3)
    inside = model[0].latent_condition(asked[:2])
    assert inside.maps["side"].shape == (2, 1, 4, 4)
    torch.testing.assert_close(inside.maps["side"].mean((1, 2, 3)), asked.maps["side"][:2].mean((1, 2, 3)))


def test_a_masked_image_goes_through_the_encoder(images, autoencoder):
    cond = Condition(
        maps={"seen": images * (torch.arange(16) < 8), "mask": (torch.arange(16) < 8).float().expand(40, 1, 16, 16)}
    )
    fitted = ldm.fit(
        images,
        autoencoder,
        cond=cond,
        encoded=("seen",),
        channels=(8,),
        steps=2,
        device="cpu",
        num_head_channels=8,
        progress=False,
    )
    inside = fitted.latent_condition(cond[:3])
    assert inside.maps["seen"].shape == (3, 2, 4, 4) and inside.maps["mask"].shape == (3, 1, 4, 4)
    assert fitted.sample(cond=cond[:3], steps=2).shape == (3, 1, 16, 16)


def test_volumes_with_a_rectified_flow_from_the_same_class(volumes):
    net = ldm.fit_autoencoder(
        volumes, "vq", factor=2, steps=3, device="cpu", progress=False, discriminator_layers=1, **TINY
    )
    schedule = ldm.rectified_flow((64, 64, 64))
    assert schedule.shift == pytest.approx(2)
    fitted = ldm.fit(
        volumes, net, schedule=schedule, prediction_type="flow_prediction", channels=(8,), num_head_channels=8, steps=3,
        device="cpu", progress=False,
    )  # fmt: skip
    assert fitted.sample(2, steps=2).shape == (2, 1, 8, 8, 8)
    assert fitted.sample(1, steps=2, shape=(16, 8, 8)).shape == (1, 1, 16, 8, 8)


# --- going on, and other machines -------------------------------------------------------------------------------

QUICK = {"batch_size": 8, "device": "cpu", "progress": False}


def test_both_stages_can_be_trained_for_longer(images, tmp_path):
    """The length of the average and the adversary's start follow the number of steps; neither is another setting."""
    for steps in (2, 5):
        net = ldm.fit_autoencoder(images[:8], steps=steps, out=tmp_path / "a", **TINY, **QUICK)
    for steps in (2, 120):
        ldm.fit(images, net, channels=(8,), steps=steps, out=tmp_path / "b", **QUICK)


def test_other_images_do_not_give_back_the_weights_of_the_first(images, tmp_path):
    first = ldm.fit_autoencoder(images, steps=2, out=tmp_path, **TINY, **QUICK)
    with pytest.raises(InvalidArgument, match="a run on other data"):
        ldm.fit_autoencoder(images.flip(0), steps=2, out=tmp_path, **TINY, **QUICK)
    second = ldm.fit_autoencoder(images.flip(0), steps=2, out=tmp_path, resume=False, **TINY, **QUICK)
    assert not torch.equal(first.last_weight, second.last_weight)


def test_small_images_get_a_discriminator_that_fits(volumes):
    for x in (volumes, volumes[..., 0]):  # of 8 voxels along every axis
        ldm.fit_autoencoder(x, factor=2, steps=1, **TINY, **QUICK)
    net = ldm.fit_autoencoder(volumes[..., :4, :4, :4], factor=2, steps=1, objective=PLAIN, **TINY, **QUICK)
    assert net.factor == 2
    with pytest.raises(InvalidArgument, match="needs 6 voxels along every axis"):
        ldm.fit_autoencoder(volumes[..., :4], factor=2, steps=1, **TINY, **QUICK)


def test_null_values_go_to_the_latents_with_their_maps(model, asked):
    nulls = {"level": torch.full((1, 3), 2.0), "side": torch.full((1, 16, 16), -1.0)}
    inside = model[0].latent_condition(Condition(asked.tokens, asked.maps, nulls=nulls))
    torch.testing.assert_close(inside.nulls["side"], torch.full((1, 4, 4), -1.0))
    assert torch.equal(inside.nulls["level"], nulls["level"])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_an_autoencoder_on_a_gpu_gives_a_model_on_it(images, autoencoder):
    try:
        fitted = ldm.fit(images, autoencoder.cuda(), channels=(8,), steps=1, batch_size=8, device="cpu", progress=False)
        assert {p.device.type for p in fitted.parameters()} == {"cuda"}
        assert fitted.sample(1, steps=2).shape == (1, 1, 16, 16)
    finally:
        autoencoder.cpu()


def test_monai_tensors_leave_their_history_outside(images, autoencoder, model):
    from monai.data import MetaTensor

    traced = MetaTensor(images[:2])
    for tensor in (
        autoencoder.encode(traced),
        model[0].encode(traced),
        model[0].decode(MetaTensor(torch.zeros(1, 2, 4, 4))),
    ):
        assert type(tensor) is torch.Tensor
    assert type(autoencoder.check(traced)) is torch.Tensor


@pytest.mark.parametrize("change", ["nan", "size"])
def test_every_model_of_images_says_what_is_wrong_with_them(change):
    images = torch.rand(8, 1, 27, 27) if change == "size" else torch.full((8, 1, 16, 16), torch.nan)
    message = r"size \(27, 27\), not a multiple of" if change == "size" else "NaN or infinite voxels"
    layout = torch.ones(8, 2, *images.shape[2:])
    for fit in (fit_prior, ldm.fit, lambda x, **options: unicon.fit(x, layout, **options)):
        with pytest.raises(InvalidArgument, match=message):
            fit(images, channels=(8, 16), steps=1, batch_size=2, device="cpu", progress=False)


def test_a_prior_takes_floating_images_of_any_width_and_no_others(tmp_path):
    x = torch.rand(8, 1, 8, 8) * 2 - 1
    options = {"channels": (8,), "batch_size": 2, "device": "cpu", "progress": False}
    for dtype in (torch.float64, torch.float16):
        assert next(fit_prior(x.to(dtype), steps=1, **options).parameters()).dtype == torch.float32
    for wrong, message in ((x.byte(), "floating point, got torch.uint8"), (x[:0], "empty|got \\(0, 1, 8, 8\\)")):
        with pytest.raises(InvalidArgument, match=message):
            fit_prior(wrong, steps=1, **options)
    for steps in (2, 120):
        fit_prior(x, steps=steps, out=tmp_path, **options)
    with pytest.raises(InvalidArgument, match="a run on other data"):
        fit_prior(-x, steps=120, out=tmp_path, **options)
    fit_prior(-x, steps=1, out=tmp_path, resume=False, **options)


def test_one_clear_error_each(images, autoencoder, asked, model):
    for call, message in (
        (lambda: ldm.make_autoencoder(images, "gan"), "'kl' or 'vq'"),
        (lambda: ldm.make_autoencoder(images, factor=3), "factor must be"),
        (lambda: ldm.make_autoencoder(images, width=6), "must be multiples of norm_num_groups=8"),
        (lambda: ldm.make_autoencoder(images[..., :15], **TINY), "cannot be divided by factor=4"),
        (lambda: autoencoder.encode(images[0]), "images must be"),
        (
            lambda: ldm.fit(torch.rand(8, 1, 28, 28), progress=False),
            r"size \(28, 28\), not a multiple of factor=4 \* 2 \^ \(levels - 1\) = 8",
        ),
        (lambda: ldm.fit(images * torch.nan, autoencoder, progress=False), "images has NaN"),
        (lambda: ldm.fit(images[:0], autoencoder, progress=False), "images is empty"),
        (lambda: ldm.fit(images.byte(), autoencoder, progress=False), "must be floating point, got torch.uint8"),
        (lambda: ldm.fit(images.new_zeros(4, 1, 16, 16, 16), autoencoder, progress=False), "images must be"),
        (lambda: model[0].sample(3, cond=asked[:2]), "batch size of cond"),
        (lambda: model[0].sample(cond=asked[:1], shape=(10, 16)), "multiples of 4"),
        (lambda: ldm.fit_autoencoder(images.clone().fill_(torch.nan), device="cpu", progress=False, **TINY), "NaN"),
        (lambda: ldm.perceptual_distance(images[:1], images[:1], "no-such-network"), "use perceptual='offline'"),
        (lambda: AutoencoderObjective(penalty_weight=-1), "must not be negative"),
        (lambda: ldm.LatentDiffusion(autoencoder, model[0].denoiser, 0.0, (16, 16)), "latent_scale must be positive"),
    ):
        with pytest.raises(InvalidArgument, match=message):
            call()
