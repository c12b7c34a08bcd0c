"""The conditional planner: p(plan | here, requests), guided without a classifier.

Ajay et al. (2022), "Is Conditional Generative Modeling all you need for Decision-Making?", arXiv:2211.15657;
Dong et al. (2024), "AlignDiff", arXiv:2310.02054 (masked tokens, chosen candidates).
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from suffuse import Condition, Denoiser, NetworkDenoiser, hub
from suffuse.errors import CheckpointError, InvalidArgument
from suffuse.guidance import ClassifierFree
from suffuse.nets import DiT
from suffuse.training import fit

from .. import behaviours
from ..data import Normaliser, Scale, Windows
from ..directors import measured
from ..envs import robot
from ..requests import encode
from .base import Planner
from .formulations import formulation as by_name
from .objective import PinnedObjective


def train(
    x: Tensor,
    cond: Condition | None,
    *,
    observation_dim: int,
    formulation: str = "v",
    steps: int = 3000,
    batch_size: int = 128,
    lr: float = 2e-3,
    weight_decay: float = 0.0,
    hidden: int = 128,
    depth: int = 3,
    heads: int = 4,
    patch: int = 4,
    dropout: float = 0.2,
    drop_all: float = 0.1,
    next_observation_weight: float = 1.0,
    ema_decay: float = 0.995,
    out: Path | None = None,
    seed: int = 0,
    accelerator: str = "auto",
    progress: bool = True,
) -> Denoiser:
    """Train a denoiser of normalised plans.

    Args:
        x: (W, channels, H), the first ``observation_dim`` channels being the observation.
        cond: condition of W rows, one token per name, or None.
        observation_dim: o.
        formulation: a name in ``FORMULATIONS``.
        steps, batch_size, lr, weight_decay, ema_decay: of the optimiser.
        hidden, depth, heads, patch: of the transformer, whose tokens are ``patch`` steps each.
        dropout: probability with which each request is masked in training, apart from the others.
        drop_all: probability with which all are.
        next_observation_weight: loss weight of step 1, for plans without actions.
        out: folder of logs and of the resumable run.
        seed: of initialisation and training.
        accelerator: Lightning's.
        progress: show progress.
    """
    chosen = by_name(formulation)
    if x.shape[2] % patch:
        raise InvalidArgument(f"horizon={x.shape[2]} must be a multiple of patch={patch}")
    tokens = None if cond is None else {name: value.shape[2] for name, value in cond.tokens.items()}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        backbone = DiT(x.shape[1], patch, ndim=1, hidden=hidden, depth=depth, heads=heads, tokens=tokens)
    return fit(
        NetworkDenoiser(backbone, chosen.schedule, chosen.prediction_type, data_std=float(x.std())),
        x,
        cond=cond,
        steps=steps,
        batch_size=batch_size,
        lr=lr,
        weight_decay=weight_decay,
        objective=PinnedObjective(
            time=chosen.time, cond_dropout=dropout, drop_all=drop_all, observation_dim=observation_dim,
            next_observation_weight=next_observation_weight,
        ),
        ema_decay=ema_decay,
        out=out,
        seed=seed,
        accelerator=accelerator,
        progress=progress,
    )  # fmt: skip


#: The settings of ``train`` that ``DiffusionPlanner.fit`` hands on.
TRAINING = tuple(inspect.signature(train).parameters)[4:]


def finite(windows: Windows) -> None:
    """Raise InvalidArgument for training data with holes."""
    labels = (windows.trajectories, *windows.behaviour.values())
    if not all(bool(values.isfinite().all()) for values in labels):
        raise InvalidArgument("windows hold NaN or infinity; drop those episodes")


class DiffusionPlanner(Planner):
    """Plans of observations and actions, asked for by measured behaviour in its unit.

    Args:
        formulation: what the denoiser was trained as, which says how it is sampled by default.
        bins: of the tokens, see ``requests.encode``.
        director: which candidate is best; ``directors.measured(env_id)`` if None.
        options: of ``Planner``.
    """

    KIND: ClassVar[str] = "diffusion-planner"

    def __init__(
        self, denoiser: Denoiser, *, env_id: str, formulation: str = "v", bins: int = 0, director: Any = None,
        sampler: Any = None, **options: Any,
    ) -> None:  # fmt: skip
        self.formulation, self.bins = formulation, bins
        director = director or measured(env_id)
        sampler = sampler or by_name(formulation).sampler
        super().__init__(denoiser, env_id=env_id, director=director, sampler=sampler, **options)

    def guided(self) -> Denoiser:
        return ClassifierFree(self.denoiser, self.guidance_scale)

    def condition(self, asked: Mapping[str, Tensor]) -> Condition:
        return encode(asked, self.scales, self.bins)

    # --- training and keeping -----------------------------------------------------------------------------------
    @classmethod
    def fit(
        cls,
        windows: Windows,
        *,
        env_id: str,
        formulation: str = "v",
        bins: int = 0,
        seed: int = 0,
        **options: Any,
    ) -> Any:
        """Train on windows of recorded behaviour.

        Args:
            windows: of ``Episodes.windows``, with the behaviours that can then be requested.
            env_id: the robot.
            formulation: a name in ``FORMULATIONS``.
            bins: of the tokens; 0 for sines and cosines.
            seed: of training, and of planning.
            options: of ``train`` (``steps``, ``batch_size``, ``lr``, ``hidden``, ``depth``, ``patch``, ``out``,
                ``progress``, …) and of the planner (``guidance_scale``, ``replan``, …).
        """
        finite(windows)
        scales = cls.scales_of(windows)
        normaliser, x = cls.plans_of(windows, env_id)
        training: dict[str, Any] = {"next_observation_weight": cls.NEXT_OBSERVATION}
        training |= {name: options.pop(name) for name in TRAINING if name in options}
        denoiser = train(
            x, encode(windows.behaviour, scales, bins), observation_dim=robot(env_id).observation_dim,
            formulation=formulation, seed=seed, **training,
        )  # fmt: skip
        return cls(
            denoiser, env_id=env_id, horizon=x.shape[2], normaliser=normaliser, scales=scales, seed=seed,
            formulation=formulation, bins=bins, **options,
        )  # fmt: skip

    NEXT_OBSERVATION: ClassVar[float] = 1.0

    @classmethod
    def scales_of(cls, windows: Windows) -> dict[str, Scale]:
        """The ranges in which behaviours are requested."""
        return {name: Scale.fit(values) for name, values in windows.behaviour.items()}

    @classmethod
    def plans_of(cls, windows: Windows, env_id: str) -> tuple[Normaliser, Tensor]:
        """What a plan is made of: the scale of its channels, and the normalised plans (W, channels, H)."""
        normaliser = Normaliser.fit(windows.trajectories.flatten(0, 1))
        return normaliser, normaliser(windows.trajectories).transpose(1, 2).contiguous()

    def facts(self) -> dict[str, Any]:
        """What a decision needs beside the denoiser, as JSON."""
        return {
            "kind": self.KIND,
            "env_id": self.env_id,
            "env_options": robot(self.env_id).options,
            "horizon": self.horizon,
            "formulation": self.formulation,
            "bins": self.bins,
            "normaliser": self.normaliser.to_config(),
            "scales": {name: scale.to_config() for name, scale in self.scales.items()},
            "units": {name: behaviours.UNITS.get(name, "1") for name in self.scales},
            "versions": {name: version(name) for name in ("gymnasium", "mujoco")},
        }

    def save(self, path: Path | str, metadata: Mapping[str, Any] | None = None) -> Path:
        """Write a checkpoint folder: the denoiser, with everything else that a decision needs in its metadata."""
        return hub.save(self.denoiser, path, metadata={**(metadata or {}), "planner": self.facts()})

    @classmethod
    def load(cls, path: Path | str, *, device: str = "cpu", **options: Any) -> Any:
        """Read a checkpoint folder; ``options`` are those of the planner (``replan``, ``guidance_scale``, …)."""
        kept = hub.read_config(path).get("metadata", {}).get("planner")
        if not kept:
            raise CheckpointError(f"checkpoint={str(path)!r} is not a planner: its metadata has no scales and robot")
        if (kind := kept.get("kind", DiffusionPlanner.KIND)) != cls.KIND:
            raise CheckpointError(f"checkpoint={str(path)!r} is a {kind}, not a {cls.KIND}; use planners.load")
        return cls(
            hub.load(path, device=device),
            env_id=kept["env_id"],
            horizon=kept["horizon"],
            formulation=kept.get("formulation", "v"),
            bins=kept.get("bins", 0),
            normaliser=Normaliser.from_config(kept["normaliser"]),
            scales={name: Scale(**scale) for name, scale in kept["scales"].items()},
            **cls.parts(Path(path), device),
            **options,
        )

    @classmethod
    def parts(cls, path: Path, device: str) -> dict[str, Any]:
        """Further networks of a checkpoint folder, as arguments."""
        return {}
