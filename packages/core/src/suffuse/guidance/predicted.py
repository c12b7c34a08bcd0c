r"""Guidance by a predictor: attributes y that a network tells from x_0, with the error that it knows itself to have.

A predictor says of x_0 that its attributes are f(x_0) +- s(x_0). With f taken as linear around the posterior mean D,
this is a measurement, and E[x_0 | x_t, y] is, as in :class:`~suffuse.guidance.Measured`,

    D_y = D + V J^T (J V J^T + s^2)^-1 (y - f(D)),     J = df/dx at D,     V = (sigma^2 / alpha) dD/dx    (Tweedie),

exact for Gaussian data and a linear predictor. Unlike an extrapolation (``ClassifierFree``) it ends where f(D) = y, so
it does not overshoot; and what it moves is what the data leave open, because V is their covariance given x_t.

The mean of a very noisy x_t is a blur, of which a predictor of clean data knows nothing: it is heard below
``max_kappa`` only. The gradient of a predictor at the posterior mean: Bansal et al. (2023), "Universal Guidance for
Diffusion Models", arXiv:2302.07121; the weight of it: Rozet et al. (2024), arXiv:2405.13712, eqs. 13-16.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..condition import Condition
from ..denoiser import Denoiser
from ..errors import InvalidArgument
from ..schedules import Scalar

__all__ = ["Predicted"]


class Predicted(Denoiser):
    """E[x_0 | x_t, y] for attributes y that a predictor tells from x_0.

    Each attribute costs a derivative of the denoiser, about two of its evaluations.

    Args:
        denoiser: of the prior, or conditional already; differentiable in x.
        predictor: x_0 (B, *event) -> mean and standard deviation of the attributes, each (B, A); differentiable.
        y: (B, A) what is asked for, one row per sample, or (1, A) for all; NaN where nothing is.
        max_kappa: noise-to-signal ratio sigma / alpha from which on the predictor is not heard.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        predictor: Callable[[Tensor], tuple[Tensor, Tensor]],
        y: Tensor,
        max_kappa: float = math.inf,
    ) -> None:
        super().__init__()
        if y.ndim != 2 or bool(y.isinf().any()):
            raise InvalidArgument(
                f"y must be finite (B, A), NaN where nothing is asked for, got shape {tuple(y.shape)}"
            )
        if max_kappa <= 0:
            raise InvalidArgument(f"max_kappa must be positive, got {max_kappa}")
        self.denoiser, self.schedule, self.predictor = denoiser, denoiser.schedule, predictor
        self.max_kappa = max_kappa
        self.columns = torch.where(y.isfinite().any(0))[0].tolist()
        self.y, self.attributes = y[:, self.columns], y.shape[1]

    def forward(self, x: Tensor, t: Scalar, cond: Condition | None = None) -> Tensor:
        if len(self.y) not in (1, len(x)):
            raise InvalidArgument(f"y has {len(self.y)} rows for a batch of {len(x)}; give one each, or one for all")
        level = self.schedule.level(t, like=x)
        if not self.columns or (isinstance(level.kappa, float) and level.kappa >= self.max_kappa):
            return self.denoiser(x, t, cond)
        if torch.is_inference_mode_enabled():
            raise InvalidArgument("guidance here needs gradients; use torch.no_grad(), not torch.inference_mode()")
        asked = self.y.isfinite().to(x.device)
        with torch.enable_grad():
            at = x.detach().requires_grad_()
            mean = self.denoiser(at, t, cond)
            clean = mean.detach().requires_grad_()
            said, std = self.predictor(clean)
            if said.shape != (len(x), self.attributes) or std.shape != said.shape:
                raise InvalidArgument(
                    f"the predictor gave mean {tuple(said.shape)} and std {tuple(std.shape)}; y needs both to be "
                    f"{(len(x), self.attributes)}"
                )
            said, std = said[:, self.columns], std[:, self.columns]
            rows, spread = [], []
            for a in range(len(self.columns)):
                (gradient,) = torch.autograd.grad(said[:, a].sum(), clean, retain_graph=True)
                row = gradient * asked[:, a].view(-1, *(1,) * (x.ndim - 1))
                (product,) = torch.autograd.grad(mean, at, row, retain_graph=True)  # the Jacobian is symmetric
                rows.append(row)
                spread.append(level.sigma**2 / level.alpha * product)
        mean, J, VJ = mean.detach(), torch.stack(rows, 1).flatten(2), torch.stack(spread, 1)
        gram = J @ VJ.flatten(2).mT
        S = (gram + gram.mT) / 2 + torch.diag_embed(std.detach().square())
        error = torch.where(asked, self.y.to(x) - said.detach(), 0.0)
        weights = torch.linalg.solve_ex(S, error[..., None]).result  # solve itself would wait for the device
        moved = mean + (weights.view(*weights.shape[:2], *(1,) * (x.ndim - 1)) * VJ).sum(1)
        return torch.where(level.kappa < self.max_kappa, moved, mean) if isinstance(level.kappa, Tensor) else moved
