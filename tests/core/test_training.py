"""Training: the objective's minimiser, resumption to the bit, and runs that stop with a reason."""

import csv
import math

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

import suffuse
from suffuse import Condition, NetworkDenoiser, hub
from suffuse.denoiser import FunctionDenoiser
from suffuse.errors import CheckpointError, InvalidArgument, SuffuseError, TrainingDiverged
from suffuse.exact import GaussianDenoiser
from suffuse.nets import DiT
from suffuse.schedules import EDM, RectifiedFlow, VPCosine, VPLinear
from suffuse.training import (
    EMA,
    DenoisingObjective,
    FokkerPlanck,
    LogitNormalTime,
    LogNormalKappa,
    UniformLogSNR,
    UniformTime,
    fit,
    recorded,
)
from suffuse.training.recording import _Flat
from suffuse.training.state import read_state, write_state


class AlsoTheMean(DenoisingObjective):
    """|error|^2 + 3 |its mean|^2."""

    def square(self, error):
        return error.square() + 3 * error.mean(-1, keepdim=True).square()


def small(seed=0, **options):
    torch.manual_seed(seed)
    return NetworkDenoiser(DiT(1, 2, ndim=1, hidden=16, depth=1, heads=2, **options), VPCosine())


DATA = torch.randn(40, 1, 8, generator=torch.Generator().manual_seed(0))


class Rows(Dataset):
    """Rows that fail after a number of reads, as a machine may."""

    def __init__(self, reads=None):
        self.reads = reads

    def __len__(self):
        return len(DATA)

    def __getitem__(self, i):
        if self.reads is not None:
            self.reads -= 1
            if self.reads < 0:
                raise RuntimeError("the disk went away")
        return DATA[i]


# --- the objective ----------------------------------------------------------------------------------------------


def test_the_quadratic_form_can_be_another():
    """An error that is the same everywhere counts four times in a form that adds three times that of the mean."""
    everywhere = FunctionDenoiser(lambda x, t, cond: torch.ones_like(x), VPCosine())
    x0 = torch.zeros(4, 1, 8)
    plain, other = (
        float(kind(weighting="sample")(everywhere, x0, generator=torch.Generator().manual_seed(0)))
        for kind in (DenoisingObjective, AlsoTheMean)
    )
    assert plain == pytest.approx(1.0) and other == pytest.approx(4.0)


@pytest.mark.parametrize("schedule", [VPLinear(), EDM(), RectifiedFlow()], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize(
    "time",
    [UniformTime(), LogitNormalTime(), LogNormalKappa(), UniformLogSNR((0.02, 50.0))],
    ids=lambda s: type(s).__name__,
)
def test_times_are_stratified_and_in_range(time, schedule):
    t = time(schedule, 512, torch.Generator().manual_seed(0))
    assert t.shape == (512,)
    assert schedule.t_min <= float(t.min()) <= float(t.max()) <= 1
    if isinstance(time, UniformTime):
        assert torch.bincount((t * 512).long().clamp(max=511), minlength=512).max() <= 2
    if isinstance(time, UniformLogSNR):
        log_kappa = schedule.log_kappa(t)
        assert float(log_kappa.min()) == pytest.approx(math.log(0.02), abs=0.03)
        assert float(log_kappa.mean()) == pytest.approx(math.log(0.02 * 50) / 2, abs=0.02)
    if isinstance(time, LogNormalKappa) and isinstance(schedule, EDM):
        log_kappa = schedule.log_kappa(t)
        assert float(log_kappa.mean()) == pytest.approx(-1.2, abs=0.02)
        assert float(log_kappa.std()) == pytest.approx(1.2, abs=0.03)


@pytest.mark.parametrize("weighting", ["sample", "epsilon", "flow", "elbo", "min_snr"])
def test_the_exact_denoiser_minimises_the_objective(weighting):
    exact = GaussianDenoiser(torch.zeros(3), torch.tensor([0.5, 1.0, 2.0]), VPLinear())
    x0 = exact.sample(4000, torch.Generator().manual_seed(0)).float()

    class Shifted(GaussianDenoiser):
        def forward(self, x, t, cond=None):
            return 1.1 * super().forward(x, t, cond) + 0.05

    off = Shifted(torch.zeros(3), torch.tensor([0.5, 1.0, 2.0]), VPLinear())
    objective = DenoisingObjective(weighting=weighting)
    best, worse = (objective(d, x0, None, torch.Generator().manual_seed(1)) for d in (exact, off))
    assert best < worse


@pytest.mark.parametrize("prediction_type", ["sample", "epsilon", "v_prediction", "flow_prediction"])
def test_uniform_weighting_counts_the_networks_own_error(prediction_type):
    """A constant error of F gives the same loss at every noise level."""

    class Off(nn.Module):
        def forward(self, x, c_noise, cond=None):
            return torch.ones_like(x)

    class Right(nn.Module):
        def forward(self, x, c_noise, cond=None):
            return torch.zeros_like(x)

    schedule, objective = VPCosine(), DenoisingObjective()
    off, right = (NetworkDenoiser(net, schedule, prediction_type) for net in (Off(), Right()))
    for t in (0.1, 0.5, 0.9):
        x = torch.randn(4, 3)
        level = schedule.level(torch.full((4,), t, dtype=torch.float64), like=x)
        error = (off(x, t) - right(x, t)).square() * objective.weight(off, level)
        torch.testing.assert_close(error, torch.ones_like(error), rtol=1e-3, atol=1e-3)


def test_edm_weighting_is_its_formula():
    denoiser, schedule = NetworkDenoiser(nn.Identity(), EDM(), data_std=0.5), EDM()
    level = schedule.level(torch.tensor([0.5], dtype=torch.float64))
    expected = (level.sigma**2 + 0.25) / (level.sigma * 0.5) ** 2
    torch.testing.assert_close(DenoisingObjective(weighting="edm").weight(denoiser, level), expected)
    torch.testing.assert_close(DenoisingObjective().weight(denoiser, level), expected)  # v_prediction is EDM's own


def test_elements_can_be_weighted():
    x0 = torch.randn(6, 1, 8)
    weight = torch.zeros(6, 1, 8)
    weight[:, :, :4] = 1

    class Odd(nn.Module):
        def forward(self, x, c_noise, cond=None):
            y = x.clone()
            y[..., 4:] = 1e6
            return y

    denoiser = NetworkDenoiser(Odd(), VPCosine())
    objective = DenoisingObjective()
    assert objective(denoiser, x0, None, torch.Generator().manual_seed(0), weight) < 100
    assert objective(denoiser, x0, None, torch.Generator().manual_seed(0)) > 1e6


def test_the_fokker_planck_regulariser_vanishes_for_a_score_and_lowers_the_residual_of_a_network():
    exact = GaussianDenoiser(torch.zeros(2), torch.tensor([0.5, 2.0]), EDM())
    x0 = exact.sample(64, torch.Generator().manual_seed(0))
    term = FokkerPlanck(weight=1.0)
    assert term(exact, x0, None, torch.Generator().manual_seed(0)).item() < 1e-12

    class Smooth(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Linear(3, 32), nn.Tanh(), nn.Linear(32, 2))

        def forward(self, x, c_noise, cond=None):
            return self.net(torch.cat([x, c_noise[:, None]], -1))

    residuals = []
    for regularisers in ((), (FokkerPlanck(10.0, points=32),)):
        torch.manual_seed(0)
        objective = DenoisingObjective(LogNormalKappa(0.0, 1.0), regularisers=regularisers)
        denoiser = NetworkDenoiser(Smooth(), EDM())
        trained = fit(denoiser, x0.float(), steps=150, lr=1e-2, objective=objective, ema_decay=0.9, progress=False)
        residuals.append(term(trained, x0.float(), None, torch.Generator().manual_seed(1)).item())
    assert residuals[1] < 0.7 * residuals[0]


def test_a_little_noise_on_conditions_stays_in_its_bounds():
    cond = Condition(tokens={"a": torch.zeros(500, 1, 4)}, masks={"a": (torch.arange(500) < 250)[:, None]})
    noisy = cond.perturb(1.0, torch.Generator().manual_seed(0)).tokens["a"]
    assert bool((noisy[250:] == 0).all())
    assert float(noisy[:250].abs().max()) == pytest.approx(0.5, abs=0.01)  # 1 / sqrt(4)
    assert float(noisy[:250].mean()) == pytest.approx(0, abs=0.03)
    seen = []

    class Spy(nn.Module):
        def forward(self, x, c_noise, cond=None):
            seen.append(cond.tokens["a"])
            return x

    objective = DenoisingObjective(cond_noise=1.0, cond_dropout=0.0)
    objective(NetworkDenoiser(Spy(), VPCosine()), torch.zeros(500, 3), cond)
    assert bool(seen[0][:250].any())


def test_known_entries_are_given_clean_and_not_counted():
    known = torch.tensor([True, False, False, False, False, False, False, False])
    seen = []

    class Spy(nn.Module):
        def forward(self, x, c_noise, cond=None):
            seen.append(x)
            return torch.where(known, torch.full_like(x, 1e6), x)

    x0 = torch.randn(6, 1, 8)
    denoiser = NetworkDenoiser(Spy(), EDM(), "sample", data_std=1.0)
    loss = DenoisingObjective(weighting="sample")(denoiser, x0, None, torch.Generator().manual_seed(0), known=known)
    assert loss < 1e5
    ratio = seen[0][..., 0] / x0[..., 0]  # the network sees c_in x, with the same c_in for every entry of a row
    assert bool((ratio > 0).all() and (ratio <= 1).all())


def test_bad_objectives_say_what_is_wrong():
    with pytest.raises(InvalidArgument, match="cond_noise"):
        DenoisingObjective(cond_noise=-1)
    with pytest.raises(InvalidArgument, match="weight >= 0"):
        FokkerPlanck(weight=-1)
    with pytest.raises(InvalidArgument, match="did you mean 'uniform'"):
        DenoisingObjective(weighting="unifrom")
    with pytest.raises(InvalidArgument, match="cond_dropout"):
        DenoisingObjective(cond_dropout=2)
    with pytest.raises(InvalidArgument, match="needs a NetworkDenoiser"):
        DenoisingObjective(weighting="edm")(GaussianDenoiser(torch.zeros(2), torch.eye(2), EDM()), torch.zeros(3, 2))
    with pytest.raises(InvalidArgument, match="std must be"):
        LogNormalKappa(std=0)


def test_the_average_follows_the_weights():
    model = nn.Linear(2, 2)
    ema = EMA(model, decay=0.9)
    with torch.no_grad():
        model.weight.fill_(1.0)
    before = ema.model.weight.clone()
    ema.update(model, 1000)
    torch.testing.assert_close(ema.model.weight, 0.9 * before + 0.1)
    assert not ema.train().model.training
    with pytest.raises(InvalidArgument, match="ema_decay"):
        EMA(model, 1.0)


def test_a_recorded_denoiser_has_the_same_parameters_and_outputs():
    """On a CPU it is the network. What is recorded on a GPU sees the condition and its masks as tensors.

    (That replays compute the same is tested on a GPU.)
    """
    denoiser = NetworkDenoiser(DiT(1, 2, hidden=16, depth=1, tokens={"y": 1}), VPCosine())
    for parameter in denoiser.parameters():
        nn.init.normal_(parameter, std=0.2)  # the last layer is zero at the start
    trained = recorded(denoiser)
    assert {id(p) for p in trained.parameters()} == {id(p) for p in denoiser.parameters()}
    x, t = torch.randn(3, 1, 4, 4), torch.tensor([0.2, 0.5, 0.9])
    for cond in (None, Condition(tokens={"y": torch.randn(3, 1, 1)}).dropout(0.5)):
        torch.testing.assert_close(trained(x, t, cond), denoiser(x, t, cond))
        groups = () if cond is None else (cond.tokens, cond.maps, cond.masks, cond.nulls)
        flat = _Flat(denoiser.backbone, tuple(tuple(group) for group in groups))
        values = [value for group in groups for value in group.values()]
        torch.testing.assert_close(flat(x, t, *values), denoiser.backbone(x, t, cond))


# --- fit --------------------------------------------------------------------------------------------------------


def test_fit_learns_a_conditional_distribution():
    """Two classes at -1 and +1: after a short training each class' samples have its mean."""
    from suffuse.guidance import ClassifierFree
    from suffuse.samplers import DPMSolverPP

    label = torch.arange(200) % 2
    data = (2.0 * label - 1)[:, None, None] + 0.1 * torch.randn(200, 1, 4, generator=torch.Generator().manual_seed(0))
    cond = Condition(tokens={"class": torch.eye(2)[label][:, None]})
    torch.manual_seed(0)
    net = DiT(1, 2, ndim=1, hidden=32, depth=1, heads=2, tokens={"class": 2})
    denoiser = fit(
        NetworkDenoiser(net, VPCosine()), data, cond=cond, steps=250, lr=3e-3, batch_size=64, ema_decay=0.98,
        progress=False,
    )  # fmt: skip
    guided = ClassifierFree(denoiser, 1.5)
    x = DPMSolverPP(10)(guided, (64, 1, 4), cond=cond[:64], generator=torch.Generator().manual_seed(0))
    assert float(x[::2].mean()) == pytest.approx(-1, abs=0.2)
    assert float(x[1::2].mean()) == pytest.approx(1, abs=0.2)
    assert x[1::2].std() < 0.4


def test_a_run_that_broke_is_resumed_to_the_bit(tmp_path):
    options = {"steps": 30, "batch_size": 8, "checkpoint_every": 10, "progress": False}
    with pytest.raises(RuntimeError, match="the disk went away"):
        fit(small(), Rows(reads=8 * 25), out=tmp_path / "run", **options)
    assert int(read_state(tmp_path / "run" / "training.safetensors")["global_step"]) == 20
    resumed = fit(small(), Rows(), out=tmp_path / "run", **options)
    straight = fit(small(), Rows(), **options)
    for a, b in zip(resumed.state_dict().values(), straight.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    again = fit(small(), Rows(), out=tmp_path / "run", **options)  # finished: nothing is trained
    assert torch.equal(again.backbone.head.weight, resumed.backbone.head.weight)
    assert isinstance(hub.load(tmp_path / "run"), NetworkDenoiser)


def test_another_setting_is_not_mixed_into_a_run(tmp_path):
    options = {"steps": 3, "batch_size": 8, "progress": False, "out": tmp_path}
    fit(small(), DATA, **options)
    with pytest.raises(InvalidArgument, match=r"other settings \(lr: 0.001 then, 0.01 now\)"):
        fit(small(), DATA, lr=0.01, **options)
    fit(small(), DATA, lr=0.01, resume=False, **options)


def test_a_loss_that_is_a_function_is_the_same_in_another_process(tmp_path):
    """It lies elsewhere in memory there."""

    def made():
        def loss(model, x0, cond=None, generator=None, weight=None):
            return model(x0, torch.full((len(x0),), 0.5)).square().mean()

        return loss

    options = {"steps": 3, "batch_size": 8, "progress": False, "out": tmp_path}
    one, other = made(), made()
    assert repr(one) != repr(other)
    first = fit(small(), DATA, objective=one, **options)
    again = fit(small(), DATA, objective=other, **options)
    assert torch.equal(first.backbone.head.weight, again.backbone.head.weight)
    with pytest.raises(InvalidArgument, match="other settings"):
        fit(small(), DATA, **options)


def test_a_run_can_be_made_longer_with_another_average(tmp_path):
    options = {"batch_size": 8, "progress": False, "out": tmp_path}
    fit(small(), DATA, steps=3, ema_decay=0.9, **options)
    fit(small(), DATA, steps=6, ema_decay=0.99, **options)
    assert int(read_state(tmp_path / "training.safetensors")["global_step"]) == 6


def test_settings_that_differ_in_the_last_digits_are_the_same(tmp_path):
    """The standard deviation of the data, and what is made of it, depends on the number of threads."""

    def run(std, **options):
        objective = DenoisingObjective(LogNormalKappa(math.log(std)))
        torch.manual_seed(0)
        denoiser = NetworkDenoiser(DiT(1, 2, ndim=1, hidden=16, depth=1, heads=2), EDM(0.01 * std), data_std=std)
        fit(denoiser, DATA, objective=objective, batch_size=8, progress=False, out=tmp_path, **options)

    run(0.9, steps=3)
    run(0.9 * (1 + 1e-8), steps=6)
    with pytest.raises(InvalidArgument, match=r"model\.data_std: 0\.9\d* then, 0\.901 now"):
        run(0.901, steps=6)


def test_other_data_are_not_mixed_into_a_run(tmp_path):
    cond = Condition(tokens={"a": torch.linspace(0, 1, 40)[:, None, None]})
    options = {"steps": 3, "batch_size": 8, "progress": False, "out": tmp_path}
    fit(small(tokens={"a": 1}), DATA, cond=cond, **options)
    fit(small(tokens={"a": 1}), DATA * (1 + 1e-6), cond=cond, **options)
    other = torch.randn(40, 1, 8, generator=torch.Generator().manual_seed(1))
    flipped = Condition(tokens={"a": cond.tokens["a"].flip(0)})
    for data, asked in ((other, cond), (DATA, flipped)):
        with pytest.raises(InvalidArgument, match="holds a run on other data; choose another out"):
            fit(small(tokens={"a": 1}), data, cond=asked, **options)


def test_a_spoilt_state_is_refused(tmp_path):
    options = {"steps": 3, "batch_size": 8, "progress": False, "out": tmp_path}
    fit(small(), DATA, **options)
    file = tmp_path / "training.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="resume=False"):
        fit(small(), DATA, **options)


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    class Breaks(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.ones(()))
            self.calls = 0

        def forward(self, x, c_noise, cond=None):
            self.calls += 1
            return self.w * x * (float("nan") if self.calls > 30 else 1.0)

    denoiser = NetworkDenoiser(hub.serializable(Breaks)(), VPCosine())
    with pytest.raises(TrainingDiverged, match="by step 40; the state of step 20 is in"):
        fit(denoiser, DATA, steps=100, out=tmp_path, checkpoint_every=20, progress=False)


def test_datasets_and_loaders_with_conditions_and_weights(tmp_path):
    class Items(Dataset):
        def __len__(self):
            return 12

        def __getitem__(self, i):
            return DATA[i], Condition(tokens={"a": torch.ones(1, 1, 2) * i}), torch.ones(1, 8)

    fit(small(tokens={"a": 2}), Items(), steps=3, batch_size=4, progress=False)
    batches = [(DATA[:4], Condition(tokens={"a": torch.ones(4, 1, 2)})), (DATA[4:8], None)]
    fit(small(tokens={"a": 2}), DataLoader(batches, batch_size=None), steps=5, progress=False)


def test_validation_and_logs(tmp_path):
    fit(small(), DATA, val=DATA[:10], steps=20, val_every=10, batch_size=8, out=tmp_path, progress=True)
    rows = list(csv.DictReader((tmp_path / "logs" / "metrics.csv").open()))
    assert any(r["loss"] for r in rows)
    assert sum(bool(r["val_loss"]) for r in rows) == 2


def test_tensorboard_logs_when_asked(tmp_path):
    pytest.importorskip("tensorboard")
    fit(small(), DATA, steps=12, batch_size=8, out=tmp_path, logs=("tensorboard",), progress=False)
    assert list((tmp_path / "tensorboard").glob("events*"))


def test_a_batch_may_be_larger_than_the_data():
    fit(small(), DATA[:3], steps=2, batch_size=8, progress=False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"data": DATA[:0]}, "data is empty"),
        ({"data": DATA * torch.nan}, "NaN or infinite"),
        ({"data": DATA.long()}, "must be floating point"),
        ({"data": 3}, "must be a Tensor"),
        ({"data": DATA, "steps": 0}, "at least 1"),
        ({"data": DATA, "lr": -1.0}, "lr must be positive"),
        ({"data": DATA, "lr_schedule": "linear"}, "lr_schedule"),
        ({"data": DATA, "cond": Condition(tokens={"a": torch.ones(3, 1, 1)})}, "batch size 3 but x has 40"),
        ({"data": DATA, "cond": Condition(tokens={"a": torch.full((40, 1, 1), torch.nan)})}, "cond\\['a'\\] has NaN"),
        ({"data": Rows(), "cond": Condition(tokens={"a": torch.ones(40, 1, 1)})}, "cond goes with a tensor"),
        ({"data": DataLoader(Rows()), "cond": Condition(tokens={"a": torch.ones(40, 1, 1)})}, "cond goes with"),
        ({"data": DATA, "logs": ("wandb",), "out": "somewhere"}, "logs must name"),
    ],
)
def test_bad_arguments_say_what_is_wrong_before_training(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SuffuseError, match=message):
        fit(small(), progress=False, **{"steps": 2, **arguments})


def test_the_state_tree_round_trip(tmp_path):
    state = {
        "a": torch.arange(3),
        "b": {0: {"m": torch.ones(2)}, 1: [1, (2, "x"), {3}, None, 0.5]},
        "c": torch.tensor(7),
    }
    write_state(state, tmp_path / "s")
    again = read_state(tmp_path / "s")
    assert torch.equal(again["a"], state["a"])
    assert torch.equal(again["b"][0]["m"], state["b"][0]["m"])
    assert again["b"][1] == state["b"][1]
    assert int(again["c"]) == 7
    with pytest.raises(InvalidArgument, match="no safe form"):
        write_state({"f": print}, tmp_path / "s")


def test_another_family_of_noise_reaches_the_network():
    """With noise that is always one number, the noisy batch is known, and white noise is the default."""

    class Ones:
        def __call__(self, shape, generator, device, dtype):
            return torch.ones(shape, device=device, dtype=dtype)

    seen = []

    class Watching(suffuse.Denoiser):
        schedule = suffuse.schedules.EDM(sigma_min=2.0, sigma_max=2.0001)

        def forward(self, x, t, cond=None):
            seen.append(x)
            return torch.zeros_like(x)

    objective = suffuse.training.DenoisingObjective(weighting="sample", noise=Ones())
    loss = objective(Watching(), torch.zeros(4, 1, 2, 2))
    torch.testing.assert_close(seen[0], torch.full((4, 1, 2, 2), 2.0), atol=1e-3, rtol=0)
    assert float(loss) == 0
