"""A sequence model in the manner of the Decision Transformer, told of behaviours in place of a return.

    [command, s_1, a_1, s_2, a_2, ..., s_C]  ->  a_C

A causal transformer reads the command and the last C steps, and regresses the action at every observation.
Chen et al. (2021), "Decision Transformer: Reinforcement Learning via Sequence Modeling", arXiv:2106.01345.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..data import Scale, Windows
from ..envs import Array, robot
from ..regression import regress
from ..requests import features, features_dim
from .learned import LearnedPolicy, see


class CausalModel(nn.Module):
    """Commands (B, f), observations (B, C, o), actions (B, C, a), absent (B, C) bool -> actions (B, C, a).

    The action of step c is predicted from the command, observations up to c and actions before c.
    """

    def __init__(self, told: int, o: int, a: int, context: int, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.context = context
        self.command, self.observation, self.action = (nn.Linear(n, width) for n in (told, o, a))
        self.place = nn.Parameter(torch.randn(context, width) * 0.02)
        layer = nn.TransformerEncoderLayer(width, heads, 4 * width, dropout=0.0, batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.head = nn.Linear(width, a)

    def forward(self, told: Tensor, observations: Tensor, actions: Tensor, absent: Tensor) -> Tensor:
        c = observations.shape[1]
        steps = torch.stack([self.observation(observations) + self.place[:c], self.action(actions) + self.place[:c]], 2)
        h = torch.cat([self.command(told)[:, None], steps.flatten(1, 2)], 1)
        later = torch.ones(h.shape[1], h.shape[1], dtype=torch.bool, device=h.device).triu(1)
        hidden = torch.cat([absent.new_zeros(len(absent), 1), absent.repeat_interleave(2, 1)], 1)
        return self.head(self.blocks(h, mask=later, src_key_padding_mask=hidden)[:, 1::2])


class DecisionTransformer(LearnedPolicy):
    """A policy with ``predict`` and ``request``; its state is the last C steps.

    Args:
        network: see ``CausalModel``.
        options: of ``LearnedPolicy``.
    """

    network: CausalModel

    def __init__(self, network: CausalModel, **options: Any) -> None:
        super().__init__(network, **options)

    @classmethod
    def fit(
        cls,
        windows: Windows,
        *,
        env_id: str,
        steps: int = 1500,
        batch_size: int = 32,
        lr: float = 1e-3,
        hidden: int = 64,
        depth: int = 2,
        heads: int = 4,
        dropout: float = 0.1,
        scales: Mapping[str, Scale] | None = None,
        seed: int = 0,
    ) -> DecisionTransformer:
        """Train on random ends of windows; their length is the context C.

        Args:
            windows: the planner's own training data.
            steps, batch_size, lr: of the optimiser.
            hidden, depth, heads: of the transformer.
            dropout: probability with which a request is masked.
            scales: ranges of the requests, if not those of the windows.
        """
        s, a, told, parts = see(windows, env_id, scales)
        context = s.shape[1]
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            network = CausalModel(
                features_dim(parts["scales"]), s.shape[-1], a.shape[-1], context, hidden, depth, heads
            )

        def loss(rows: Tensor, generator: torch.Generator) -> Tensor:
            asked = features(told[rows].dropout(dropout, generator, per_name=True))
            first = torch.randint(context, (len(rows), 1), generator=generator)
            absent = torch.arange(context) < first
            error = (network(asked, s[rows], a[rows], absent) - a[rows]).square().mean(-1)
            return error[~absent].mean()

        regress(network, loss, len(windows), steps=steps, batch_size=batch_size, lr=lr, seed=seed)
        return cls(network, **parts)

    @torch.no_grad()
    def predict(
        self, observation: Array, state: Any = None, episode_start: Array | None = None, deterministic: bool = True
    ) -> tuple[Array, Any]:
        """observation (n, o) or (o,) -> (action (n, a) or (a,), the last steps)."""
        o, single = self.batch(observation)
        n, c, a = len(o), self.network.context, robot(self.env_id).joints
        if state is None:
            state = torch.zeros(n, c, o.shape[1]), torch.zeros(n, c, a), torch.ones(n, c, dtype=torch.bool)
        seen, done, absent = (part.roll(-1, 1) for part in state)
        if episode_start is not None:
            absent[np.asarray(episode_start, bool).reshape(-1)] = True
        seen[:, -1], done[:, -1], absent[:, -1] = self.normaliser(o), 0.0, False
        action = self.network(self.told(n), seen, done, absent)[:, -1].clamp(-1.0, 1.0)
        done[:, -1] = action
        return (action[0] if single else action).numpy(), (seen, done, absent)
