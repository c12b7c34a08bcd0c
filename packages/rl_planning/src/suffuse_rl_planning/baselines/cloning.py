"""Goal-conditioned behaviour cloning: regress the action on the observation and the requested behaviour.

Minimises E |pi(s_t, v, m) - a_t|^2 over the steps of the same windows that a planner is trained on, where v is the
behaviour measured over the window and m its mask. Emmons et al. (2022), "RvS: What is Essential for Offline RL via
Supervised Learning?", arXiv:2112.10751.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..data import Scale, Windows
from ..regression import regress
from ..requests import features, features_dim
from .learned import LearnedPolicy, mlp, see


class BehaviourCloning(LearnedPolicy):
    """A policy with ``predict`` and ``request``."""

    @classmethod
    def fit(
        cls,
        windows: Windows,
        *,
        env_id: str,
        steps: int = 1500,
        batch_size: int = 64,
        lr: float = 1e-3,
        hidden: int = 256,
        dropout: float = 0.1,
        scales: Mapping[str, Scale] | None = None,
        seed: int = 0,
    ) -> BehaviourCloning:
        """Train on all steps of random windows.

        Args:
            windows: the planner's own training data.
            steps, batch_size: optimiser steps, and windows per step.
            lr: of AdamW, annealed to zero by a cosine.
            hidden: width of two hidden layers.
            dropout: probability with which a request is masked.
            scales: ranges of the requests, if not those of the windows.
        """
        s, a, told, parts = see(windows, env_id, scales)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            network = mlp(s.shape[-1] + features_dim(parts["scales"]), a.shape[-1], hidden)

        def loss(rows: Tensor, generator: torch.Generator) -> Tensor:
            asked = features(told[rows].dropout(dropout, generator, per_name=True))
            x = torch.cat([s[rows], asked[:, None].expand(-1, s.shape[1], -1)], -1)
            return (network(x) - a[rows]).square().mean()

        regress(network, loss, len(windows), steps=steps, batch_size=batch_size, lr=lr, seed=seed)
        return cls(network, **parts)
