"""What a planner's diffusion looks like: schedule, what the network predicts, noise levels of training, sampler.

    vp_ddim  the AlignDiff paper: variance preserving, noise prediction, t uniform, DDIM with 10 equal steps (20 for the
             humanoid)
    edm      its released code: Karras et al.'s preconditioning, log kappa ~ N(-1.2, 1.2^2), 5 Euler steps on their grid
    v        ours, for few steps: v-prediction on the cosine schedule, DPM-Solver++ with 5 equal steps of t

Dong et al. (2024), "AlignDiff", arXiv:2310.02054; Karras et al. (2022), arXiv:2206.00364.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from suffuse.errors import unknown
from suffuse.samplers import DDIM, DPMSolverPP, Euler, Sampler
from suffuse.schedules import EDM, Schedule, VPCosine, VPLinear
from suffuse.training.times import LogNormalKappa, TimeSampler, UniformTime


def few_steps(steps: int = 5) -> Sampler:
    """DPM-Solver++ on equal steps of t, which for few steps spends them where a plan takes shape (kappa near 1)."""
    return DPMSolverPP(steps=steps, grid="time")


@dataclass(frozen=True)
class Formulation:
    """One way to set up the diffusion of plans."""

    schedule: Schedule
    prediction_type: str
    sampler: Sampler
    time: TimeSampler = field(default_factory=UniformTime)


FORMULATIONS = {
    "v": Formulation(VPCosine(), "v_prediction", few_steps()),
    "vp_ddim": Formulation(VPLinear(), "epsilon", DDIM(steps=10, grid="time")),
    "edm": Formulation(EDM(), "v_prediction", Euler(steps=5, grid="karras"), LogNormalKappa()),
}


def formulation(name: str) -> Formulation:
    """The formulation of that name, or one clear error."""
    if name not in FORMULATIONS:
        raise unknown("formulation", name, FORMULATIONS)
    return FORMULATIONS[name]
