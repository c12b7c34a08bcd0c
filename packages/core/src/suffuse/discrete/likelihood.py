r"""Likelihoods: what a token denoiser says of a sequence, as a bound for any length and exactly for a short one.

An order pi unmasks one token after another with probability prod_k c(x_{pi < k})_{pi_k}. Averaged over random orders,

    log p(x) = log E_pi prod_k c   >=   E_pi sum_k log c  =  -NELBO(x),

with equality if c are the conditionals of one joint distribution. A sampler with few steps unmasks several tokens at
once as if they were independent, and so has another law. With M_k(A) the sum, over all ways to unmask the set A in k
rounds, of the products of their c,

    M_0({}) = 1,   M_k(A) = sum_{B c A} M_{k-1}(B) prod_{i in A \ B} c(x_B)_i,
    P_N(x) = sum_k (N choose k) N^-L M_k({1, .., L}),        log p(x) = log M_L({1, .., L}) / L!  =  log P_inf(x),

as every token falls into one of N steps at random, and empty steps do nothing.
Ou et al. (2024), arXiv:2406.03736; Hoogeboom et al. (2021), arXiv:2110.02037.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..condition import Condition
from ..errors import InvalidArgument
from .denoiser import TokenDenoiser
from .objective import cross_entropy, mask_exactly
from .process import check_tokens

__all__ = ["exact_nelbo", "log_prob", "nelbo"]

#: 2^L sets of tokens are listed.
LONGEST = 10


@torch.no_grad()
def nelbo(
    denoiser: TokenDenoiser,
    x0: Tensor,
    cond: Condition | None = None,
    *,
    samples: int = 16,
    generator: torch.Generator | None = None,
) -> Tensor:
    """An unbiased estimate of the bound -log p(x_0) <= NELBO, by masks of k of L tokens (k-DCE).

    Args:
        denoiser: the model.
        x0: clean tokens, int64 (B, L).
        cond: condition of B rows.
        samples: masks per sequence; their numbers k are stratified, so that L samples see every k once.
        generator: of the masks, on the device of x0.

    Returns:
        (B,), nats per token; divided by log 2, bits.
    """
    check_tokens(x0, "x0")
    if samples < 1:
        raise InvalidArgument(f"samples must be at least 1, got {samples}")
    length, total = x0.shape[1], torch.zeros(len(x0), dtype=torch.float64, device=x0.device)
    for j in range(samples):
        u = torch.rand(len(x0), generator=generator, device=x0.device, dtype=torch.float64)
        k = 1 + ((j + u) / samples * length).long().clamp(max=length - 1)
        total += cross_entropy(denoiser, x0, mask_exactly(k, length, generator), cond).sum(-1) / k
    return total / samples


@torch.no_grad()
def exact_nelbo(denoiser: TokenDenoiser, x0: Tensor, cond: Condition | None = None) -> Tensor:
    """The bound itself, (B,) nats per token, from all 2^L masks of a short sequence (B, L): the mean over orders."""
    log_c, sets = conditionals(denoiser, x0, cond)
    length, known = x0.shape[1], sets.sum(-1).tolist()
    # the probability that a random order has the set A first, and then a given token outside of it
    weights = [1 / (math.comb(length, n) * (length - n)) if n < length else 0.0 for n in known]
    return -(log_c.sum(-1) @ log_c.new_tensor(weights)) / length


@torch.no_grad()
def log_prob(
    denoiser: TokenDenoiser,
    x0: Tensor,
    cond: Condition | None = None,
    *,
    steps: int | Sequence[int | None] | None = None,
) -> Tensor:
    """The log-probability with which ``TauLeaping(steps)`` draws a short sequence, exactly.

    Args:
        denoiser: the model.
        x0: clean tokens, int64 (B, L), L at most 10.
        cond: condition of B rows.
        steps: N; None for one token at a time in a random order, which is N to infinity; or several of these.

    Returns:
        (B,), nats per sequence, float64; for several numbers of steps (len(steps), B).
    """
    asked = steps if isinstance(steps, Sequence) else (steps,)
    if any(n is not None and n < 1 for n in asked):
        raise InvalidArgument(f"steps must be at least 1, got {steps}")
    log_c, sets = conditionals(denoiser, x0, cond)
    length, count = x0.shape[1], len(sets)
    grows = (sets[:, None] <= sets).all(-1) & ~torch.eye(count, dtype=torch.bool, device=x0.device)
    moves = (log_c @ sets.to(log_c).T).exp() * grows  # (B, from, to); log_c is 0 for what is in "from"
    reached = log_c.new_zeros(len(x0), 1, count)
    reached[..., 0] = 1
    sums = []  # M_k of the full set, k = 1 .. L
    for _ in range(length):
        reached = reached @ moves
        sums.append(reached[:, 0, -1])
    result = (log_c.new_tensor([round_weights(n, length) for n in asked]) @ torch.stack(sums)).log()
    return result if isinstance(steps, Sequence) else result[0]


def round_weights(steps: int | None, length: int) -> list[float]:
    """(N choose k) N^-L for k = 1 .. L; for N to infinity, 1 / L! for k = L alone."""
    if steps is None:
        return [0.0] * (length - 1) + [1 / math.factorial(length)]
    return [math.comb(steps, k) / steps**length for k in range(1, length + 1)]


def conditionals(denoiser: TokenDenoiser, x0: Tensor, cond: Condition | None) -> tuple[Tensor, Tensor]:
    """log c(x_A)_i of the true tokens for every set A of unmasked ones, (B, 2^L, L), and the sets, bool (2^L, L).

    It is 0 for i in A. The first set is empty, the last one full.
    """
    check_tokens(x0, "x0")
    batch, length = x0.shape
    if length > LONGEST:
        raise InvalidArgument(f"x0 has length {length}, its 2^{length} masks are too many; use nelbo above {LONGEST}")
    bits = torch.arange(2**length, device=x0.device)[:, None] >> torch.arange(length, device=x0.device)
    sets = (bits & 1).bool()
    losses = [cross_entropy(denoiser, x0, (~known).expand(batch, -1), cond) for known in sets]
    return -torch.stack(losses, dim=1).double(), sets
