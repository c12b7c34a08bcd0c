"""From a request to structures: a trained denoiser, guidance, a sampler, a threshold."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from suffuse import Condition, Denoiser, hub
from suffuse.errors import CheckpointError, InvalidArgument
from suffuse.guidance import ClassifierFree
from suffuse.random import generators
from suffuse.samplers import DPMSolverPP

from .data.spinodal import request
from .microstructure import Microstructure

__all__ = ["MicrostructurePipeline"]


class MicrostructurePipeline:
    """Structures of a requested volume fraction.

    Args:
        denoiser: of fields (B, 1, X, Y, Z), with the token ``volume_fraction``.
        volume_fraction: the range (low, high) that it was trained on.
        shape: voxels of the training volumes, and of samples unless asked otherwise.
    """

    def __init__(
        self, denoiser: Denoiser, volume_fraction: Sequence[float] = (0.0, 1.0), shape: Sequence[int] = (24, 24, 24)
    ) -> None:
        self.denoiser = denoiser
        self.low, self.high = (float(v) for v in volume_fraction)
        self.shape = tuple(int(n) for n in shape)

    @classmethod
    def from_pretrained(cls, checkpoint: str | Path, device: str = "cpu") -> MicrostructurePipeline:
        """The pipeline of a checkpoint folder that the recipe ``materials3d/volume-fraction`` wrote.

        Raises:
            CheckpointError: when it is no checkpoint, or one of another recipe.
        """
        facts = hub.read_config(checkpoint)["metadata"]
        if not {"volume_fraction", "shape"} <= set(facts):
            raise CheckpointError(
                f"checkpoint={str(checkpoint)!r} is of recipe {facts.get('recipe')!r}, which makes no microstructures"
            )
        return cls(hub.load(checkpoint, device=device), facts["volume_fraction"], facts["shape"])

    def condition(self, volume_fraction: Sequence[float]) -> Condition:
        """The condition that asks for these volume fractions.

        Raises:
            InvalidArgument: for a value outside of the range that was trained on.
        """
        for value in volume_fraction:
            if not 0 <= value <= 1:  # NaN, too
                raise InvalidArgument(f"volume_fraction must lie in [0, 1], got {value}; 45 % is 0.45")
            if not self.low - 1e-6 <= value <= self.high + 1e-6:
                raise InvalidArgument(
                    f"volume_fraction={value:g} is outside of [{self.low:g}, {self.high:g}], which the model knows"
                )
        return request(volume_fraction)

    def __call__(
        self,
        volume_fraction: Sequence[float] | float | None,
        *,
        n: int = 1,
        shape: Sequence[int] | None = None,
        steps: int = 15,
        guidance_scale: float = 1.0,
        seed: int = 0,
        spacing: Sequence[float] = (1.0, 1.0, 1.0),
        unit: str = "voxel",
        batch_size: int = 16,
        progress: bool = False,
    ) -> list[Microstructure]:
        """Draw structures, periodic in all axes.

        Args:
            volume_fraction: one structure for each of these shares of phase 1; one share for ``n`` structures; or None
                for ``n`` structures of any share.
            n: number of structures, when ``volume_fraction`` is one number or None.
            shape: voxels (X, Y, Z); may be larger than in training.
            steps: steps of DPM-Solver++(2M).
            guidance_scale: w of classifier-free guidance; 1 is none.
            seed: structure i depends on (seed, i) and its request alone.
            spacing, unit: size to give to the voxels.
            batch_size: structures at once.
            progress: show a progress bar.
        """
        if n < 1 or batch_size < 1:
            raise InvalidArgument(f"n and batch_size must be at least 1, got n={n}, batch_size={batch_size}")
        requested = [volume_fraction] * n if isinstance(volume_fraction, int | float) else volume_fraction
        wanted = [self.low] * n if requested is None else [float(v) for v in requested]
        if not wanted:
            raise InvalidArgument("volume_fraction is empty; ask for at least one structure")
        cond = request(wanted).null() if requested is None else self.condition(wanted)
        guided = self.denoiser if requested is None else ClassifierFree(self.denoiser, guidance_scale)
        shape = tuple(shape or self.shape)
        if len(shape) != 3 or min(shape) < 1:
            raise InvalidArgument(f"shape must be three positive sizes (X, Y, Z), got {shape}")
        device = next(self.denoiser.parameters()).device
        made: list[Microstructure] = []
        for first in range(0, len(wanted), batch_size):
            rows = list(range(first, min(first + batch_size, len(wanted))))
            fields = DPMSolverPP(steps=steps, grid="time")(
                guided,
                (len(rows), 1, *shape),
                cond=cond[rows].to(device),
                generator=generators(seed * 1_000_003 + i for i in rows),
                progress=progress,
            )
            for row, u in zip(rows, fields[:, 0].cpu().numpy(), strict=True):
                asked = {} if requested is None else {"requested_volume_fraction": wanted[row]}
                ms = Microstructure.from_field(u, spacing=spacing, unit=unit, attributes={"seed": seed, **asked})
                made.append(ms.with_attributes(volume_fraction=float(ms.labels.mean())))
        return made
