r"""Flow maps: from one noise level to any other along the probability-flow ODE, in one evaluation.

In the coordinates y = x / (alpha + sigma) and tau = sigma / (alpha + sigma), every schedule is the rectified flow
y = (1 - tau) x_0 + tau eps, and its ODE is dy/dtau = u = eps - D. The flow map is the ODE's solution, written with the
average velocity U on the way:

    X_{t->s}:   y_r = y + (r - tau) U(y, tau, r),        U(y, tau, tau) = u(y, tau),

r being the tau of s. So X_{t->t} is the identity by construction; X_{t->0} is a consistency function; and the limit
s -> t is a velocity, hence a denoiser, D = y - tau U(y, tau, tau).

"The Principles of Diffusion Models", Lai et al. (2025), arXiv:2510.21890, ch. 11; Boffi et al. (2024), "Flow Map
Matching", arXiv:2406.07507; Kim et al. (2023), "Consistency Trajectory Models", arXiv:2310.02279; Song et al. (2023),
"Consistency Models", arXiv:2303.01469; the average velocity: Geng et al. (2025), "Mean Flows", arXiv:2505.13447.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .. import hub
from ..condition import Condition
from ..denoiser import Denoiser
from ..errors import InvalidArgument
from ..exact import GaussianDenoiser
from ..schedules import Scalar, Schedule

__all__ = ["FlowMap", "FlowMapNetwork", "GaussianFlowMap"]


class FlowMap(nn.Module, ABC):
    """X_{t->s}: a noisy batch at time t, carried to time s."""

    schedule: Schedule

    if TYPE_CHECKING:  # nn.Module's own signature says Any

        def __call__(self, x: Tensor, t: Scalar, s: Scalar = 0.0, cond: Condition | None = None) -> Tensor: ...

    @abstractmethod
    def average(self, y: Tensor, tau: Tensor, r: Tensor, cond: Condition | None = None) -> Tensor:
        """The average velocity U between tau and r.

        Args:
            y: x / (alpha + sigma) at tau, (B, *event).
            tau, r: sigma / (alpha + sigma) where it starts and where it leads, (B,) in [0, 1].
            cond: condition of B rows.
        """

    def forward(self, x: Tensor, t: Scalar, s: Scalar = 0.0, cond: Condition | None = None) -> Tensor:
        """X_{t->s}(x).

        Args:
            x: the noisy batch x_t, (B, *event).
            t, s: times in [0, 1], floats or tensors (B,); s = 0 is the clean end.
            cond: condition of B rows.

        Returns:
            x_s, with the shape and dtype of x.
        """
        (tau, here), (r, there) = straight(self.schedule, t, x), straight(self.schedule, s, x, clean=True)
        y = x / like(here, x)
        return like(there, x) * (y + like(r - tau, x) * self.average(y, tau, r, cond))

    def mean(self, x: Tensor, t: Scalar, s: Scalar | None = None, cond: Condition | None = None) -> Tensor:
        """The posterior mean which, if it did not change on the way, would lead from t to s: y - tau U(y, tau, r).

        Without s it is the posterior mean itself, the limit s -> t.
        """
        tau, here = straight(self.schedule, t, x)
        r = tau if s is None else straight(self.schedule, s, x, clean=True)[0]
        y = x / like(here, x)
        return y - like(tau, x) * self.average(y, tau, r, cond)

    def as_denoiser(self) -> Denoiser:
        """The denoiser that it is in the limit s -> t, for every sampler, guidance and analysis."""
        return _Limit(self)


class _Limit(Denoiser):
    def __init__(self, flow_map: FlowMap) -> None:
        super().__init__()
        self.flow_map, self.schedule = flow_map, flow_map.schedule

    def forward(self, x: Tensor, t: Scalar, cond: Condition | None = None) -> Tensor:
        return self.flow_map.mean(x, t, cond=cond)


def straight(schedule: Schedule, t: Scalar, x: Tensor, clean: bool = False) -> tuple[Tensor, Tensor]:
    """tau = sigma / (alpha + sigma) and alpha + sigma at t, (B,) each, like x.

    With ``clean``, t = 0 stands for data without noise, also where a schedule ends above it.
    """
    kind = torch.float32 if x.device.type == "mps" else torch.float64
    time = t.to(x.device, kind).expand(len(x)) if isinstance(t, Tensor) else x.new_full((len(x),), t, dtype=kind)
    level = schedule.level(time)
    total = level.alpha + level.sigma
    tau = level.sigma / total
    if clean:
        tau, total = torch.where(time > 0, tau, 0.0), torch.where(time > 0, total, 1.0)
    return tau.to(x.dtype), total.to(x.dtype)


def like(value: Tensor, x: Tensor) -> Tensor:
    """(B,) -> (B, 1, ...), to be multiplied with x."""
    return value.reshape(-1, *(1,) * (x.ndim - 1))


def gaussian_slope(variance: Tensor | float, tau: Tensor, r: Tensor) -> Tensor:
    """((v_r / v_tau)^(1/2) - 1) / (r - tau) with v = (1 - tau)^2 variance + tau^2, which is smooth where r = tau.

    The average velocity of a centred Gaussian of that variance is this times y.
    """
    v_tau, v_r = ((1 - at) ** 2 * variance + at**2 for at in (tau, r))
    return (r + tau - variance * (2 - r - tau)) / (v_tau + (v_tau * v_r).sqrt())


@hub.serializable
class FlowMapNetwork(FlowMap):
    r"""A network made a flow map: what it adds to the flow map of N(0, s^2), s the standard deviation of the data,

        U = slope(s^2, tau, r) y + s c_in F(c_in y, c(tau), c(r)),      c_in = ((1 - tau)^2 s^2 + tau^2)^(-1/2).

    Where r = tau this is ``NetworkDenoiser``'s v_prediction. The noise label c = log((tau + e) / (1 - tau + e)) / 4 is
    log(kappa) / 4 but for the ends, where e bounds its derivative, as training differentiates by tau.

    Args:
        backbone: called as ``backbone(c_in * y, c(tau), cond)`` where ``cond`` has, beside all that is asked for, the
            token ``"target"`` (B, 1, 16): sines and cosines of c(r) and c(tau) - c(r). A ``DiT`` is built for it with
            ``tokens={"target": FlowMapNetwork.TARGET}``.
        schedule: the noise schedule.
        data_std: s, the standard deviation of the training data.
    """

    #: e, and the width of the target's token.
    SOFTNESS = 0.05
    TARGET = 16

    frequencies: Tensor

    def __init__(self, backbone: nn.Module, schedule: Schedule, data_std: float = 1.0) -> None:
        super().__init__()
        if not data_std > 0:
            raise InvalidArgument(f"data_std must be positive, got {data_std}; is the data constant?")
        self.backbone, self.schedule, self.data_std = backbone, schedule, float(data_std)
        self.register_buffer("frequencies", math.pi * 2.0 ** torch.arange(-1, 3), persistent=False)

    def average(self, y: Tensor, tau: Tensor, r: Tensor, cond: Condition | None = None) -> Tensor:
        if cond is not None and len(cond) not in (0, len(y)):
            raise InvalidArgument(f"cond has batch size {len(cond)} but x has {len(y)}; use cond.repeat or index it")
        variance = self.data_std**2
        c_in = like(((1 - tau) ** 2 * variance + tau**2) ** -0.5, y)
        label, target = self.label(tau), self.label(r)
        angles = torch.stack([target, label - target], -1)[..., None] * self.frequencies.to(y.dtype)
        token = torch.cat([angles.sin(), angles.cos()], -1).flatten(1)[:, None]
        asked = Condition(tokens={"target": token})
        output = self.backbone(c_in * y, label, asked if cond is None else cond.merge(asked))
        if output.shape != y.shape:
            raise InvalidArgument(
                f"the backbone returned {tuple(output.shape)} for an input of {tuple(y.shape)}; shapes must be equal"
            )
        return like(gaussian_slope(variance, tau, r), y) * y + self.data_std * c_in * output.to(y.dtype)

    def label(self, tau: Tensor) -> Tensor:
        """c(tau), (B,)."""
        return ((tau + self.SOFTNESS) / (1 - tau + self.SOFTNESS)).log() / 4


class GaussianFlowMap(FlowMap):
    """The exact flow map of a Gaussian: ``GaussianDenoiser.flow``, as a flow map. Float64 inside."""

    def __init__(self, denoiser: GaussianDenoiser) -> None:
        super().__init__()
        self.denoiser, self.schedule = denoiser, denoiser.schedule

    def average(self, y: Tensor, tau: Tensor, r: Tensor, cond: Condition | None = None) -> Tensor:
        mean, cov = self.denoiser.means, self.denoiser.cov.to(y.device)
        tau, r = (at.double().reshape(-1, 1, 1) for at in (tau, r))
        centred = y.double().reshape(len(y), 1, -1) - (1 - tau) * mean
        # a direction without variance has no derivative at the clean end; a millionth of a standard deviation has
        moved = cov.apply(lambda v: gaussian_slope(v.clamp(min=1e-12), tau, r), centred) - mean
        return moved.to(y.dtype).reshape(y.shape)
