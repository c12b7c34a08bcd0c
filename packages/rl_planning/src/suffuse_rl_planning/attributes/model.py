"""The strength of k attributes of a stretch of observations, learned from answers to "which has more of it?".

A member of the ensemble reads T normalised observations, a learned token at the end, and says z = 20 tanh(f / 20) of
that token. With y = 1 where the second of a pair has more, 0 where the first, and 1/2 for a tie,

    P[first > second] = sigmoid(z(first) - z(second)),    L = -E[(1 - y) log P + y log(1 - P)],

for each attribute apart (Bradley and Terry, 1952). Actions are not read: behaviour is what can be seen.
Dong et al. (2024), "AlignDiff", arXiv:2310.02054, section 4.1; sizes as in its code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from suffuse import Condition
from suffuse.errors import InvalidArgument
from suffuse.hub import serializable
from suffuse.nets.dit import positions

ANSWERS = "answers"


class Member(nn.Module):
    """A transformer: observations (B, T, o) -> strengths (B, k)."""

    def __init__(self, observation_dim: int, attributes: int, width: int, depth: int, heads: int, patch: int) -> None:
        super().__init__()
        self.patch = patch
        self.embed = nn.Sequential(nn.Linear(patch * observation_dim, width), nn.LayerNorm(width))
        self.token = nn.Parameter(torch.randn(width) * 0.02)
        layer = nn.TransformerEncoderLayer(width, heads, 4 * width, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.head = nn.Linear(width, attributes)

    def forward(self, observations: Tensor) -> Tensor:
        tokens = observations.shape[1] // self.patch
        h = self.embed(observations[:, : tokens * self.patch].reshape(len(observations), tokens, -1))
        h = h + positions((h.shape[1],), h.shape[2], h.device).to(h.dtype)
        h = torch.cat([h, self.token.expand(len(h), 1, -1)], 1)
        return 20 * torch.tanh(self.head(self.encoder(h)[:, -1]) / 20)


@serializable
class StrengthEnsemble(nn.Module):
    """Observations (B, T, o) in the units of the environment -> strengths (B, k), the mean over members.

    Args:
        attributes: their names.
        mean, std: of the observations, (o,).
        members: independent transformers.
        width, depth, heads: of each; width 128 in the paper's code.
        patch: observations in one token, 1 in the paper's code; what is left over at the end is not read.
    """

    def __init__(
        self,
        attributes: Sequence[str],
        mean: Sequence[float],
        std: Sequence[float],
        members: int = 3,
        width: int = 128,
        depth: int = 2,
        heads: int = 4,
        patch: int = 1,
    ) -> None:
        super().__init__()
        if members < 1 or not attributes:
            raise InvalidArgument(
                f"members and the number of attributes must be at least 1, got {members}, {attributes}"
            )
        if width % (2 * heads):
            raise InvalidArgument(f"width={width} must be a multiple of 2 heads = {2 * heads}")
        self.attributes, self.patch = tuple(attributes), patch
        self.register_buffer("mean", torch.tensor(mean), persistent=False)
        self.register_buffer("std", torch.tensor(std), persistent=False)
        self.members = nn.ModuleList(
            Member(len(mean), len(attributes), width, depth, heads, patch) for _ in range(members)
        )

    mean: Tensor
    std: Tensor

    def forward(self, observations: Tensor) -> Tensor:
        return self.each(observations).mean(0)

    def each(self, observations: Tensor) -> Tensor:
        """What each member says: (members, B, k)."""
        size = len(self.mean)
        if observations.ndim != 3 or observations.shape[2] != size:
            raise InvalidArgument(f"observations must be (B, T, {size}), got {tuple(observations.shape)}")
        if observations.shape[1] < self.patch:
            raise InvalidArgument(f"{observations.shape[1]} steps are fewer than the patch of {self.patch}")
        normalised = (observations - self.mean) / self.std
        return torch.stack([member(normalised) for member in self.members])


@dataclass(frozen=True)
class BradleyTerry:
    """The loss of answered pairs, an objective for ``suffuse.training.fit``.

    Each member sees pairs of its own, drawn from the batch with replacement, and each batch a random crop of its
    pairs, so that windows of any length from ``shortest`` on can be judged later.

    Args:
        shortest: steps of the shortest crop; 0 for no crops.
    """

    shortest: int = 16

    def __call__(
        self,
        model: StrengthEnsemble,
        pairs: Tensor,
        cond: Condition | None = None,
        generator: torch.Generator | None = None,
        weight: Tensor | None = None,
    ) -> Tensor:
        """The mean over members, pairs and attributes.

        Args:
            model: what is trained.
            pairs: (B, 2, T, o).
            cond: the token "answers" (B, 1, k): y.
        """
        assert cond is not None
        length = pairs.shape[2]
        if 0 < self.shortest < length:
            length = int(torch.randint(self.shortest, length + 1, (), generator=generator, device=pairs.device))
        first = int(torch.randint(pairs.shape[2] - length + 1, (), generator=generator, device=pairs.device))
        seen = (pairs[:, :, first : first + length] - model.mean) / model.std
        y = cond.tokens[ANSWERS][:, 0]
        loss = pairs.new_zeros(())
        for member in model.members:
            rows = torch.randint(len(pairs), (len(pairs),), generator=generator, device=pairs.device)
            one, two = member(seen[rows].flatten(0, 1)).unflatten(0, (-1, 2)).unbind(1)
            loss = loss + F.binary_cross_entropy_with_logits(one - two, 1 - y[rows])
        return loss / len(model.members)


@torch.no_grad()
def accuracy(model: StrengthEnsemble, pairs: Tensor, answers: Tensor) -> Tensor:
    """Share of the pairs (N, 2, T, o) whose order is that of the answers y (N, k), ties left out: (k,)."""
    device = model.mean.device
    one, two = (torch.cat([model(part.to(device)).cpu() for part in pairs[:, i].split(512)]) for i in range(2))
    decided = answers != 0.5
    return ((one < two) == (answers > 0.5)).logical_and(decided).sum(0) / decided.sum(0).clamp(min=1)
