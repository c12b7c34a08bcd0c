r"""Diffuser: plans from an unconditional model, bent towards a large return by the gradient of a value network.

A value network V(x_t, t) of noisy plans learns the return y that follows from the plan's start. Guidance is

    D = D_u + w (sigma^2 / alpha) grad_x V(x_t, t),

the posterior mean under p(x) exp(w V). Of K plans the one with the largest V at the clean end is executed.
Janner et al. (2022), "Planning with Diffusion for Flexible Behavior Synthesis", arXiv:2205.09991, section 3.2.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from suffuse import Condition, Denoiser, hub
from suffuse.errors import InvalidArgument
from suffuse.hub import serializable
from suffuse.nets import MLP
from suffuse.schedules import Scalar, Schedule
from suffuse.training import UniformTime, fit

from ..data import Scale, Windows
from ..directors import Director
from ..envs import robot
from .conditional import DiffusionPlanner, finite, train
from .formulations import formulation as by_name

RETURNS = "returns"


@serializable
class ValueNetwork(nn.Module):
    """V(x_t, t) (B,) of noisy normalised plans (B, channels, H), in standard deviations of the return.

    Args:
        channels, horizon: of a plan.
        schedule: of the noise.
        hidden, depth: of the residual MLP.
    """

    def __init__(self, channels: int, horizon: int, schedule: Schedule, hidden: int = 256, depth: int = 3) -> None:
        super().__init__()
        self.backbone, self.schedule = MLP(channels * horizon, hidden, depth, out_dim=1), schedule

    def forward(self, x: Tensor, t: Scalar) -> Tensor:
        level = self.schedule.level(t, like=x)
        label = torch.as_tensor(level.log_kappa, device=x.device, dtype=x.dtype).reshape(-1).clamp(-12, 5) / 4
        scale = (level.alpha**2 + level.sigma**2) ** -0.5
        return self.backbone(x * scale, label.expand(len(x)))[:, 0]


@dataclass(frozen=True)
class NoisyRegression:
    """E (V(x_t, t) - y)^2 with the first observation pinned: an objective for ``suffuse.training.fit``.

    Args:
        observation_dim: o.
    """

    observation_dim: int

    def __call__(
        self,
        model: ValueNetwork,
        x0: Tensor,
        cond: Condition | None = None,
        generator: torch.Generator | None = None,
        weight: Tensor | None = None,
    ) -> Tensor:
        assert cond is not None
        t = UniformTime()(model.schedule, len(x0), generator, x0.device)
        noise = torch.randn(x0.shape, generator=generator, device=x0.device, dtype=x0.dtype)
        x = model.schedule.add_noise(x0, t, noise)
        x[:, : self.observation_dim, 0] = x0[:, : self.observation_dim, 0]
        return (model(x, t) - cond.tokens[RETURNS][:, 0, 0]).square().mean()


class ValueGuidance(Denoiser):
    """D + w (sigma^2 / alpha) grad V.

    Args:
        denoiser: what is guided.
        value: (x, t) -> (B,).
        guidance_scale: w; 0 leaves the denoiser as it is.
    """

    def __init__(self, denoiser: Denoiser, value: nn.Module, guidance_scale: float = 1.0) -> None:
        super().__init__()
        self.denoiser, self.value, self.guidance_scale = denoiser, value, guidance_scale
        self.schedule = denoiser.schedule

    def forward(self, x: Tensor, t: Scalar, cond: Condition | None = None) -> Tensor:
        mean = self.denoiser(x, t, cond)
        if not self.guidance_scale:
            return mean
        level = self.schedule.level(t, like=x)
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(self.value(leaf, t).sum(), leaf)
        return mean + self.guidance_scale * (level.sigma**2 / level.alpha) * gradient


class Diffuser(DiffusionPlanner):
    """A planner that seeks large returns; nothing can be requested of it.

    Args:
        denoiser: of plans, unconditional.
        value: of noisy plans.
        options: of ``DiffusionPlanner``; ``guidance_scale`` is w, 0.1 by default.
    """

    KIND: ClassVar[str] = "diffuser"

    def __init__(
        self, denoiser: Denoiser, *, value: ValueNetwork, guidance_scale: float = 0.1, temperature: float = 0.5,
        director: Director | None = None, **options: Any,
    ) -> None:  # fmt: skip
        self.value = value.eval().requires_grad_(False)
        super().__init__(
            denoiser, director=director or self._cost, guidance_scale=guidance_scale, temperature=temperature, **options
        )

    def guided(self) -> Denoiser:
        return ValueGuidance(self.denoiser, self.value, self.guidance_scale)

    def condition(self, asked: Mapping[str, Tensor]) -> None:  # type: ignore[override]
        return None

    def _cost(
        self, observations: Tensor, actions: Tensor, requests: Mapping[str, Tensor], scales: Mapping[str, Scale]
    ) -> Tensor:
        x = self.normaliser(torch.cat([observations, actions], -1)).transpose(2, 3)
        value = self.value(x.flatten(0, 1), self.denoiser.schedule.t_min)
        return -value.unflatten(0, x.shape[:2])

    @classmethod
    def fit(  # type: ignore[override]
        cls,
        windows: Windows,
        *,
        env_id: str,
        returns: Tensor | None = None,
        formulation: str = "v",
        value_steps: int = 2000,
        seed: int = 0,
        out: Path | None = None,
        accelerator: str = "auto",
        progress: bool = True,
        options: Mapping[str, Any] | None = None,
        **training: Any,
    ) -> Diffuser:
        """Train the denoiser and the value network.

        Args:
            windows: of ``Episodes.windows``.
            env_id: the robot.
            returns: (W,) of ``Episodes.returns``, or any other number that is to become large.
            formulation: see ``FORMULATIONS``; those of variance preserving kind suit guidance by gradient.
            value_steps: optimiser steps of the value network.
            seed, out, accelerator, progress: see ``DiffusionPlanner.fit``.
            options: of the planner.
            training: of ``conditional.train``.
        """
        finite(windows)
        if returns is None or returns.shape != (len(windows),) or not bool(returns.isfinite().all()):
            raise InvalidArgument(f"returns must be a finite number for each of the {len(windows)} windows")
        normaliser, x = cls.plans_of(windows, env_id)
        size, schedule = robot(env_id).observation_dim, by_name(formulation).schedule
        common: dict[str, Any] = {"seed": seed, "accelerator": accelerator, "progress": progress}
        denoiser = train(x, None, observation_dim=size, formulation=formulation, out=out, **common, **training)
        y = (returns - returns.mean()) / returns.std().clamp(min=1e-6)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            value = ValueNetwork(x.shape[1], x.shape[2], schedule)
        value = fit(
            value, x, cond=Condition(tokens={RETURNS: y[:, None, None]}), steps=value_steps, batch_size=128, lr=1e-3,
            objective=NoisyRegression(size), ema_decay=0.995,
            out=None if out is None else Path(out) / "value", **common,
        )  # fmt: skip
        return cls(
            denoiser, env_id=env_id, value=value, horizon=x.shape[2], normaliser=normaliser, scales={}, seed=seed,
            formulation=formulation, **(options or {}),
        )  # fmt: skip

    def save(self, path: Path | str, metadata: Mapping[str, Any] | None = None) -> Path:
        hub.save(self.value, Path(path) / "value")
        return super().save(path, metadata)

    @classmethod
    def parts(cls, path: Path, device: str) -> dict[str, Any]:
        return {"value": hub.load(path / "value", device)}
