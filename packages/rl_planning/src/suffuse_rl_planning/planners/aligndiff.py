"""AlignDiff: ask for learned attribute strengths, and do the plan whose predicted strengths are nearest.

A dataset without labels is relabelled with the attribute model zeta; a plan is drawn given requested strengths v and
their mask m, for each of N noises, and

    tau* = argmin_tau || (v - zeta(tau)) o m ||^2

is executed for its first steps (one, in the paper). Changing the request changes the behaviour at once, with no further
training. Guidance is D_u + w (D_c - D_u); the paper's scale is ours minus 1.
Dong et al. (2024), "AlignDiff: Aligning Diverse Human Preferences via Behavior-Customisable Diffusion Model",
arXiv:2310.02054, section 4.3.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from suffuse import Denoiser
from suffuse.errors import InvalidArgument

from ..attributes import Attributes
from ..data import Episodes, Scale, Windows
from ..directors import attribute_distance
from .conditional import DiffusionPlanner


class AlignDiff(DiffusionPlanner):
    """A planner that is asked for attribute strengths in [0, 1].

    Args:
        denoiser: of plans, conditioned on strengths.
        attributes: the model that labelled its training data, with its scale.
        options: of ``DiffusionPlanner``.
    """

    KIND: ClassVar[str] = "aligndiff"

    def __init__(self, denoiser: Denoiser, *, attributes: Attributes, director: Any = None, **options: Any) -> None:
        super().__init__(denoiser, director=director or attribute_distance(attributes), **options)
        self.attributes = attributes

    @classmethod
    def fit(
        cls,
        windows: Windows,
        *,
        env_id: str,
        attributes: Attributes | None = None,
        episodes: Episodes | None = None,
        scale: str = "minmax",
        **options: Any,
    ) -> AlignDiff:
        """Relabel the windows of a dataset, and train on them.

        Args:
            windows: of ``Episodes.windows``; what was measured over them is not looked at.
            env_id: the robot.
            attributes: a trained attribute model.
            episodes: the dataset that the windows are of; None if they carry strengths in [0, 1] already.
            scale: "minmax" or "quantile", if the attribute model has no scale yet.
            options: of ``DiffusionPlanner.fit``.
        """
        if attributes is None:
            raise InvalidArgument("attributes is needed: train an attribute model on preferences first")
        if episodes is not None:
            windows, _ = attributes.relabel(episodes, windows, kind=scale)
        return super().fit(windows, env_id=env_id, attributes=attributes, **options)  # type: ignore[no-any-return]

    @classmethod
    def scales_of(cls, windows: Windows) -> dict[str, Scale]:
        return {name: Scale(0.0, 1.0) for name in windows.behaviour}

    def save(self, path: Path | str, metadata: Mapping[str, Any] | None = None) -> Path:
        """Write the planner's checkpoint folder, and the attribute model's inside."""
        self.attributes.save(Path(path) / "attributes")
        return super().save(path, metadata)

    @classmethod
    def parts(cls, path: Path, device: str) -> dict[str, Any]:
        return {"attributes": Attributes.load(path / "attributes", device=device)}
