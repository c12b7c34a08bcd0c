r"""The exact token denoiser of a distribution that can be listed: sequences s with probabilities p(s),

p(x_0^i = a | x) = sum_s p(s) [s agrees with x where x is unmasked] [s^i = a] / sum_s p(s) [s agrees with x].
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..condition import Condition
from ..errors import InvalidArgument
from .denoiser import TokenDenoiser, carry_over
from .process import check_tokens

__all__ = ["ExactTokenDenoiser"]


class ExactTokenDenoiser(TokenDenoiser):
    """The truth for tests and toys, in float64. The cost of a call is B x S x L x V.

    Where no sequence agrees with the unmasked tokens nothing is known, and every token is equally likely.

    Args:
        sequences: all that are possible, int64 (S, L), each once.
        probabilities: (S,), positive; scaled to sum to one. Default: all equal.
        vocabulary: V; default, the largest token and one.
    """

    sequences: Tensor
    probabilities: Tensor

    def __init__(
        self,
        sequences: Tensor,
        probabilities: Tensor | Sequence[float] | None = None,
        vocabulary: int | None = None,
    ) -> None:
        super().__init__()
        check_tokens(sequences, "sequences")
        if len(sequences) == 0 or len(torch.unique(sequences, dim=0)) < len(sequences):
            raise InvalidArgument("sequences must be at least one, and each of them once; add up the probabilities")
        p = torch.ones(len(sequences)) if probabilities is None else torch.as_tensor(probabilities)
        if p.shape != (len(sequences),) or not bool((p > 0).all() & p.isfinite().all()):
            raise InvalidArgument(
                f"probabilities must be {len(sequences)} positive numbers, got shape {tuple(p.shape)}"
            )
        self.vocabulary = int(sequences.max()) + 1 if vocabulary is None else vocabulary
        if int(sequences.min()) < 0 or int(sequences.max()) >= self.vocabulary:
            raise InvalidArgument(f"sequences must have tokens 0 .. {self.vocabulary - 1}, got others")
        self.register_buffer("sequences", sequences)
        self.register_buffer("probabilities", p.double() / p.double().sum())

    @property
    def entropy(self) -> float:
        """-sum p log p, nats per sequence."""
        return float(-(self.probabilities * self.probabilities.log()).sum())

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Exact draws, (n, L)."""
        rows = torch.multinomial(self.probabilities, n, replacement=True, generator=generator)
        return self.sequences[rows]

    def forward(self, x: Tensor, cond: Condition | None = None) -> Tensor:
        check_tokens(x, "x")
        if x.shape[1] != self.sequences.shape[1]:
            raise InvalidArgument(f"x must have length {self.sequences.shape[1]}, got {x.shape[1]}")
        agrees = ((x == self.mask)[:, None] | (x[:, None] == self.sequences)).all(-1)
        one_hot = torch.nn.functional.one_hot(self.sequences, self.vocabulary).double()
        p = (agrees * self.probabilities) @ one_hot.flatten(1)
        p = p.reshape(*x.shape, self.vocabulary)
        total = p.sum(-1, keepdim=True)
        return carry_over(torch.where(total > 0, p / total, 1 / self.vocabulary).log(), x)
