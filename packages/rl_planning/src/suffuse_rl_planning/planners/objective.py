"""The planner's training loss: the current observation is given clean, and the first action counts most.

With M the pinned entries (the observation of step 0), W the loss weights and w(t) core's weighting of noise levels,

    x_t = M x_0 + (1 - M) (alpha_t x_0 + sigma_t eps),    L = E w(t) mean(W (1 - M) (D(x_t, t, c) - x_0)^2).

A sampler that pins the clean observation at every level then shows the network what it was trained on; noising the
known part as in image inpainting would not. Janner et al. (2022), arXiv:2205.09991; weight 10 of the first action as
in their code and in Dong et al. (2024), arXiv:2310.02054.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from suffuse import Condition, Denoiser
from suffuse.training import DenoisingObjective


@dataclass(frozen=True)
class PinnedObjective(DenoisingObjective):
    """Core's denoising objective on normalised plans x0 (B, o + a, H), with the first observation pinned.

    Args:
        cond_dropout, drop_per_name: each behaviour is masked apart from the others, so that any subset can be asked.
        observation_dim: o.
        first_action_weight: W of the action that is executed first; 1 elsewhere.
        next_observation_weight: W of the observation of step 1, for plans without actions, from which an inverse model
            reads the first action.
        drop_all: probability that nothing at all is asked. Masking each of k behaviours with p leaves only p^k of the
            batch to learn the null condition from, which guidance subtracts; 0 in the AlignDiff paper.
    """

    cond_dropout: float = 0.2
    drop_per_name: bool = True
    observation_dim: int = 0
    first_action_weight: float = 10.0
    next_observation_weight: float = 1.0
    drop_all: float = 0.1

    def __call__(
        self,
        denoiser: Denoiser,
        x0: Tensor,
        cond: Condition | None = None,
        generator: torch.Generator | None = None,
        weight: Tensor | None = None,
        known: Tensor | None = None,
    ) -> Tensor:
        """The scalar loss of a batch; ``weight`` and ``known`` broadcast against x0."""
        pinned, per_entry = self.masks(x0)
        weight = per_entry if weight is None else per_entry * weight
        cond = None if cond is None else cond.dropout(self.drop_all, generator)
        return super().__call__(denoiser, x0, cond, generator, weight, pinned if known is None else pinned | known)

    def masks(self, x0: Tensor) -> tuple[Tensor, Tensor]:
        """M (o + a, H) bool, and W (1 - M) with mean 1."""
        pinned = torch.zeros(x0.shape[1:], dtype=torch.bool, device=x0.device)
        pinned[: self.observation_dim, 0] = True
        per_entry = torch.ones(x0.shape[1:], device=x0.device, dtype=x0.dtype).masked_fill(pinned, 0.0)
        per_entry[: self.observation_dim, 1] = self.next_observation_weight
        per_entry[self.observation_dim :, 0] = self.first_action_weight
        return pinned, per_entry / per_entry.mean()
