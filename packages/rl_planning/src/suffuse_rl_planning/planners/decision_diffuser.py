"""Decision Diffuser: plans of observations alone, asked for a return or a behaviour, and an inverse model for actions.

    x = (s_0, ..., s_{H-1}),    a_t = I(s_t, s_{t+1})

Actions of motors jump where observations are smooth, so they are not diffused. The loss weighs s_1, from which the
first action is read, by 10.
Ajay et al. (2022), "Is Conditional Generative Modeling all you need for Decision-Making?", arXiv:2211.15657, section 3.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from suffuse import Denoiser, hub
from suffuse.errors import InvalidArgument
from suffuse.hub import serializable

from ..data import Normaliser, Windows
from ..envs import robot
from ..regression import regress
from .conditional import DiffusionPlanner


@serializable
class InverseModel(nn.Module):
    """Normalised observations s_t and s_{t+1} (..., o) each -> action (..., a).

    Args:
        observation_dim, action_dim: o and a.
        hidden: width of two hidden layers.
    """

    def __init__(self, observation_dim: int, action_dim: int, hidden: int = 256) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(2 * observation_dim, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(),
            nn.Linear(hidden, action_dim),
        )  # fmt: skip

    def forward(self, now: Tensor, then: Tensor) -> Tensor:
        return self.net(torch.cat([now, then], -1))


class DecisionDiffuser(DiffusionPlanner):
    """A planner whose plans hold no actions.

    Args:
        denoiser: of plans (B, o, H), conditioned on one token per request.
        inverse: reads actions from them; the last step of a plan repeats the action before it.
        options: of ``DiffusionPlanner``.
    """

    KIND: ClassVar[str] = "decision-diffuser"
    NEXT_OBSERVATION: ClassVar[float] = 10.0

    def __init__(self, denoiser: Denoiser, *, inverse: InverseModel, temperature: float = 0.5, **options: Any) -> None:
        super().__init__(denoiser, temperature=temperature, **options)
        self.inverse = inverse.eval().requires_grad_(False)
        if self.replan >= self.horizon:
            raise InvalidArgument(f"replan must be below the horizon of {self.horizon} steps, got {self.replan}")

    def decode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        s = self.normaliser(x)
        actions = self.inverse(s[..., :-1, :], s[..., 1:, :]).clamp(-1.0, 1.0)
        return x.clone(), torch.cat([actions, actions[..., -1:, :]], -2)

    @classmethod
    def plans_of(cls, windows: Windows, env_id: str) -> tuple[Normaliser, Tensor]:
        observations = windows.trajectories[..., : robot(env_id).observation_dim]
        normaliser = Normaliser.fit(observations.flatten(0, 1))
        return normaliser, normaliser(observations).transpose(1, 2).contiguous()

    @classmethod
    def fit(cls, windows: Windows, *, env_id: str, inverse_steps: int = 2000, seed: int = 0, **options: Any) -> Any:
        """Train the inverse model, then the denoiser.

        Args:
            windows: of ``Episodes.windows``; for a planner of returns, with ``behaviour={"returns": ...}``.
            env_id: the robot.
            inverse_steps: optimiser steps of the inverse model.
            seed: of everything.
            options: of ``DiffusionPlanner.fit``.
        """
        o = robot(env_id).observation_dim
        normaliser = Normaliser.fit(windows.trajectories[..., :o].flatten(0, 1))
        s, a = normaliser(windows.trajectories[..., :o]), windows.trajectories[..., o:]
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            inverse = InverseModel(o, a.shape[-1])

        def loss(rows: Tensor, generator: torch.Generator) -> Tensor:
            return (inverse(s[rows, :-1], s[rows, 1:]) - a[rows, :-1]).square().mean()

        regress(inverse, loss, len(windows), steps=inverse_steps, seed=seed)
        return super().fit(windows, env_id=env_id, inverse=inverse, seed=seed, **options)

    def save(self, path: Path | str, metadata: Mapping[str, Any] | None = None) -> Path:
        hub.save(self.inverse, Path(path) / "inverse")
        return super().save(path, metadata)

    @classmethod
    def parts(cls, path: Path, device: str) -> dict[str, Any]:
        return {"inverse": hub.load(path / "inverse", device)}
