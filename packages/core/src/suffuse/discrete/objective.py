r"""The objective of a token denoiser: minus the log-probability of masked tokens, in three forms of one bound,

    t-DCE       E_{t ~ U(0, 1)}       [ sbar'(t) / (exp(sbar(t)) - 1)  sum_{i masked} -log c(x_t)_{i, x_0^i} ]
    lambda-DCE  E_{lambda ~ U(0, 1)}  [ 1 / lambda                     sum_{i masked} -log c(x)_{i, x_0^i} ]
    k-DCE       E_{k ~ U{1, .., L}}   [ L / k                          sum_{i masked} -log c(x)_{i, x_0^i} ]

Masked is each token with probability l(t) = 1 - exp(-sbar(t)), with probability lambda, and a random k of L. The second
is the first with lambda = l(t), over all levels instead of those up to l(1) = 1 - eps. The third is the second with
lambda integrated out given the number of masked tokens, so it has less variance; 1 / lambda has none that is finite.
The third is also, term by term, the loss of an autoregressive model whose order is random: each bounds -log p(x_0).
Ou et al. (2024), arXiv:2406.03736, sec. 3.3; Hoogeboom et al. (2021), arXiv:2110.02037, eq. 3.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from ..condition import Condition
from ..errors import InvalidArgument, unknown
from ..random import stratified
from .denoiser import TokenDenoiser
from .process import AbsorbingProcess, check_tokens

__all__ = ["TokenObjective", "mask_exactly"]

Form = Literal["k", "lambda", "t"]


@dataclass(frozen=True)
class TokenObjective:
    """The loss of a batch, in nats per token. Levels are stratified over the batch.

    Args:
        form: ``"k"``, ``"lambda"`` or ``"t"``.
        eps: of the log-linear ``AbsorbingProcess`` of ``"t"``.
        cond_dropout: probability of replacing the condition of a sample by null.
    """

    form: Form = "k"
    eps: float = 1e-3
    cond_dropout: float = 0.1

    def __post_init__(self) -> None:
        if self.form not in get_args(Form):
            raise unknown("form", self.form, get_args(Form))
        if not 0 <= self.cond_dropout <= 1:
            raise InvalidArgument(f"cond_dropout must lie in [0, 1], got {self.cond_dropout}")

    def __call__(
        self,
        denoiser: TokenDenoiser,
        x0: Tensor,
        cond: Condition | None = None,
        generator: torch.Generator | None = None,
        weight: Tensor | None = None,
    ) -> Tensor:
        """The mean loss per token.

        Args:
            denoiser: what is trained.
            x0: clean tokens, int64 (B, L) in 0 .. V - 1.
            cond: condition of B rows.
            generator: of levels, masks and dropout; on the device of x0.
            weight: extra weights that broadcast against x0, for instance 0 where a sequence is padded.
        """
        check_tokens(x0, "x0")
        u = stratified(len(x0), generator, x0.device)
        if self.form == "k":
            k = 1 + (u * x0.shape[1]).long()
            masked, scale = mask_exactly(k, x0.shape[1], generator), x0.shape[1] / k
        else:
            process = AbsorbingProcess(denoiser.vocabulary, self.eps if self.form == "t" else 0.0)
            t = 1 - u  # never 0
            masked = process.corrupt(x0, t, generator) == process.mask
            scale = process.weight(t)
        if cond is not None:
            cond = cond.dropout(self.cond_dropout, generator)
        loss = cross_entropy(denoiser, x0, masked, cond)
        loss = loss * scale[:, None].to(loss.dtype)
        return loss.mean() if weight is None else (loss * weight).mean()


def cross_entropy(denoiser: TokenDenoiser, x0: Tensor, masked: Tensor, cond: Condition | None = None) -> Tensor:
    """-log c(x)_{i, x_0^i} where masked, 0 elsewhere, (B, L)."""
    log_p = denoiser(x0.masked_fill(masked, denoiser.mask), cond)
    return -log_p.gather(-1, x0[..., None])[..., 0].where(masked, 0.0)


def mask_exactly(k: Tensor, length: int, generator: torch.Generator | None = None) -> Tensor:
    """Bool (B, length) with k (B,) random entries True in each row."""
    ranks = torch.rand(len(k), length, generator=generator, device=k.device).argsort(-1).argsort(-1)
    return ranks < k[:, None]
