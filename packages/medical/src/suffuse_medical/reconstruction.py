r"""Reconstruction: the images that fit a measurement y = A x + s z, drawn from a prior of images.

The prior is trained on images alone and never sees the mask: another acceleration, trajectory or noise level needs no
training. Ways to sample p(x | y), all by network calls at decreasing noise:

    posterior   E[x | x_t, y] by moment matching (``suffuse.guidance.Measured``), in any sampler; exact for a Gaussian
                prior, so that its intervals have their nominal coverage there
    dds         x <- argmin near D that fits y, by conjugate gradients, then  x_s = alpha_s x + sigma_s (eta z +
                sqrt(1 - eta^2) eps): Chung, Lee, Ye (2024), "Decomposed diffusion sampler", arXiv:2303.05754, alg. 1-3
    score-mri   predictor and Langevin corrector of a variance-exploding process, the measurement put back after each:
                Chung, Ye (2022), "Score-based diffusion models for accelerated MRI", arXiv:2110.05243, alg. 1

:func:`predict` returns samples, their mean and spread; :func:`evaluate` says how near they are, whether they fit the
data, and how often their interval holds the truth.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

import suffuse
from suffuse import Condition, Denoiser
from suffuse.denoiser import mean_to_eps
from suffuse.errors import InvalidArgument, unknown
from suffuse.guidance import DataConsistency, Measured
from suffuse.samplers import DDIM, DPMSolverPP, PredictorCorrector
from suffuse.samplers.base import Coefficients, Noise, Stage
from suffuse.schedules import EDM, Level

from . import metrics
from .data.geometry import Geometry
from .operators import Operator
from .prediction import Prediction, check_samples, device_of, in_batches
from .prior import fit_prior

__all__ = ["DDS", "METHODS", "Method", "ScoreMRI", "evaluate", "fit", "predict"]

Method = Literal["posterior", "dds", "score-mri"]
METHODS = get_args(Method)
STEPS = {"posterior": 20, "dds": 50, "score-mri": 100}

fit = fit_prior
"""Train the prior, on images only (N, C, H, W): real, or complex as two channels."""


@dataclass(frozen=True)
class DDS(DDIM):
    """The decomposed diffusion sampler: a :class:`DataConsistency` in, its corrected mean beside the prior's own noise.

    Args:
        eta: share of fresh noise, 0.85 in the paper, at every step alike.
    """

    eta: float = 0.85

    def coefficients(self, t: Level, s: Level, past: Sequence[Level]) -> Coefficients:
        return s.alpha, s.sigma * math.sqrt(1 - self.eta**2), s.sigma * self.eta

    def evaluate(
        self, denoiser: Denoiser, x: Tensor, stage: Stage, cond: Condition | None, state: Any
    ) -> tuple[Tensor, Any]:
        if not isinstance(denoiser, DataConsistency):
            raise InvalidArgument(f"DDS samples a DataConsistency(denoiser, operator, y), got {type(denoiser)}")
        assert stage.t is not None
        mean = denoiser.denoiser(x, stage.t, cond)
        eps = mean_to_eps(x, mean, denoiser.schedule.level(stage.t, like=x))
        return denoiser.consistent(mean), eps

    def step(self, x: Tensor, mean: Tensor, state: Any, noise: Noise, c: Coefficients) -> tuple[Tensor, Any]:
        x = c[0] * mean + c[1] * state
        return (x + c[2] * noise() if c[2] else x), None


@dataclass(frozen=True)
class ScoreMRI(PredictorCorrector):
    """Predictor-corrector with the measurement put back after either; alpha must be 1 (a variance-exploding schedule).

    Args:
        project: x -> the nearest image that fits the measurement.
    """

    grid: str | Sequence[float] = "time"
    project: Callable[[Tensor], Tensor] = field(default=lambda x: x, compare=False)

    def step(self, x: Tensor, mean: Tensor, state: Any, noise: Noise, c: Coefficients) -> tuple[Tensor, Any]:
        x, state = super().step(x, mean, state, noise, c)
        return self.project(x), state


def predict(
    denoiser: Denoiser,
    operator: Operator,
    y: Tensor,
    *,
    method: Method = "posterior",
    noise_std: float = 0.0,
    steps: int | None = None,
    iterations: int | None = None,
    n: int = 8,
    seed: int = 0,
    geometry: Geometry | None = None,
    batch_size: int = 64,
) -> Prediction:
    """Images (n, N, C, H, W) that fit the measurement.

    Args:
        denoiser: the prior.
        operator: A, the same for all rows (a mask per row goes slice by slice).
        y: (N, ...), what was measured.
        method: see the module.
        noise_std: s, the standard deviation of the noise in every entry of y; 0 for none. ``"dds"`` then trusts the
            data as the paper does, with gamma = 1; ``"score-mri"`` always takes them as noise-free.
        steps: default 20, 50 and 100; the evaluations of ``"score-mri"`` are twice as many.
        iterations: of the conjugate gradients at every step, default 10 for ``"posterior"`` and 5 for ``"dds"``.
        n: samples.
        seed: sample k of row i depends on ``seed``, k and i alone.
        geometry: of the volume whose slices these are, to write files.
    """
    if method not in METHODS:
        raise unknown("method", method, METHODS)
    check_samples(n)
    if noise_std < 0:
        raise InvalidArgument(f"noise_std must not be negative, got {noise_std}")
    if not torch.isfinite(y).all():
        raise InvalidArgument("y has NaN or infinite entries; leave them out of the operator's mask instead")
    steps = steps or STEPS[method]
    device = device_of(denoiser, y.device)
    shape = operator.adjoint(y[:1].to(device)).shape[1:]

    def draw(rows: Tensor, seeds: list[int]) -> Tensor:
        measured = rows.to(device)
        generators = suffuse.random.generators(seeds, "cpu")
        size = (len(rows), *shape)
        if method == "posterior":
            guided = Measured(denoiser, operator, measured, noise_std, iterations=iterations or 10)
            drawn = DPMSolverPP(steps)(guided, size, generator=generators)
        elif method == "dds":
            gamma = 1.0 if noise_std else None
            consistent = DataConsistency(denoiser, operator, measured, gamma, iterations or 5)
            drawn = DDS(steps)(consistent, size, generator=generators)
        else:
            schedule = denoiser.schedule
            ve = denoiser if isinstance(schedule, EDM) else denoiser.with_schedule(EDM())

            def project(x: Tensor) -> Tensor:
                return x - operator.pseudo_inverse(operator(x) - measured)

            drawn = ScoreMRI(steps, project=project)(ve, size, generator=generators)
        return drawn.to(y.device)

    return Prediction(in_batches(draw, y, n, seed, batch_size), geometry)


def evaluate(
    prediction: Prediction,
    truth: Tensor,
    brain: Tensor,
    patients: Sequence[str],
    *,
    operator: Operator | None = None,
    y: Tensor | None = None,
    level: float = 0.9,
) -> dict[str, np.ndarray]:
    """Measures of every patient: of the mean of the samples PSNR, SSIM and NRMSE over the brain; of the samples the
    coverage of their central interval, and the data residual |A x - y| / |y|.

    Args:
        prediction: with samples as intensities (air 0, white matter 0.8).
        truth, brain: (N, 1, H, W).
        patients: N names.
        operator, y: for the residual, in the unit of the measurement: give the samples in that unit to it.
        level: nominal, of the interval.
    """
    scores = metrics.fidelity(prediction.mean, truth, brain)
    error = ((prediction.mean - truth) ** 2 * brain).flatten(1).sum(1)
    nrmse = (error / (truth**2 * brain).flatten(1).sum(1)).sqrt()
    values = {"PSNR": scores["PSNR"], "SSIM": scores["SSIM"], "NRMSE": nrmse}
    if len(prediction.samples) > 1:
        low, high = prediction.interval(level)
        inside = (truth >= low) & (truth <= high)
        values["coverage"] = torch.stack([i[b].float().mean() for i, b in zip(inside, brain, strict=True)])
    if operator is not None and y is not None:
        values["residual"] = torch.stack([operator.residual(x, y) for x in prediction.samples]).mean(0)
    return {name: metrics.per_patient(value, patients) for name, value in values.items()}
