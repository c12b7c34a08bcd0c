r"""TD3+BC on the reward of meeting a request, which makes an offline learner of the attribute model.

A step whose window has strengths v_hat earns, under a request (v, m),

    r = -|| (v - v_hat) o m ||_1 / |m|,

and any request can be asked of any step, so requests are drawn anew for every batch. With twin critics Q, the policy
maximises lambda Q(s, pi, v, m) - (pi - a)^2, lambda = alpha / mean |Q|.
Fujimoto, Gu (2021), "A Minimalist Approach to Offline Reinforcement Learning", arXiv:2106.06860. It stands for the
"TDL" (an improved RBA) of Dong et al. (2024), arXiv:2310.02054, which distils the same reward into a network first.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from suffuse.errors import InvalidArgument, TrainingDiverged

from ..data import Scale, Windows
from ..requests import encode, features, features_dim
from .learned import LearnedPolicy, mlp, see


class TD3BC(LearnedPolicy):
    """A policy with ``predict`` and ``request``."""

    @classmethod
    def fit(
        cls,
        windows: Windows,
        *,
        env_id: str,
        steps: int = 5000,
        batch_size: int = 256,
        lr: float = 3e-4,
        hidden: int = 256,
        alpha: float = 2.5,
        discount: float = 0.99,
        tau: float = 0.005,
        keep: float = 0.8,
        scales: Mapping[str, Scale] | None = None,
        seed: int = 0,
    ) -> TD3BC:
        """Train on the first step of each window.

        Args:
            windows: the planner's own training data.
            steps, batch_size, lr: of the optimisers; the policy takes every second step.
            hidden: width of the networks.
            alpha: weight of the critic against cloning.
            discount, tau: of the critics and of their slow copies.
            keep: probability with which an attribute is requested.
            scales: ranges of the requests, if not those of the windows.
        """
        if steps < 1:
            raise InvalidArgument(f"steps must be at least 1, got {steps}")
        observations, actions, _, parts = see(windows, env_id, scales)
        s, after, a = observations[:, 0], observations[:, 1], actions[:, 0]
        scales = parts["scales"]
        strengths = torch.stack([scales[name](values) for name, values in windows.behaviour.items()], 1)
        unit = {name: Scale(0.0, 1.0) for name in scales}
        f, k, o = features_dim(scales), len(scales), s.shape[1]
        generator = torch.Generator().manual_seed(seed)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            actor = mlp(o + f, a.shape[1], hidden).append(nn.Tanh())
            critics = nn.ModuleList(mlp(o + f + a.shape[1], 1, hidden) for _ in range(2))
        slow_actor, slow_critics = copy.deepcopy(actor), copy.deepcopy(critics)
        optimisers = [torch.optim.Adam(net.parameters(), lr=lr) for net in (actor, critics)]

        def requests(n: int) -> tuple[Tensor, Tensor]:
            """Half of them strengths of the data, half uniform, each attribute masked apart."""
            v = strengths[torch.randint(len(strengths), (n,), generator=generator)]
            uniform = torch.rand(n, k, generator=generator)
            v = torch.where(torch.rand(n, 1, generator=generator) < 0.5, v, uniform)
            return v, torch.rand(n, k, generator=generator) < keep

        loss = torch.zeros(())
        for step in range(steps):
            rows = torch.randint(len(s), (batch_size,), generator=generator)
            v, m = requests(batch_size)
            told = {name: torch.where(m[:, i], v[:, i], torch.nan) for i, name in enumerate(scales)}
            x = torch.cat([s[rows], features(encode(told, unit))], 1)
            y = torch.cat([after[rows], x[:, o:]], 1)
            reward = -((v - strengths[rows]).abs() * m).sum(1, keepdim=True) / m.sum(1, keepdim=True).clamp(min=1)
            with torch.no_grad():
                noise = (0.2 * torch.randn(a[rows].shape, generator=generator)).clamp(-0.5, 0.5)
                then = torch.cat([y, (slow_actor(y) + noise).clamp(-1, 1)], 1)
                target = reward + discount * torch.minimum(*(critic(then) for critic in slow_critics))
            now = torch.cat([x, a[rows]], 1)
            loss = torch.stack([(critic(now) - target).square().mean() for critic in critics]).sum()
            optimisers[1].zero_grad()
            loss.backward()
            optimisers[1].step()
            if step % 2:
                continue
            action = actor(x)
            q = critics[0](torch.cat([x, action], 1))
            improve = -alpha / q.abs().mean().detach().clamp(min=1e-6) * q.mean() + (action - a[rows]).square().mean()
            optimisers[0].zero_grad()
            improve.backward()
            optimisers[0].step()
            with torch.no_grad():
                for fast, slow in ((actor, slow_actor), (critics, slow_critics)):
                    for p, q_ in zip(fast.parameters(), slow.parameters(), strict=True):
                        q_.lerp_(p, tau)
        if not bool(loss.isfinite()):
            raise TrainingDiverged(f"the critic's loss became NaN or infinite within {steps} steps; lower lr={lr}")
        return cls(actor, **parts)
