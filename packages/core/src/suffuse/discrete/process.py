r"""The absorbing process: every token of a sequence turns into the mask at some time, apart from the others, and stays.

With the cumulated rate sbar(t), a token is masked at time t with probability

    l(t) = 1 - exp(-sbar(t)),        here log-linear: sbar(t) = -log(1 - (1 - eps) t),  so  l(t) = (1 - eps) t,

and the bound on the likelihood weighs the masked tokens of x_t by sbar'(t) / (exp(sbar(t)) - 1) = l'(t) / l(t).
Ou et al. (2024), "Your Absorbing Discrete Diffusion Secretly Models the Conditional Distributions of Clean Data"
(RADD), arXiv:2406.03736; the log-linear noise is of Lou et al. (2023), arXiv:2310.16834.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import InvalidArgument

__all__ = ["AbsorbingProcess", "check_tokens"]


@dataclass(frozen=True)
class AbsorbingProcess:
    """Tokens 0 .. vocabulary - 1 and the mask, which is the token number ``vocabulary``. Times are in [0, 1], 0 data.

    Args:
        vocabulary: V, the number of clean tokens.
        eps: what is left unmasked at t = 1, in [0, 1).
    """

    vocabulary: int
    eps: float = 1e-3

    def __post_init__(self) -> None:
        if self.vocabulary < 1:
            raise InvalidArgument(f"vocabulary must be at least 1, got {self.vocabulary}")
        if not 0 <= self.eps < 1:
            raise InvalidArgument(f"eps must lie in [0, 1), got {self.eps}")

    @property
    def mask(self) -> int:
        """The mask token, V."""
        return self.vocabulary

    def mask_probability(self, t: Tensor | float) -> Tensor:
        """l(t) = (1 - eps) t, float64."""
        return (1 - self.eps) * torch.as_tensor(t, dtype=torch.float64)

    def sbar(self, t: Tensor | float) -> Tensor:
        """-log(1 - l(t)), float64."""
        return -torch.log1p(-self.mask_probability(t))

    def dsbar(self, t: Tensor | float) -> Tensor:
        """sbar'(t) = l'(t) / (1 - l(t)), float64."""
        return (1 - self.eps) / (1 - self.mask_probability(t))

    def weight(self, t: Tensor | float) -> Tensor:
        """sbar'(t) / (exp(sbar(t)) - 1) = l'(t) / l(t), float64: of the masked tokens of x_t, t > 0, in the bound."""
        return (1 - self.eps) / self.mask_probability(t)

    def corrupt(self, x0: Tensor, t: Tensor | float, generator: torch.Generator | None = None) -> Tensor:
        """x_t for clean tokens x0.

        Args:
            x0: int64 (B, L).
            t: a time for all, or (B,).
            generator: on the device of x0.
        """
        check_tokens(x0, "x0")
        level = self.mask_probability(t).to(x0.device)
        u = torch.rand(x0.shape, generator=generator, device=x0.device, dtype=torch.float64)
        return x0.masked_fill(u < level.reshape(-1, 1), self.mask)


def check_tokens(x: Tensor, name: str) -> None:
    """Raise InvalidArgument unless x is int64 of shape (B, L)."""
    if x.dtype != torch.int64 or x.ndim != 2 or x.shape[1] < 1:
        raise InvalidArgument(f"{name} must be tokens, int64 of shape (B, L), got {x.dtype} {tuple(x.shape)}")
