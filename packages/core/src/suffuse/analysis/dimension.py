r"""How many dimensions have the data around a point? Three readings of a denoiser at noise level kappa, y = x / alpha:

    normal bundle    d minus the number of large singular values of scores stacked around the point: scores point back
                     to the data, so they span the normal space; the count is read off the largest gap
    FLIPD            tr dD/dy + |D - y|^2 / kappa^2 at the point itself: the rate at which log p falls with the noise
    MMSE             E |x_0 - D(x_0 + kappa eps)|^2 / kappa^2: noise within the data's tangent space cannot be removed,
                     noise across it can, so the error counts dimensions. It is the denoising loss.

Each sees the data at the scale kappa: below the noise off the manifold it counts all d, above the manifold's curvature
(or the distance between samples, for a network that has learned them by heart) the count means little. So kappa is
chosen between, or the curve over kappa is read where it is flat.

Horvat, Pfister (2024), arXiv:2402.03845, sec. 5, after Stanczuk et al. (2022), arXiv:2212.12611; Kamkari et al. (2024),
"A Geometric View of Data Complexity", arXiv:2406.03537; Wu, Verdú (2011), "MMSE Dimension", IEEE Trans. Inf. Theory 57.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..condition import Condition
from ..denoiser import Denoiser
from ..errors import InvalidArgument
from .geometry import mean_at, probe_vectors

__all__ = ["flipd", "intrinsic_dimension", "mmse_dimension"]


@torch.no_grad()
def intrinsic_dimension(
    denoiser: Denoiser,
    x0: Tensor,
    kappa: float | Sequence[float],
    samples: int | None = None,
    cond: Condition | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """The dimension of the data around each point by the normal bundle, (B,) int64.

    Args:
        denoiser: exact or trained.
        x0: points on the data, (B, *event).
        kappa: noise level, well below the curvature of the data and above the noise off it; or several, of which each
            point takes the one with the clearest gap: the largest one relative to the largest singular value.
        samples: perturbations a point; default 4 d.
        cond: condition of B rows.
        generator: of the perturbations.

    Raises:
        InvalidArgument: for fewer samples than dimensions, or no kappa.
    """
    d = x0[0].numel()
    n = samples or 4 * d
    if n < d:
        raise InvalidArgument(f"samples must be at least the dimension {d}, got {n}")
    kappas = [kappa] if isinstance(kappa, int | float) else [float(k) for k in kappa]
    if not kappas or min(kappas) <= 0:
        raise InvalidArgument(f"kappa must be one positive noise level or several, got {kappa}")
    gaps, dims = [], []
    for level in kappas:
        values = torch.stack([_spectrum(denoiser, x0, i, level, n, cond, generator) for i in range(len(x0))])
        gap, index = ((values[:, :-1] - values[:, 1:]) / values[:, :1]).max(1)
        gaps.append(gap)
        dims.append(d - 1 - index)
    clearest = torch.stack(gaps).argmax(0, keepdim=True)
    return torch.stack(dims).gather(0, clearest)[0]


def _spectrum(
    denoiser: Denoiser,
    x0: Tensor,
    i: int,
    kappa: float,
    n: int,
    cond: Condition | None,
    generator: torch.Generator | None,
) -> Tensor:
    """Singular values, decreasing, of n scores around point i."""
    y = x0[i : i + 1].expand(n, *x0.shape[1:])
    y = y + kappa * torch.randn(y.shape, generator=generator, device=y.device, dtype=y.dtype)
    here = None if cond is None else cond[i : i + 1].repeat(n)
    scores = ((mean_at(denoiser, y, kappa, here) - y) / kappa).reshape(n, -1).double()
    # the score at the point itself is shared by all and may lie along the data: take it out
    return torch.linalg.svdvals(scores - scores.mean(0))


def flipd(
    denoiser: Denoiser,
    y: Tensor,
    kappa: float,
    cond: Condition | None = None,
    probes: int | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """tr dD/dy + |D - y|^2 / kappa^2 = d + kappa^2 (div s + |s|^2), (B,).

    Args:
        denoiser: exact or trained.
        y: points on the data, (B, *event).
        kappa: noise level.
        cond: condition of B rows.
        probes: None for the exact trace, with d derivatives; a number estimates it with as many random signs.
        generator: of the signs.
    """
    with torch.enable_grad():
        at = y.detach().requires_grad_()
        mean = mean_at(denoiser, at, kappa, cond)
        trace = torch.zeros(len(y), dtype=y.dtype, device=y.device)
        for v in probe_vectors(y, probes, generator):
            (row,) = torch.autograd.grad((mean * v).sum(), at, retain_graph=True)
            trace = trace + (row * v).flatten(1).sum(1)
    return trace + ((mean.detach() - y) / kappa).flatten(1).square().sum(1)


@torch.no_grad()
def mmse_dimension(
    denoiser: Denoiser,
    x0: Tensor,
    kappa: float,
    samples: int = 16,
    cond: Condition | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """E |x_0 - D(x_0 + kappa eps)|^2 / kappa^2 around each point, (B,); for a trained network an upper estimate.

    Args:
        denoiser: exact or trained.
        x0: points on the data, (B, *event); held-out ones for a trained network.
        kappa: noise level.
        samples: draws of the noise a point.
        cond: condition of B rows.
        generator: of the noise.
    """
    total = torch.zeros(len(x0), dtype=x0.dtype, device=x0.device)
    for _ in range(samples):
        y = x0 + kappa * torch.randn(x0.shape, generator=generator, device=x0.device, dtype=x0.dtype)
        total += ((mean_at(denoiser, y, kappa, cond) - x0) / kappa).flatten(1).square().sum(1)
    return total / samples
