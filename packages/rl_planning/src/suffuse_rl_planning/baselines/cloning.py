"""Goal-conditioned behaviour cloning: regress the action on the observation and the requested behaviour.

Minimises E |pi(s_t, v, m) - a_t|^2 over the steps of the same windows that a planner is trained on, where v is the
behaviour measured over the window and m its mask. Emmons et al. (2022), "RvS: What is Essential for Offline RL via
Supervised Learning?", arXiv:2112.10751.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..data import Normaliser, Scale, Windows
from ..envs import Array, robot
from ..regression import regress
from ..requests import Commanded, encode, features, features_dim


class BehaviourCloning(Commanded):
    """A policy with ``predict`` and ``request``.

    Args:
        network: (n, o + K 8) normalised observation, K tokens and K masks -> (n, a).
        env_id: the robot.
        normaliser: of observations, (o,).
        scales: name -> range of the behaviour in the data.
    """

    def __init__(self, network: nn.Module, *, env_id: str, normaliser: Normaliser, scales: Mapping[str, Scale]) -> None:
        super().__init__(env_id, scales)
        self.network, self.normaliser = network.eval(), normaliser

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
        o = robot(env_id).observation_dim
        observations, actions = windows.trajectories[..., :o], windows.trajectories[..., o:]
        normaliser = Normaliser.fit(observations.flatten(0, 1))
        scales = scales or {name: Scale.fit(values) for name, values in windows.behaviour.items()}
        cond = encode(windows.behaviour, scales)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            network = nn.Sequential(
                nn.Linear(o + features_dim(scales), hidden),
                nn.SiLU(),
                nn.Linear(hidden, hidden),
                nn.SiLU(),
                nn.Linear(hidden, actions.shape[-1]),
            )

        def loss(rows: Tensor, generator: torch.Generator) -> Tensor:
            told = features(cond[rows].dropout(dropout, generator, per_name=True))
            s = normaliser(observations[rows])
            x = torch.cat([s, told[:, None].expand(-1, s.shape[1], -1)], -1)
            return (network(x) - actions[rows]).square().mean()

        regress(network, loss, len(windows), steps=steps, batch_size=batch_size, lr=lr, seed=seed)
        return cls(network, env_id=env_id, normaliser=normaliser, scales=scales)

    @torch.no_grad()
    def predict(
        self, observation: Array, state: Any = None, episode_start: Array | None = None, deterministic: bool = True
    ) -> tuple[Array, Any]:
        """observation (n, o) or (o,) -> (action (n, a) or (a,), None)."""
        o, single = self.batch(observation)
        told = features(encode(self.asked(len(o)), self.scales))
        action = self.network(torch.cat([self.normaliser(o), told], -1)).clamp(-1.0, 1.0).numpy()
        return (action[0] if single else action), None
