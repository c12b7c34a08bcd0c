"""Discrete diffusion: three objectives of one value, bounds that are tight for the truth, samplers with a known law."""

import math
from itertools import product

import pytest
import torch

from suffuse import Condition, hub, radd
from suffuse.bench import Run
from suffuse.benchmarks import radd as radd_benchmark
from suffuse.discrete import (
    AbsorbingProcess,
    Characters,
    ExactTokenDenoiser,
    NetworkTokenDenoiser,
    Ordered,
    TauLeaping,
    TokenObjective,
    TokenTransformer,
    exact_nelbo,
    expected_nfe,
    language_reference,
    log_prob,
    nelbo,
    windows,
)
from suffuse.discrete.objective import cross_entropy
from suffuse.discrete.text import plain
from suffuse.discrete.transformer import angles, rotate
from suffuse.errors import InvalidArgument
from suffuse.random import generators, stratified
from suffuse.training import fit

V, L = 3, 4
EVERY = torch.tensor(list(product(range(V), repeat=L)))
P = torch.rand(len(EVERY), generator=torch.Generator().manual_seed(0), dtype=torch.float64) ** 3
P = P / P.sum()


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def exact():
    """A joint distribution of four tokens that depend on each other."""
    return ExactTokenDenoiser(EVERY, P)


def network(seed=0, vocabulary=V, **options):
    """Random weights: conditionals that are those of no joint distribution."""
    torch.manual_seed(seed)
    return NetworkTokenDenoiser(TokenTransformer(vocabulary, hidden=16, depth=2, heads=2, **options), vocabulary).eval()


def frequencies(x):
    """How often each of EVERY occurs in x (n, L)."""
    number = (x * torch.tensor([V**i for i in range(L)][::-1])).sum(-1)
    return torch.bincount(number, minlength=len(EVERY)).double() / len(x)


def chi_square(x, p):
    """Pearson's statistic over its degrees of freedom: near 1 if x (n, L) was drawn from p (81,)."""
    return float((len(x) * (frequencies(x) - p) ** 2 / p).sum() / (len(p) - 1))


# --- the process ------------------------------------------------------------------------------------------------


def test_the_rates_of_the_process_fit_its_mask_probability():
    process = AbsorbingProcess(V, eps=0.01)
    t = torch.linspace(0.01, 1, 50, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(process.mask_probability(t), 1 - torch.exp(-process.sbar(t)))
    (slope,) = torch.autograd.grad(process.sbar(t).sum(), t)
    torch.testing.assert_close(process.dsbar(t), slope)
    torch.testing.assert_close(process.weight(t), process.dsbar(t) / process.sbar(t).expm1())


def test_corruption_masks_each_token_with_its_probability():
    process, x0 = AbsorbingProcess(V), torch.randint(V, (4, 20_000), generator=seeded())
    t = torch.tensor([0.0, 0.2, 0.7, 1.0])
    x = process.corrupt(x0, t, seeded(1))
    masked = x == process.mask
    assert torch.equal(x[~masked], x0[~masked])
    torch.testing.assert_close(masked.double().mean(-1), process.mask_probability(t), atol=0.01, rtol=0)


# --- the denoiser -----------------------------------------------------------------------------------------------


def test_the_exact_denoiser_gives_the_conditionals_of_the_joint():
    x = torch.tensor([[0, V, 2, V]])
    fits = (EVERY[:, 0] == 0) & (EVERY[:, 2] == 2)
    for position in (1, 3):
        p = torch.stack([P[fits & (EVERY[:, position] == a)].sum() for a in range(V)]) / P[fits].sum()
        torch.testing.assert_close(exact()(x)[0, position].exp(), p)


@pytest.mark.parametrize("denoiser", [exact(), network()], ids=["exact", "network"])
def test_unmasked_tokens_are_themselves_and_masked_ones_are_normalised(denoiser):
    x = torch.tensor([[0, V, 2, V], [V, V, V, V]])
    log_p = denoiser(x)
    assert log_p.shape == (2, L, V)
    torch.testing.assert_close(log_p.exp().sum(-1), torch.ones(2, L, dtype=log_p.dtype))
    assert log_p[0, 0].tolist() == [0, -math.inf, -math.inf] and log_p[0, 2].tolist() == [-math.inf, -math.inf, 0]


def test_impossible_contexts_leave_all_tokens_equally_likely():
    denoiser = ExactTokenDenoiser(torch.tensor([[0, 0], [1, 1]]), vocabulary=3)
    torch.testing.assert_close(denoiser(torch.tensor([[2, 3]]))[0, 1].exp(), torch.full((3,), 1 / 3).double())


def test_attention_knows_distances_only():
    """The same query and key at every place give scores that depend on how far apart the places are."""
    q, k = (torch.randn(1, 8, generator=seeded(i)).expand(30, -1) for i in (0, 1))
    turn = angles(30, 8, q)
    scores = rotate(q, turn) @ rotate(k, turn).T
    for offset in (-7, 0, 3):
        diagonal = scores.diagonal(offset)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal))
    assert abs(float(scores[0, 0] - scores[0, 3])) > 1e-2


def test_a_causal_transformer_does_not_see_what_follows():
    model, x = TokenTransformer(V, hidden=16, depth=2, heads=2, causal=True), torch.randint(V, (1, 9))
    other = x.clone()
    other[:, 5:] = (other[:, 5:] + 1) % V
    torch.testing.assert_close(model(x)[:, :5], model(other)[:, :5])
    assert not torch.allclose(model(x)[:, 5:], model(other)[:, 5:])


# --- objectives and bounds --------------------------------------------------------------------------------------


def summed_over_masks(denoiser, x0, weight):
    """sum over all masks m of weight(|m|) times the cross-entropy of the masked tokens, per token."""
    total = 0.0
    for mask in product([False, True], repeat=L):
        masked = torch.tensor(mask).expand(len(x0), -1)
        if any(mask):
            total = total + weight(sum(mask)) * cross_entropy(denoiser, x0, masked).sum(-1).double()
    return total.detach() / L


@pytest.mark.parametrize("denoiser", [exact(), network()], ids=["exact", "network"])
def test_the_three_objectives_are_the_same_bound(denoiser):
    """Each with its own distribution of masks: integrals over t and over lambda, a sum over k, and one over orders."""
    process = AbsorbingProcess(V, eps=0.0)
    nodes = torch.linspace(0, 1, 2001, dtype=torch.float64)[1:] - 1 / 4000

    def over_time(m):
        level = process.mask_probability(nodes)
        return float((process.weight(nodes) * level**m * (1 - level) ** (L - m)).mean())

    def over_level(m):  # the integral of l^(m - 1) (1 - l)^(L - m), Euler's beta function
        return math.gamma(m) * math.gamma(L - m + 1) / math.gamma(L + 1)

    def over_number(m):
        return L / m / L / math.comb(L, m)

    bounds = [summed_over_masks(denoiser, EVERY, weight) for weight in (over_time, over_level, over_number)]
    torch.testing.assert_close(bounds[0], bounds[1], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(bounds[1], bounds[2])
    torch.testing.assert_close(bounds[2], exact_nelbo(denoiser, EVERY), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(("form", "error"), [("k", 0.01), ("lambda", 0.04), ("t", 0.04)])
def test_the_objective_has_the_bound_as_its_mean(form, error):
    """With weights, of a batch that has every sequence 300 times, and no matter how they are weighted."""
    times = 300
    weight = (P * len(P)).repeat(times)[:, None]
    loss = TokenObjective(form)(exact(), EVERY.repeat(times, 1), None, seeded(), weight)
    assert float(loss) == pytest.approx(exact().entropy / L, abs=error)


def test_fixing_the_number_of_masks_lowers_the_variance():
    x0 = EVERY[:64]
    spread = {
        form: torch.stack([TokenObjective(form)(exact(), x0, None, seeded(i)) for i in range(100)]).std()
        for form in ("k", "lambda")
    }
    assert spread["k"] < spread["lambda"]


def test_the_bound_is_tight_for_the_truth_and_above_it_otherwise():
    """E[NELBO] = entropy for exact conditionals; for any others E[NELBO] >= cross-entropy >= entropy."""
    entropy = exact().entropy
    assert float(P @ exact_nelbo(exact(), EVERY)) * L == pytest.approx(entropy, abs=1e-9)
    assert float(P @ -log_prob(exact(), EVERY)) == pytest.approx(entropy, abs=1e-9)
    off = network()
    bound, likelihood = exact_nelbo(off, EVERY) * L, -log_prob(off, EVERY)
    assert bool((bound >= likelihood - 1e-9).all()) and float((bound - likelihood).max()) > 1e-4
    assert float(P @ likelihood) > entropy


def test_the_estimate_of_the_bound_is_unbiased():
    off, x0 = network(), EVERY.repeat(40, 1)
    estimate = nelbo(off, x0, samples=2, generator=seeded()).reshape(40, -1).mean(0)
    truth = exact_nelbo(off, EVERY)
    assert float((estimate - truth).mean()) == pytest.approx(0, abs=0.01)
    assert float((estimate - truth).abs().max()) < 0.3


def test_as_many_masks_as_tokens_see_every_number_of_them_once():
    """Where all tokens are alike and independent, the estimate then has no variance."""
    flat = ExactTokenDenoiser(EVERY)
    torch.testing.assert_close(nelbo(flat, EVERY, samples=L), torch.full((len(EVERY),), math.log(V)).double())


# --- samplers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 2, 5, None])
@pytest.mark.parametrize("denoiser", [exact(), network()], ids=["exact", "network"])
def test_the_law_of_a_sampler_sums_to_one(denoiser, steps):
    law = log_prob(denoiser, EVERY, steps=steps)
    assert float(law.exp().sum()) == pytest.approx(1, abs=1e-6)
    torch.testing.assert_close(log_prob(denoiser, EVERY, steps=[3, steps])[1], law)


@pytest.mark.parametrize("steps", [1, 2, 8])
def test_samples_have_the_law_that_is_computed(steps):
    x = TauLeaping(steps=steps)(exact(), (30_000, L), generator=seeded())
    assert chi_square(x, log_prob(exact(), EVERY, steps=steps).exp()) < 1.6


def test_one_step_draws_tokens_independently():
    p = torch.stack([torch.stack([P[EVERY[:, i] == a].sum() for a in range(V)]) for i in range(L)])
    product_law = p[torch.arange(L), EVERY].prod(-1)
    torch.testing.assert_close(log_prob(exact(), EVERY, steps=1).exp(), product_law)


def test_the_error_of_the_law_falls_as_one_over_the_steps():
    error = {n: float((log_prob(exact(), EVERY, steps=n).exp() - P).abs().sum()) for n in (1, 2, 256, 512)}
    assert error[1] > error[2] > error[256]
    assert error[256] / error[512] == pytest.approx(2, rel=0.02)


@pytest.mark.parametrize("order", ["random", "left-to-right"])
def test_one_token_at_a_time_draws_from_the_truth(order):
    x, nfe = Ordered(order=order)(exact(), (30_000, L), generator=seeded(), return_nfe=True)
    assert chi_square(x, P) < 1.6 and nfe.eq(L).all()


def test_left_to_right_is_left_to_right():
    """The first token is drawn with nothing known, so it repeats whatever the others are conditioned on."""
    off = network()
    x = Ordered(order="left-to-right")(off, (200, L), generator=seeded())
    prompt = torch.full_like(x, V)
    prompt[:, :2] = x[:, :2]
    u = torch.rand((200, 2, L), generator=seeded(), dtype=torch.float64)[:, 1]
    for position in (2, 3):
        prompt[:, position] = Ordered().draw(off(prompt)[:, position], u[:, position])
    assert torch.equal(prompt, x)


@pytest.mark.parametrize("steps", [3, 16, 200])
@pytest.mark.parametrize("denoiser", [exact(), network()], ids=["exact", "network"])
def test_samples_are_the_same_with_and_without_the_cache(denoiser, steps):
    sampler = TauLeaping(steps=steps)
    cached, few = sampler(denoiser, (60, L), generator=generators(range(60)), return_nfe=True)
    every, all_of_them = sampler(denoiser, (60, L), generator=generators(range(60)), return_nfe=True, cache=False)
    assert torch.equal(cached, every)
    assert bool((few <= min(steps, L)).all()) and bool((all_of_them == steps).all())


class Counting(ExactTokenDenoiser):
    """Counts evaluated rows, and remembers the states of each call."""

    def forward(self, x, cond=None):
        self.calls.append(x.clone())
        return super().forward(x, cond)


def test_reported_evaluations_are_those_of_the_network():
    denoiser = Counting(EVERY, P)
    denoiser.calls = []
    _, nfe = TauLeaping(steps=6)(denoiser, (50, L), generator=seeded(), return_nfe=True)
    assert sum(len(call) for call in denoiser.calls) == int(nfe.sum())
    assert len(denoiser.calls) == int(nfe.max()) <= L
    states = torch.cat([call.unique(dim=0) for call in denoiser.calls])
    assert bool((states == V).any(-1).all())  # a finished row is not evaluated


@pytest.mark.parametrize(("steps", "length"), [(1, 7), (4, 16), (64, 64), (1024, 32)])
def test_the_expected_number_of_evaluations(steps, length):
    uniform = ExactTokenDenoiser(torch.zeros(1, length, dtype=torch.int64))
    _, nfe = TauLeaping(steps=steps)(uniform, (2000, length), generator=seeded(), return_nfe=True)
    nfe = nfe.double()
    standard_error = float(nfe.std()) / math.sqrt(len(nfe))
    assert float(nfe.mean()) == pytest.approx(expected_nfe(steps, length), abs=4 * standard_error + 1e-9)


def test_a_sample_depends_on_its_own_seed_only():
    off, sampler = network(), TauLeaping(steps=5)
    together = sampler(off, (8, L), generator=generators(range(8)))
    assert torch.equal(sampler(off, (1, L), generator=generators([3])), together[3:4])
    order = [5, 1, 7]
    assert torch.equal(sampler(off, (3, L), generator=generators(order)), together[order])


@pytest.mark.parametrize("sampler", [TauLeaping(steps=3), Ordered(), Ordered(order="left-to-right")], ids=repr)
def test_a_prompt_is_kept_and_filled_in_from_its_conditional(sampler):
    prompt = torch.tensor([[V, 1, V, 0]]).expand(20_000, -1)
    x, nfe = sampler(exact(), x=prompt, generator=seeded(), return_nfe=True)
    assert torch.equal(x[:, [1, 3]], prompt[:, [1, 3]]) and bool((x < V).all()) and int(nfe.max()) <= 2
    if isinstance(sampler, Ordered):
        fits = (EVERY[:, 1] == 1) & (EVERY[:, 3] == 0)
        p = P * fits / P[fits].sum()
        assert float((frequencies(x) - p).abs().max()) < 0.015
    known = TauLeaping()(exact(), x=EVERY, return_nfe=True)
    assert torch.equal(known[0], EVERY) and int(known[1].max()) == 0


def test_filters_keep_the_most_probable_tokens():
    log_p = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    u = torch.linspace(0, 0.9999, 4001, dtype=torch.float64)

    def shares(**options):
        tokens = Ordered(**options).draw(log_p.expand(len(u), -1), u)
        return torch.bincount(tokens, minlength=4) / len(u)

    for options, expected in (
        ({}, [0.5, 0.3, 0.15, 0.05]),
        ({"top_k": 1}, [1.0, 0, 0, 0]),
        ({"top_k": 2}, [0.625, 0.375, 0, 0]),
        ({"top_p": 0.75}, [0.625, 0.375, 0, 0]),
        ({"top_p": 0.9}, [0.5 / 0.95, 0.3 / 0.95, 0.15 / 0.95, 0]),
        ({"top_k": 3, "top_p": 0.6}, [0.625, 0.375, 0, 0]),
        ({"temperature": 0.5}, [0.25 / 0.365, 0.09 / 0.365, 0.0225 / 0.365, 0.0025 / 0.365]),
    ):
        torch.testing.assert_close(shares(**options), torch.tensor(expected), atol=2e-3, rtol=0)


def test_rare_tokens_keep_their_probability():
    """In float64; in half precision one in a million would never be drawn, or far too often."""
    log_p = torch.tensor([1 - 1e-6, 1e-6], dtype=torch.float64).log()
    assert int(Ordered().draw(log_p, torch.tensor(1 - 0.9e-6, dtype=torch.float64))) == 1
    assert int(Ordered().draw(log_p, torch.tensor(1 - 1.1e-6, dtype=torch.float64))) == 0


def test_uniform_numbers_are_stratified():
    u = stratified(100, seeded())
    assert torch.equal((u * 100).long().sort().values, torch.arange(100))


# --- training, conditions, checkpoints --------------------------------------------------------------------------


def test_training_learns_the_conditionals(tmp_path):
    """Two sequences that are each other's opposite; the checkpoint is the model."""
    data = torch.tensor([[0, 1, 0, 1], [1, 0, 1, 0]]).repeat(16, 1)
    model = network(vocabulary=2)
    trained = fit(
        model, data, steps=150, batch_size=32, lr=1e-2, ema_decay=0.9, out=tmp_path, accelerator="cpu", progress=False
    )
    bound = float(exact_nelbo(trained, data[:2]).mean())
    assert math.log(2) / L - 1e-6 <= bound < math.log(2) / L + 0.05
    x = torch.tensor([[2, 2, 2, 2], [2, 0, 2, 2]])
    torch.testing.assert_close(hub.load(tmp_path)(x), trained(x))
    drawn = TauLeaping(steps=64)(trained, (50, L), generator=seeded())
    assert float(((drawn[:, ::2] != drawn[:, 1::2]).all(-1)).double().mean()) > 0.9


def test_a_condition_reaches_the_network():
    model = network(tokens={"class": 2})
    cond = Condition(tokens={"class": torch.eye(2)[:, None]})
    x = torch.full((2, L), V)
    assert not torch.allclose(model(x, cond)[0], model(x, cond)[1])
    torch.testing.assert_close(model(x, cond.null()), model(x))
    both = TauLeaping(steps=2)(model, (2, L), cond=cond, generator=generators([0, 1]))
    second = TauLeaping(steps=2)(model, (1, L), cond=cond[1], generator=generators([1]))
    assert torch.equal(both[1:], second)
    loss = TokenObjective(cond_dropout=1.0)(model, EVERY[:2], cond, seeded())
    torch.testing.assert_close(loss, TokenObjective()(model, EVERY[:2], None, seeded()))


# --- text -------------------------------------------------------------------------------------------------------


def test_text_survives_encoding():
    alphabet = Characters.of("hello world")
    assert alphabet.decode(alphabet.encode("low")[None]) == ["low"]
    assert alphabet.encode("l_w").tolist()[1] == len(alphabet)
    assert alphabet.decode(alphabet.encode("l_w")[None]) == ["l_w"]
    assert Characters.of("a_b").hole not in "a_b"
    assert windows(torch.arange(7), 3).tolist() == [[0, 1, 2], [3, 4, 5]]
    assert len(windows(torch.arange(7), 3, stride=1)) == 5


def test_the_bundled_text_is_plain_and_its_parts_are_apart():
    text = language_reference()
    assert set(text.train) == set(text.test) == set(" abcdefghijklmnopqrstuvwxyz")
    assert len(text.train) > 200_000 and 0.08 < len(text.test) / (len(text.train) + len(text.test)) < 0.15
    pieces = [text.test[i : i + 80] for i in range(0, len(text.test) - 80, 80)]
    assert sum(piece in text.train for piece in pieces) / len(pieces) < 0.05
    assert plain("It's 2 o'clock;\n\nso?") == "it s o clock so"


# --- recipe and benchmark ---------------------------------------------------------------------------------------


def test_the_recipe_learns_a_text_and_fills_in_a_prompt(tmp_path):
    (tmp_path / "text.txt").write_text("abab_" * 60, encoding="utf-8")
    checkpoint = radd.train(
        out=tmp_path / "model", text=tmp_path / "text.txt", length=10, steps=60, hidden=16, depth=1, lr=1e-2,
        device="cpu", progress=False,
    )  # fmt: skip
    about = hub.read_config(checkpoint)["metadata"]
    assert about["symbols"] == "_ab" and about["recipe"] == "core/radd" and about["hole"] not in "_ab"
    (path,) = radd.sample(checkpoint, out=tmp_path / "new", n=3, prompt="ab" + about["hole"] + "b", device="cpu")
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) == 3 and all(len(line) == 10 and line[:2] + line[3] == "abb" for line in lines)
    again = radd.sample(checkpoint, out=tmp_path / "two", n=1, seed=2, prompt="ab" + about["hole"] + "b", device="cpu")
    assert again[0].read_text(encoding="utf-8").splitlines() == lines[2:]
    with pytest.raises(InvalidArgument, match="n: must be at least 1"):
        radd.sample(checkpoint, out=tmp_path, n=0)
    with pytest.raises(InvalidArgument, match="not a file"):
        radd.train(text=tmp_path / "none.txt")


def benchmark_of(name):
    return radd_benchmark.function.__globals__[name]


def test_the_judge_is_a_distribution_and_knows_its_text():
    text = torch.randint(27, (5000,), generator=seeded()).clamp(max=3)
    judge = benchmark_of("NGram")(text, 3)
    grams = torch.tensor(list(product(range(27), repeat=3)))
    assert float((-judge.nll(grams).sum(-1)).exp().sum()) == pytest.approx(1)
    assert float(judge.nll(text[None]).mean()) < float(judge.nll(torch.randint(27, (1, 5000))).mean()) - 1


def test_the_brackets_are_all_the_balanced_ones():
    """Catalan's number of shapes, with a choice of two kinds for each pair."""
    for pairs in (1, 2, 3):
        assert len(benchmark_of("balanced")(pairs)) == math.comb(2 * pairs, pairs) // (pairs + 1) * 2**pairs


@pytest.mark.slow
def test_the_benchmark_measures_what_the_cache_saves(tmp_path, monkeypatch):
    small = {"length": 32, "steps": 20, "batch_size": 8, "lr": 1e-2, "hidden": 16, "depth": 1}
    for name, value in {"TRAINING": small, "SAMPLES": 8, "TIMED": 2, "BRACKETS": 10, "LENGTHS": (16, 32)}.items():
        monkeypatch.setitem(benchmark_of(name), "full", value)
    monkeypatch.setitem(benchmark_of("STEPS"), "full", (8, 64, 128))
    run = Run(radd_benchmark, "full", 0, "cpu", tmp_path / "work", None, False, tmp_path / "report")
    radd_benchmark(run)
    value = {
        (row.method, row.metric, row.setting.get("steps"), row.setting.get("length")): row.value for row in run.rows
    }
    assert value["radd, cached", "tokens that differ", 64, 16] == 0
    for length in (16, 32):
        expected = value["formula (reference)", "network calls", 128, length]
        assert value["radd, cached", "network calls", 128, length] == pytest.approx(expected, rel=0.15)
    assert value["trigram", "bits per character", None, 32] < value["unigram", "bits per character", None, 32]
    kl = [row.value for row in run.rows if row.method.startswith("exact") and row.metric == "KL to the truth"]
    assert kl == sorted(kl, reverse=True) and kl[-1] == pytest.approx(0, abs=1e-9)
    assert ("autoregressive transformer", "bits per character", None, 32) in value
    assert len(run.figures) == 1 and len(run.notes) == 5
    assert all(f"Length {length}: the claim holds" in " ".join(run.notes) for length in (16, 32))


# --- bad input --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: AbsorbingProcess(0), "vocabulary must be at least 1"),
        (lambda: AbsorbingProcess(3, eps=1.0), r"eps must lie in \[0, 1\)"),
        (lambda: AbsorbingProcess(3).corrupt(torch.zeros(2, 3), 0.5), "x0 must be tokens, int64"),
        (lambda: ExactTokenDenoiser(torch.tensor([[0], [0]])), "each of them once"),
        (lambda: ExactTokenDenoiser(EVERY, -P), "positive numbers"),
        (lambda: ExactTokenDenoiser(EVERY, P, vocabulary=2), "tokens 0 .. 1"),
        (lambda: exact()(torch.zeros(1, 3, dtype=torch.int64)), "length 4, got 3"),
        (lambda: network()(torch.zeros(1, 3)), "x must be tokens"),
        (lambda: NetworkTokenDenoiser(TokenTransformer(5, 16, 1, 2), 3)(EVERY), "is its vocabulary 3"),
        (lambda: TokenTransformer(3, hidden=15), "multiple of 2 heads"),
        (lambda: TokenObjective("x"), "unknown form 'x'"),
        (lambda: TokenObjective(cond_dropout=2), "cond_dropout must lie"),
        (lambda: nelbo(exact(), EVERY, samples=0), "samples must be at least 1"),
        (lambda: exact_nelbo(network(), torch.zeros(1, 12, dtype=torch.int64)), "too many; use nelbo"),
        (lambda: log_prob(exact(), EVERY, steps=0), "steps must be at least 1"),
        (lambda: expected_nfe(0, 3), "steps >= 1"),
        (lambda: TauLeaping(steps=0), "steps must be at least 1"),
        (lambda: TauLeaping(temperature=0), "use top_k=1"),
        (lambda: TauLeaping(top_k=0), "top_k must be at least 1"),
        (lambda: TauLeaping(top_p=0), "top_p must lie"),
        (lambda: Ordered(order="up"), "unknown order 'up'"),
        (lambda: TauLeaping()(exact()), "exactly one of shape"),
        (lambda: TauLeaping()(exact(), (0, 4)), "positive sizes"),
        (lambda: TauLeaping()(exact(), x=EVERY + 2), "the mask 3, got 2 .. 4"),
        (lambda: TauLeaping()(exact(), (2, L), generator=generators([1])), "one per sample"),
        (lambda: TauLeaping()(exact(), (2, L), cond=Condition(tokens={"a": torch.zeros(3, 1, 1)})), "batch size 3"),
        (lambda: Characters("aa"), "each once"),
        (lambda: Characters("ab", hole="a"), "hole must be one character"),
        (lambda: Characters("ab").encode("abc"), "text has ['c']"),
        (lambda: windows(torch.arange(3), 5), "fewer than the length 5"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(InvalidArgument) as caught:
        call()
    assert message.replace("\\", "") in str(caught.value)
