"""Backbones: shapes in every dimension, conditions that act, absence that is learned."""

import pytest
import torch

from suffuse import Condition, NetworkDenoiser
from suffuse.errors import InvalidArgument, MissingExtra
from suffuse.nets import DiffusersUNet, DiT, MonaiUNet
from suffuse.schedules import VPCosine


def lively(net):
    """Zero-initialised layers made random, so that every input reaches the output."""
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in net.parameters():
            if not bool(p.any()):
                p.copy_(0.1 * torch.randn(p.shape, generator=g))
    return net.eval()


def monai(**options):
    pytest.importorskip("monai")
    return MonaiUNet(
        spatial_dims=2, in_channels=2, channels=(8, 16), num_res_blocks=1, attention_levels=(False, True),
        num_head_channels=8, norm_num_groups=4, **options,
    )  # fmt: skip


def diffusers(kind="UNet2DConditionModel", **options):
    pytest.importorskip("diffusers")
    down, up = ("DownBlock2D", "CrossAttnDownBlock2D"), ("CrossAttnUpBlock2D", "UpBlock2D")
    if kind == "UNet2DModel":
        down, up = ("DownBlock2D", "DownBlock2D"), ("UpBlock2D", "UpBlock2D")
    else:
        options["cross_attention_dim"] = 16
    return DiffusersUNet(
        kind, in_channels=2, block_out_channels=(8, 16), down_block_types=down, up_block_types=up,
        layers_per_block=1, norm_num_groups=4, attention_head_dim=8, **options,
    )  # fmt: skip


def dit(**options):
    return DiT(2, 4, ndim=2, hidden=32, depth=2, **options)


NETS = {"DiT": dit, "MonaiUNet": monai, "DiffusersUNet": diffusers}
both = pytest.mark.parametrize("make", NETS.values(), ids=NETS)


@pytest.fixture
def cond():
    g = torch.Generator().manual_seed(3)
    return Condition(
        tokens={"age": torch.randn(3, 1, 4, generator=g)}, maps={"tissue": torch.randn(3, 1, 8, 8, generator=g)}
    )


@both
def test_every_condition_and_the_noise_level_reach_the_output(make, cond):
    torch.manual_seed(0)
    net = lively(make(tokens={"age": 4}, maps={"tissue": 1}))
    g = torch.Generator().manual_seed(1)
    x, c_noise = torch.randn(3, 2, 8, 8, generator=g), torch.tensor([-0.5, 0.0, 0.5])
    with torch.no_grad():
        y = net(x, c_noise, cond)
        assert y.shape == x.shape
        assert not torch.allclose(y, net(x, c_noise + 0.3, cond), atol=1e-5)
        for name in cond.names:
            values = {n: v + (n == name) for n, v in cond.values.items()}
            other = Condition({"age": values["age"]}, {"tissue": values["tissue"]})
            assert not torch.allclose(y, net(x, c_noise, other), atol=1e-5), name


@both
def test_the_null_condition_is_no_condition(make, cond):
    """Masked values do not matter, and no condition at all is the same as a null one."""
    torch.manual_seed(0)
    net = lively(make(tokens={"age": 4}, maps={"tissue": 1}))
    x, c_noise = torch.randn(3, 2, 8, 8), torch.zeros(3)
    with torch.no_grad():
        torch.testing.assert_close(net(x, c_noise, cond.null()), net(x, c_noise), rtol=1e-5, atol=1e-6)
        junk = Condition({"age": cond.tokens["age"] + 9}, {"tissue": cond.maps["tissue"] - 9}, cond.null().masks)
        torch.testing.assert_close(net(x, c_noise, junk), net(x, c_noise), rtol=1e-5, atol=1e-6)


@both
def test_what_a_network_was_not_built_for_is_refused(make, cond):
    net = make(tokens={"age": 4}, maps={"tissue": 1})
    x, c_noise = torch.randn(3, 2, 8, 8), torch.zeros(3)
    with pytest.raises(InvalidArgument, match="was not built for"):
        net(x, c_noise, cond.merge(Condition(tokens={"sex": torch.ones(3, 1, 1)})))
    with pytest.raises(InvalidArgument, match="lacks tokens"):
        net(x, c_noise, cond.select(["tissue"]))
    with pytest.raises(InvalidArgument, match="resample the map"):
        net(x, c_noise, Condition(cond.tokens, {"tissue": torch.zeros(3, 1, 4, 4)}))


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_dit_serves_sequences_images_and_volumes_of_several_sizes(ndim):
    torch.manual_seed(0)
    net = DiT(2, 2, ndim=ndim, hidden=48, depth=1, heads=2)
    x = torch.randn(2, 2, *range(4, 4 + 2 * ndim, 2))
    patches, grid = net._patchify(x)
    assert patches.shape == (2, torch.tensor(grid).prod(), 2 * 2**ndim)
    torch.testing.assert_close(net._unpatchify(patches, grid), x)
    for shape in (x.shape, (3, 2, *(8,) * ndim)):
        assert net(torch.randn(shape), torch.zeros(shape[0])).shape == shape


def test_dit_starts_as_zero_and_trains_every_parameter(cond):
    torch.manual_seed(0)
    net = dit(tokens={"age": 4}, maps={"tissue": 1})
    x = torch.randn(3, 2, 8, 8)
    assert not bool(net(x, torch.zeros(3), cond).any())
    net = lively(net)
    masked = Condition(cond.tokens, cond.maps, cond[[0, 0, 0]].masks | {"age": torch.tensor([[True], [True], [False]])})
    masked = Condition(masked.tokens, masked.maps, {**masked.masks, "tissue": torch.tensor([True, False, True])})
    net(x, torch.zeros(3), masked).square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in net.parameters())


def test_a_dit_batch_does_not_mix():
    net = lively(dit())
    x, c = torch.randn(3, 2, 8, 8), torch.tensor([-1.0, 0.0, 1.0])
    with torch.no_grad():
        torch.testing.assert_close(net(x, c)[1:2], net(x[1:2], c[1:2]), rtol=1e-4, atol=1e-5)


def test_diffusers_unet_without_tokens():
    net = lively(diffusers("UNet2DModel"))
    assert net(torch.randn(2, 2, 8, 8), torch.zeros(2)).shape == (2, 2, 8, 8)
    denoiser = NetworkDenoiser(net, VPCosine())
    assert denoiser(torch.randn(2, 2, 8, 8), 0.4).shape == (2, 2, 8, 8)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DiT(1, 2, ndim=4), "ndim must be"),
        (lambda: DiT(1, 2, hidden=30, heads=4), "multiple of heads"),
        (lambda: DiT(1, 4)(torch.zeros(1, 1, 6, 8), torch.zeros(1)), "multiple of patch_size"),
        (lambda: DiT(1, 4)(torch.zeros(1, 2, 8, 8), torch.zeros(1)), "x must be"),
        (lambda: DiffusersUNet("UNet", 1), "kind must be one of"),
        (lambda: DiffusersUNet("UNet2DModel", 1, tokens={"a": 1}), "no cross-attention"),
        (lambda: DiffusersUNet("UNet2DConditionModel", 1), "needs tokens"),
    ],
)
def test_bad_arguments_say_what_is_wrong(make, message):
    with pytest.raises(InvalidArgument, match=message):
        make()


def test_a_missing_extra_names_the_line_that_installs_it(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "monai.networks.nets", None)
    with pytest.raises(MissingExtra, match="pip install 'suffuse\\[monai\\]'"):
        MonaiUNet(spatial_dims=2, in_channels=1)
