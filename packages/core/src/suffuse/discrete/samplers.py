r"""Samplers of a token denoiser: in which round each masked token is drawn, and the loop that draws them.

``TauLeaping``, the Tweedie sampler: from time t to s a masked token is unmasked with probability

    (exp(-sbar_s) - exp(-sbar_t)) / (1 - exp(-sbar_t)) = (t - s) / t        (log-linear, whatever eps)

and drawn from c(x), all of a step at once. On the grid of N equal steps every token falls into each step with
probability 1 / N, which can be drawn beforehand, as c does not know the time. For the same reason a step in which
nothing falls needs no evaluation, and rows need not be at the same step: row by row only the states that differ are
evaluated (the cache), in at most min(N, L) calls for the batch and on average

    E[NFE] = N (1 - (1 - 1/N)^L)

per row. The samples are those of the evaluation at every step. Ou et al. (2024), arXiv:2406.03736, sec. 3.2, eq. 12;
Zheng et al. (2024), arXiv:2409.02908, draw the times of continuous unmasking, the limit of N to infinity, likewise.

``Ordered`` draws one token a round, in a random order or from left to right: any-order autoregressive decoding.
Every row uses two uniform numbers for each position, one for its time and one for its token, from its own generator.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ..condition import Condition
from ..errors import InvalidArgument, unknown
from ..random import Generators, rand
from .denoiser import TokenDenoiser
from .process import check_tokens

__all__ = ["Ordered", "TauLeaping", "TokenSampler", "expected_nfe"]


def expected_nfe(steps: int, length: int) -> float:
    """N (1 - (1 - 1/N)^L): the mean number of steps in which some of L tokens fall."""
    if steps < 1 or length < 0:
        raise InvalidArgument(f"need steps >= 1 and length >= 0, got {steps} and {length}")
    return -steps * math.expm1(length * math.log1p(-1 / steps)) if steps > 1 else float(length > 0)


@dataclass(frozen=True, kw_only=True)
class TokenSampler(ABC):
    """Base of the samplers.

    Args:
        temperature: tokens are drawn from c^(1 / temperature).
        top_k: only from the k most probable; 1 takes the most probable.
        top_p: only from the most probable that together have probability p, the nucleus.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise InvalidArgument(f"temperature must be positive, got {self.temperature}; for the mode, use top_k=1")
        if self.top_k is not None and self.top_k < 1:
            raise InvalidArgument(f"top_k must be at least 1, got {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise InvalidArgument(f"top_p must lie in (0, 1], got {self.top_p}")

    @abstractmethod
    def rounds(self, length: int) -> int:
        """The number of rounds for sequences of a length."""

    @abstractmethod
    def when(self, masked: Tensor, u: Tensor) -> Tensor:
        """The round, int64 (B, L) from 0, of each masked position, given uniform u (B, L)."""

    def __call__(
        self,
        denoiser: TokenDenoiser,
        shape: tuple[int, int] | None = None,
        *,
        x: Tensor | None = None,
        cond: Condition | None = None,
        generator: Generators = None,
        device: torch.device | str | None = None,
        cache: bool = True,
        return_nfe: bool = False,
    ) -> Any:
        """Draw samples.

        Args:
            denoiser: the model.
            shape: (B, L) of samples from nothing; or give x.
            x: a prompt, int64 (B, L): tokens that are kept, and masks that are filled in.
            cond: the condition of B rows.
            generator: one for the batch, or one per sample.
            device: where to sample; default the denoiser's.
            cache: evaluate a row only when it has changed; False evaluates all rows in every round.
            return_nfe: also return the evaluations of each row, int64 (B,).

        Returns:
            tokens, int64 (B, L) without masks; or (tokens, evaluations).
        """
        x = first_tokens(denoiser, shape, x, device)
        if cond is not None and len(cond) not in (0, len(x)):
            raise InvalidArgument(f"cond has batch size {len(cond)}, the samples {len(x)}; use cond.repeat or index it")
        batch, length = x.shape
        times, values = rand((batch, 2, length), generator, x.device, torch.float64).unbind(1)
        masked = x == denoiser.mask
        when, total = self.when(masked, times), self.rounds(length)
        nfe = torch.full((batch,), total, device=x.device)
        if cache:
            when, total = _dense(when.masked_fill(~masked, total)), min(total, length)
            nfe = when.where(masked, -1).amax(-1) + 1
        rows = nfe.argsort(descending=True, stable=True)  # who is still at it comes first
        x, values, cond = x[rows], values[rows], None if cond is None else cond[rows]
        when = when.where(masked, total)[rows].flatten()
        positions = when.argsort(stable=True)
        sizes = torch.zeros(total + 1, dtype=torch.int64, device=x.device).scatter_add_(0, when, torch.ones_like(when))
        active = (nfe > torch.arange(total, device=x.device)[:, None]).sum(-1)
        plan = torch.stack([sizes[:total], active]).T.tolist()  # the one time that the device is waited for
        start = 0
        with torch.no_grad():
            for size, at_it in plan:
                if not at_it:
                    break
                log_p = denoiser(x[:at_it], None if cond is None else cond[:at_it])
                now = positions[start : start + size]
                row, column = now // length, now % length
                x[row, column] = self.draw(log_p[row, column], values[row, column])
                start += size
        samples = torch.empty_like(x)
        samples[rows] = x
        return (samples, nfe) if return_nfe else samples

    def draw(self, log_p: Tensor, u: Tensor) -> Tensor:
        """Tokens (...,) by inverting the distribution function of log_p (..., V) at u (...,), in float64."""
        p = (log_p.double() / self.temperature).softmax(-1)
        if self.top_k is not None and self.top_k < p.shape[-1]:
            p = p * _first(p, torch.arange(p.shape[-1], device=p.device) < self.top_k)
        if self.top_p < 1:
            p = p / p.sum(-1, keepdim=True)
            ordered = p.sort(dim=-1, descending=True, stable=True).values
            p = p * _first(p, ordered.cumsum(-1) - ordered < self.top_p)
        cdf = p.cumsum(-1)
        token = torch.searchsorted(cdf, (u * cdf[..., -1])[..., None], right=True)[..., 0]
        return token.clamp(max=p.shape[-1] - 1)


@dataclass(frozen=True, kw_only=True)
class TauLeaping(TokenSampler):
    """The Tweedie sampler on N equal steps of the log-linear process. The last step unmasks what is left.

    Args:
        steps: N. Few steps draw many tokens at once, as if they were independent.
    """

    steps: int = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps < 1:
            raise InvalidArgument(f"steps must be at least 1, got {self.steps}")

    def rounds(self, length: int) -> int:
        return self.steps

    def when(self, masked: Tensor, u: Tensor) -> Tensor:
        return (u * self.steps).long().clamp(max=self.steps - 1)


@dataclass(frozen=True, kw_only=True)
class Ordered(TokenSampler):
    """One token a round: L evaluations of a row from nothing, and no error from drawing several at once.

    Args:
        order: ``"random"`` or ``"left-to-right"``.
    """

    order: Literal["random", "left-to-right"] = "random"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.order not in ("random", "left-to-right"):
            raise unknown("order", self.order, ("random", "left-to-right"))

    def rounds(self, length: int) -> int:
        return length

    def when(self, masked: Tensor, u: Tensor) -> Tensor:
        place = u.argsort(-1).argsort(-1) if self.order == "random" else torch.arange(u.shape[-1], device=u.device)
        return place.expand(u.shape)


def first_tokens(
    denoiser: TokenDenoiser, shape: tuple[int, int] | None, x: Tensor | None, device: torch.device | str | None
) -> Tensor:
    """The start: masks of a shape, or a checked copy of a prompt, on the device."""
    if (shape is None) == (x is None):
        raise InvalidArgument("give exactly one of shape (start from masks) or x (a prompt with masks to fill in)")
    if device is None:
        device = next((p.device for p in (*denoiser.parameters(), *denoiser.buffers())), torch.device("cpu"))
    if x is None:
        assert shape is not None
        if len(shape) != 2 or min(shape) < 1:
            raise InvalidArgument(f"shape must be (B, L) with positive sizes, got {tuple(shape)}")
        return torch.full(tuple(shape), denoiser.mask, device=device)
    check_tokens(x, "x")
    low, high = (int(v) for v in x.aminmax())
    if low < 0 or high > denoiser.mask:
        raise InvalidArgument(
            f"x must have tokens 0 .. {denoiser.mask - 1} and the mask {denoiser.mask}, got {low} .. {high}"
        )
    return x.to(device, copy=True)


def _dense(when: Tensor) -> Tensor:
    """The rank of each entry among the different values of its row, (B, L)."""
    ordered, index = when.sort(-1)
    new = torch.zeros_like(ordered)
    new[:, 1:] = (ordered[:, 1:] != ordered[:, :-1]).long()
    return torch.empty_like(when).scatter_(-1, index, new.cumsum(-1))


def _first(p: Tensor, keep: Tensor) -> Tensor:
    """Whether each entry of p (..., V) is at one of the places in descending order that are to be kept."""
    return keep.expand(p.shape).gather(-1, p.argsort(dim=-1, descending=True, stable=True).argsort(-1))
