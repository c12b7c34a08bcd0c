r"""The feature predictor: descriptors and process parameters of a latent, each with its uncertainty.

    z (B, C, x, y, z) -> mean and standard deviation of each attribute, by convolutions and a mean over the volume,

trained by the negative log-likelihood of a normal distribution, in normal scores (``AttributeScaler``):

    L = 1/2 log s^2 + (y - m)^2 / (2 s^2).

Process parameters can only be told up to the spread that simulations of equal parameters have, so s matters as much as
m. Nix, Weigend (1994), "Estimating the mean and variance of the target probability distribution"; the weight s^(2 beta)
of each entry, beta = 1/2, against a variance that grows where the mean is bad: Seitzer et al. (2022), arXiv:2203.09168.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from suffuse import Condition
from suffuse.errors import InvalidArgument
from suffuse.hub import serializable

from .layers import Block, ChannelNorm, Conv, space_to_depth

__all__ = ["FeaturePredictor", "Prediction", "predictor_loss"]


class Prediction(NamedTuple):
    """(B, A) means and standard deviations, in normal scores."""

    mean: Tensor
    std: Tensor


@serializable
class FeaturePredictor(nn.Module):
    """Latents to attributes.

    Args:
        names: the attributes, A of them.
        latent_channels: C.
        width: channels.
        periodic: per axis, whether it wraps.
    """

    spread: Tensor

    def __init__(
        self,
        names: Sequence[str],
        latent_channels: int = 4,
        width: int = 64,
        periodic: Sequence[bool] = (True, True, True),
    ) -> None:
        super().__init__()
        if not names:
            raise InvalidArgument("names is empty; name the attributes to predict")
        self.names, self.latent_channels = tuple(names), latent_channels
        self.stem = Conv(latent_channels, width, periodic)
        self.fine, self.coarse = Block(width, 0, periodic), Block(width, 0, periodic)
        self.shrink = nn.Conv3d(8 * width, width, 1)
        self.norms = nn.ModuleList([ChannelNorm(width), ChannelNorm(width)])
        self.head = nn.Sequential(nn.Linear(4 * width, width), nn.SiLU(), nn.Linear(width, 2 * len(self.names)))
        self.register_buffer("spread", torch.ones(len(self.names)))

    def forward(self, z: Tensor) -> Prediction:
        if z.ndim != 5 or z.shape[1] != self.latent_channels:
            raise InvalidArgument(f"z must be (B, {self.latent_channels}, x, y, z), got shape {tuple(z.shape)}")
        fine = self.fine(self.stem(z))
        even = F.pad(fine, [s for n in reversed(fine.shape[2:]) for s in (0, n % 2)], mode="replicate")
        coarse = self.coarse(self.shrink(space_to_depth(even)))
        pooled = []
        for h, norm in zip((fine, coarse), self.norms, strict=True):
            h = F.silu(norm(h))
            pooled += [h.mean((2, 3, 4)), h.square().mean((2, 3, 4))]
        mean, raw = self.head(torch.cat(pooled, 1)).chunk(2, 1)
        return Prediction(mean, self.spread * (F.softplus(raw) + 1e-3))

    def calibrate(self, z: Tensor, scores: Tensor) -> None:
        """Scale each standard deviation so that held-out errors have it: latents (N, C, ...), scores (N, A)."""
        self.spread.fill_(1.0)
        with torch.no_grad():
            mean, std = self(z)
        known = scores.isfinite()
        error = torch.where(known, ((scores - mean) / std).square(), 0.0)
        self.spread.copy_((error.sum(0) / known.sum(0).clamp_min(1)).sqrt().clamp_min(1e-3))


def predictor_loss(
    model: Any,
    x0: Tensor,
    cond: Condition | None = None,
    generator: torch.Generator | None = None,
    weight: Tensor | None = None,
) -> Tensor:
    """The loss above, for ``suffuse.training.fit``; the condition holds the scores as the token "scores" (B, 1, A)."""
    assert cond is not None
    scores = cond.tokens["scores"][:, 0]
    mean, std = model(x0)
    known = scores.isfinite()
    nll = std.log() + 0.5 * ((torch.where(known, scores, mean) - mean) / std).square()
    return (nll * std.detach() * known).mean()
