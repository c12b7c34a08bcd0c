"""Planning by trajectory diffusion: sample a short future that starts here and behaves as asked, and do its start.

A plan x is H steps of [observation, action], normalised. The current observation is pinned: clean at every noise
level, in training as in sampling. A decision draws plans from p(x | x_0's observation, requested behaviour),

    planner = Denoiser + Guidance + Sampler + director,

and executes the first ``replan`` actions of the plan that the director prefers.
Janner et al. (2022), "Planning with Diffusion for Flexible Behavior Synthesis", arXiv:2205.09991 (the pinned state);
Ajay et al. (2022), "Is Conditional Generative Modeling all you need for Decision-Making?", arXiv:2211.15657 (guidance
without classifier); Dong et al. (2024), "AlignDiff", arXiv:2310.02054 (masked attribute tokens, chosen candidates).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from suffuse import Denoiser, NetworkDenoiser, hub
from suffuse.errors import CheckpointError, InvalidArgument
from suffuse.guidance import ClassifierFree
from suffuse.nets import DiT
from suffuse.random import generators, randn
from suffuse.samplers import DPMSolverPP, Inpaint, Sampler
from suffuse.schedules import VPCosine
from suffuse.training import fit

from . import behaviours
from .data import Normaliser, Scale, Windows
from .envs import Array, robot
from .objective import PinnedObjective
from .requests import WIDTH, Commanded, encode


@dataclass(frozen=True)
class Plan:
    """What n environments intend to do, K candidates each, in the units of the environment.

    Attributes:
        observations: (n, K, H, o); step 0 is the current observation.
        actions: (n, K, H, a) in [-1, 1].
        best: (n,) index of the candidate that the director prefers.
    """

    observations: Tensor
    actions: Tensor
    best: Tensor

    def chosen(self) -> tuple[Tensor, Tensor]:
        """The preferred candidate's observations (n, H, o) and actions (n, H, a)."""
        rows = torch.arange(len(self.best))
        return self.observations[rows, self.best], self.actions[rows, self.best]


def few_steps(steps: int = 5) -> Sampler:
    """DPM-Solver++ on equal steps of t, which for few steps spends them where a plan takes shape (kappa near 1)."""
    return DPMSolverPP(steps=steps, grid="time")


#: (observations (n, K, H, o), actions (n, K, H, a), requests name -> (n,) with NaN, scales) -> costs (n, K).
Director = Callable[[Tensor, Tensor, Mapping[str, Tensor], Mapping[str, Scale]], Tensor]


def measured(env_id: str) -> Director:
    """A director that measures each plan as it would a rollout: sum over requests of |u(plan) - u(requested)|."""

    def cost(
        observations: Tensor, actions: Tensor, requests: Mapping[str, Tensor], scales: Mapping[str, Scale]
    ) -> Tensor:
        per_step = behaviours.of_observations(robot(env_id), observations.numpy(), actions.numpy())
        total = torch.zeros(observations.shape[:2])
        for name, scale in scales.items():
            achieved = torch.from_numpy(per_step[name]).float().mean(-1)
            asked = requests[name][:, None]
            total += torch.where(asked.isfinite(), (scale(achieved) - scale(asked)).abs(), 0.0)
        return total

    return cost


class Memory(NamedTuple):
    """What ``predict`` hands back for its next call.

    Attributes:
        actions: (n, replan, a) being executed.
        cursor: (n,) which of them is next.
        decisions: (n,) plans made since the episode started.
        asked: behaviour name -> (n,), what they were made for.
    """

    actions: Array
    cursor: Array
    decisions: Array
    asked: Mapping[str, Tensor]


class DiffusionPlanner(Commanded):
    """A policy with ``predict``, ``request`` and ``plan``; all environments and candidates are one batch.

    Args:
        denoiser: of normalised plans (B, o + a, H), conditioned on one token per behaviour.
        env_id: the robot.
        horizon: H.
        normaliser: of [observation, action], (o + a,).
        scales: behaviour name -> its range in the data.
        sampler: of core; ``few_steps()`` if None.
        guidance_scale: w of classifier-free guidance; 1 is the plain conditional model.
        replan: control steps between decisions.
        candidates: K plans per decision.
        director: which candidate is best; ``measured(env_id)`` if None.
        temperature: scales the initial noise.
        seed: candidate k of environment i at decision d starts from noise of its own, a function of (seed, i, d, k).
    """

    def __init__(
        self,
        denoiser: Denoiser,
        *,
        env_id: str,
        horizon: int,
        normaliser: Normaliser,
        scales: Mapping[str, Scale],
        sampler: Sampler | None = None,
        guidance_scale: float = 2.0,
        replan: int = 4,
        candidates: int = 1,
        director: Director | None = None,
        temperature: float = 1.0,
        seed: int = 0,
    ) -> None:
        super().__init__(env_id, scales)
        if not 1 <= replan <= horizon:
            raise InvalidArgument(f"replan must lie between 1 and the horizon of {horizon} steps, got {replan}")
        if candidates < 1:
            raise InvalidArgument(f"candidates must be at least 1, got {candidates}")
        self.denoiser, self.horizon, self.normaliser = denoiser.eval(), horizon, normaliser
        self.sampler = sampler or few_steps()
        self.guidance_scale, self.temperature = guidance_scale, temperature
        self.replan, self.candidates, self.director = replan, candidates, director or measured(env_id)
        self.seed = seed
        self._fresh = torch.Generator().manual_seed(seed)

    # --- deciding -----------------------------------------------------------------------------------------------
    def plan(
        self, observation: Array, *, rows: Array | None = None, decision: int | Array = 0, deterministic: bool = True
    ) -> Plan:
        """Plans from these observations.

        Args:
            observation: (n, o) or (o,).
            rows: which environments these are (n,), for their noise and requests; 0 … n - 1 if None.
            decision: how many plans each made before in its episode, a number or (n,).
            deterministic: draw the noise as a function of seed, row and decision; otherwise from a stream.
        """
        o, _ = self.batch(observation)
        rows = np.arange(len(o)) if rows is None else np.asarray(rows)
        total = max(int(rows.max()) + 1, *(request.size for request in self.requests.values()), 1)
        asked = {name: value[rows] for name, value in self.asked(total).items()}
        return self._plan(o, asked, rows, np.broadcast_to(decision, rows.shape), deterministic)

    def _seeds(self, rows: Array, decisions: Array, deterministic: bool) -> list[int]:
        """One seed per environment and candidate: (n K,)."""
        k = self.candidates
        if not deterministic:
            return cast(list[int], torch.randint(2**62, (len(rows) * k,), generator=self._fresh).tolist())
        environments = zip(rows.tolist(), decisions.tolist(), strict=True)
        return [hash((self.seed, row, decision, j)) % 2**63 for row, decision in environments for j in range(k)]

    def _plan(self, o: Tensor, asked: Mapping[str, Tensor], rows: Array, decisions: Array, deterministic: bool) -> Plan:
        n, k, size = len(o), self.candidates, o.shape[1]
        channels = len(self.normaliser.mean)
        first = torch.cat([o, torch.zeros(n, channels - size)], -1)
        known = self.normaliser(first)[:, :, None].repeat_interleave(k, 0)
        pinned = torch.zeros(1, channels, self.horizon, dtype=torch.bool)
        pinned[:, :size, 0] = True
        generator = generators(self._seeds(rows, decisions, deterministic))
        level = self.denoiser.schedule.level(1.0)
        noise = randn((n * k, channels, self.horizon), generator) * (level.sigma * self.temperature)
        guided = ClassifierFree(self.denoiser, self.guidance_scale)
        x = self.sampler(
            guided,
            x=noise,
            cond=encode(asked, self.scales).repeat(k).to(self.device),
            generator=generator,
            constraint=Inpaint(known, pinned, noised=False),
            device=self.device,
        )
        x = self.normaliser.inverse(x.cpu().transpose(1, 2)).reshape(n, k, self.horizon, channels)
        observations, actions = x[..., :size].clone(), x[..., size:].clamp(-1.0, 1.0)
        observations[:, :, 0] = o[:, None]  # the pinned entries, without the rounding of the normaliser
        if k == 1:
            return Plan(observations, actions, torch.zeros(n, dtype=torch.long))
        return Plan(observations, actions, self.director(observations, actions, asked, self.scales).argmin(1))

    def predict(
        self,
        observation: Array,
        state: Memory | None = None,
        episode_start: Array | None = None,
        deterministic: bool = True,
    ) -> tuple[Array, Memory]:
        """The next action of each environment, as in stable-baselines3.

        Args:
            observation: (n, o), or (o,) for one environment.
            state: what the last call returned; without it, every call replans.
            episode_start: (n,) bool, environments that were reset.
            deterministic: see ``plan``.

        Returns:
            actions (n, a) or (a,) in [-1, 1], and the state for the next call.
        """
        o, single = self.batch(observation)
        n = len(o)
        asked = self.asked(n)
        if state is None or len(state.cursor) != n:
            nothing = np.zeros((n, self.replan, robot(self.env_id).joints), np.float32)
            state = Memory(nothing, np.full(n, self.replan), np.zeros(n, int), asked)
        started = np.zeros(n, bool) if episode_start is None else np.asarray(episode_start, bool).reshape(-1)
        decisions = np.where(started, 0, state.decisions)
        due = started | (state.cursor >= self.replan)
        for name, value in asked.items():  # a new request takes effect now, not at the end of the old plan
            due |= ~torch.isclose(value, state.asked[name], equal_nan=True).numpy()
        actions, cursor = state.actions.copy(), state.cursor.copy()
        if due.any():
            rows = np.flatnonzero(due)
            wanted = {name: value[rows] for name, value in asked.items()}
            plan = self._plan(o[rows], wanted, rows, decisions[rows], deterministic)
            actions[rows] = plan.chosen()[1][:, : self.replan].numpy()
            cursor[rows] = 0
        action = actions[np.arange(n), cursor]
        return (action[0] if single else action), Memory(actions, cursor + 1, decisions + due, asked)

    @property
    def device(self) -> torch.device:
        return next((p.device for p in self.denoiser.parameters()), torch.device("cpu"))

    # --- training and keeping -----------------------------------------------------------------------------------
    @classmethod
    def fit(
        cls,
        windows: Windows,
        *,
        env_id: str,
        steps: int = 3000,
        batch_size: int = 128,
        lr: float = 2e-3,
        hidden: int = 128,
        depth: int = 3,
        heads: int = 4,
        patch: int = 4,
        dropout: float = 0.2,
        out: Path | None = None,
        seed: int = 0,
        accelerator: str = "auto",
        progress: bool = True,
        **options: Any,
    ) -> DiffusionPlanner:
        """Train on windows of recorded behaviour.

        Args:
            windows: of ``Episodes.windows``, with the behaviours that can then be requested.
            env_id: the robot.
            steps, batch_size, lr: of the optimiser.
            hidden, depth, heads, patch: of the transformer, whose tokens are ``patch`` steps each.
            dropout: probability with which each behaviour is masked in training, apart from the others.
            out: folder of logs and of the resumable run.
            seed: of initialisation and training.
            accelerator: Lightning's.
            progress: show progress.
            options: of the planner (``guidance_scale``, ``replan``, …).
        """
        size = robot(env_id).observation_dim
        if windows.trajectories.shape[1] % patch:
            raise InvalidArgument(f"horizon={windows.trajectories.shape[1]} must be a multiple of patch={patch}")
        if not bool(windows.trajectories.isfinite().all()):
            raise InvalidArgument("windows hold NaN or infinity; drop those episodes")
        normaliser = Normaliser.fit(windows.trajectories.flatten(0, 1))
        scales = {name: Scale.fit(values) for name, values in windows.behaviour.items()}
        x = normaliser(windows.trajectories).transpose(1, 2).contiguous()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            backbone = DiT(
                x.shape[1], patch, ndim=1, hidden=hidden, depth=depth, heads=heads, tokens=dict.fromkeys(scales, WIDTH)
            )
        denoiser = fit(
            NetworkDenoiser(backbone, VPCosine(), "v_prediction"),
            x,
            cond=encode(windows.behaviour, scales),
            steps=steps,
            batch_size=batch_size,
            lr=lr,
            objective=PinnedObjective(cond_dropout=dropout, observation_dim=size),
            ema_decay=0.995,
            out=out,
            seed=seed,
            accelerator=accelerator,
            progress=progress,
        )
        return cls(
            denoiser, env_id=env_id, horizon=x.shape[2], normaliser=normaliser, scales=scales, seed=seed, **options
        )

    def save(self, path: Path | str, metadata: Mapping[str, Any] | None = None) -> Path:
        """Write a checkpoint folder: the denoiser, with everything else that a decision needs in its metadata."""
        planner = {
            "env_id": self.env_id,
            "horizon": self.horizon,
            "normaliser": self.normaliser.to_config(),
            "scales": {name: scale.to_config() for name, scale in self.scales.items()},
            "units": {name: behaviours.UNITS[name] for name in self.scales},
            "versions": {name: version(name) for name in ("gymnasium", "mujoco")},
        }
        return Path(hub.save(self.denoiser, path, metadata={**(metadata or {}), "planner": planner}))

    @classmethod
    def load(cls, path: Path | str, *, device: str = "cpu", **options: Any) -> DiffusionPlanner:
        """Read a checkpoint folder; ``options`` are those of the planner (``replan``, ``guidance_scale``, …)."""
        kept = hub.read_config(path).get("metadata", {}).get("planner")
        if not kept:
            raise CheckpointError(f"checkpoint={str(path)!r} is not a planner: its metadata has no scales and robot")
        return cls(
            hub.load(path, device=device),
            env_id=kept["env_id"],
            horizon=kept["horizon"],
            normaliser=Normaliser.from_config(kept["normaliser"]),
            scales={name: Scale(**scale) for name, scale in kept["scales"].items()},
            **options,
        )
