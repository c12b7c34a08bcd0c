"""The S4D layer is its own recurrence, and the backbone reads what it is told."""

import copy

import pytest
import torch

from suffuse import Condition, NetworkDenoiser, hub, schedules
from suffuse.errors import InvalidArgument
from suffuse_timeseries.nets import S4D, S4DBackbone


def layer(bidirectional=False, channels=3, state=8):
    torch.manual_seed(0)
    return S4D(channels, state, bidirectional=bidirectional, dt_min=1e-2, dt_max=0.5).double()


def recurrence(s4d, u, direction=0):
    """s <- exp(dt A) s + Bbar u, y = 2 Re(C s), step by step in complex arithmetic."""
    a = torch.complex(-s4d.log_decay.exp(), s4d.frequency)
    step = torch.exp(s4d.log_dt.exp()[:, None] * a)
    b = (step - 1) / a
    c = torch.view_as_complex(s4d.c[direction].contiguous())
    state = torch.zeros(u.shape[0], *a.shape, dtype=a.dtype)
    out = []
    for x in u.unbind(-1):
        state = step * state + b * x[..., None]
        out.append(2 * (c * state).sum(-1).real)
    return torch.stack(out, -1)


@torch.no_grad()
def test_the_convolution_is_the_recurrence():
    s4d, u = layer(), torch.randn(2, 3, 64, dtype=torch.float64)
    torch.testing.assert_close(s4d(u), recurrence(s4d, u) + s4d.d[:, None] * u)


@torch.no_grad()
def test_both_directions_are_two_recurrences():
    """The second runs backwards in time and is strictly anticausal."""
    s4d, u = layer(bidirectional=True), torch.randn(2, 3, 40, dtype=torch.float64)
    backwards = recurrence(s4d, u.flip(-1), direction=1).flip(-1)
    strict = torch.nn.functional.pad(backwards[..., 1:], (0, 1))
    torch.testing.assert_close(s4d(u), recurrence(s4d, u) + strict + s4d.d[:, None] * u)


@torch.no_grad()
@pytest.mark.parametrize("length", [1, 2, 17, 100])
def test_the_kernel_is_the_sum_of_exponentials(length):
    """K[l] = 2 Re sum_n Cbar_n exp(dt A_n l), at lengths that are squares and that are not."""
    s4d = layer(bidirectional=True)
    a = torch.complex(-s4d.log_decay.exp(), s4d.frequency)
    step = s4d.log_dt.exp()[:, None] * a
    c = torch.view_as_complex(s4d.c.contiguous()) * (step.exp() - 1) / a
    exponentials = (step[..., None] * torch.arange(length)).exp()
    torch.testing.assert_close(s4d.kernel(length), 2 * torch.einsum("dhn,hnl->dhl", c, exponentials).real)


def test_gradients_of_the_convolution():
    """By numerical differentiation, first and second, of the input and of every parameter."""
    s4d = layer(bidirectional=True, channels=2, state=4)
    u = torch.randn(2, 2, 7, dtype=torch.float64, requires_grad=True)
    names, parameters = zip(*s4d.named_parameters(), strict=True)

    def function(u, *values):
        return torch.func.functional_call(s4d, dict(zip(names, values, strict=True)), (u,))

    inputs = (u, *(p.detach().clone().requires_grad_() for p in parameters))
    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)


@pytest.mark.parametrize("bidirectional", [False, True])
def test_only_the_one_sided_layer_is_causal(bidirectional):
    s4d = layer(bidirectional)
    u = torch.randn(1, 3, 32, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(s4d(u)[..., 10].sum(), u)
    assert gradient[..., :11].abs().min() > 0
    assert bool(gradient[..., 11:].abs().max() > 1e-8) == bidirectional


def test_the_kept_kernel_equals_the_fresh_one_and_follows_the_parameters():
    s4d, u = layer(bidirectional=True), torch.randn(2, 3, 20, dtype=torch.float64)
    fresh = s4d(u).detach()
    with torch.no_grad():
        assert s4d._kept is None
        torch.testing.assert_close(s4d(u), fresh)
        kept = s4d._kept[1]
        s4d(u)
        assert s4d._kept[1] is kept
        s4d.c.mul_(2)
        torch.testing.assert_close(s4d(u) - s4d.d[:, None] * u, 2 * (fresh - s4d.d[:, None] * u))
        assert s4d(u[..., :13]).shape == (2, 3, 13)
    assert copy.deepcopy(s4d)._kept is None


def test_a_kernel_that_learns_is_never_kept_and_a_frozen_one_is():
    s4d, u = layer(), torch.randn(1, 3, 16, dtype=torch.float64, requires_grad=True)
    s4d(u).sum().backward()
    assert s4d._kept is None and s4d.c.grad.abs().max() > 0
    s4d.requires_grad_(False)
    with torch.inference_mode():
        s4d(u)
    (gradient,) = torch.autograd.grad(s4d(u).sum(), u)
    assert s4d._kept is not None and gradient.abs().min() > 0


def test_the_kernel_stays_wide_under_autocast():
    s4d = S4D(4, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        y = s4d(torch.randn(1, 4, 30, dtype=torch.bfloat16))
    assert y.dtype == torch.bfloat16 and s4d._kept[1].dtype == torch.complex64


def test_the_backbone_under_autocast():
    net = trained_like(S4DBackbone(1, width=8, depth=2, state=8))
    x, level = torch.randn(3, 1, 12), torch.zeros(3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = net(x, level)
    rough.float().square().sum().backward()
    torch.testing.assert_close(rough.float(), net(x, level), rtol=0.1, atol=0.1)
    assert all(torch.isfinite(p.grad).all() for p in net.parameters() if p.grad is not None)


@pytest.mark.slow
def test_the_compiled_network_is_the_network():
    """Captured as one graph, forward and backward."""
    net = trained_like(S4DBackbone(2, width=8, depth=2, state=8))
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
    x, level = torch.randn(3, 2, 12), torch.linspace(-1, 1, 3)
    cond = Condition(maps={"values": torch.randn(3, 2, 12), "observed": torch.ones(3, 2, 12)})
    outputs, gradients = [], []
    for network in (net, compiled):
        out = network(x, level, cond)
        outputs.append(out)
        gradients.append(torch.autograd.grad(out.square().sum(), list(net.parameters()), allow_unused=True))
    torch.testing.assert_close(*outputs)
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def trained_like(backbone):
    """The head starts at zero; give it weights, so that outputs differ."""
    torch.manual_seed(1)
    torch.nn.init.normal_(backbone.head[-1].weight)
    return backbone.eval()


def test_an_absent_condition_is_a_window_of_which_nothing_is_known():
    net, x, level = trained_like(S4DBackbone(2, width=8, depth=2, state=8)), torch.randn(3, 2, 12), torch.zeros(3)
    cond = Condition(maps={"values": torch.randn(3, 2, 12), "observed": torch.ones(3, 2, 12)})
    nothing = Condition(maps={"values": torch.zeros(3, 2, 12), "observed": torch.zeros(3, 2, 12)})
    torch.testing.assert_close(net(x, level), net(x, level, nothing))
    torch.testing.assert_close(net(x, level), net(x, level, cond.null()))
    assert (net(x, level) - net(x, level, cond)).abs().max() > 1e-3
    deaf = trained_like(S4DBackbone(2, width=8, depth=2, state=8, conditional=False))
    torch.testing.assert_close(deaf(x, level), deaf(x, level, cond))


def test_the_backbone_is_rebuilt_from_a_checkpoint(tmp_path):
    net = trained_like(S4DBackbone(2, width=8, depth=1, state=4))
    denoiser = NetworkDenoiser(net, schedules.VPCosine())
    hub.save(denoiser, tmp_path / "model")
    x = torch.randn(2, 2, 10)
    with torch.no_grad():
        assert torch.equal(hub.load(tmp_path / "model")(x, 0.5), denoiser(x, 0.5))


@pytest.mark.parametrize("arguments", [{"channels": 0}, {"channels": 4, "state": 5}])
def test_bad_sizes(arguments):
    with pytest.raises(InvalidArgument, match="even state"):
        S4D(**arguments)


def test_a_condition_of_the_wrong_shape_is_named():
    net = S4DBackbone(2, width=8, depth=1, state=4)
    cond = Condition(maps={"values": torch.zeros(3, 1, 12), "observed": torch.zeros(3, 2, 12)})
    with pytest.raises(InvalidArgument, match="values"):
        net(torch.randn(3, 2, 12), torch.zeros(3), cond)
