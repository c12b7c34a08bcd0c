"""MONAI's networks as denoisers, and what MONAI's own schedulers do where ours differ."""

import itertools
import math

import pytest
import torch
from torch import nn

import suffuse
from suffuse import Condition
from suffuse.errors import InvalidArgument
from suffuse.schedules import DiscreteBetas, RectifiedFlow
from suffuse_medical.nets import MonaiDenoiser, MonaiNetwork, direct_unet, schedule_of

MEAN, STD = 0.3, 0.2


class Exact(nn.Module):
    """What a perfect MONAI network says about N(0.3, 0.2^2), in its own output convention."""

    def __init__(self, schedule, prediction_type, steps=1000):
        super().__init__()
        self.schedule, self.kind, self.steps = schedule, prediction_type, steps

    def forward(self, x, timesteps, context=None):
        if self.kind == "rflow":
            sigma = (timesteps.double() / self.steps).view(-1, 1, 1, 1)
            alpha = 1 - sigma
        else:
            level = self.schedule.level((timesteps.double() + 1) / self.steps, like=x.double())
            alpha, sigma = level.alpha, level.sigma
        gain = alpha * STD**2 / (alpha**2 * STD**2 + sigma**2)
        x = x.double()
        mean = MEAN + gain * (x - alpha * MEAN)
        eps = (x - alpha * mean) / sigma
        outputs = {"epsilon": eps, "v_prediction": alpha * eps - sigma * mean, "sample": mean, "rflow": mean - eps}
        return outputs[self.kind]


def linear():
    from monai.networks.schedulers import DDPMScheduler

    return DDPMScheduler(num_train_timesteps=1000, clip_sample=False)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample", "rflow"])
def test_all_output_conventions_give_the_same_posterior_mean(kind):
    schedule = RectifiedFlow() if kind == "rflow" else schedule_of(linear())
    denoiser = MonaiDenoiser(Exact(schedule, kind), schedule, kind)
    x = torch.randn(4, 1, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for t in (0.05, 0.5, 0.97, torch.tensor([0.1, 0.3, 0.6, 0.9])):
        level = schedule.level(t, like=x)
        truth = MEAN + level.alpha * STD**2 / (level.alpha**2 * STD**2 + level.sigma**2) * (x - level.alpha * MEAN)
        # timesteps reach the network in float32, as MONAI's do
        torch.testing.assert_close(denoiser(x, t), truth, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["epsilon", "rflow"])
@pytest.mark.parametrize("steps", [10, 20, 50, 250])
def test_our_samplers_keep_the_distribution_at_any_number_of_steps(kind, steps):
    schedule = RectifiedFlow() if kind == "rflow" else schedule_of(linear())
    denoiser = MonaiDenoiser(Exact(schedule, kind), schedule, kind)
    z = torch.randn(4000, 1, 1, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    drawn = suffuse.samplers.DPMSolverPP(steps=steps)(denoiser, x=schedule.sigma(1.0) * z, dtype=torch.float64)
    assert abs(float(drawn.mean()) - MEAN) < 0.02 * MEAN + 0.003
    assert abs(float(drawn.std()) / STD - 1) < 0.06


def test_schedule_of_is_float64_and_survives_half_precision():
    scheduler = linear()
    before = schedule_of(scheduler)
    half = torch.zeros(1, 1, 2, 2, dtype=torch.float16)
    scheduler.add_noise(half, half, torch.tensor([10]))
    assert scheduler.alphas_cumprod.dtype == torch.float16  # trap: the scheduler has changed for good
    assert len(scheduler.alphas_cumprod.unique()) < 1000
    assert schedule_of(scheduler) == before
    assert before.add_noise(half, 0.5, half).dtype == torch.float16
    assert before.alphas_cumprod.dtype == torch.float64


def test_trap_ddpm_with_fewer_steps_returns_noise_and_ours_does_not():
    """MONAI's DDPM always moves one training step, whatever ``set_timesteps`` was told."""
    scheduler = linear()
    schedule = schedule_of(scheduler)
    network = Exact(schedule, "epsilon")
    scheduler.set_timesteps(50)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4000, 1, 1, 1, generator=generator, dtype=torch.float64)
    for t in scheduler.timesteps:
        x, _ = scheduler.step(network(x, t.expand(len(x))), int(t), x, generator=generator)
    assert float(x.std()) > 4 * STD and float(x.mean()) < 0.1
    ours = suffuse.samplers.DDPM(steps=50, grid="time")
    drawn = ours(MonaiDenoiser(network, schedule), (4000, 1, 1, 1), generator=generator, dtype=torch.float64)
    assert abs(float(drawn.mean()) - MEAN) < 0.02 and 0.7 * STD < float(drawn.std()) < 1.05 * STD


def test_trap_ddim_steps_do_not_follow_its_grid_and_ours_do():
    from monai.networks.schedulers import DDIMScheduler

    scheduler = DDIMScheduler(num_train_timesteps=1000, clip_sample=False)
    scheduler.set_timesteps(10)
    listed = scheduler.timesteps.tolist()
    jumps = {a - b for a, b in itertools.pairwise(listed)}
    assert jumps == {111}
    step = scheduler.num_train_timesteps // scheduler.num_inference_steps
    assert step == 100  # what step() moves by
    # seen in the output: with eps = 0 the step multiplies x by a ratio of alphas, which tells the level it went to
    x = torch.ones(1, 1, 1, 1)
    moved = float(scheduler.step(torch.zeros_like(x), listed[0], x)[0])
    bar = scheduler.alphas_cumprod
    assert math.isclose(moved, math.sqrt(bar[listed[0] - step] / bar[listed[0]]), rel_tol=1e-5)
    assert not math.isclose(moved, math.sqrt(bar[listed[1]] / bar[listed[0]]), rel_tol=1e-2)
    ours = suffuse.samplers.DDIM(steps=10, grid="time")
    levels = ours.levels(schedule_of(scheduler))
    for t, s in itertools.pairwise(levels[:-1]):
        carry = ours.coefficients(t, s, ())
        assert math.isclose(carry[0] + carry[1] * t.alpha, s.alpha, rel_tol=1e-9)  # clean data stays clean data


def test_trap_clipping_is_on_by_default_and_cuts_latents():
    from monai.networks.schedulers import DDIMScheduler

    def sample(scheduler):
        scheduler.set_timesteps(50)
        schedule = schedule_of(scheduler)
        x = torch.randn(4000, 1, 1, 1, generator=torch.Generator().manual_seed(0))
        for t in scheduler.timesteps:  # data N(0, 1): the exact eps is sigma x
            sigma = schedule.sigma((int(t) + 1) / 1000)
            x, _ = scheduler.step(sigma * x, int(t), x)
        return x

    clipped, free = sample(DDIMScheduler()), sample(DDIMScheduler(clip_sample=False))
    assert float(clipped.std()) < 0.8 and float(clipped.abs().max()) < 1.01
    assert float(free.std()) > 0.9 and float(free.abs().max()) > 3


def test_trap_rflow_scheduler_is_no_module_stores_half_precision_and_has_the_other_sign():
    from monai.networks.schedulers import RFlowScheduler

    scheduler = RFlowScheduler(use_discrete_timesteps=False)
    with pytest.raises(AttributeError):
        scheduler.to("cpu")
    scheduler.set_timesteps(30)
    assert scheduler.timesteps.dtype == torch.float16
    x0, eps = torch.full((1, 1, 2, 2), 2.0), torch.ones(1, 1, 2, 2)
    t = torch.tensor([400.0])
    x = scheduler.add_noise(x0, eps, t)
    torch.testing.assert_close(RectifiedFlow().add_noise(x0, 0.4, eps), x)
    clean, _ = scheduler.step(x0 - eps, 400.0, x, torch.tensor(0.0))
    torch.testing.assert_close(clean, x0)  # so the network's target is x0 - eps

    class Target(nn.Module):
        def forward(self, x, timesteps):
            return x0 - eps

    torch.testing.assert_close(MonaiDenoiser.from_scheduler(Target(), scheduler)(x, 0.4), x0)
    wrong = suffuse.NetworkDenoiser(_Plain(x0 - eps), RectifiedFlow(), "flow_prediction")
    assert float((wrong(x, 0.4) - x0).abs().max()) > 0.5


class _Plain(nn.Module):
    def __init__(self, output):
        super().__init__()
        self.output = output

    def forward(self, x, c_noise, cond):
        return self.output


SMALL = {"channels": [8, 16], "num_res_blocks": 1, "norm_num_groups": 4, "num_head_channels": 8}


def make(kind="DiffusionModelUNet", dims=2, attention=False, **kwargs):
    torch.manual_seed(0)
    network = MonaiNetwork(
        kind, spatial_dims=dims, in_channels=kwargs.pop("in_channels", 1), attention_levels=[False, attention],
        **(SMALL | kwargs),
    )  # fmt: skip
    for p in network.parameters():  # MONAI starts the last layers at zero
        nn.init.normal_(p, std=0.1)
    return network


@pytest.mark.parametrize("dims", [2, 3])
def test_conditions_reach_the_network(dims):
    size = (8,) * dims
    x = torch.randn(2, 1, *size)
    network = make(
        dims=dims, attention=True, out_channels=1, in_channels=3, with_conditioning=True, cross_attention_dim=5,
        num_class_embeds=3,
    )  # fmt: skip
    denoiser = MonaiDenoiser(network, DiscreteBetas.linear())
    cond = Condition(
        tokens={"note": torch.randn(2, 4, 5), "class": torch.eye(3)[[0, 2]][:, None]},
        maps={"tissue": torch.randn(2, 2, *size)},
    )
    out = denoiser(x, 0.5, cond)
    level = denoiser.schedule.level(0.5)
    with torch.no_grad():
        direct = network(
            torch.cat([x, cond.maps["tissue"]], 1),
            timesteps=torch.full((2,), 499.0),
            context=cond.tokens["note"],
            class_labels=torch.tensor([0, 2]),
        )
    torch.testing.assert_close(out, (x - level.sigma * direct) / level.alpha)
    other = Condition(tokens=cond.tokens, maps={"tissue": 2 * cond.maps["tissue"]})
    assert not torch.allclose(out, denoiser(x, 0.5, other))
    with pytest.raises(InvalidArgument, match="class"):
        denoiser(x, 0.5, cond.null())


def test_spade_and_controlnet():
    x, seg = torch.randn(2, 1, 8, 8), torch.eye(3)[torch.randint(3, (2, 8, 8))].permute(0, 3, 1, 2)
    spade = MonaiDenoiser(make("SPADEDiffusionModelUNet", label_nc=3, out_channels=1), DiscreteBetas.linear())
    assert not torch.allclose(
        spade(x, 0.5, Condition(maps={"seg": seg})), spade(x, 0.5, Condition(maps={"seg": 1 - seg}))
    )
    control = make("ControlNet", conditioning_embedding_in_channels=3, conditioning_embedding_num_channels=(8,))
    network = make(out_channels=1)
    plain = MonaiDenoiser(network, DiscreteBetas.linear())
    both = MonaiDenoiser(network, DiscreteBetas.linear(), controlnet=control)
    off = MonaiDenoiser(network, DiscreteBetas.linear(), controlnet=control, control_scale=0.0)
    cond = Condition(maps={"control": seg})
    assert not torch.allclose(both(x, 0.5, cond), plain(x, 0.5))
    torch.testing.assert_close(off(x, 0.5, cond), plain(x, 0.5))
    with pytest.raises(InvalidArgument, match="controlnet"):
        plain(x, 0.5, cond)


ONE_HOT = torch.eye(3)[[0, 2]][:, None]


@pytest.mark.parametrize(
    ("network", "cond", "message"),
    [
        (
            {},
            Condition(maps={"foo": torch.zeros(2, 2, 8, 8)}),
            r"maps \{'foo': .* do not make up the in_channels=1",
        ),
        ({"in_channels": 3}, Condition(maps={"a": torch.zeros(2, 2, 4, 8)}), "do not make up the in_channels=3"),
        ({}, Condition(tokens={"foo": torch.zeros(2, 1, 4)}), r"gives \['tokens to attend to'\].* it has \['foo'\]"),
        ({}, Condition(maps={"seg": torch.zeros(2, 3, 8, 8)}), r"gives \['seg'\]"),
        ({}, Condition(tokens={"class": ONE_HOT}), r"gives \['class'\]"),
        ({"label_nc": 3}, None, r"lacks \['seg'\]"),
        ({"label_nc": 3}, Condition(maps={"seg": torch.zeros(2, 3, 8, 4)}), "'seg' must have 3 channels and the size"),
        ({"label_nc": 3}, Condition(maps={"seg": torch.zeros(2, 2, 8, 8)}), "'seg' must have 3 channels and the size"),
        ({"num_class_embeds": 3}, None, r"lacks \['class'\]"),
        ({"num_class_embeds": 2}, Condition(tokens={"class": ONE_HOT}), "has 3 classes, the network 2"),
        ({"with_conditioning": True, "cross_attention_dim": 5}, None, r"lacks \['tokens to attend to'\]"),
        (
            {"with_conditioning": True, "cross_attention_dim": 5},
            Condition(tokens={"a": torch.zeros(2, 1, 5), "b": torch.zeros(2, 1, 4)}),
            "widths {'a': 5, 'b': 4}, the network's cross_attention_dim is 5",
        ),
    ],
)
def test_a_condition_that_does_not_fit_the_network_is_named(network, cond, message):
    kind = "SPADEDiffusionModelUNet" if "label_nc" in network else "DiffusionModelUNet"
    denoiser = MonaiDenoiser(make(kind, attention=True, out_channels=1, **network), DiscreteBetas.linear())
    with pytest.raises(InvalidArgument, match=message):
        denoiser(torch.randn(2, 1, 8, 8), 0.5, cond)


def test_a_size_that_cannot_be_halved_is_named():
    unet = suffuse.nets.MonaiUNet(2, 1, attention_levels=[False, False], **SMALL)
    denoiser = MonaiDenoiser(make(out_channels=1), DiscreteBetas.linear())
    for call in (lambda x: denoiser(x, 0.5), lambda x: unet(x, torch.zeros(1)), direct_unet(1, 1, (8, 16), factor=1)):
        with pytest.raises(InvalidArgument, match=r"size \(7, 8\), not a multiple of .* = 2 along every axis"):
            call(torch.randn(1, 1, 7, 8))


def test_no_class_is_the_entry_behind_the_last():
    """So that a model of classes can be trained with dropout, and guided."""
    network = make(out_channels=1, num_class_embeds=4)
    denoiser = MonaiDenoiser(network, DiscreteBetas.linear())
    x, cond = torch.randn(2, 1, 8, 8), Condition(tokens={"class": ONE_HOT})
    level = denoiser.schedule.level(0.5)
    with torch.no_grad():
        none = network(x, timesteps=torch.full((2,), 499.0), class_labels=torch.tensor([3, 3]))
        torch.testing.assert_close(denoiser(x, 0.5, cond.null()), (x - level.sigma * none) / level.alpha)
    data, asked = torch.randn(8, 1, 8, 8), Condition(tokens={"class": torch.eye(3)[[0, 1, 2, 0, 1, 2, 0, 1]][:, None]})
    options = {"cond": asked, "steps": 2, "batch_size": 8, "progress": False, "accelerator": "cpu"}
    suffuse.training.fit(denoiser, data, **options)
    guided = suffuse.guidance.ClassifierFree(denoiser, 2.0)
    assert suffuse.samplers.DDIM(steps=2)(guided, (2, 1, 8, 8), cond=cond).shape == (2, 1, 8, 8)
    with pytest.raises(InvalidArgument, match="num_class_embeds=4, or train with cond_dropout=0"):
        MonaiDenoiser(make(out_channels=1, num_class_embeds=3), DiscreteBetas.linear())(x, 0.5, cond.null())


def test_trains_saves_and_samples(tmp_path):
    denoiser = MonaiDenoiser(make(out_channels=1), RectifiedFlow(), "rflow")
    data = 0.5 * torch.randn(16, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    suffuse.training.fit(denoiser, data, steps=2, batch_size=4, progress=False, accelerator="cpu")
    again = suffuse.hub.load(suffuse.hub.save(denoiser, tmp_path / "model"))
    a, b = (
        suffuse.samplers.DDIM(steps=3)(d, (2, 1, 8, 8), generator=torch.Generator().manual_seed(1))
        for d in (denoiser, again)
    )
    torch.testing.assert_close(a, b)


def test_bad_arguments():
    with pytest.raises(InvalidArgument, match="norm_num_groups"):
        MonaiNetwork(
            "DiffusionModelUNet", spatial_dims=2, in_channels=1, out_channels=1, channels=[10], norm_num_groups=4
        )
    with pytest.raises(InvalidArgument, match="RectifiedFlow"):
        MonaiDenoiser(nn.Identity(), DiscreteBetas.linear(), "rflow")
    with pytest.raises(InvalidArgument, match="MONAI"):
        schedule_of(object())
