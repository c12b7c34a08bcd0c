"""An attribute model with its scale: what relabels a dataset, directs a planner, and judges what came out.

Labels belong to stretches of a dataset, not to positions in an array: a strength is kept with its (episode, start), and
meets the windows of a planner by that key, so that another horizon cannot silently misalign them.
Dong et al. (2024), "AlignDiff", arXiv:2310.02054, sections 4.1 and 4.2.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from suffuse import Condition, hub
from suffuse.errors import CheckpointError, InvalidArgument
from suffuse.training import fit

from .. import behaviours
from ..data import Episodes, Normaliser, Windows
from ..data.files import replacing
from ..envs import robot
from .model import ANSWERS, BradleyTerry, StrengthEnsemble, accuracy
from .scale import AttributeScale

if TYPE_CHECKING:
    from ..preferences import Preferences


@dataclass(frozen=True)
class Strengths:
    """The attributes of W windows of a dataset.

    Attributes:
        attributes: k names.
        episode, start: (W,) the window's place in the dataset.
        values: (W, k), raw.
    """

    attributes: tuple[str, ...]
    episode: Tensor
    start: Tensor
    values: Tensor

    def of(self, windows: Windows) -> Tensor:
        """The strengths (W', k) of windows, found by (episode, start)."""
        width = int(max(self.start.max(), windows.start.max())) + 1
        known, wanted = self.episode * width + self.start, windows.episode * width + windows.start
        order = known.argsort()
        at = order[torch.searchsorted(known[order], wanted).clamp(max=len(known) - 1)]
        if missing := int((known[at] != wanted).sum()):
            raise InvalidArgument(
                f"{missing} of {len(wanted)} windows have no strength: they are of another dataset, horizon or stride; "
                "relabel these windows"
            )
        return self.values[at]

    def save(self, path: Path | str) -> Path:
        """Write a safetensors file."""
        tensors = {name: getattr(self, name).contiguous() for name in ("episode", "start", "values")}
        with replacing(path) as target:
            safetensors.torch.save_file(tensors, target, metadata={"attributes": ",".join(self.attributes)})
        return Path(path)

    @classmethod
    def load(cls, path: Path | str) -> Strengths:
        with safetensors.safe_open(path, "pt") as file:
            names = tuple(file.metadata()["attributes"].split(","))
            return cls(names, *(file.get_tensor(name) for name in ("episode", "start", "values")))


class Attributes:
    """Observations to attribute strengths in [0, 1].

    Args:
        model: raw strengths.
        env_id: the robot.
        scale: raw strengths to [0, 1]; without one only raw strengths are given.
    """

    def __init__(self, model: StrengthEnsemble, *, env_id: str, scale: AttributeScale | None = None) -> None:
        self.model, self.env_id, self.scale = model.eval().requires_grad_(False), env_id, scale
        if len(model.mean) != robot(env_id).observation_dim:
            raise InvalidArgument(
                f"the attribute model reads {len(model.mean)} observations, {env_id} has "
                f"{robot(env_id).observation_dim}; is it of another robot?"
            )

    @property
    def names(self) -> tuple[str, ...]:
        return self.model.attributes

    @classmethod
    def fit(
        cls,
        preferences: Preferences,
        *,
        env_id: str,
        steps: int = 3000,
        batch_size: int = 256,
        lr: float = 1e-4,
        weight_decay: float = 1e-4,
        width: int = 128,
        members: int = 3,
        patch: int = 1,
        shortest: int = 16,
        out: Path | None = None,
        seed: int = 0,
        accelerator: str = "auto",
        progress: bool = True,
    ) -> Attributes:
        """Train on answered pairs.

        Args:
            preferences: of ``suffuse_rl_planning.preferences``.
            env_id: the robot that they show.
            steps, batch_size, lr, weight_decay: of AdamW.
            width, members, patch: of the ensemble; 128, 3 and 1 in the paper's code.
            shortest: of the random crops of the pairs; windows of at least that many steps can be judged.
            out: folder of logs and of the resumable run.
            seed: of initialisation and training.
            accelerator: Lightning's.
            progress: show progress.
        """
        pairs = preferences.pairs()
        normaliser = Normaliser.fit(pairs.flatten(0, 2))
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = StrengthEnsemble(
                preferences.attributes, normaliser.mean.tolist(), normaliser.std.tolist(), members, width, patch=patch
            )
        model = fit(
            model,
            pairs,
            cond=Condition(tokens={ANSWERS: preferences.answers()[:, None]}),
            steps=steps,
            batch_size=min(batch_size, len(pairs)),
            lr=lr,
            weight_decay=weight_decay,
            objective=BradleyTerry(shortest),
            ema_decay=0.99,
            out=out,
            seed=seed,
            accelerator=accelerator,
            progress=progress,
        )
        return cls(model, env_id=env_id)

    def accuracy(self, preferences: Preferences) -> dict[str, float]:
        """Share of the decided pairs that the model orders as they were answered."""
        shares = accuracy(self.model, preferences.pairs(), preferences.answers())
        return dict(zip(self.names, shares.tolist(), strict=True))

    # --- strengths ----------------------------------------------------------------------------------------------
    @torch.no_grad()
    def raw(self, observations: Tensor) -> Tensor:
        """Observations (..., T, o) in the units of the environment -> raw strengths (..., k), on the same device."""
        flat = observations.reshape(-1, *observations.shape[-2:])
        self.model.to(flat.device)
        parts = [self.model(part) for part in flat.split(4096)]
        return torch.cat(parts).reshape(*observations.shape[:-2], -1)

    def __call__(self, observations: Tensor) -> Tensor:
        """Observations (..., T, o) -> strengths (..., k) in [0, 1]."""
        if self.scale is None:
            raise InvalidArgument("this attribute model has no scale yet; relabel a dataset with it first")
        return self.scale(self.raw(observations))

    def strengths(self, episodes: Episodes, windows: Windows) -> Strengths:
        """The raw strengths of the stretches that the windows were measured over."""
        if episodes.env_id != self.env_id:
            raise InvalidArgument(f"the dataset is of {episodes.env_id}, the attribute model of {self.env_id}")
        if windows.measured is None:
            raise InvalidArgument("these windows are of no dataset; make them with Episodes.windows")
        first, last = windows.measured.T
        values = torch.zeros(len(windows), len(self.names))
        observations = torch.from_numpy(episodes.observations)
        lengths = last - first
        for length in lengths.unique().tolist():
            rows = torch.nonzero(lengths == length)[:, 0]
            for part in rows.split(4096):
                values[part] = self.raw(observations[first[part][:, None] + torch.arange(length)])
        return Strengths(self.names, windows.episode, windows.start, values)

    def relabel(self, episodes: Episodes, windows: Windows, *, kind: str = "minmax") -> tuple[Windows, Strengths]:
        """The windows with strengths in [0, 1] as their behaviour; sets the scale from this dataset if there is none.

        Args:
            episodes: the dataset.
            windows: of it.
            kind: of the scale, "minmax" or "quantile".
        """
        found = self.strengths(episodes, windows)
        if self.scale is None:
            self.scale = AttributeScale.fit(found.values, kind)
        return self.apply(windows, found), found

    def apply(self, windows: Windows, found: Strengths) -> Windows:
        """Windows with strengths that were found before, matched by (episode, start)."""
        if self.scale is None:
            raise InvalidArgument("this attribute model has no scale yet; relabel a dataset with it first")
        v = self.scale(found.of(windows)).float()
        return dataclasses.replace(windows, behaviour=dict(zip(self.names, v.T.contiguous(), strict=True)))

    # --- keeping ------------------------------------------------------------------------------------------------
    def save(self, path: Path | str, metadata: Mapping[str, Any] | None = None) -> Path:
        """Write a checkpoint folder with the model, its robot and its scale."""
        if self.scale is None:
            raise InvalidArgument("an attribute model without a scale is of no use; relabel a dataset with it first")
        kept = {
            "env_id": self.env_id,
            "attributes": list(self.names),
            "units": [behaviours.UNITS.get(name, "1") for name in self.names],
            "scale": self.scale.to_config(),
        }
        return hub.save(self.model, path, metadata={**(metadata or {}), "attributes": kept})

    @classmethod
    def load(cls, path: Path | str, *, device: str = "cpu") -> Attributes:
        """Read a checkpoint folder.

        Raises:
            CheckpointError: when it has no scale, or is not of an attribute model.
        """
        kept = hub.read_config(path).get("metadata", {}).get("attributes")
        if not kept or not kept.get("scale"):
            raise CheckpointError(f"checkpoint={str(path)!r} has no attribute scale: it was not written by save")
        model: Any = hub.load(path, device)
        return cls(model, env_id=kept["env_id"], scale=AttributeScale.from_config(kept["scale"]))
