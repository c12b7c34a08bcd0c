"""Planning by trajectory diffusion: sample a short future that starts here and behaves as asked, and do its start.

A plan x is H steps of [observation, action], normalised. The current observation is pinned: clean at every noise
level, in training as in sampling. A decision draws plans from p(x | x_0's observation, what is asked),

    planner = Denoiser + Guidance + Sampler + director,

and executes the first ``replan`` actions of the plan that the director prefers. All environments and all candidates are
one batch. A planner can start from its last plan, moved on and noised to the time ``warm_start``, which needs fewer
steps than to start from noise.
Janner et al. (2022), "Planning with Diffusion for Flexible Behavior Synthesis", arXiv:2205.09991 (the pinned state).
"""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Self, cast

import numpy as np
import torch
from torch import Tensor, nn

from suffuse import Condition, Denoiser
from suffuse.errors import InvalidArgument
from suffuse.random import generators, randn
from suffuse.samplers import Inpaint, Sampler

from ..data import Normaliser, Scale
from ..directors import Director
from ..envs import Array, robot
from ..requests import Commanded
from .compiled import compile_frozen
from .formulations import few_steps


@dataclass(frozen=True)
class Plan:
    """What n environments intend to do, K candidates each, in the units of the environment.

    Attributes:
        observations: (n, K, H, o); step 0 is the current observation.
        actions: (n, K, H, a) in [-1, 1].
        best: (n,) index of the candidate that the director prefers.
        costs: (n, K) what the director said of each; zeros if there is one candidate only.
        nfe: evaluations of the guided denoiser.
        latent: (n, channels, H) the preferred candidate, normalised.
    """

    observations: Tensor
    actions: Tensor
    best: Tensor
    costs: Tensor
    nfe: int
    latent: Tensor

    def chosen(self) -> tuple[Tensor, Tensor]:
        """The preferred candidate's observations (n, H, o) and actions (n, H, a)."""
        rows = torch.arange(len(self.best), device=self.best.device)
        return self.observations[rows, self.best], self.actions[rows, self.best]


class Memory(NamedTuple):
    """What ``predict`` hands back for its next call.

    Attributes:
        actions: (n, replan, a) being executed.
        cursor: (n,) which of them is next.
        decisions: (n,) plans made since the episode started.
        asked: behaviour name -> (n,), what they were made for.
        latent: (n, channels, H) the last plans, normalised; None unless a warm start needs them.
    """

    actions: Array
    cursor: Array
    decisions: Array
    asked: Mapping[str, Tensor]
    latent: Tensor | None = None


class Planner(Commanded, ABC):
    """A policy with ``predict``, ``request`` and ``plan``; all environments and candidates are one batch.

    Args:
        denoiser: of normalised plans (B, channels, H).
        env_id: the robot.
        horizon: H.
        normaliser: of the channels of a plan.
        scales: name of what can be asked -> its range in the data.
        director: which candidate is best.
        sampler: of core; ``few_steps()`` if None.
        guidance_scale: how strongly a plan is guided; 1 is plain conditional sampling where guidance is by condition.
        replan: control steps between decisions.
        candidates: K plans per decision.
        temperature: scales the initial noise.
        warm_start: time in (0, 1) to which the last plan is noised to start the next one; 0 starts from noise.
        precision: of the network's matrix products; ``torch.bfloat16`` is faster where the processor has units for it.
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
        director: Director,
        sampler: Sampler | None = None,
        guidance_scale: float = 2.0,
        replan: int = 4,
        candidates: int = 1,
        temperature: float = 1.0,
        warm_start: float = 0.0,
        precision: torch.dtype = torch.float32,
        seed: int = 0,
    ) -> None:
        super().__init__(env_id, scales)
        if not 1 <= replan <= horizon:
            raise InvalidArgument(f"replan must lie between 1 and the horizon of {horizon} steps, got {replan}")
        if candidates < 1:
            raise InvalidArgument(f"candidates must be at least 1, got {candidates}")
        if not 0 <= warm_start < 1:
            raise InvalidArgument(f"warm_start must lie in [0, 1), got {warm_start}")
        o, a = robot(env_id).observation_dim, robot(env_id).joints
        if len(normaliser.mean) not in (o, o + a):
            raise InvalidArgument(
                f"plans have {len(normaliser.mean)} channels, {env_id} has {o} observations and {a} actions; is it of "
                "another robot?"
            )
        self.denoiser, self.horizon, self.normaliser = denoiser.eval(), horizon, normaliser
        self.sampler = sampler or few_steps()
        self.guidance_scale, self.temperature, self.warm_start = guidance_scale, temperature, warm_start
        self.replan, self.candidates, self.director = replan, candidates, director
        self.precision, self.seed = precision, seed
        self._fresh = torch.Generator().manual_seed(seed)

    # --- what a kind of planner supplies --------------------------------------------------------------------------
    @abstractmethod
    def guided(self) -> Denoiser:
        """The denoiser with its guidance."""

    def condition(self, asked: Mapping[str, Tensor]) -> Condition | None:
        """What the denoiser is told of the requests, name -> (n,) with NaN where nothing is asked."""
        return None

    def decode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Plans (..., H, channels) in the units of the environment -> observations (..., o) and actions (..., a)."""
        size = robot(self.env_id).observation_dim
        return x[..., :size].clone(), x[..., size:].clamp(-1.0, 1.0)

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

    @torch.no_grad()
    def _plan(
        self,
        o: Tensor,
        asked: Mapping[str, Tensor],
        rows: Array,
        decisions: Array,
        deterministic: bool,
        last: Tensor | None = None,
    ) -> Plan:
        """Plans from o (n, o) on the CPU; ``last`` (n, channels, H) are plans to start from."""
        n, k, size, device = len(o), self.candidates, o.shape[1], self.device
        channels = len(self.normaliser.mean)
        first = torch.cat([o, torch.zeros(n, channels - size)], -1)
        known = self.normaliser(first)[:, :, None].repeat_interleave(k, 0).to(device)
        pinned = torch.zeros(1, channels, self.horizon, dtype=torch.bool)
        pinned[:, :size, 0] = True
        generator = generators(self._seeds(rows, decisions, deterministic))
        sampler, begin = self.sampler, {}
        if last is None:
            level = self.denoiser.schedule.level(1.0)
            begin["x"] = randn((n * k, channels, self.horizon), generator) * (level.sigma * self.temperature)
        else:
            moved = torch.cat([last[..., self.replan :], last[..., -1:].expand(-1, -1, self.replan)], -1)
            begin["init"] = moved.repeat_interleave(k, 0)
            if isinstance(sampler.grid, str):
                sampler = dataclasses.replace(sampler, steps=max(1, math.ceil(sampler.steps * self.warm_start)))
        cond = self.condition(asked)
        with torch.autocast(device.type, self.precision, enabled=self.precision != torch.float32):
            x = sampler(
                self.guided(),
                **begin,
                start=1.0 if last is None else self.warm_start,
                cond=None if cond is None else cond.repeat(k).to(device),
                generator=generator,
                constraint=Inpaint(known, pinned, noised=False),
                device=device,
            )
        latent = x.unflatten(0, (n, k))
        observations, actions = self.decode(self.normaliser.inverse(latent.transpose(2, 3)))
        observations[:, :, 0] = o[:, None].to(device)  # the pinned entries, without the rounding of the normaliser
        costs = torch.zeros(n, k, device=device)
        if k > 1:
            costs = self.director(observations, actions, {a: v.to(device) for a, v in asked.items()}, self.scales)
        best = costs.argmin(1)
        nfe = sampler.nfe(self.denoiser.schedule)
        return Plan(observations, actions, best, costs, nfe, latent[torch.arange(n, device=device), best])

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
        fresh = state is None or len(state.cursor) != n
        if state is None or fresh:
            nothing = np.zeros((n, self.replan, robot(self.env_id).joints), np.float32)
            state = Memory(nothing, np.full(n, self.replan), np.zeros(n, int), asked)
        started = np.zeros(n, bool) if episode_start is None else np.asarray(episode_start, bool).reshape(-1)
        decisions = np.where(started, 0, state.decisions)
        changed = np.zeros(n, bool)
        for name, value in asked.items():  # a new request takes effect now, not at the end of the old plan
            changed |= ~torch.isclose(value, state.asked[name], equal_nan=True).numpy()
        due = started | changed | (state.cursor >= self.replan)
        actions, cursor, latent = state.actions.copy(), state.cursor.copy(), state.latent
        cold = due if latent is None or not self.warm_start else due & (started | changed)
        for chosen, last in ((cold, None), (due & ~cold, latent)):
            if not chosen.any():
                continue
            rows = np.flatnonzero(chosen)
            wanted = {name: value[rows] for name, value in asked.items()}
            plan = self._plan(
                o[rows], wanted, rows, decisions[rows], deterministic, None if last is None else last[rows]
            )
            actions[rows] = plan.chosen()[1][:, : self.replan].cpu().numpy()
            cursor[rows] = 0
            if self.warm_start:
                latent = plan.latent.new_zeros(n, *plan.latent.shape[1:]) if latent is None else latent.clone()
                latent[rows] = plan.latent
        action = actions[np.arange(n), cursor]
        memory = Memory(actions, cursor + 1, decisions + due, asked, latent)
        return (action[0] if single else action), memory

    @property
    def device(self) -> torch.device:
        return next((p.device for p in self.denoiser.parameters()), torch.device("cpu"))

    def to(self, device: torch.device | str) -> Self:
        """Move all networks; observations come and actions go as NumPy arrays, wherever planning happens."""
        for part in vars(self).values():
            if isinstance(part, nn.Module):
                part.to(device)
        return self

    def compile(self, **options: Any) -> Self:
        """Compile the network for batches of one size; the first plan of a size then takes long.

        ``precision = torch.bfloat16`` beside it is fastest on CPUs with matrix units for it. Options are of
        ``torch.compile``, see :func:`compile_frozen`.
        """
        compile_frozen(getattr(self.denoiser, "backbone", self.denoiser), **options)
        return self
