"""What the learned baselines share: how they read windows, and a network with the scale of what it is shown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from suffuse import Condition

from ..data import Normaliser, Scale, Windows
from ..envs import Array, robot
from ..requests import Commanded, encode, features


class Seen(NamedTuple):
    """Windows as a baseline reads them.

    Attributes:
        observations: (W, H, o), normalised.
        actions: (W, H, a).
        told: the measured behaviour as a condition of W rows.
        parts: what a policy keeps of the data: ``env_id``, ``normaliser`` and ``scales``.
    """

    observations: Tensor
    actions: Tensor
    told: Condition
    parts: dict[str, Any]


def see(windows: Windows, env_id: str, scales: Mapping[str, Scale] | None) -> Seen:
    """Windows, with scales of their own where none are given."""
    o = robot(env_id).observation_dim
    observations, actions = windows.trajectories[..., :o], windows.trajectories[..., o:]
    normaliser = Normaliser.fit(observations.flatten(0, 1))
    scales = dict(scales or {name: Scale.fit(values) for name, values in windows.behaviour.items()})
    parts = {"env_id": env_id, "normaliser": normaliser, "scales": scales}
    return Seen(normaliser(observations), actions, encode(windows.behaviour, scales), parts)


class LearnedPolicy(Commanded):
    """A policy with ``predict`` and ``request`` that reads the last observation only.

    Args:
        network: (n, o + f) normalised observation and ``requests.features`` -> (n, a).
        env_id: the robot.
        normaliser: of observations, (o,).
        scales: name -> range of the behaviour in the data.
    """

    def __init__(self, network: nn.Module, *, env_id: str, normaliser: Normaliser, scales: Mapping[str, Scale]) -> None:
        super().__init__(env_id, scales)
        self.network, self.normaliser = network.eval(), normaliser

    def told(self, n: int) -> Tensor:
        """The requests of n environments, (n, f)."""
        return features(encode(self.asked(n), self.scales))

    @torch.no_grad()
    def predict(
        self, observation: Array, state: Any = None, episode_start: Array | None = None, deterministic: bool = True
    ) -> tuple[Array, Any]:
        """observation (n, o) or (o,) -> (action (n, a) or (a,), None)."""
        o, single = self.batch(observation)
        action = self.network(torch.cat([self.normaliser(o), self.told(len(o))], -1)).clamp(-1.0, 1.0).numpy()
        return (action[0] if single else action), None


def mlp(inputs: int, outputs: int, hidden: int) -> nn.Sequential:
    """Two hidden layers."""
    return nn.Sequential(
        nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, outputs)
    )
