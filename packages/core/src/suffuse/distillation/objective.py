r"""How a flow map is learned: three ways to say that it solves the ODE, in one shape.

A flow map is its average velocity U over [r, tau]. The interval may be cut in two at m, y_m being where its first part
leads, or one of its ends may be moved; u is the ODE's own velocity:

    semigroup     U = ((tau - m) U(y, tau, m) + (m - r) U(y_m, m, r)) / (tau - r)
    eulerian      U = u(y, tau) - (tau - r) dU/dtau         along the path: y changes by u
    lagrangian    U = u(y_r, r) + (tau - r) dU/dr           y_r = y + (r - tau) U, where the map leads

The right-hand side is a target without gradient, the squared error is the loss, and only the flow map has none. Where
r = tau the target is u: that of a teacher (distillation), or eps - x_0, whose mean given y it is (training from data;
"eulerian" is linear in it for r < tau too, "lagrangian" has the map's own velocity there).

The semigroup's steps, halved and halved again, are progressive distillation, and its target needs no derivative: it is
the cheapest and the default. "eulerian" with r = 0 is the continuous limit of consistency training and distillation,
and over all pairs it is MeanFlow.
Kim et al. (2023), "Consistency Trajectory Models", arXiv:2310.02279, eq. 7; Song et al. (2023), "Consistency Models",
arXiv:2303.01469, thm. 5; Geng et al. (2025), "Mean Flows", arXiv:2505.13447, eq. 6; Boffi et al. (2024), "Flow Map
Matching", arXiv:2406.07507, sec. 3; Lai et al. (2025), arXiv:2510.21890, ch. 11.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..condition import Condition
from ..denoiser import Denoiser
from ..errors import InvalidArgument, unknown
from ..training.times import TimeSampler, UniformTime
from .flow_maps import FlowMap, like, straight

__all__ = ["FlowMapObjective"]

Identity = Literal["semigroup", "eulerian", "lagrangian"]


@dataclass(frozen=True)
class FlowMapObjective:
    """The loss of a flow map, for ``training.fit(flow_map, data, objective=FlowMapObjective(...))``.

    Args:
        identity: which of the three equations.
        teacher: whose ODE is solved, guided or not; None learns from data alone.
        time: the two times of a pair are drawn from it.
        diagonal: share of pairs with s = t, which teach the velocity.
        clean: share of pairs with s = 0; with ``diagonal=0, clean=1`` only a consistency function is learned.
        power: p of the weights (|error|^2 + 1e-3)^-p of samples, with |.|^2 the mean over entries: 0.5 to 1 steadies
            the derivatives' targets, where a teacher makes errors small; with the noise of data it biases u.
        difference: step of central differences in the place of exact derivatives, for backbones with operations that
            have no forward-mode derivative; 1e-3 is about right in float32.
        cond_dropout: probability of replacing the condition of a sample by null.
    """

    identity: Identity = "semigroup"
    teacher: Denoiser | None = field(default=None, repr=False)
    time: TimeSampler = field(default_factory=UniformTime)
    diagonal: float = 0.5
    clean: float = 0.25
    power: float = 0.0
    difference: float | None = None
    cond_dropout: float = 0.1

    def __post_init__(self) -> None:
        if self.identity not in get_args(Identity):
            raise unknown("identity", self.identity, get_args(Identity))
        if self.diagonal < 0 or self.clean < 0 or self.diagonal + self.clean > 1:
            raise InvalidArgument(
                f"diagonal and clean are shares of pairs, in sum at most 1, got {self.diagonal} and {self.clean}"
            )
        if self.difference is not None and not self.difference > 0:
            raise InvalidArgument(f"difference must be positive, got {self.difference}")
        if not 0 <= self.cond_dropout <= 1:
            raise InvalidArgument(f"cond_dropout must lie in [0, 1], got {self.cond_dropout}")
        if self.diagonal == 0 and (
            self.identity == "semigroup" or (self.identity, self.teacher) == ("lagrangian", None)
        ):
            raise InvalidArgument(f"identity={self.identity!r} learns u from pairs with s = t; give diagonal > 0")

    def __call__(
        self,
        flow_map: FlowMap,
        x0: Tensor,
        cond: Condition | None = None,
        generator: torch.Generator | None = None,
        weight: Tensor | None = None,
    ) -> Tensor:
        """The mean loss of a batch; arguments as of ``DenoisingObjective``."""
        if cond is not None:
            cond = cond.dropout(self.cond_dropout, generator)
        tau, r = self.pairs(flow_map, x0, generator)
        noise = torch.randn(x0.shape, generator=generator, device=x0.device, dtype=x0.dtype)
        y = x0 + like(tau, x0) * (noise - x0)
        with torch.no_grad():
            u = noise - x0 if self.teacher is None else self.velocity(flow_map, y, tau, cond)
        value, target = self.sides(flow_map, y, u, tau, r, cond, generator)
        error = (value - target.detach()).square()
        if weight is not None:
            error = error * weight
        if self.power:
            error = error * like((error.detach().flatten(1).mean(1) + 1e-3) ** -self.power, error)
        return error.mean()

    def pairs(self, flow_map: FlowMap, x0: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """tau >= r, (B,) each."""
        times = [self.time(flow_map.schedule, len(x0), generator, x0.device) for _ in range(2)]
        tau, r = (straight(flow_map.schedule, t, x0)[0] for t in (torch.maximum(*times), torch.minimum(*times)))
        share = torch.rand(len(x0), generator=generator, device=x0.device)
        r = torch.where(share < self.clean, torch.zeros_like(r), r)
        if self.identity == "lagrangian" and self.teacher is not None:  # which has no velocity at the clean end
            schedule = flow_map.schedule
            r = r.clamp(min=1 / (1 + 1 / schedule.kappa(schedule.t_min)))
        return tau, torch.where(share > 1 - self.diagonal, tau, r)

    def velocity(self, flow_map: FlowMap, y: Tensor, tau: Tensor, cond: Condition | None) -> Tensor:
        """eps - D of the teacher, or of the flow map itself where there is none."""
        if self.teacher is None:
            return flow_map.average(y, tau, tau, cond)
        schedule = flow_map.schedule
        t = schedule.t_of_log_kappa(tau.logit())
        level = schedule.level(t, like=y)
        teacher = self.teacher.to(y.device).with_schedule(schedule)
        return (y - teacher(y * (level.alpha + level.sigma), t, cond)) / like(tau, y)

    def sides(
        self,
        flow_map: FlowMap,
        y: Tensor,
        u: Tensor,
        tau: Tensor,
        r: Tensor,
        cond: Condition | None,
        generator: torch.Generator | None,
    ) -> tuple[Tensor, Tensor]:
        """U(y, tau, r), and what the identity says that it should be."""
        span, nothing, one = like(tau - r, y), torch.zeros_like(tau), torch.ones_like(tau)

        def average(y: Tensor, tau: Tensor, r: Tensor) -> Tensor:
            return flow_map.average(y, tau, r, cond)

        match self.identity:
            case "semigroup":
                value = average(y, tau, r)
                share = torch.rand(len(y), generator=generator, device=y.device, dtype=y.dtype)
                m = r + share * (tau - r)
                with torch.no_grad():
                    first = average(y, tau, m)
                    second = average(y - like(tau - m, y) * first, m, r)
                    target = first + like(share, y) * (second - first)
            case "eulerian":
                value, change = self.along(average, (y, tau, r), (u, one, nothing))
                return value, u - span * change
            case "lagrangian":
                value, change = self.along(average, (y, tau, r), (torch.zeros_like(y), nothing, one))
                with torch.no_grad():
                    target = self.velocity(flow_map, y - span * value, r, cond) + span * change
        return value, torch.where(like(tau == r, y), u, target)

    def along(
        self,
        function: Callable[..., Tensor],
        at: tuple[Tensor, ...],
        direction: tuple[Tensor, ...],
    ) -> tuple[Tensor, Tensor]:
        """The function, and its derivative along a direction, without gradient."""
        with torch.no_grad():
            if self.difference is None:
                with sdpa_kernel(SDPBackend.MATH):  # fused attention has no forward-mode derivative
                    change = torch.func.jvp(function, at, direction)[1]
            else:
                up, down = (
                    function(*(a + sign * self.difference * d for a, d in zip(at, direction, strict=True)))
                    for sign in (1, -1)
                )
                change = (up - down) / (2 * self.difference)
        return function(*at), change
