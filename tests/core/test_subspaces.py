"""Low-dimensional data: the low-rank denoiser, recovery of subspaces, and directions of a denoiser's Jacobian."""

import math

import pytest
import torch

from suffuse import Condition, NetworkDenoiser
from suffuse.analysis import (
    alignment_error,
    edit_directions,
    effective_rank,
    jacobian,
    k_subspaces,
    subspace_mixture,
    train_subspaces,
)
from suffuse.errors import InvalidArgument
from suffuse.nets import DiT
from suffuse.schedules import EDM, RectifiedFlow, VPCosine

D, R = 24, 3


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def bases(k, r=R, d=D, seed=0):
    return torch.linalg.qr(torch.randn(k, d, r, dtype=torch.float64, generator=generator(seed))).Q


@pytest.mark.parametrize("schedule", [EDM(), VPCosine(), RectifiedFlow()], ids=lambda s: type(s).__name__)
def test_the_denoiser_is_the_formula_of_the_paper(schedule):
    u, weights, t = bases(3), torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64), 0.4
    denoiser = subspace_mixture(u, schedule, weights)
    x = torch.randn(7, D, dtype=torch.float64, generator=generator(1))
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    p = torch.einsum("kdr,bd->bkr", u, x)
    total = alpha**2 + sigma**2
    w = (weights.log() + alpha**2 * p.square().sum(-1) / (2 * sigma**2 * total)).softmax(-1)
    torch.testing.assert_close(denoiser(x, t), alpha / total * torch.einsum("bk,kdr,bkr->bd", w, u, p))


def test_the_loss_of_one_subspace_is_linear_in_the_variance_it_captures():
    """E|D - x|^2 = E|x|^2 - c tr(U^T S U) + const with c > 0: its minimiser is the leading eigenvectors of S."""
    x = torch.randn(400, D, dtype=torch.float64, generator=generator()) * torch.linspace(2, 0.2, D)
    kappa, losses, captured = 0.7, [], []
    noise = torch.randn(200, *x.shape, dtype=torch.float64, generator=generator(1))
    candidates = [k_subspaces(x, 1, R), bases(1, seed=3), torch.eye(D, dtype=torch.float64)[None, :, -R:]]
    for u in candidates:
        denoiser = subspace_mixture(u, EDM())
        y = (x + kappa * noise).reshape(-1, D)
        losses.append(float((denoiser(y, EDM().t_of_kappa(kappa)).reshape(noise.shape) - x).square().sum(-1).mean()))
        captured.append(float((x @ u[0]).square().sum(-1).mean()))
    gain = 1 / (1 + kappa**2)
    for i in (1, 2):
        expected = gain * (2 - gain) * (captured[0] - captured[i])
        assert losses[i] - losses[0] == pytest.approx(expected, rel=0.01)
    assert losses[0] < min(losses[1:])


def test_training_on_the_loss_finds_the_principal_components():
    x = torch.randn(500, D, dtype=torch.float64, generator=generator()) * 0.1
    x[:, :R] *= 12
    turn = torch.linalg.qr(torch.randn(D, D, dtype=torch.float64, generator=generator(1))).Q
    x = x @ turn
    principal = torch.linalg.svd(x, full_matrices=False).Vh[:R].T[None]
    torch.testing.assert_close(alignment_error(k_subspaces(x, 1, R), principal), 0.0, atol=1e-6, rtol=0)
    learned = train_subspaces(x, 1, R, EDM(), noise_std=0.1, generator=generator(2))
    assert alignment_error(learned, principal) < 0.05


def test_training_on_the_loss_clusters_by_subspace():
    truth = bases(2)
    x = subspace_mixture(truth, EDM(), noise_std=0.05).sample(300, generator(1))
    learned = train_subspaces(x, 2, R, EDM(), generator=generator(2))
    clustered = k_subspaces(x, 2, R, generator=generator(2))
    assert alignment_error(clustered, truth) < 0.2
    assert alignment_error(learned, clustered) < 0.1


def test_gradients_reach_the_bases():
    u = bases(2).requires_grad_()
    x = torch.randn(4, D, dtype=torch.float64, generator=generator(1))
    (gradient,) = torch.autograd.grad(subspace_mixture(u, EDM())(x, 0.5).square().sum(), u)
    assert bool(gradient.any(-1).all())


@pytest.mark.parametrize("rank", [2, 4])
def test_subspaces_are_found_from_as_many_samples_as_they_have_dimensions_and_not_from_fewer(rank):
    """One subspace without noise: r samples span it, r - 1 do not, whatever the dimension around it."""
    truth = bases(1, rank, 48)
    x = subspace_mixture(truth, EDM()).sample(rank, generator(1))
    assert alignment_error(k_subspaces(x, 1, rank), truth) < 1e-6
    assert alignment_error(k_subspaces(x[:-1], 1, rank, generator=generator(2)), truth) > 0.5


def test_several_subspaces_are_found_from_a_few_samples_for_each_dimension():
    truth = bases(3, 2, 48)
    denoiser = subspace_mixture(truth, EDM())
    x = denoiser.sample(30, generator(1))
    assert alignment_error(k_subspaces(x, 3, 2, restarts=20, generator=generator(2)), truth) < 1e-6
    few = k_subspaces(x[:4], 3, 2, restarts=20, generator=generator(2))
    assert alignment_error(few, truth) > 0.5


def test_the_alignment_error_ignores_order_and_rotation():
    a, turn = bases(3), torch.linalg.qr(torch.randn(R, R, dtype=torch.float64, generator=generator(1))).Q
    assert alignment_error(a[[2, 0, 1]] @ turn, a) == pytest.approx(0, abs=1e-6)
    split = torch.eye(2 * R, dtype=torch.float64)
    assert alignment_error(split[None, :, :R], split[None, :, R:]) == pytest.approx(math.sqrt(2 * R))
    b = bases(3, seed=4)
    frobenius = [[float((u @ u.T - v @ v.T).norm()) for v in b] for u in a]
    best = min(sum(frobenius[i][j] for i, j in enumerate(p)) for p in ((0, 1, 2), (1, 0, 2), (2, 1, 0), (0, 2, 1)))
    assert alignment_error(a, b) <= best / 3 + 1e-9


# --- directions -----------------------------------------------------------------------------------------------------


def test_directions_are_the_singular_vectors_of_the_jacobian():
    truth = bases(2)
    denoiser, kappa = subspace_mixture(truth, EDM(), noise_std=0.05), 0.3
    y = denoiser.sample(4, generator(1)) + kappa * torch.randn(4, D, dtype=torch.float64, generator=generator(2))
    values, directions = edit_directions(denoiser, y, EDM().t_of_kappa(kappa), R, generator=generator(3))
    dense = jacobian(denoiser, y, kappa)
    torch.testing.assert_close(values, torch.linalg.svdvals(dense)[:, :R], rtol=1e-4, atol=1e-4)
    gram = directions @ directions.mT
    torch.testing.assert_close(gram, torch.eye(R, dtype=torch.float64).expand(4, R, R))
    stretched = torch.einsum("bij,bkj->bki", dense, directions).norm(dim=-1)
    torch.testing.assert_close(stretched, values, rtol=1e-4, atol=1e-4)


def test_a_step_along_a_direction_edits_and_a_step_across_does_not():
    truth = bases(1)
    denoiser, t = subspace_mixture(truth, EDM()), EDM().t_of_kappa(0.3)
    x = torch.randn(1, D, dtype=torch.float64, generator=generator(1))
    values, directions = edit_directions(denoiser, x, t, R, generator=generator(2))
    moved = denoiser(x + 0.5 * directions[:, 0], t) - denoiser(x, t)
    torch.testing.assert_close(moved.norm(), 0.5 * values[0, 0])
    inside = directions[0] @ truth[0]
    torch.testing.assert_close(inside.norm(dim=-1), torch.ones(R, dtype=torch.float64))
    across = torch.randn(1, D, dtype=torch.float64, generator=generator(3))
    across = across - across @ truth[0] @ truth[0].T
    assert float((denoiser(x + across, t) - denoiser(x, t)).norm()) < 1e-9


def test_directions_of_a_transformer_with_a_condition():
    torch.manual_seed(0)
    net = DiT(1, 2, ndim=2, hidden=16, depth=1, heads=2, tokens={"class": 3})
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.3)
    denoiser = NetworkDenoiser(net, VPCosine())
    x = torch.randn(2, 1, 4, 4, generator=generator(1))
    cond = Condition(tokens={"class": torch.eye(3)[[0, 2]][:, None]})
    values, directions = edit_directions(denoiser, x, 0.5, 16, cond, generator=generator(2))
    assert directions.shape == (2, 16, 1, 4, 4)
    alpha, kappa = VPCosine().alpha(0.5), VPCosine().kappa(0.5)
    dense = jacobian(denoiser, x / alpha, kappa, cond) / alpha
    torch.testing.assert_close(values, torch.linalg.svdvals(dense), rtol=1e-3, atol=1e-4)


def test_the_effective_rank_counts_what_holds_the_share():
    values = torch.tensor([[2.0, 1.0, 0.0], [1.0, 1.0, 1.0]])
    assert effective_rank(values, 0.8).tolist() == [1, 3]
    assert effective_rank(values, 0.81).tolist() == [2, 3]
    assert effective_rank(values, 1.0).tolist() == [2, 3]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda d: subspace_mixture(torch.zeros(3, 4), EDM()), "bases must be"),
        (lambda d: k_subspaces(torch.zeros(5, 4), 1, 5), "1 <= rank <= d"),
        (lambda d: k_subspaces(torch.zeros(2, 4), 3, 1), "N >= k"),
        (lambda d: alignment_error(torch.zeros(1, 4, 2), torch.zeros(1, 4, 1)), "must both be"),
        (lambda d: edit_directions(d, torch.zeros(1, D), 0.5, D + 1), "k must lie"),
        (lambda d: edit_directions(d, torch.zeros(1, D), 0.5, 1, iterations=0), "iterations"),
        (lambda d: effective_rank(torch.ones(3), 0), "share must lie"),
    ],
)
def test_bad_arguments_say_what_is_wrong(call, message):
    with pytest.raises(InvalidArgument, match=message):
        call(subspace_mixture(bases(1), EDM()))
