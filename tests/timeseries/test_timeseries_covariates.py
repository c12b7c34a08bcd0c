"""Networks that read features, and networks of several variates."""

import pytest
import torch

from suffuse import Condition, NetworkDenoiser, hub, schedules
from suffuse.errors import InvalidArgument
from suffuse_timeseries.nets import CovariateEncoder, S4DBackbone, TwoAxisBackbone

B, C, D, L = 3, 2, 4, 20
SMALL = {"width": 8, "depth": 2, "state": 4}


def awake(network):
    """The network with random numbers where it starts with zeros."""
    torch.manual_seed(0)
    for parameter in network.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.3)
    return network


def covariates(batch=B, seed=0):
    g = torch.Generator().manual_seed(seed)
    return Condition(
        maps={"dynamic": torch.randn(batch, 2, L, generator=g)},
        tokens={
            "static": torch.randn(batch, 1, 3, generator=g),
            "category": torch.randint(0, 5, (batch, 1, 1), generator=g),
        },
    )


def test_covariates_and_where_they_are_given():
    encoder = CovariateEncoder(dynamic=2, static=3, cardinality=[5])
    x, cond = torch.zeros(B, C, L), covariates()
    out = encoder(x, cond)
    assert out.shape == (B, encoder.channels, L) == (B, 3 + 4 + 4, L)
    assert torch.equal(out[:, :2], cond.maps["dynamic"]) and out[:, 2].eq(1).all()
    assert torch.equal(out[:, 3:6], cond.tokens["static"].transpose(1, 2).expand(-1, -1, L))
    assert encoder(x, None).eq(0).all() and encoder(x, cond.null()).eq(0).all()


@pytest.mark.parametrize("name", ["dynamic", "static", "category"])
def test_each_covariate_changes_the_output_and_only_of_its_row(name):
    network = awake(S4DBackbone(C, dynamic=2, static=3, cardinality=[5], **SMALL))
    x, level, cond = torch.randn(B, C, L), torch.zeros(B), covariates()
    part = Condition(cond.tokens, cond.maps, {n: m.clone() for n, m in cond.masks.items()})
    part.masks[name][1] = False
    change = (network(x, level, cond) - network(x, level, part)).abs().amax((1, 2))
    assert change[1] > 1e-4 and change[[0, 2]].max() < 1e-6


def test_wrong_widths_of_covariates():
    network = S4DBackbone(C, dynamic=1, static=3, cardinality=[5], **SMALL)
    with pytest.raises(InvalidArgument, match=r"maps\['dynamic'\] has 2 features, the model was built with 1"):
        network(torch.randn(B, C, L), torch.zeros(B), covariates())


def known(batch=B):
    return Condition(maps={"values": torch.randn(batch, C, D, L), "observed": torch.ones(batch, C, D, L)})


def test_variates_start_apart_and_then_see_each_other():
    network = TwoAxisBackbone(C, D, **SMALL)
    torch.nn.init.normal_(network.head[-1].weight)
    x, level = torch.randn(B, C, D, L), torch.zeros(B)
    other = x.clone()
    other[:, :, 0] += 1
    apart = (network(x, level) - network(other, level)).abs().amax((0, 1, 3))
    assert apart[0] > 1e-3 and apart[1:].max() < 1e-6
    awake(network)
    mixed = (network(x, level) - network(other, level)).abs().amax((0, 1, 3))
    assert mixed.min() > 1e-4


def test_one_variate_alone_is_the_univariate_network():
    """Before training the mixers do nothing, and a window of one variate is a window."""
    network = TwoAxisBackbone(C, 1, **SMALL)
    torch.nn.init.normal_(network.head[-1].weight)
    alone = S4DBackbone(C, **SMALL)
    alone.load_state_dict({k.replace(".block.", "."): v for k, v in network.state_dict().items() if "mixer" not in k})
    x, level = torch.randn(B, C, 1, L), torch.randn(B)
    torch.testing.assert_close(network(x, level)[:, :, 0], alone(x[:, :, 0], level))


def test_rows_of_a_multivariate_batch_are_independent():
    network = awake(TwoAxisBackbone(C, D, dynamic=2, static=3, cardinality=[5], **SMALL)).eval()
    cond = known().merge(covariates())
    x, level = torch.randn(B, C, D, L), torch.randn(B)
    whole = network(x, level, cond)
    for row in range(B):
        torch.testing.assert_close(whole[[row]], network(x[[row]], level[[row]], cond[row]), atol=1e-5, rtol=1e-4)


def test_a_multivariate_denoiser_is_kept_whole(tmp_path):
    network = awake(TwoAxisBackbone(C, D, dynamic=2, static=3, cardinality=[5], heads=2, **SMALL))
    denoiser = NetworkDenoiser(network, schedules.VPCosine())
    hub.save(denoiser, tmp_path / "model")
    again = hub.load(tmp_path / "model")
    x = torch.randn(B, C, D, L)
    with torch.no_grad():
        assert torch.equal(denoiser(x, 0.4, covariates()), again(x, 0.4, covariates()))


def test_wrong_shapes_of_several_variates():
    with pytest.raises(InvalidArgument, match="with 4 variates"):
        TwoAxisBackbone(C, D, **SMALL)(torch.randn(B, C, 3, L), torch.zeros(B))
    with pytest.raises(InvalidArgument, match="multiple of heads"):
        TwoAxisBackbone(C, D, heads=3, **SMALL)
