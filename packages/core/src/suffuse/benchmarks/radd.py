"""Discrete diffusion: what a network without a time saves, what it costs in quality, and what the model is worth."""

from __future__ import annotations

import itertools
import math
import platform
import time
from functools import partial
from typing import TYPE_CHECKING, Any

from suffuse.bench import Run, benchmark

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from matplotlib.figure import Figure
    from torch import Tensor

    from suffuse.discrete import TokenDenoiser

TRAINING: dict[str, dict[str, Any]] = {
    "quick": {"length": 64, "steps": 500, "batch_size": 24, "lr": 6e-3, "hidden": 64, "depth": 2},
    "full": {"length": 128, "steps": 3000, "batch_size": 12, "lr": 4e-3, "hidden": 96, "depth": 3},
}
LENGTHS = {"quick": (64,), "full": (64, 128)}
STEPS = {"quick": (8, 16, 32, 64, 128, 1024), "full": (8, 16, 32, 64, 128, 256, 1024)}
#: Where the network is also called at every step: to compare the samples, and the time.
EVERY = (16, 64, 256, 1024)
SAMPLES = {"quick": 80, "full": 96}
TIMED = {"quick": 4, "full": 8}
BRACKETS = {"quick": 400, "full": 4000}
SYMBOLS = 27

Measured = dict[int, tuple[float, "Tensor"]]
"""steps -> calls per sample, and -log p per character of each sample under the judge"""


@benchmark(
    "core/radd",
    paper="Ou et al. 2024, Your Absorbing Discrete Diffusion Secretly Models the Conditional Distributions of Clean "
    "Data (RADD), arXiv:2406.03736",
    claim="A network that is not told the time need only be called when a token has changed: at short sequences at "
    "least half of the calls are saved, and the samples are the same.",
    peers=("the same network at every step", "n-grams", "autoregressive transformer (full profile)"),
)
def radd(run: Run) -> None:
    """A small bidirectional transformer learns characters (a to z and space) of the reference of the Python language,
    which the standard library carries, and bounds the bits per character of held-out paragraphs. Its samples are drawn
    in N steps, with the network called when a row has changed (cached) or at every step; from the same seeds they are
    compared token by token. Their perplexity is that of a 5-gram model of the same text. On balanced brackets of two
    kinds, 224 words of length 8, the law of the sampler is computed exactly and compared with the truth.
    """
    import torch

    import suffuse
    from suffuse import radd as recipe
    from suffuse.discrete import Characters, Ordered, TokenDenoiser, language_reference, nelbo, windows

    settings, samples = TRAINING[run.profile], SAMPLES[run.profile]
    text = language_reference()
    alphabet = Characters.of(text.train)
    learnt, held_out = alphabet.encode(text.train), alphabet.encode(text.test)
    dataset = f"reference of Python {'.'.join(platform.python_version_tuple()[:2])}"
    row = partial(run.row, dataset=dataset, better="lower")
    with run.stage("train"):
        checkpoint = recipe.train(
            out=run.out / "checkpoint", seed=run.seed, device=run.device, progress=run.progress, **settings
        )
    denoiser = suffuse.hub.load(checkpoint, device=run.device)
    assert isinstance(denoiser, TokenDenoiser)

    def seeds(n: int) -> list[torch.Generator]:
        return suffuse.random.generators(range(run.seed * 100_000, run.seed * 100_000 + n))

    with run.stage("bits per character"):
        judge = NGram(learnt, 5)
        bits = {"unigram": NGram(learnt, 1).nll, "trigram": NGram(learnt, 3).nll, "5-gram (the judge)": judge.nll}
        if not run.quick:
            causal = autoregressive(windows(learnt, settings["length"], 1), run, settings)
            bits["autoregressive transformer"] = causal.nll
        bits["radd (bound)"] = lambda x: nelbo(
            denoiser, x.to(run.device), samples=8, generator=torch.Generator(run.device).manual_seed(run.seed)
        )
        for length in LENGTHS[run.profile]:
            found = {method: float(nll(windows(held_out, length)).mean()) / math.log(2) for method, nll in bits.items()}
            for method, value in found.items():
                row(method=method, metric="bits per character", value=value, setting={"length": length})
            listed = ", ".join(f"{method} {value:.2f}" for method, value in found.items())
            run.note(f"Bits per character of held-out text of length {length}: {listed}.")

    def judged(method: str, x: Tensor, **setting: int) -> Tensor:
        nll = judge.nll(x.cpu()).mean(-1)
        row(method=method, metric="perplexity", value=float(nll.mean().exp()), setting=setting)
        return nll

    measured: dict[int, Measured] = {}
    for length in LENGTHS[run.profile]:
        with run.stage(f"sample, length {length}"):
            judged("held-out text (reference)", windows(held_out, length), length=length)
            measured[length], differ = {}, 0
            for steps in STEPS[run.profile]:
                x, calls = draw(denoiser, (samples, length), steps, seeds(samples))
                measured[length][steps] = calls, judged("radd, cached", x, length=length, steps=steps)
                report_calls(row, steps, length, calls)
                if steps in EVERY:
                    differ += compare(row, denoiser, steps, length, seeds(TIMED[run.profile]))
            for method, sampler in (
                ("radd, one by one", Ordered()),
                ("radd, left to right", Ordered(order="left-to-right")),
            ):
                judged(method, sampler(denoiser, (samples, length), generator=seeds(samples)), length=length)
            if not run.quick:
                drawn = causal.sample((samples, length), seeds(samples))
                judged("autoregressive transformer", drawn, length=length)
        note_savings(run, length, measured[length], differ)
    lines = alphabet.decode(draw(denoiser, (4, length), steps, seeds(4))[0])
    run.note("Samples: " + "; ".join(f"“{line}”" for line in lines) + ".")
    with run.stage("brackets"):
        divergence = brackets(run)
    caption = (
        "Left: calls of the network for a sample; the line is N (1 - (1 - 1/N)^L). Middle: perplexity of the same "
        "samples, at the cost of either way. Right: the divergence of the sampler's law on brackets, computed exactly."
    )
    run.figure("calls", plot(measured, divergence), caption)


def draw(
    denoiser: TokenDenoiser, shape: tuple[int, int], steps: int, seeds: Sequence[Any], cache: bool = True
) -> tuple[Tensor, float]:
    """Samples on the CPU, and the mean number of calls for one."""
    from suffuse.discrete import TauLeaping

    x, nfe = TauLeaping(steps=steps)(denoiser, shape, generator=seeds, cache=cache, return_nfe=True)
    return x.cpu(), float(nfe.double().mean())


def report_calls(row: Callable[..., None], steps: int, length: int, calls: float) -> None:
    from suffuse.discrete import expected_nfe

    for method, value in (
        ("radd, every step", steps),
        ("radd, cached", calls),
        ("formula (reference)", expected_nfe(steps, length)),
    ):
        row(method=method, metric="network calls", value=value, setting={"steps": steps, "length": length})


def compare(row: Callable[..., None], denoiser: TokenDenoiser, steps: int, length: int, seeds: Sequence[Any]) -> int:
    """The same few samples in both ways: rows of the time of each, and of how many tokens differ, which is returned."""
    states = [seed.get_state() for seed in seeds]
    setting, samples = {"steps": steps, "length": length}, []
    for method, cache in (("radd, every step", False), ("radd, cached", True)):
        for seed, state in zip(seeds, states, strict=True):
            seed.set_state(state)
        start = time.perf_counter()
        samples.append(draw(denoiser, (len(seeds), length), steps, seeds, cache)[0])
        row(method=method, metric="seconds", value=time.perf_counter() - start, setting=setting, unit="s")
    differ = int((samples[0] != samples[1]).sum())
    row(method="radd, cached", metric="tokens that differ", value=differ, setting=setting)
    return differ


def note_savings(run: Run, length: int, measured: Measured, differ: int) -> None:
    """Say what the cache saves, and what the quality is at about as many calls as there are characters.

    Samples of different numbers of steps share their seeds, so the standard error is that of the paired difference.
    """
    factor = {steps: steps / calls for steps, (calls, _) in measured.items()}
    finest, near = max(measured), min(measured, key=lambda steps: abs(math.log(steps / length)))
    fine, coarse = measured[finest][1], measured[near][1]
    error = float((coarse - fine).std()) / math.sqrt(len(fine))
    outcome = "holds" if max(factor.values()) >= 2 and not differ else "does not hold"
    saved = ", ".join(f"{value:.3g} at {steps} steps" for steps, value in factor.items() if steps >= near)
    run.note(
        f"Length {length}: the claim {outcome}: samples with and without the cache differ in {differ} tokens, so they "
        f"have the same perplexity, and the factor of calls that are saved is {saved}. For about {length} calls, "
        f"{near} steps with a call at each give perplexity {coarse.mean().exp():.3g}, and {finest} cached steps "
        f"({measured[finest][0]:.1f} calls) {fine.mean().exp():.3g} (log ratio {float((coarse - fine).mean()):.3f}, "
        f"standard error {error:.3f})."
    )


# --- brackets ---------------------------------------------------------------------------------------------------


def balanced(pairs: int = 4) -> Tensor:
    """All balanced words of so many pairs of brackets of two kinds, (N, 2 pairs): tokens ( [ ) ] are 0 1 2 3."""
    import torch

    def word(tokens: tuple[int, ...]) -> bool:
        stack: list[int] = []
        for token in tokens:
            if token < 2:
                stack.append(token)
            elif not stack or stack.pop() != token - 2:
                return False
        return not stack

    return torch.tensor([tokens for tokens in itertools.product(range(4), repeat=2 * pairs) if word(tokens)])


def brackets(run: Run) -> dict[str, list[float]]:
    """Rows on balanced brackets, all equally likely; the divergence from the truth by method, over the steps."""
    import torch

    from suffuse.discrete import ExactTokenDenoiser, NetworkTokenDenoiser, TokenTransformer, exact_nelbo, log_prob
    from suffuse.training import fit

    words = balanced()
    exact = ExactTokenDenoiser(words)
    torch.manual_seed(run.seed)
    network = NetworkTokenDenoiser(TokenTransformer(4, hidden=32, depth=2), 4)
    fit(
        network, words, steps=BRACKETS[run.profile], batch_size=64, lr=1e-2, ema_decay=0.99, seed=run.seed,
        accelerator=run.device, progress=run.progress,
    )  # fmt: skip
    row = partial(run.row, dataset="brackets of length 8", better="lower")
    curves: dict[str, list[float]] = {}
    for method, denoiser in (("exact conditionals (reference)", exact), ("radd", network.eval())):
        bits = float(exact_nelbo(denoiser, words).mean()) / math.log(2)
        row(method=method, metric="bits per character", value=bits)
        curves[method] = []
        asked = (*STEPS[run.profile], None)
        for steps, law in zip(asked, log_prob(denoiser, words, steps=asked), strict=True):
            divergence = float((exact.probabilities.log() - law).mean())
            setting = {"steps": steps or "one by one"}
            row(method=method, metric="KL to the truth", value=divergence, setting=setting, unit="nats")
            curves[method].append(divergence)
    return curves


# --- what it is compared with -----------------------------------------------------------------------------------


class NGram:
    """p_k(a | h) = (count(h a) + strength p_{k-1}(a | h')) / (count(h) + strength), where h' is h without its first
    character and p_0 is uniform: MacKay, Peto (1995), "A hierarchical Dirichlet language model"."""

    def __init__(self, tokens: Tensor, order: int, strength: float = 4.0) -> None:
        import torch

        self.order, self.strength = order, strength
        self.counts = []
        for k in range(1, order + 1):
            number = self.number(tokens.unfold(0, k, 1))
            self.counts.append(torch.bincount(number, minlength=SYMBOLS**k).int())

    @staticmethod
    def number(grams: Tensor) -> Tensor:
        """Grams (..., k) as numbers in base 27."""
        return (grams * grams.new_tensor([SYMBOLS**i for i in range(grams.shape[-1])][::-1])).sum(-1)

    def nll(self, x: Tensor) -> Tensor:
        """-log p of each character of x (B, L), nats; the first ones have a shorter history."""
        import torch

        p = torch.full(x.shape, 1 / SYMBOLS, dtype=torch.float64)
        for k, counts in enumerate(self.counts[: x.shape[1]], start=1):
            number = self.number(x.unfold(1, k, 1))
            history = counts.reshape(-1, SYMBOLS).sum(-1)
            better = (counts[number] + self.strength * p[:, k - 1 :]) / (history[number // SYMBOLS] + self.strength)
            p = torch.cat([p[:, : k - 1], better], dim=1)
        return -p.log()


def autoregressive(data: Tensor, run: Run, settings: dict[str, Any]) -> Any:
    """The same transformer, causal, trained with the same settings; with ``nll`` and ``sample``."""
    import torch
    from torch import nn

    from suffuse.discrete import Ordered, TokenTransformer
    from suffuse.random import rand
    from suffuse.training import fit

    class Autoregressive(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = TokenTransformer(SYMBOLS, settings["hidden"], settings["depth"], causal=True)

        def forward(self, x: Tensor) -> Tensor:
            """Log-probabilities (B, L, V) of each character given those before; the mask stands before the first."""
            before = torch.nn.functional.pad(x[:, :-1], (1, 0), value=SYMBOLS)
            return self.backbone(before).log_softmax(-1)

        def nll(self, x: Tensor) -> Tensor:
            x = x.to(next(self.parameters()).device)
            return -self(x).gather(-1, x[..., None])[..., 0]

        @torch.no_grad()
        def sample(self, shape: tuple[int, int], seeds: Sequence[torch.Generator]) -> Tensor:
            u = rand(shape, seeds, run.device, torch.float64)
            x = torch.zeros(shape, dtype=torch.int64, device=run.device)
            for i in range(shape[1]):
                x[:, i] = Ordered().draw(self(x[:, : i + 1])[:, -1], u[:, i])
            return x

    def objective(denoiser: Any, x0: Tensor, cond: Any = None, generator: Any = None, weight: Any = None) -> Tensor:
        return denoiser.nll(x0).mean()

    torch.manual_seed(run.seed)
    trained = fit(
        Autoregressive(), data, objective=objective, steps=settings["steps"], batch_size=settings["batch_size"],
        lr=settings["lr"], ema_decay=0.995, seed=run.seed, accelerator=run.device, progress=run.progress,
    )  # fmt: skip
    return trained.to(run.device).requires_grad_(False)


def plot(measured: dict[int, Measured], divergence: dict[str, list[float]]) -> Figure:
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter, ScalarFormatter

    from suffuse.discrete import expected_nfe

    figure = Figure(figsize=(13, 4), layout="constrained")
    calls, quality, law = figure.subplots(1, 3)
    for number, (length, points) in enumerate(measured.items()):
        steps, cached = list(points), [calls for calls, _ in points.values()]
        perplexity = [float(nll.mean().exp()) for _, nll in points.values()]
        color = f"C{number}"
        calls.plot(steps, [expected_nfe(n, length) for n in steps], color=color)
        calls.plot(steps, cached, "o", color=color, label=f"cached, length {length}")
        quality.plot(steps, perplexity, ":o", color=color, mfc="white", label=f"every step, length {length}")
        quality.plot(cached, perplexity, "-o", color=color, label=f"cached, length {length}")
    calls.plot(steps, steps, "k:", label="every step")
    calls.set(xlabel="steps N", ylabel="network calls per sample", xscale="log", yscale="log")
    calls.yaxis.set_major_formatter(ScalarFormatter())
    quality.set(xlabel="network calls per sample", ylabel="perplexity of the samples", xscale="log")
    for (method, values), style in zip(divergence.items(), ("k--", "C2-o"), strict=True):
        law.plot(steps, values[:-1], style, label=method.removesuffix(" (reference)"))
    law.axhline(divergence["radd"][-1], color="C2", linestyle=":", label="radd, one by one")
    law.set(xlabel="steps N, balanced brackets", ylabel="KL(truth, sampler), nats", xscale="log", yscale="log")
    for panel in (calls, quality, law):
        panel.xaxis.set_major_formatter(ScalarFormatter())
        panel.xaxis.set_minor_formatter(NullFormatter())
        panel.set_xticks([2**i for i in range(3, 11)])
        panel.grid(alpha=0.3)
        panel.legend(fontsize=8)
    return figure
