r"""Uncertainty maps that mean what they say: intervals scaled on validation patients.

The interval mean +- c std of a model is too narrow or too wide by a factor that validation patients reveal. With R_p(c)
the share of voxels of patient p outside of it, c is the smallest number for which

    n / (n + 1)  mean_p R_p(c)  +  1 / (n + 1)  <=  1 - level,

and the expected coverage of a new patient, exchangeable with them, is then at least ``level``, whatever the model:
conformal risk control, Angelopoulos et al. (2024), arXiv:2208.02814, thm. 1. The unit is the patient, as voxels of one
image are not independent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from suffuse.errors import InvalidArgument

from .prediction import Prediction

__all__ = ["Calibration", "calibrate", "sparsification"]


@dataclass(frozen=True)
class Calibration:
    """Intervals mean +- ``scale`` * (std + ``floor``), which cover ``level`` of a patient's voxels on average."""

    scale: float
    level: float
    floor: float = 0.0

    def width(self, prediction: Prediction) -> Tensor:
        """The half width of the interval, (N, C, H, W): the calibrated uncertainty map, in the unit of the image."""
        return self.scale * (prediction.std + self.floor)

    def interval(self, prediction: Prediction) -> tuple[Tensor, Tensor]:
        """(low, high), each (N, C, H, W)."""
        return prediction.mean - self.width(prediction), prediction.mean + self.width(prediction)

    def coverage(self, prediction: Prediction, truth: Tensor, mask: Tensor, patients: Sequence[str]) -> np.ndarray:
        """The share of voxels inside their interval, for every patient."""
        low, high = self.interval(prediction)
        inside = ((truth >= low) & (truth <= high)) & mask
        return _per_patient(inside, mask, patients)


def calibrate(
    prediction: Prediction, truth: Tensor, mask: Tensor, patients: Sequence[str], level: float = 0.9
) -> Calibration:
    """Scale the intervals of a model on validation patients, none of whom it was trained on.

    Args:
        prediction: of the validation slices, several samples each.
        truth, mask: (N, C, H, W): the images, and which voxels count.
        patients: N names.
        level: the coverage to reach; ``level`` = 0.9 needs at least 9 patients.

    Raises:
        InvalidArgument: for too few patients, a patient without voxels, samples without spread, or NaN.
    """
    if not 0 < level < 1:
        raise InvalidArgument(f"level must lie in (0, 1), got {level}")
    if len(prediction.samples) < 2:
        raise InvalidArgument("prediction has one sample and hence no spread; predict with n >= 2")
    if not prediction.mean.shape == truth.shape == mask.shape or len(patients) != len(truth):
        shapes = [tuple(x.shape) for x in (prediction.mean, truth, mask)]
        raise InvalidArgument(f"need truth and mask like the slices, and a name each, got {shapes}, {len(patients)}")
    names = np.array(patients)
    distinct = sorted(set(patients))
    needed = int(np.ceil(level / (1 - level) - 1e-9))
    if len(distinct) < needed:
        raise InvalidArgument(
            f"level={level} needs at least {needed} validation patients, got {len(distinct)}; lower level or add some"
        )
    if bare := [p for p in distinct if not bool(mask[torch.from_numpy(names == p)].any())]:
        raise InvalidArgument(f"mask is empty for the patients {bare[:5]}; leave them out")
    spread, error = prediction.std, (truth - prediction.mean).abs()
    if not bool(torch.isfinite(spread[mask]).all() and torch.isfinite(error[mask]).all()):
        raise InvalidArgument("prediction or truth has NaN or infinite voxels inside of mask; mask them out")
    # a spread of exactly zero would never cover: a floor far below what is seen keeps every score finite
    floor = 1e-3 * float(spread[mask].mean())
    if floor == 0:
        raise InvalidArgument("all samples of prediction are equal inside of mask; there is no spread to scale")
    ratio = (error / (spread + floor)).cpu()
    rows = [torch.from_numpy(names == p) for p in distinct]
    scores = [np.sort(ratio[row][mask.cpu()[row]].numpy()) for row in rows]
    n = len(scores)

    def bound(c: float) -> float:
        risk = np.mean([1 - np.searchsorted(s, c, side="right") / len(s) for s in scores])
        return float(n / (n + 1) * risk + 1 / (n + 1))

    low, high = 0.0, float(max(s[-1] for s in scores))
    for _ in range(60):  # the bound falls with c
        middle = (low + high) / 2
        low, high = (low, middle) if bound(middle) <= 1 - level + 1e-12 else (middle, high)
    return Calibration(high, level, floor)


def sparsification(prediction: Prediction, truth: Tensor, mask: Tensor, points: int = 20) -> tuple[Tensor, float]:
    """Does the spread point at the errors? The error of what is left when the most uncertain voxels are taken away.

    Returns:
        (points, 2): RMSE left after removing a share of voxels by their spread, and by their true error, both relative
        to all voxels'; and the mean gap between the two curves (0 is perfect, and a random order scores about 0.5).

    Ilg et al. (2018), "Uncertainty estimates and multi-hypotheses networks for optical flow", arXiv:1802.07095, sec. 5.
    """
    error = (prediction.mean - truth)[mask].double().square()
    spread = prediction.std[mask]
    curves = []
    for order in (spread.argsort(), error.argsort()):
        left = error[order].cumsum(0) / torch.arange(1, len(error) + 1, device=error.device)
        keep = (torch.linspace(1, 1 / points, points) * len(error)).long().clamp(min=1) - 1
        curves.append((left[keep] / error.mean()).sqrt())
    both = torch.stack(curves, 1)
    return both, float((both[:, 0] - both[:, 1]).mean())


def _per_patient(inside: Tensor, mask: Tensor, patients: Sequence[str]) -> np.ndarray:
    names = np.array(patients)
    hit, all_ = (m.flatten(1).sum(1).double().cpu().numpy() for m in (inside, mask))
    return np.array([hit[names == p].sum() / all_[names == p].sum() for p in sorted(set(patients))])
