"""Classifier-free guidance: extrapolate from the unconditional to the conditional posterior mean,

    D = D_u + w (D_c - D_u).

w = 1 is the plain conditional model and w = 0 the unconditional one.
Ho, Salimans (2022), "Classifier-Free Diffusion Guidance", arXiv:2207.12598, eq. 6 (their w is ours minus 1); the
interval is that of Kynkäänniemi et al. (2024), arXiv:2404.07724.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..condition import Condition
from ..denoiser import Denoiser
from ..errors import InvalidArgument
from ..schedules import Scalar

__all__ = ["ClassifierFree"]


class ClassifierFree(Denoiser):
    """Guidance by the null condition, in one network call on the doubled batch.

    Args:
        denoiser: trained with condition dropout.
        guidance_scale: w; a number, a tensor (B,), or a function of kappa.
        interval: (low, high) of kappa outside of which the conditional mean is used alone, at half the cost; for a
            batch with a time per sample the mean is computed both ways and chosen by row.
        names: conditions that are absent from the unconditional branch, the others being in both; default all.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        guidance_scale: float | Tensor | Callable[[float], float] = 1.0,
        interval: tuple[float, float] | None = None,
        names: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        if interval is not None and not 0 <= interval[0] < interval[1]:
            raise InvalidArgument(f"interval must be (low, high) in kappa with 0 <= low < high, got {interval}")
        self.denoiser, self.schedule = denoiser, denoiser.schedule
        self.guidance_scale, self.interval, self.names = guidance_scale, interval, names

    def forward(self, x: Tensor, t: Scalar, cond: Condition | None = None) -> Tensor:
        if cond is None or not cond.values:
            raise InvalidArgument("cond is needed for classifier-free guidance; without one use the plain denoiser")
        w = self._scale(x, t)
        if isinstance(w, float) and w == 1.0:
            return self.denoiser(x, t, cond)
        if isinstance(w, float) and w == 0.0:
            return self.denoiser(x, t, cond.null(self.names))
        double = torch.cat([t, t]) if isinstance(t, Tensor) and t.ndim else t
        both = self.denoiser(torch.cat([x, x]), double, Condition.cat([cond, cond.null(self.names)]))
        conditional, unconditional = both.chunk(2)
        return unconditional + w * (conditional - unconditional)

    def _scale(self, x: Tensor, t: Scalar) -> float | Tensor:
        """w at this level: a float, or a tensor that broadcasts against x."""
        w = self.guidance_scale
        level = self.schedule.level(t, like=x)
        if callable(w) and not isinstance(w, Tensor):
            if isinstance(level.kappa, Tensor):
                raise InvalidArgument("guidance_scale as a function of kappa needs one t for the whole batch")
            w = w(level.kappa)
        if isinstance(w, Tensor) and w.ndim:
            if len(w) != len(x):
                raise InvalidArgument(f"guidance_scale has {len(w)} entries for a batch of {len(x)}")
            w = w.to(x).view(-1, *(1,) * (x.ndim - 1))
        elif isinstance(w, int | float):
            w = float(w)
        if self.interval is None:
            return w
        low, high = self.interval
        if isinstance(level.kappa, Tensor):
            inside = (level.kappa >= low) & (level.kappa <= high)
            return torch.where(inside, w, torch.ones_like(level.kappa))
        return w if low <= level.kappa <= high else 1.0
