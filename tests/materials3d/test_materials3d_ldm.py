"""The three stages, windows and tiles, requests, and the pipeline that ties them."""

import json
import warnings

import numpy as np
import pytest
import torch

from suffuse import Condition, NetworkDenoiser, hub, schedules
from suffuse.denoiser import FunctionDenoiser
from suffuse.errors import CheckpointError, InvalidArgument, SamplingDiverged
from suffuse_materials3d import Microstructure, MicrostructureLDM, MicrostructurePipeline, read_volume, write_volume
from suffuse_materials3d.attributes import AttributeScaler
from suffuse_materials3d.data import Volumes, read_volumes, simulate_dataset
from suffuse_materials3d.data.volumes import write_part
from suffuse_materials3d.fractions import matching_shifts, requested_shares
from suffuse_materials3d.ldm import (
    BoxMeanObjective,
    accuracy,
    encode,
    train_autoencoder,
    train_denoiser,
    train_predictor,
)
from suffuse_materials3d.nets import Beyond, FeaturePredictor, PeriodicUNet, VolumeAutoencoder, VoxelCodec
from suffuse_materials3d.nets.autoencoder import AutoencoderObjective
from suffuse_materials3d.recipes import ldm
from suffuse_materials3d.windows import Windowed, _spans, decode_tiles

NAMES = ("vf_1", "sv")
#: Boxes here are below the structures that grow in them.
pytestmark = pytest.mark.filterwarnings("ignore:structures are up to")


def awake(net: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """With weights that are nowhere zero, so that everything it sees matters."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in net.parameters():
            weight.add_(0.1 * torch.randn(weight.shape, generator=generator))
    return net.eval()


def blobs(n: int, shape: tuple[int, ...], phases: int = 2, seed: int = 0) -> torch.Tensor:
    """(n, X, Y, Z) smooth random labels."""
    g = torch.Generator().manual_seed(seed)
    u = torch.randn((n, phases, *shape), generator=g)
    for dim in (2, 3, 4):
        u = u + u.roll(1, dim) + u.roll(-1, dim)
    return u.argmax(1).to(torch.uint8)


@pytest.fixture(scope="module")
def volumes(tmp_path_factory) -> Volumes:
    torch.set_num_threads(1)
    folder = simulate_dataset(
        tmp_path_factory.mktemp("data") / "set", trajectories=6, shape=(16, 16, 8), snapshots=2, descriptors=NAMES,
        workers=1, progress=False,
    )  # fmt: skip
    return read_volumes(folder)


@pytest.fixture(scope="module")
def model(volumes, tmp_path_factory) -> MicrostructureLDM:
    """All three stages, a few steps each."""
    torch.set_num_threads(1)
    common = {"progress": False, "device": "cpu"}
    out = tmp_path_factory.mktemp("model")
    autoencoder = train_autoencoder(volumes, widths=(8, 8), latent_channels=2, steps=6, batch_size=4, **common)
    z = encode(autoencoder, volumes, forms=2, progress=False)
    predicted = ("vf_1", "mean", "log_time")
    predictor, scores = train_predictor(
        z, volumes.table(predicted), predicted, trajectory=volumes.trajectory, width=8, steps=4, batch_size=4, **common
    )
    scaler = AttributeScaler(NAMES).fit(volumes.table(NAMES))
    denoiser = train_denoiser(z, scaler, volumes.table(NAMES), widths=(12,), blocks=1, steps=4, batch_size=4, **common)
    ldm = MicrostructureLDM(denoiser, autoencoder, scaler, predictor, scores, volumes.shape, {"unit": "um"})
    ldm.save(out, {"recipe": "test"})
    return MicrostructureLDM.load(out)


# --- stage 1 ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("phases", [3])
def test_one_volume_can_be_learned_by_heart(phases):
    labels = blobs(1, (16, 16, 8), phases)
    data = Volumes(labels, {}, torch.zeros(1, dtype=torch.long), phases)
    objective = AutoencoderObjective(augment=False)
    net = train_autoencoder(
        data, widths=(24, 32), steps=80, batch_size=1, lr=1e-2, objective=objective, progress=False, device="cpu"
    )
    assert accuracy(net, data) > 0.97


def test_latents_have_unit_variance_and_mean_zero(model, volumes):
    z = model.autoencoder.encode_stage_2_inputs(volumes.labels).detach()
    assert z.mean((0, 2, 3, 4)) == pytest.approx(torch.zeros(2), abs=1e-4)
    assert z.std((0, 2, 3, 4)) == pytest.approx(torch.ones(2), abs=1e-3)


def test_shifts_of_the_volume_are_shifts_of_the_latents():
    net = awake(VolumeAutoencoder(3, 2, (8, 12)))
    labels = blobs(2, (16, 8, 16), 3)
    mu, sigma = net.encode(labels)
    moved, _ = net.encode(labels.roll((4, -4, 8), (1, 2, 3)))
    assert torch.allclose(moved, mu.roll((1, -1, 2), (2, 3, 4)), atol=1e-5)
    assert (sigma > 0).all()
    assert torch.allclose(net.decode(mu.roll(1, 2)), net.decode(mu).roll(4, 2), atol=1e-5)


def test_the_third_phase_is_a_class_of_its_own():
    """Halfway between pure phases 0 and 2 there is no phase 1: shares are given as classes, not as a grey value."""
    net = awake(VolumeAutoencoder(3, 2, (8,)))
    half = torch.zeros(1, 3, 4, 4, 4)
    half[:, 0] = half[:, 2] = 0.5
    one = torch.ones(1, 4, 4, 4, dtype=torch.uint8)
    assert not torch.allclose(net.encode(half)[0], net.encode(one)[0], atol=1e-3)


@pytest.mark.parametrize(
    ("widths", "periodic"),
    [((8,), (True, False, False)), ((8, 12), (True, True, True)), ((4, 4, 8), (True, True, False))],
)
def test_tiles_with_a_halo_are_the_whole(widths, periodic):
    net = awake(VolumeAutoencoder(2, 2, widths, periodic=periodic))
    z = torch.randn(1, 2, 14, 13, 6, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole, tiled = net.decode_stage_2_outputs(z), torch.zeros(1)
        tiled = torch.full_like(whole, float("nan"))
        for place, part in decode_tiles(net, z, 7, periodic):
            tiled[:, :, *place] = part
    assert (tiled - whole).abs().max() < 2e-5 * whole.abs().max()
    assert torch.equal(tiled.argmax(1), whole.argmax(1))


@pytest.mark.parametrize("tile", [3, 6, 100])
def test_tiles_wrap_where_the_codec_does_not(tile):
    """Also one tile over the whole axis: what is behind the last voxel is the first."""
    net = awake(VolumeAutoencoder(2, 2, (8,), periodic=(True, True, False)))
    z = torch.randn(1, 2, 4, 4, 6, generator=torch.Generator().manual_seed(0))

    def decoded(z):
        logits = torch.empty(1, 2, 8, 8, 12)
        with torch.no_grad():
            for place, part in decode_tiles(net, z, tile, (True, True, True)):
                logits[:, :, *place] = part
        return logits

    assert torch.allclose(decoded(z.roll(2, 4)), decoded(z).roll(4, 4), atol=1e-5)


def test_a_smaller_halo_is_not_enough():
    """The receptive field is not overestimated by more than the rounding of a cell."""
    net = awake(VolumeAutoencoder(2, 2, (8,)))
    z = torch.randn(1, 2, 24, 4, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    net.decode(z)[0, 0, 24].sum().backward()  # voxels of cell 12
    reach = z.grad.abs().sum((0, 1, 3, 4)).nonzero().flatten() - 12
    assert reach.max() == net.receptive_field == -reach.min()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda n: n.encode(torch.full((1, 8, 8, 8), 2, dtype=torch.uint8)),
            "label 2, but this autoencoder was made for 2",
        ),
        (lambda n: n.encode(torch.zeros(1, 6, 8, 8, dtype=torch.uint8)), "multiples of 4"),
        (lambda n: n.encode(torch.full((1, 8, 8, 8), -1)), "label -1"),
        (lambda n: VoxelCodec(2).encode_stage_2_inputs(torch.full((1, 8, 8, 8), 2)), "label 2"),
        (lambda n: n.encode(torch.zeros(1, 8, 8, 8)), "whole labels"),
        (lambda n: n.encode(torch.zeros(1, 3, 8, 8, 8)), "3 phases, this autoencoder 2"),
        (lambda n: n.decode(torch.zeros(1, 3, 2, 2, 2)), r"\(B, 2, x, y, z\)"),
        (lambda n: VolumeAutoencoder(1), "phases >= 2"),
        (lambda n: Volumes(torch.full((1, 4, 4, 4), 2, dtype=torch.uint8), {}, torch.zeros(1), 2), "phases=2"),
    ],
)
def test_volumes_that_do_not_fit(call, message):
    with pytest.raises(InvalidArgument, match=message):
        call(VolumeAutoencoder(2, 2, (8, 8)))


def test_a_single_phase_teaches_nothing():
    data = Volumes(torch.zeros(4, 8, 8, 8, dtype=torch.uint8), {}, torch.arange(4), 2)
    with pytest.raises(InvalidArgument, match="one phase only"):
        train_autoencoder(data)


# --- stage 2 ----------------------------------------------------------------------------------------------------


def test_the_predictor_learns_what_is_there_and_knows_how_well():
    """One attribute is the mean of a channel, the other is noise: told well, and known to be unknown."""
    g = torch.Generator().manual_seed(0)
    level = torch.randn(256, 1, 1, 1, 1, 1, generator=g)
    z = torch.randn(256, 1, 2, 4, 4, 4, generator=g)
    z[:, :, :1] += level
    values = torch.cat([level.reshape(-1, 1), torch.randn(256, 1, generator=g)], 1)
    net, scaler = train_predictor(
        z, values, ("level", "noise"), width=12, steps=100, batch_size=32, progress=False, device="cpu"
    )
    prediction = net(z[:, 0])
    error = (prediction.mean - scaler.scores(values)).std(0)
    assert error[0] < 0.3 and prediction.std[:, 0].mean() < 0.45
    assert 0.7 < prediction.std[:, 1].mean() < 1.4


def test_calibration_makes_errors_as_large_as_they_are_said_to_be():
    net = awake(FeaturePredictor(("a",), 2, 8))
    z = torch.randn(64, 2, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    scores = torch.randn(64, 1, generator=torch.Generator().manual_seed(1)) * 3
    net.calibrate(z, scores)
    with torch.no_grad():
        mean, std = net(z)
    assert (((scores - mean) / std) ** 2).mean() == pytest.approx(1, rel=1e-3)


def test_the_uncertainty_of_one_simulation_is_of_rows_it_has_not_seen():
    """Noise is learned by heart, and must be known to be noise, whether rows are set aside or given."""
    g = torch.Generator().manual_seed(0)
    z, values = torch.randn(48, 1, 2, 4, 4, 4, generator=g), torch.randn(48, 1, generator=g)
    other, unseen = torch.randn(200, 1, 2, 4, 4, 4, generator=g), torch.randn(200, 1, generator=g)
    for held_out in (None, (other[:40], unseen[:40])):
        net, scaler = train_predictor(
            z, values, ("noise",), trajectory=torch.zeros(48), held_out=held_out, width=16, steps=80, batch_size=16,
            periodic=(False,) * 3, progress=False, device="cpu",
        )  # fmt: skip
        with torch.no_grad():
            mean, std = net(other[40:, 0])
        assert 0.5 < ((scaler.scores(unseen[40:]) - mean) / std).square().mean().sqrt() < 1.6


# --- attributes -------------------------------------------------------------------------------------------------


@pytest.fixture
def scaler() -> AttributeScaler:
    g = torch.Generator().manual_seed(0)
    a = torch.rand(400, 1, generator=g)
    return AttributeScaler(("vf_1", "drel_1")).fit(torch.cat([a, a**2 + 0.02 * torch.randn(400, 1, generator=g)], 1))


def test_scores_are_normal_and_invert(scaler):
    values = scaler.rows[scaler.rows.isfinite().all(1)]
    scores = scaler.scores(values)
    assert scores.mean(0) == pytest.approx(torch.zeros(2), abs=0.05) and scores.std(0) == pytest.approx(
        torch.ones(2), abs=0.1
    )
    assert torch.allclose(scaler.values(scores), values.float(), atol=1e-4)


def test_any_subset_can_be_asked_for(scaler):
    values = scaler.requested({"drel_1": [0.2, 0.4]})
    cond = scaler.condition(values)
    assert len(cond) == 2 and not cond.masks["vf_1"].any() and cond.masks["drel_1"].all()
    nothing = scaler.condition(scaler.requested(None, n=3))
    assert len(nothing) == 3 and not any(mask.any() for mask in nothing.masks.values())


def test_the_nearest_feasible_request(scaler):
    inside, outside = scaler.requested({"vf_1": 0.5, "drel_1": 0.3}), scaler.requested({"vf_1": 0.3, "drel_1": 0.9})
    same, zero = scaler.nearest_feasible(inside)
    assert torch.equal(same, inside) and zero == 0
    near, distance = scaler.nearest_feasible(outside)
    assert distance > 0.5 and near[0, 1] < 0.9
    again, nothing = scaler.nearest_feasible(near)
    assert nothing < 0.01 and torch.allclose(again, near, atol=1e-2)
    alone, free = scaler.nearest_feasible(scaler.requested({"drel_1": 0.9}))
    assert free == 0 and alone[0, 1] == 0.9  # possible, if not at every fraction


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ({"vf": 0.5}, "unknown attribute 'vf'; did you mean 'vf_1'"),
        ({"vf_1": float("nan")}, "must be finite"),
        ({"vf_1": [0.4, 0.5], "drel_1": [0.1, 0.2, 0.3]}, "equally many"),
        ({"vf_1": []}, "equally many"),
    ],
)
def test_requests_that_make_no_sense(scaler, targets, message):
    with pytest.raises(InvalidArgument, match=message):
        scaler.requested(targets)


def test_an_attribute_that_does_not_vary_cannot_be_asked_for():
    with pytest.raises(InvalidArgument, match="'chi' does not vary"):
        AttributeScaler(("chi",)).fit(torch.full((8, 1), 3.0))


# --- windows ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "periodic"), [(40, True), (41, True), (40, False), (33, False)])
def test_windows_cover_everything_evenly(n, periodic):
    """Weights sum to one in the middle of the axis, and are positive everywhere."""
    total = torch.zeros(n)
    for cells, weight in _spans(n, 8, 4, periodic):
        total[cells] += weight
    assert (total > 0.2).all()
    if periodic and n % 8 == 0:
        assert total == pytest.approx(torch.ones(n), abs=1e-5)


def test_windows_of_a_network_that_sees_little_are_the_network():
    """A mean over 3 cells in each direction: halo 4 is more than it sees, but for the blended rim of 2 halo."""
    schedule = schedules.VPCosine()

    def local(x, t, cond):
        for dim in (2, 3, 4):
            x = (x + x.roll(1, dim) + x.roll(-1, dim)) / 3
        return x

    plain = FunctionDenoiser(local, schedule)
    x = torch.randn(1, 1, 40, 16, 32, generator=torch.Generator().manual_seed(0))
    windows = Windowed(plain, (8, 8, 8), 4)
    error = (windows(x, 0.5) - plain(x, 0.5)).abs()
    # only the outermost cell of a window is wrong, and its weight is sin^2(pi/32) of the whole
    assert error.max() < 0.03 * x.abs().max()
    assert Windowed(plain, (40, 16, 32), 4)(x, 0.5).equal(plain(x, 0.5))


def test_windows_wrap():
    schedule = schedules.VPCosine()
    windows = Windowed(FunctionDenoiser(lambda x, t, cond: x, schedule), (8, 8, 8), 4)
    x = torch.randn(1, 2, 24, 24, 24, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(windows(x, 0.3), x, atol=1e-5)
    with pytest.raises(InvalidArgument, match="multiples of 3"):
        Windowed(windows, (8, 8, 8), 4, multiple=3)


# --- what is asked for ------------------------------------------------------------------------------------------


def test_what_an_attribute_says_beyond_the_others():
    """Of two scores with correlation rho: (a - rho b) / sqrt(1 - rho^2); alone, the score itself; not asked, zero."""
    rho = 0.9
    net = Beyond(["a", "b"], [[1.0, rho], [rho, 1.0]], 4)
    scores = torch.tensor([[1.0, 0.5], [1.0, 0.5], [0.3, -0.7]])
    asked = torch.tensor([[True, True], [True, False], [False, False]])
    tokens = {name: torch.stack([scores[:, i], torch.zeros(3)], -1)[:, None] for i, name in enumerate("ab")}
    cond = Condition(tokens, masks={name: asked[:, i : i + 1] for i, name in enumerate("ab")})
    rho *= 1 - 0.01  # the shrinkage
    both = [(1 - rho * 0.5) / (1 - rho**2) ** 0.5, (0.5 - rho) / (1 - rho**2) ** 0.5]
    assert torch.allclose(net.scores(cond), torch.tensor([both, [1.0, 0.0], [0.0, 0.0]]), atol=1e-5)
    with pytest.raises(InvalidArgument, match="ones on the diagonal"):
        Beyond(["a", "b"], [[2.0, 0.0], [0.0, 1.0]], 4)


def test_what_is_beyond_has_variance_one_in_the_data():
    g = torch.Generator().manual_seed(0)
    a = torch.randn(4000, generator=g)
    values = torch.stack([a, a + 0.4 * torch.randn(4000, generator=g), torch.randn(4000, generator=g)], 1)
    scaler = AttributeScaler(["a", "b", "c"]).fit(values)
    r = Beyond(scaler.names, scaler.correlation(values), 4).scores(scaler.condition(values))
    assert r.std(0) == pytest.approx(torch.ones(3), abs=0.1)
    assert abs(torch.corrcoef(torch.stack([r[:, 1], a]))[0, 1]) < 0.1  # nothing of what the other says


def test_the_mean_of_a_box_has_a_weight_of_its_own():
    """An error that is everywhere the same counts 1 + mean_weight times, one of mean zero once."""
    even, odd = torch.full((2, 1, 4, 4, 4), 0.5), torch.ones(2, 1, 4, 4, 4)
    odd[:, :, ::2] = -1
    objective = BoxMeanObjective(mean_weight=3.0)
    assert objective.square(even).mean() == pytest.approx(4 * 0.25)
    assert objective.square(odd).mean() == pytest.approx(1.0)


def test_a_network_moves_with_a_box_that_wraps():
    x = torch.randn(2, 1, 16, 8, 8, generator=torch.Generator().manual_seed(0))
    net, level = awake(PeriodicUNet(1, (8,))), torch.zeros(2)
    assert torch.allclose(net(x.roll(2, 2), level), net(x, level).roll(2, 2), atol=1e-5)


# --- the pipeline -----------------------------------------------------------------------------------------------


def test_structures_carry_what_was_asked_measured_and_predicted(model):
    pipeline = MicrostructurePipeline(model)
    ms = pipeline({"vf_1": 0.5}, n=2, steps=2)[1]
    assert ms.shape == (16, 16, 8) and ms.unit == "um" and ms.periodic == (True,) * 3 and ms.field is not None
    assert ms.attributes["requested_vf_1"] == 0.5 and "requested_sv" not in ms.attributes
    assert ms.attributes["vf_1"] == pytest.approx(ms.labels.mean())
    assert {"predicted_mean", "predicted_mean_std", "predicted_log_time"} <= set(ms.attributes)
    json.dumps(dict(ms.attributes))


def test_a_structure_depends_on_its_own_seed(model):
    pipeline = MicrostructurePipeline(model)
    many = pipeline({"vf_1": [0.45, 0.5, 0.55]}, steps=2, batch_size=3, seed=1)
    few = pipeline({"vf_1": [0.45, 0.5, 0.55]}, steps=2, batch_size=2, seed=1)
    for a, b in zip(many, few, strict=True):
        assert np.allclose(a.field, b.field, atol=1e-4)
    one = pipeline({"vf_1": 0.5}, generator=torch.Generator().manual_seed(7), steps=2)[0]
    two = pipeline({"vf_1": 0.5}, generator=[torch.Generator().manual_seed(7)], steps=2)[0]
    assert np.allclose(one.field, two.field) and "seed" not in one.attributes


def test_matched_fractions_are_met_to_a_voxel(model):
    pipeline = MicrostructurePipeline(model)
    ms = pipeline({"vf_1": 0.5}, steps=2, match_fraction=True)[0]
    assert ms.labels.mean() == pytest.approx(ms.attributes["requested_vf_1"], abs=2 / ms.labels.size)
    assert ms.attributes["logit_shift_0"] == pytest.approx(-ms.attributes["logit_shift_1"])
    with pytest.raises(InvalidArgument, match="match_fraction needs a requested vf"):
        pipeline(None, steps=2, match_fraction=True)


@pytest.mark.parametrize("shares", [(0.5, 0.5), (0.2, 0.3, 0.5), (0.02, 0.9, 0.08), (0.1, 0.2, 0.3, 0.4)])
def test_shifts_give_every_phase_its_share(shares):
    logits = np.random.default_rng(0).normal(size=(len(shares), 16, 16, 8)) * 3 + np.arange(len(shares)).reshape(
        -1, 1, 1, 1
    )
    shifts = matching_shifts(logits, shares)
    labels = (logits + shifts[:, None, None, None]).argmax(0)
    assert np.bincount(labels.ravel()) / labels.size == pytest.approx(shares, abs=2 / labels.size)
    assert shifts.sum() == pytest.approx(0, abs=1e-9)


def test_shares_that_are_asked_for():
    assert requested_shares({"requested_vf_0": 0.25, "requested_vf_2": 0.5}, 3) == [0.25, 0.25, 0.5]
    assert requested_shares({"requested_volume_fraction": 0.25}, 2) == [0.75, 0.25]
    with pytest.raises(InvalidArgument, match="all phases but one"):
        requested_shares({"requested_vf_0": 0.25}, 3)
    with pytest.raises(InvalidArgument, match="sum to one"):
        requested_shares({"requested_vf_0": 0.75, "requested_vf_2": 0.5}, 3)


def test_the_best_of_several_candidates_is_given(model):
    pipeline = MicrostructurePipeline(model)
    asked = {"vf_1": 0.5, "sv": 0.2}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        one = pipeline(asked, n=3, steps=2)
        best = pipeline(asked, n=3, steps=2, candidates=4, measured=False)
        again = pipeline(asked, n=3, steps=2, candidates=4, batch_size=2)
    misses = [[pipeline._miss(ms) for ms in some] for some in (one, best)]
    assert all(b <= a for a, b in zip(*misses, strict=True)) and sum(misses[1]) < sum(misses[0])
    for a, b in zip(best, again, strict=True):
        assert np.array_equal(a.labels, b.labels) and a.attributes["sv"] == b.attributes["sv"]
    assert {float(ms.attributes["vf_1"]) for ms in one} == {ms.labels.mean() for ms in one}
    with pytest.raises(InvalidArgument, match="candidates are chosen by measurement"):
        pipeline(None, candidates=2)
    with pytest.raises(InvalidArgument, match="candidates=0"):
        pipeline(asked, candidates=0)


def test_requests_out_of_the_hull(model):
    pipeline = MicrostructurePipeline(model)
    with pytest.warns(UserWarning, match="outside of what the training data have"):
        ms = pipeline({"vf_1": 0.99}, steps=2)[0]
    assert ms.attributes["requested_vf_1"] < 0.9
    with pytest.raises(InvalidArgument, match="outside of what the training data have"):
        pipeline({"vf_1": 0.99}, steps=2, strict=True)
    with pytest.raises(InvalidArgument, match=r"vf_1 must lie in \[0, 1\], got 45"):
        pipeline({"vf_1": 45}, steps=2)


def test_boxes_of_other_sizes_and_ends(model):
    pipeline = MicrostructurePipeline(model)
    assert pipeline(None, shape=(24, 16, 16), steps=2)[0].shape == (24, 16, 16)
    open_ends = pipeline(None, shape=(16, 16, 8), periodic=(True, True, False), steps=2)[0]
    assert open_ends.shape == (16, 16, 8) and open_ends.periodic == (True, True, False)
    with pytest.raises(InvalidArgument, match="multiples of 4"):
        pipeline(None, shape=(18, 16, 8))
    with pytest.raises(InvalidArgument, match="three positive sizes"):
        pipeline(None, shape=(16, 16))


def test_whole_and_in_windows_and_tiles_are_alike(model, monkeypatch):
    """The same noise gives the same structure, whether sampled and decoded in one piece or in parts."""
    from suffuse_materials3d import pipeline as module

    def make(**arguments):
        return MicrostructurePipeline(model)(None, shape=(64, 32, 16), steps=3, seed=3, **arguments)[0]

    whole = make()
    parts = make(window=4)
    assert np.corrcoef(parts.field.ravel(), whole.field.ravel())[0, 1] > 0.9  # windows nearly
    monkeypatch.setattr(module, "WHOLE_VOXELS", 1)
    assert np.allclose(make().field, whole.field, atol=1e-4)  # tiles are exact


def test_a_large_structure_goes_to_disk_in_parts(model, tmp_path):
    pytest.importorskip("zarr")
    pipeline = MicrostructurePipeline(model)
    path = pipeline.to_zarr(tmp_path / "big.zarr", {"vf_1": 0.5}, shape=(64, 32, 16), steps=2, chunk=16, progress=False)
    ms = read_volume(path)
    same = pipeline({"vf_1": 0.5}, shape=(64, 32, 16), steps=2)[0]
    assert (ms.labels == same.labels).mean() > 0.999
    assert ms.attributes["vf_1"] == pytest.approx(ms.labels.mean()) and ms.unit == "um"
    with pytest.raises(InvalidArgument, match="chunk be at least 1"):
        pipeline.to_zarr(path, shape=(64, 32, 16), chunk=0)
    open_ends = pipeline.to_zarr(
        tmp_path / "open.zarr",
        None,
        shape=(32, 32, 16),
        periodic=(False, True, False),
        steps=2,
        chunk=16,
        progress=False,
    )
    assert read_volume(open_ends).shape == (32, 32, 16)


def test_a_large_structure_has_its_fraction_and_voxel_size(model, tmp_path, monkeypatch):
    from suffuse_materials3d import pipeline as module

    pytest.importorskip("zarr")
    monkeypatch.setattr(module, "LOOKED_AT", 4096)  # a quarter of the voxels
    path = MicrostructurePipeline(model).to_zarr(
        tmp_path / "big.zarr", {"vf_A": 0.5}, shape=(32, 32, 16), match_fraction=True, spacing=(2, 2, 2), unit="nm",
        steps=2, chunk=16, progress=False,
    )  # fmt: skip
    ms = read_volume(path)
    assert ms.attributes["vf_1"] == pytest.approx(ms.attributes["requested_vf_1"], abs=0.03)
    assert ms.attributes["logit_shift_0"] != 0 and ms.spacing == (2.0, 2.0, 2.0) and ms.unit == "nm"
    with pytest.raises(InvalidArgument, match="match_fraction needs"):
        MicrostructurePipeline(model).to_zarr(path, shape=(32, 32, 16), match_fraction=True)


def test_a_large_structure_that_is_stopped_leaves_the_old_one(model, tmp_path, monkeypatch):
    from suffuse_materials3d import pipeline as module

    pytest.importorskip("zarr")
    pipeline, arguments = MicrostructurePipeline(model), {"shape": (32, 32, 16), "steps": 2, "chunk": 16}
    path = pipeline.to_zarr(tmp_path / "big.zarr", progress=False, **arguments)
    before, tiles = read_volume(path).labels, decode_tiles

    def stopped(*given):
        yield from list(tiles(*given))[:2]
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "decode_tiles", stopped)
    with pytest.raises(KeyboardInterrupt):
        pipeline.to_zarr(path, seed=1, progress=False, **arguments)
    assert np.array_equal(read_volume(path).labels, before) and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("phases", [2, 3])
def test_logits_that_are_no_numbers_are_no_structure(phases, tmp_path, monkeypatch):
    from suffuse_materials3d import pipeline as module

    codec = awake(VolumeAutoencoder(phases, 2, (8,)))
    with torch.no_grad():
        codec.head.conv.bias[0] = float("nan")
    denoiser = FunctionDenoiser(lambda x, t, cond: x, schedules.VPCosine())
    scaler = AttributeScaler(("a",)).fit(torch.rand(8, 1))
    pipeline = MicrostructurePipeline(MicrostructureLDM(denoiser, codec, scaler, None, None, (8, 8, 8), {}))
    with pytest.raises(SamplingDiverged, match="NaN or infinite"):
        pipeline(None, steps=2)
    monkeypatch.setattr(module, "WHOLE_VOXELS", 1)
    with pytest.raises(SamplingDiverged, match="NaN or infinite"):
        pipeline(None, steps=2)
    pytest.importorskip("zarr")
    with pytest.raises(SamplingDiverged, match="NaN or infinite"):
        pipeline.to_zarr(tmp_path / "a.zarr", shape=(8, 8, 8), steps=2, progress=False)
    assert not list(tmp_path.iterdir())


def test_parts_can_be_replaced(model):
    """The pipeline is denoiser, guidance, sampler and decoder, each of which may be another."""
    from suffuse.samplers import DDIM

    seen = []

    def guide(denoiser):
        def mean(x, t, cond):
            seen.append(cond)
            return denoiser(x, t, cond)

        return FunctionDenoiser(mean, denoiser.schedule)

    made = MicrostructurePipeline(model)({"vf_1": 0.5}, sampler=DDIM(steps=3), guide=guide)
    assert len(made) == 1 and len(seen) == 3 and isinstance(seen[0], Condition)


class Mean(torch.nn.Module):
    """A predictor that knows what it says: both attributes are ten times the mean of the latent."""

    def forward(self, z):
        mean = 10 * z.mean((1, 2, 3, 4))[:, None].expand(-1, 2)
        return mean, torch.full_like(mean, 0.01)


@pytest.fixture
def heard(model, volumes) -> MicrostructurePipeline:
    """White latents, and that predictor of a descriptor and of a process parameter."""
    names = ("vf_1", "mean")
    scaler = AttributeScaler(names).fit(volumes.table(names))
    white = FunctionDenoiser(lambda x, t, cond: schedules.VPCosine().alpha(t) * x, schedules.VPCosine())
    return MicrostructurePipeline(
        MicrostructureLDM(
            **{**vars(model), "denoiser": white, "scaler": scaler, "predicted": scaler, "predictor": Mean()}
        )
    )


def test_the_predictor_corrects_descriptors_on_the_way(heard, volumes):
    vf = volumes.attributes["vf_1"]
    asked = {"vf_1": torch.quantile(vf.double(), torch.tensor([0.2, 0.8], dtype=torch.float64)).tolist()}
    miss = {
        on: np.abs([ms.attributes["predicted_vf_1"] - ms.attributes["requested_vf_1"]
                    for ms in heard(asked, steps=20, predictor_guidance=on, measured=False)])
        for on in (True, False)
    }  # fmt: skip
    assert miss[True].max() < 0.1 * float(vf.std()) < miss[False].max()


def test_the_predictor_guides_in_inference_mode_too(model):
    asked = {"vf_1": 0.5}
    with torch.inference_mode():
        inside = MicrostructurePipeline(model)(asked, steps=2)[0]
    assert np.array_equal(inside.field, MicrostructurePipeline(model)(asked, steps=2)[0].field)


def test_the_predictor_does_not_hear_its_own_echo(heard, volumes):
    """It alone tells the process parameters of a structure, so these are not corrected by it."""
    asked = {"mean": float(volumes.attributes["mean"].max())}
    on, off = (heard(asked, steps=4, predictor_guidance=p, measured=False)[0] for p in (True, False))
    assert np.array_equal(on.field, off.field)


def test_the_predictor_is_left_out_of_large_boxes_and_of_a_guide(heard, monkeypatch):
    asked = {"vf_1": 0.5}
    plain = heard(asked, steps=4, predictor_guidance=False, measured=False)[0]
    own = heard(asked, steps=4, guide=lambda denoiser: denoiser, measured=False)[0]
    monkeypatch.setattr("suffuse_materials3d.pipeline.GUIDED_CELLS", 1)
    large = heard(asked, steps=4, measured=False)[0]
    assert np.array_equal(plain.field, own.field) and np.array_equal(plain.field, large.field)


def test_voxels_as_latents(volumes):
    codec = VoxelCodec(2)
    z = codec.encode_stage_2_inputs(volumes.labels)
    assert torch.equal(codec.decode_stage_2_outputs(z).argmax(1).to(torch.uint8), volumes.labels)
    three = blobs(2, (4, 4, 4), 3)
    codec = VoxelCodec(3)
    assert torch.equal(
        codec.decode_stage_2_outputs(codec.encode_stage_2_inputs(three)).argmax(1).to(torch.uint8), three
    )


def test_a_checkpoint_of_another_kind(tmp_path):
    hub.save(
        NetworkDenoiser(PeriodicUNet(1, (8,)), schedules.VPCosine()), tmp_path, {"recipe": "other", "shape": [8] * 3}
    )
    with pytest.raises(CheckpointError, match="other"):
        MicrostructurePipeline.from_pretrained(tmp_path)


def test_films_have_no_periodic_thickness(model):
    model = MicrostructureLDM(**{**vars(model), "facts": {"boundary": "film"}})
    with pytest.raises(InvalidArgument, match="films"), warnings.catch_warnings():
        MicrostructurePipeline(model)(None, periodic=(True, True, True))


# --- the recipe -------------------------------------------------------------------------------------------------

SMOKE = {"preset": "smoke", "device": "cpu", "progress": False, "workers": 1}


def stored(folder, phases: int = 2, seed: int = 0, n: int = 6):
    """A folder of volumes, each of a simulation of its own."""
    labels = blobs(n, (16, 16, 8), phases, seed).numpy()
    write_part(folder / "part_0.h5", labels, [{"trajectory_id": i} for i in range(n)], phases=phases)
    return folder


@pytest.mark.parametrize(
    ("phases", "arguments", "message"),
    [
        (4, {}, "no default for 4 phases"),
        (1, {"attributes": ("vf_1",)}, "one phase only"),
        (2, {"attributes": ("vf_1", "percolates_1")}, "'percolates_1' does not vary"),
        (2, {"attributes": ("vf_1", "phi")}, r"no \['phi'\]"),
    ],
)
def test_what_cannot_be_learned_is_said_before_any_training(phases, arguments, message, tmp_path):
    data = stored(tmp_path / "data", phases)
    with pytest.raises(InvalidArgument, match=message):
        ldm(dataset=str(data), out=tmp_path / "out", **{**SMOKE, **arguments})
    assert not (tmp_path / "out").exists()


def test_patches_that_the_second_network_cannot_take(tmp_path):
    path = write_volume(Microstructure(blobs(1, (48, 24, 24))[0].numpy()), tmp_path / "scan.tif")
    with pytest.raises(InvalidArgument, match=r"\(18, 18, 18\) voxels must be multiples of 4, such as \(16, 16, 16\)"):
        ldm(dataset=str(path), patch=(18, 18, 18), attributes=("vf_1",), out=tmp_path / "out", **SMOKE)
    assert not (tmp_path / "out").exists()


def test_a_model_is_not_altered_by_a_run_of_other_data(tmp_path):
    """Letters of phases are understood; other data are refused, the same change nothing, resume=False starts anew."""
    one, other = stored(tmp_path / "one"), stored(tmp_path / "other", seed=1)
    out = ldm(dataset=str(one), attributes=("vf_A",), out=tmp_path / "out", **SMOKE)
    assert MicrostructurePipeline.from_pretrained(out).names == ("vf_1",)
    files = sorted(out.rglob("*.safetensors"))
    before = [file.read_bytes() for file in files]
    with pytest.raises(InvalidArgument, match="other data or attributes; choose another out, or pass resume=False"):
        ldm(dataset=str(other), attributes=("vf_1",), out=out, **SMOKE)
    ldm(dataset=str(one), attributes=("vf_1",), out=out, **SMOKE)
    assert [file.read_bytes() for file in files] == before
    ldm(dataset=str(other), attributes=("vf_1",), out=out, resume=False, **SMOKE)
    assert [file.read_bytes() for file in files] != before


def test_a_finished_stage_is_neither_calibrated_nor_saved_again(volumes, tmp_path):
    common = {"widths": (8, 8), "latent_channels": 2, "batch_size": 4, "progress": False, "device": "cpu"}
    net = train_autoencoder(volumes, steps=3, out=tmp_path, **common)
    saved = (tmp_path / "model.safetensors").stat().st_mtime_ns
    again = train_autoencoder(volumes, steps=3, out=tmp_path, **common)
    assert (tmp_path / "model.safetensors").stat().st_mtime_ns == saved and torch.equal(net.scale, again.scale)
    longer = train_autoencoder(volumes, steps=4, out=tmp_path, **common)
    assert not torch.equal(net.scale, longer.scale)
    flipped = Volumes(1 - volumes.labels, volumes.attributes, volumes.trajectory, 2)
    with pytest.raises(InvalidArgument, match="other data"):
        train_autoencoder(flipped, steps=3, out=tmp_path, **common)


def test_a_tomogram_is_learned_and_its_slab_says_how_well(tmp_path, monkeypatch):
    from suffuse_materials3d import ldm as module

    seen, train = [], module.train_predictor

    def watched(*given, held_out, **arguments):
        seen.append(held_out)
        return train(*given, held_out=held_out, **arguments)

    monkeypatch.setattr(module, "train_predictor", watched)
    path = write_volume(Microstructure(blobs(1, (48, 24, 24))[0].numpy()), tmp_path / "scan.tif")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ldm(dataset=str(path), patch=(16, 16, 16), attributes=("vf_1",), out=tmp_path / "out", **SMOKE)
    z, values = seen[0]
    assert len(z) == len(values) == 4 and z.shape[1] == 1
