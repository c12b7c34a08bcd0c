r"""The token denoiser, the discrete twin of ``suffuse.Denoiser``: what each masked token could be, given the others,

    c(x)_{i, a} = log p(x_0^i = a | the unmasked tokens of x).

It is not told the time: an unmasked token is the clean one, so the time says nothing more about those that are masked.
Training, likelihood and every sampler use this one function. Ou et al. (2024), arXiv:2406.03736, thm. 1.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .. import hub
from ..condition import Condition
from ..errors import InvalidArgument
from .process import check_tokens

__all__ = ["NetworkTokenDenoiser", "TokenDenoiser"]


class TokenDenoiser(nn.Module, ABC):
    """log p(x_0 | x) as a function of a partly masked batch and a condition. Subclasses set ``vocabulary``."""

    vocabulary: int

    if TYPE_CHECKING:  # nn.Module's own signature says Any

        def __call__(self, x: Tensor, cond: Condition | None = None) -> Tensor: ...

    @property
    def mask(self) -> int:
        """The mask token, V: the number behind those of the vocabulary."""
        return self.vocabulary

    @abstractmethod
    def forward(self, x: Tensor, cond: Condition | None = None) -> Tensor:
        """Log-probabilities of the clean tokens.

        Args:
            x: int64 (B, L), values 0 .. V; V is the mask.
            cond: what is asked of each sample, or None.

        Returns:
            (B, L, V), normalised over the last axis; an unmasked token is itself with probability one.
        """


def carry_over(log_p: Tensor, x: Tensor) -> Tensor:
    """log_p (B, L, V) where x (B, L) is masked, and certainty of x elsewhere."""
    vocabulary = log_p.shape[-1]
    itself = x[..., None] == torch.arange(vocabulary, device=x.device)
    certain = torch.zeros((), dtype=log_p.dtype, device=x.device).where(itself, -torch.inf)
    return torch.where((x == vocabulary)[..., None], log_p, certain)


@hub.serializable
class NetworkTokenDenoiser(TokenDenoiser):
    """A network made a token denoiser: c = log softmax F(x) where x is masked.

    Args:
        backbone: called as ``backbone(x, cond)`` with x int64 (B, L) in 0 .. V; returns logits (B, L, V), for instance
            a ``TokenTransformer``.
        vocabulary: V.
    """

    def __init__(self, backbone: nn.Module, vocabulary: int) -> None:
        super().__init__()
        if vocabulary < 1:
            raise InvalidArgument(f"vocabulary must be at least 1, got {vocabulary}")
        self.backbone, self.vocabulary = backbone, vocabulary

    def forward(self, x: Tensor, cond: Condition | None = None) -> Tensor:
        check_tokens(x, "x")
        if cond is not None:
            cond.expect(len(x))
        logits: Tensor = self.backbone(x, cond)
        expected = (*x.shape, self.vocabulary)
        if logits.shape != expected:
            raise InvalidArgument(
                f"backbone must return {expected} for x {tuple(x.shape)}, got {tuple(logits.shape)}; is its vocabulary "
                f"{self.vocabulary}?"
            )
        return carry_over(logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1), x)
