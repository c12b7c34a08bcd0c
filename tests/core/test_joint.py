"""Laws of joint denoisers: every conditional of a Gaussian comes out of the one joint denoiser."""

import pytest
import torch

import suffuse
from suffuse.errors import InvalidArgument
from suffuse.exact import GaussianDenoiser
from suffuse.joint import (
    Held,
    IndependentTimes,
    JointGaussian,
    JointMonaiUNet,
    JointNetworkDenoiser,
    Segment,
    Streams,
    given,
    walk,
)
from suffuse.nets import MLP
from suffuse.samplers import DPMSolverPP, Heun
from suffuse.schedules import RectifiedFlow, VPCosine, VPLinear
from suffuse.training import DenoisingObjective

STREAMS = {"image": 3, "mask": 2}


@pytest.fixture(scope="module", params=[VPCosine(), RectifiedFlow()], ids=lambda s: type(s).__name__)
def joint(request):
    """Five correlated numbers: three of an image, two of a mask."""
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(5, 5, generator=generator, dtype=torch.float64)
    mean = torch.randn(5, 1, generator=generator)
    return JointGaussian(mean, root @ root.T / 5 + 0.1 * torch.eye(5), request.param, STREAMS)


def test_equal_times_are_the_ordinary_denoiser(joint):
    plain = GaussianDenoiser(joint.mean, joint.cov, joint.schedule)
    x, t = torch.randn(6, 5, 1), torch.linspace(0.1, 0.9, 6)
    torch.testing.assert_close(joint(x, t), plain(x, t), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(joint(x, 0.3), plain(x, 0.3), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(given(joint)(x, 0.3), plain(x, 0.3), atol=1e-5, rtol=1e-4)


def test_a_clean_stream_gives_the_denoiser_of_the_conditional(joint):
    y = torch.randn(4, 2, 1, generator=torch.Generator().manual_seed(1))
    mean, cov = joint.conditional({"mask": y})
    x = torch.randn(4, 3, 1)
    for row in range(4):
        exact = GaussianDenoiser(mean[row][:, None], cov, joint.schedule)(x[row : row + 1], 0.4)
        torch.testing.assert_close(given(joint, {"mask": y})(x, 0.4)[row : row + 1], exact, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("known", ["mask", "image"])
def test_conditional_samples_have_the_conditional_moments(joint, known):
    """Within 5%: the mean in units of the conditional spread, the covariance in its norm."""
    n = 8000
    y = torch.randn(1, STREAMS[known], 1, generator=torch.Generator().manual_seed(2)).expand(n, -1, -1)
    free = 5 - STREAMS[known]
    drawn = Heun(steps=24)(
        given(joint, {known: y}), shape=(n, free, 1), generator=torch.Generator().manual_seed(0)
    ).double()[:, :, 0]
    mean, cov = joint.conditional({known: y[:1]})
    assert ((drawn.mean(0) - mean[0]).norm() / cov.trace().sqrt()) < 0.05
    assert (drawn.T.cov() - cov).norm() / cov.norm() < 0.05


def test_joint_samples_have_the_joint_moments(joint):
    drawn = Heun(steps=16)(given(joint), shape=(4000, 5, 1), generator=torch.Generator().manual_seed(0))[:, :, 0]
    assert (drawn.double().T.cov() - joint.cov).norm() / joint.cov.norm() < 0.05


def test_noise_on_what_is_known_goes_from_the_conditional_to_the_marginal(joint):
    y, x = torch.full((1, 2, 1), 3.0), torch.randn(1, 3, 1)
    marginal = GaussianDenoiser(joint.mean[:3], joint.cov[:3, :3], joint.schedule)(x, 0.5)
    conditional = given(joint, {"mask": y})(x, 0.5)
    apart = [
        float((given(joint, {"mask": y}, t=t, generator=torch.Generator().manual_seed(3))(x, 0.5) - marginal).norm())
        for t in (1e-3, 1.0)
    ]
    assert apart[0] == pytest.approx(float((conditional - marginal).norm()), rel=0.1)
    assert apart[1] < 0.01 * apart[0] + 0.01


def test_guidance_extrapolates_from_the_marginal(joint):
    y, x = torch.full((2, 2, 1), 2.0), torch.randn(2, 3, 1)
    plain, marginal = given(joint, {"mask": y})(x, 0.5), given(joint, {"mask": y}, t=1.0)(x, 0.5)
    strong = given(joint, {"mask": y}, guidance_scale=3.0)(x, 0.5)
    torch.testing.assert_close(strong, marginal + 3 * (plain - marginal), atol=0.02, rtol=0.02)


def test_a_walk_ends_in_the_joint_distribution_by_any_staircase(joint):
    n = 5000
    shapes = {"image": (n, 3, 1), "mask": (n, 2, 1)}
    both = ("image", "mask")
    for segments in (
        [Segment(both, 1.0, 0.0)],
        [Segment(("mask",), 1.0, 0.0), Segment(("image",), 1.0, 0.0)],
        [Segment(both, 1.0, 0.5), Segment(("mask",), 0.5, 0.0), Segment(("image",), 0.5, 0.0)],
    ):
        drawn = walk(joint, Heun(steps=16), shapes, segments, generator=torch.Generator().manual_seed(0))
        cov = joint.streams.stack(drawn)[:, :, 0].double().T.cov()
        assert (cov - joint.cov).norm() / joint.cov.norm() < 0.07, segments


# --- networks ---------------------------------------------------------------------------------------------------


def _network(**unet):
    torch.manual_seed(0)
    settings = {"num_res_blocks": 1, "channels": [8, 8], "attention_levels": [False, False], "norm_num_groups": 4}
    backbone = JointMonaiUNet(2, STREAMS, **settings, **unet)
    for parameter in backbone.parameters():  # MONAI's last layer is zero, and a zero network tells nothing
        torch.nn.init.normal_(parameter, std=0.1)
    return JointNetworkDenoiser(backbone, VPLinear(), STREAMS, data_std={"mask": 2.0})


def test_a_network_hears_the_time_of_each_stream():
    denoiser, x = _network(), torch.randn(2, 5, 8, 8)
    t = denoiser.streams.times({"image": 0.5, "mask": 0.2}, 2, x.device)
    mean = denoiser(x, t)
    swapped = denoiser(x, denoiser.streams.times({"image": 0.2, "mask": 0.5}, 2, x.device))
    assert not torch.allclose(mean[:, :3], swapped[:, :3], atol=1e-3)
    alone = denoiser(x[:1], t[:1])
    torch.testing.assert_close(alone, mean[:1], atol=1e-5, rtol=1e-4)


def test_a_clean_stream_is_its_own_posterior_mean():
    denoiser, x = _network(), torch.randn(2, 5, 8, 8)
    mean = denoiser(x, denoiser.streams.times({"image": 0.5, "mask": 0.0}, 2, x.device))
    torch.testing.assert_close(mean[:, 3:], x[:, 3:])
    assert torch.isfinite(mean).all()


def test_times_are_independent_between_streams_and_equal_within():
    t = IndependentTimes((3, 2))(VPLinear(), 4000, torch.Generator().manual_seed(0))
    assert t.shape == (4000, 5) and bool((t[:, 0] == t[:, 2]).all()) and bool((t[:, 3] == t[:, 4]).all())
    assert abs(float(torch.corrcoef(t[:, [0, 3]].T)[0, 1])) < 0.05


class _Concatenated(torch.nn.Module):
    """An MLP told the mean label by its own embedding and both labels as inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.net = torch.nn.Sequential(
            torch.nn.Linear(2 + 4, 64),
            torch.nn.SiLU(),
            torch.nn.Linear(64, 64),
            torch.nn.SiLU(),
            torch.nn.Linear(64, 2),
        )

    def forward(self, x, c_noise, cond=None):
        return self.net(torch.cat([x[:, :, 0], c_noise, c_noise.square()], dim=1))[..., None]


def test_a_trained_network_knows_both_conditionals():
    """x and y of correlation 0.7: told one, the model draws the other around 0.7 of it, and as wide as it should."""
    torch.manual_seed(0)
    x = torch.randn(4096, 1, 1)
    data = torch.cat([x, (x + torch.randn_like(x)) / 2**0.5], dim=1)
    denoiser = JointNetworkDenoiser(_Concatenated(), VPLinear(), {"x": 1, "y": 1})
    objective = DenoisingObjective(time=IndependentTimes((1, 1), clean=0.25))
    optimiser = torch.optim.AdamW(denoiser.parameters(), lr=1e-2)
    falling = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.01, 800)
    for _ in range(800):
        optimiser.zero_grad()
        objective(denoiser, data[torch.randint(len(data), (512,))]).backward()
        optimiser.step()
        falling.step()
    exact = JointGaussian(torch.zeros(2, 1), torch.tensor([[1, 0.5**0.5], [0.5**0.5, 1]]), VPLinear(), {"x": 1, "y": 1})
    for known in ("x", "y"):
        value = torch.linspace(-1.5, 1.5, 2000)[:, None, None]
        slopes, spreads = [], []
        for joint in (denoiser, exact):
            drawn = Heun(steps=15)(
                given(joint, {known: value}), shape=value.shape, generator=torch.Generator().manual_seed(0)
            )
            slopes.append(float((drawn * value).mean() / value.square().mean()))
            spreads.append(float((drawn - slopes[-1] * value).std()))
        assert slopes[0] == pytest.approx(slopes[1], abs=0.08) and slopes[1] == pytest.approx(0.5**0.5, abs=0.05)
        assert spreads[0] == pytest.approx(spreads[1], rel=0.1)


def test_a_checkpoint_rebuilds_a_joint_network(tmp_path):
    denoiser = _network()
    loaded = suffuse.hub.load(suffuse.hub.save(denoiser, tmp_path / "joint"))
    x = torch.randn(2, 5, 8, 8)
    sampler = DPMSolverPP(steps=2)
    drawn = [
        sampler(given(d, {"mask": x[:, 3:]}, guidance_scale=2.0, generator=torch.Generator().manual_seed(1)),
                shape=(2, 3, 8, 8), generator=torch.Generator().manual_seed(0))
        for d in (denoiser.eval(), loaded)
    ]  # fmt: skip
    torch.testing.assert_close(*drawn)


def test_one_clear_error_each(joint):
    y = torch.zeros(2, 2, 1)
    for call, message in (
        (lambda: Streams({}), "at least one stream"),
        (lambda: IndependentTimes((1,), clean=2), "clean lie in"),
        (lambda: given(joint, {"label": y}), "no stream is called"),
        (lambda: given(joint, {"image": y}), "must be \\(B, 3"),
        (lambda: given(joint, {"mask": y, "image": torch.zeros(2, 3, 1)}), "nothing left"),
        (lambda: given(joint, {"mask": y}, t=1.5), "t must lie"),
        (lambda: given(joint, {"mask": y})(torch.zeros(3, 3, 1), 0.5), "x has 3"),
        (lambda: given(joint, guidance_scale=2.0), "held stream to be guided by"),
        (lambda: Held(joint, {"mask": y}, {}), "same streams"),
        (lambda: JointGaussian(torch.zeros(4, 1), torch.eye(4), VPLinear(), STREAMS), "mean must be"),
        (lambda: JointNetworkDenoiser(MLP(5), VPLinear(), STREAMS, data_std={"mask": 0}), "data_std"),
        (lambda: walk(joint, Heun(2), {"mask": (1, 2, 1)}, []), "every stream"),
        (
            lambda: walk(joint, Heun(2), {"mask": (1, 2, 1), "image": (1, 3, 1)}, [Segment(("mask",), 0.5, 0)]),
            "which are at",
        ),
    ):
        with pytest.raises(InvalidArgument, match=message):
            call()
