"""Signals on graphs: the exact denoiser is exact, networks learn, imputation keeps what is known."""

import math

import pytest
import torch

from suffuse import Condition, NetworkDenoiser, exact, hub, samplers, schedules
from suffuse.errors import InvalidArgument
from suffuse_graphs import GraphSignalNet, SheafGaussianDenoiser, SheafLaplacian, load_signals
from suffuse_graphs.data.signals import GraphSignals, observation, random_masks
from suffuse_graphs.exact import bayes_error, chebyshev_solve, filter_error
from suffuse_graphs.imputation import diffusion, full_precision, gaussian, smoother_precision
from suffuse_graphs.metrics import crps
from suffuse_graphs.sheaf import Sheaf
from suffuse_graphs.sheaf.theory import random_graph, random_sheaf


def field(n=10, d=2, schedule=None, **kwargs):
    laplacian = SheafLaplacian(random_sheaf(random_graph(n, 2 * n), d))
    return SheafGaussianDenoiser(laplacian, schedule or schedules.VPCosine(), **kwargs)


# --- the exact case -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", [schedules.VPCosine(), schedules.EDM()], ids=["vp", "ve"])
def test_sheaf_denoiser_is_the_gaussian_denoiser_of_its_covariance(schedule):
    ours = field(schedule=schedule, variance=0.7, kappa=0.05, tol=1e-12)
    dense = exact.GaussianDenoiser(torch.zeros(2, 10, dtype=torch.float64), ours.covariance(), schedule)
    x = torch.randn(4, 2, 10, dtype=torch.float64)
    for t in (0.01, 0.3, 0.9, torch.tensor([0.05, 0.2, 0.5, 0.99])):
        assert torch.allclose(ours(x, t), dense(x, t), atol=1e-8)


def test_samples_of_the_sheaf_denoiser_have_the_covariance_of_the_field():
    ours = field(n=6, kappa=0.3)
    g = torch.Generator().manual_seed(0)
    x = samplers.DPMSolverPP(steps=20)(ours, (4000, 2, 6), generator=g).flatten(1).double()
    drawn = torch.linalg.cholesky(ours.covariance()) @ torch.randn(12, 4000, generator=g, dtype=torch.float64)
    error, floor = (torch.linalg.matrix_norm(y.T.cov() - ours.covariance()) for y in (x, drawn.T))
    assert error < 2 * floor


def test_learned_transport_beats_any_filter_of_the_plain_graph():
    """Signals that flip sign across a cut: the sheaf that knows the signs denoises, the graph Laplacian cannot."""
    graph = random_graph(60, 240)
    sign = torch.randn(60, dtype=torch.float64).sign()
    sheaf = Sheaf(graph, sign[graph.edge_index[0], None], orthogonal=True)
    plain = Sheaf(graph, torch.ones_like(sheaf.maps), orthogonal=True)
    twisted, smooth = (
        SheafGaussianDenoiser(SheafLaplacian(s, "symmetric"), schedules.EDM(), variance=0.1, kappa=0.02)
        for s in (sheaf, plain)
    )
    L = torch.linalg.cholesky(twisted.covariance())
    x0 = (L @ torch.randn(60, 200, dtype=torch.float64)).T.unsqueeze(1)
    t = schedules.EDM().t_of_kappa(1.0)
    x = x0 + torch.randn_like(x0)
    shrinkage = x * x0.var() / (x0.var() + 1)
    error = {name: float((y - x0).square().mean()) for name, y in
             {"sheaf": twisted(x, t), "graph": smooth(x, t), "none": shrinkage}.items()}  # fmt: skip
    assert error["sheaf"] < 0.85 * error["none"]
    assert error["graph"] > 0.98 * error["none"]


def test_the_ideal_denoiser_is_a_filter_of_the_sheaf_laplacian_and_of_no_other():
    """Polynomials of the sheaf Laplacian come to the Bayes error; those of the plain graph stay at shrinkage."""
    graph = random_graph(60, 240, torch.Generator().manual_seed(0))
    sign = torch.randn(60, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).sign()
    twisted = SheafLaplacian(Sheaf(graph, sign[graph.edge_index[0]], orthogonal=True), "symmetric")
    plain = SheafLaplacian(Sheaf(graph, torch.ones_like(twisted.sheaf.maps), orthogonal=True), "symmetric")
    S = SheafGaussianDenoiser(twisted, schedules.VPCosine(), 0.1, 0.02).covariance()
    for noise in (0.5, 1.0, 2.0):
        ideal, nothing = bayes_error(S, noise), filter_error(plain.dense(), S, noise, 0)
        errors = [filter_error(twisted.dense(), S, noise, degree) for degree in (1, 2, 5, 20)]
        assert errors == sorted(errors, reverse=True)
        assert errors[-1] == pytest.approx(ideal, rel=1e-6)
        assert filter_error(plain.dense(), S, noise, 10) > nothing - 0.25 * (nothing - ideal)


def test_chebyshev_iteration_reaches_its_tolerance():
    A = torch.diag(torch.linspace(0.1, 2.1, 50, dtype=torch.float64))
    b = torch.randn(50, 3, dtype=torch.float64)
    steps = math.ceil(math.log(2 / 1e-8) * math.sqrt(21) / 2)
    assert (chebyshev_solve(lambda z: A @ z, b, 0.1, 2.1, steps) - b / A.diagonal()[:, None]).abs().max() < 1e-6


# --- classical imputation and scores ------------------------------------------------------------------------------


def test_gaussian_imputation_is_the_conditional_distribution():
    B = torch.randn(5, 5, dtype=torch.float64)
    S = B @ B.T + 0.5 * torch.eye(5, dtype=torch.float64)
    x, mask = torch.randn(1, 1, 5, dtype=torch.float64), torch.tensor([[[1.0, 0, 1, 0, 0]]])
    draws = gaussian(torch.linalg.inv(S), x, mask, 20000, torch.Generator().manual_seed(0))[:, 0, 0]
    o, m = [0, 2], [1, 3, 4]
    gain = S[m][:, o] @ torch.linalg.inv(S[o][:, o])
    assert torch.equal(draws[:, o], x[0, 0, o].expand(20000, 2))
    assert torch.allclose(draws[:, m].mean(0), gain @ x[0, 0, o], atol=0.05)
    assert torch.allclose(draws[:, m].T.cov(), S[m][:, m] - gain @ S[o][:, m], atol=0.1)


def test_smoother_recovers_the_field_it_was_fitted_to():
    graph = random_graph(20, 50)
    L = SheafLaplacian(Sheaf(graph, torch.ones(graph.edge_index.size(1), 1).double()), "none")
    truth = (L.dense() + 0.3 * torch.eye(20, dtype=torch.float64)) / 2.0
    x = torch.linalg.solve_triangular(
        torch.linalg.cholesky(truth).mT, torch.randn(20, 4000, dtype=torch.float64), upper=True
    )
    fitted = smoother_precision(x.T.unsqueeze(1), graph)
    assert torch.linalg.matrix_norm(fitted - truth) < 0.1 * torch.linalg.matrix_norm(truth)


def test_crps_of_a_gaussian_ensemble_is_the_closed_form():
    """CRPS(N(0, 1), y) = y (2 Phi(y) - 1) + 2 phi(y) - 1 / sqrt(pi)."""
    y = torch.linspace(-2, 2, 9, dtype=torch.float64)
    samples = torch.randn(40000, 1, dtype=torch.float64).expand(-1, 9)
    normal = torch.distributions.Normal(torch.zeros((), dtype=torch.float64), 1.0)
    closed = y * (2 * normal.cdf(y) - 1) + 2 * normal.log_prob(y).exp() - 1 / math.sqrt(math.pi)
    assert torch.allclose(crps(samples, y), closed, atol=0.02)


def test_crps_by_order_statistics_is_the_double_sum():
    samples, y = torch.randn(7, 4, dtype=torch.float64), torch.randn(4, dtype=torch.float64)
    pairs = (samples[:, None] - samples[None]).abs().sum((0, 1)) / (2 * 7 * 6)
    assert torch.allclose(crps(samples, y), (samples - y).abs().mean(0) - pairs)


# --- data ---------------------------------------------------------------------------------------------------------


def test_bundled_signals_are_standardised_and_split():
    signals = load_signals("digits")
    assert signals.num_nodes == 64 == len(signals.labels)
    assert signals.train.shape[1:] == signals.test.shape[1:] == (1, 64)
    assert abs(float(signals.train.mean())) < 1e-3
    assert float(signals.train.std()) == pytest.approx(1, abs=1e-2)
    assert signals.edge_index.max() < 64


@pytest.mark.data
@pytest.mark.parametrize(("name", "nodes"), [("los-loop", 207), ("montevideo", 675), ("chickenpox", 20)])
def test_signals_from_files(name, nodes):
    signals = load_signals(name)
    assert signals.num_nodes == nodes
    assert torch.isfinite(signals.train).all()


def test_signals_that_are_not_there_are_one_clear_error(monkeypatch):
    monkeypatch.delenv("SUFFUSE_DATA", raising=False)
    with pytest.raises(InvalidArgument, match="unknown dataset 'digit'; did you mean 'digits'"):
        load_signals("digit")
    with pytest.raises(InvalidArgument, match="'los-loop' needs files: set SUFFUSE_DATA"):
        load_signals("los-loop")


# --- the learned denoiser -----------------------------------------------------------------------------------------


def ring(n=12):
    at = torch.arange(n)
    return torch.stack([at, (at + 1) % n])


def net(conv="diagonal", n=12):
    return GraphSignalNet(ring(n).tolist(), n, conv=conv, hidden=16, depth=2, stalk_dim=2)


@pytest.mark.parametrize("conv", ["diagonal", "orthogonal", "general", "identity", "gcn"])
def test_samples_of_a_batch_do_not_see_each_other(conv):
    backbone = net(conv)
    torch.nn.init.normal_(backbone.decode.weight)
    x, c = torch.randn(3, 1, 12), torch.randn(3)
    cond = observation(torch.randn(3, 1, 12), random_masks(3, 12, 0.5, torch.Generator().manual_seed(0)))
    together = backbone(x, c, cond)
    alone = torch.cat([backbone(x[i : i + 1], c[i : i + 1], cond[i]) for i in range(3)])
    assert torch.allclose(together, alone, atol=1e-5)


def test_an_absent_condition_is_one_with_nothing_observed():
    backbone = net()
    torch.nn.init.normal_(backbone.decode.weight)
    x, c = torch.randn(2, 1, 12), torch.zeros(2)
    cond = observation(torch.randn(2, 1, 12), torch.ones(2, 1, 12))
    empty = observation(torch.randn(2, 1, 12), torch.zeros(2, 1, 12))
    assert torch.equal(backbone(x, c), backbone(x, c, cond.null()))
    assert torch.equal(backbone(x, c), backbone(x, c, empty))
    assert not torch.equal(backbone(x, c), backbone(x, c, cond))


def waves(n=12, count=600):
    """Sines of random phase on a ring: any two nodes tell all the others."""
    phase = 2 * math.pi * torch.rand(count, 1)
    x = math.sqrt(2) * torch.sin(2 * math.pi * torch.arange(n) / n + phase).unsqueeze(1)
    ones = torch.ones(2 * n)
    one = torch.ones(n)
    return GraphSignals("waves", ring(n), ones[:n], x[:500], x[500:], 0 * one, one, "", torch.zeros(n, 2), ("",) * n)


def test_training_learns_to_impute_and_a_checkpoint_does_the_same(tmp_path):
    from suffuse_graphs.recipes import train_imputer

    signals = waves()
    denoiser = train_imputer(signals, hidden=16, depth=2, stalk_dim=2, steps=120, out=tmp_path / "w", progress=False)
    x = signals.test[:40]
    mask = random_masks(40, 12, 0.4, torch.Generator().manual_seed(1))
    missing = (mask == 0).expand_as(x)

    def error(model):
        draws = diffusion(model, x, mask, 4, torch.Generator().manual_seed(0))
        assert torch.equal(torch.where(missing, 0.0, draws), torch.where(missing, 0.0, x).expand_as(draws))
        return float((draws.mean(0) - x)[missing].square().mean())

    assert error(denoiser) < 0.25  # the variance of the signals is 1
    assert error(hub.load(tmp_path / "w")) == pytest.approx(error(denoiser), rel=1e-5)


def test_recipe_trains_and_writes_a_table(tmp_path):
    import pandas as pd

    from suffuse_graphs.recipes import RECIPES

    recipe = {r.name: r for r in RECIPES}["graphs/signal-imputation"]
    folder = recipe.train(out=tmp_path / "run", steps=3, hidden=8, depth=1, device="cpu", progress=False)
    (file,) = recipe.sample(folder, out=tmp_path / "out", n=2, draws=5, steps=3, device="cpu")
    table = pd.read_csv(file)
    assert len(table) == 2 * 64
    seen = table[table.observed]
    assert (seen.truth - seen.q50).abs().max() < 1e-3


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: net("unet"), "conv must be one of"),
        (lambda: GraphSignalNet([[0], [12]], 12), "edge_index holds node 0..12"),
        (lambda: GraphSignalNet(ring().tolist(), 12, hidden=10, stalk_dim=4), "stalk_dim must divide"),
        (lambda: net()(torch.randn(2, 1, 11), torch.zeros(2)), r"x must be \(B, 1, 12\)"),
        (
            lambda: net()(torch.randn(2, 1, 12), torch.zeros(2), Condition(maps={"observed": torch.zeros(2, 1, 12)})),
            "lacks maps\\['mask'\\]",
        ),
        (lambda: field(kappa=0.0), "variance and kappa must be positive"),
        (lambda: field()(torch.randn(2, 3, 10), 0.5), r"x must be \(B, d, n\)"),
        (
            lambda: SheafGaussianDenoiser(
                SheafLaplacian(random_sheaf(random_graph(), 2), "none"), schedules.VPCosine()
            ),
            "laplacian must be normalised",
        ),
    ],
)
def test_bad_input_gets_one_clear_error(call, message):
    with pytest.raises(InvalidArgument, match=message):
        call()


def test_nan_signals_are_refused_before_training():
    from suffuse_graphs.recipes import train_imputer

    signals = waves()
    signals.train[3, 0, 2] = torch.nan
    with pytest.raises(InvalidArgument, match="NaN"):
        train_imputer(signals, hidden=8, depth=1, steps=1, progress=False)


def test_views_of_the_network_denoiser_agree():
    denoiser = NetworkDenoiser(net(), schedules.VPCosine())
    x = torch.randn(2, 1, 12)
    level = schedules.VPCosine().level(0.4, like=x)
    assert torch.allclose(level.alpha * denoiser(x, 0.4) + level.sigma * denoiser.eps(x, 0.4), x, atol=1e-5)


def test_full_precision_is_the_inverse_covariance():
    x = torch.randn(500, 1, 4)
    S = (x[:, 0].T @ x[:, 0] / 500).double()
    assert torch.allclose(full_precision(x, 0.0), torch.linalg.inv(S), atol=1e-4)
