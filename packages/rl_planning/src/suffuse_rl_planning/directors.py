"""Directors: which of the candidate plans is best. Each is a function

    (observations (n, K, H, o), actions (n, K, H, a), requests name -> (n,) with NaN, scales) -> costs (n, K),

the least being best. They see the units of the environment, and need no gradient: any rule is a director.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from . import behaviours
from .data import Scale
from .envs import control_step, robot

if TYPE_CHECKING:
    from .attributes import Attributes

Director = Callable[[Tensor, Tensor, Mapping[str, Tensor], Mapping[str, Scale]], Tensor]


def measured(env_id: str) -> Director:
    """Measures each plan as it would a rollout: sum over requests of |u(plan) - u(requested)|."""
    known, dt = robot(env_id), control_step(env_id)

    def cost(
        observations: Tensor, actions: Tensor, requests: Mapping[str, Tensor], scales: Mapping[str, Scale]
    ) -> Tensor:
        horizon, plans = observations.shape[2], observations.shape[:2]
        series = behaviours.per_step(known, observations.cpu().numpy(), actions.cpu().numpy())
        flat = {name: values.reshape(-1) for name, values in series.items()}
        first = np.arange(plans.numel()) * horizon
        total = torch.zeros(plans)
        for name, scale in scales.items():
            achieved = behaviours.over(name, flat, first, first + horizon, dt).reshape(plans)
            asked = requests[name][:, None].cpu()
            error = (scale(torch.from_numpy(achieved).float()) - scale(asked)).abs()
            total += torch.where(asked.isfinite(), error, 0.0)
        return total.to(observations.device)

    return cost


def attribute_distance(attributes: Attributes) -> Director:
    """|| (v - zeta(plan)) o m ||^2: how far the predicted attributes of a plan are from the requested ones.

    Dong et al. (2024), "AlignDiff", arXiv:2310.02054, section 4.3.
    """

    def cost(
        observations: Tensor, actions: Tensor, requests: Mapping[str, Tensor], scales: Mapping[str, Scale]
    ) -> Tensor:
        strengths = attributes(observations)
        total = torch.zeros(observations.shape[:2], device=observations.device)
        for k, name in enumerate(attributes.names):
            asked = requests[name][:, None].to(total)
            total += torch.where(asked.isfinite(), (strengths[..., k] - asked).square(), 0.0)
        return total

    return cost


def disagreement(attributes: Attributes) -> Director:
    """Standard deviation of the strengths between members of the ensemble: large where a plan is unlike the data."""

    def cost(
        observations: Tensor, actions: Tensor, requests: Mapping[str, Tensor], scales: Mapping[str, Scale]
    ) -> Tensor:
        with torch.no_grad():
            each = attributes.model.each(observations.flatten(0, 1))
        return each.std(0, correction=0).mean(-1).unflatten(0, observations.shape[:2])

    return cost


def limit(violation: Callable[[Tensor, Tensor], Tensor]) -> Director:
    """A constraint: ``violation(observations, actions)`` gives (n, K, H), positive where a step breaks the rule."""

    def cost(
        observations: Tensor, actions: Tensor, requests: Mapping[str, Tensor], scales: Mapping[str, Scale]
    ) -> Tensor:
        return violation(observations, actions).clamp(min=0).sum(-1)

    return cost


def weighted(*parts: tuple[float, Director]) -> Director:
    """The weighted sum of directors."""

    def cost(
        observations: Tensor, actions: Tensor, requests: Mapping[str, Tensor], scales: Mapping[str, Scale]
    ) -> Tensor:
        costs = [weight * director(observations, actions, requests, scales) for weight, director in parts]
        return torch.stack(costs).sum(0)

    return cost
