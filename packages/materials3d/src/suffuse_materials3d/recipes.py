"""What can be trained: structures of a requested volume fraction."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from suffuse.errors import InvalidArgument
from suffuse.recipes import Recipe, recipe

__all__ = ["RECIPES", "sample", "volume_fraction"]

NAME = "materials3d/volume-fraction"


def sample(
    checkpoint: Path,
    *,
    out: Path = Path("samples"),
    volume_fraction: Sequence[float] = (0.35, 0.5, 0.65),
    n: int = 1,
    size: int = 0,
    steps: int = 15,
    guidance_scale: float = 1.0,
    spacing: float = 1.0,
    unit: str = "voxel",
    mesh: str = "glb",
    seed: int = 0,
    device: str = "auto",
) -> list[Path]:
    """Draw structures, and write each as a TIFF stack and as a mesh of phase 1.

    Args:
        checkpoint: folder that training wrote.
        out: folder of the files.
        volume_fraction: requested shares of phase 1.
        n: structures for each.
        size: voxels along each edge; 0 is the size of the training volumes, larger is possible.
        steps: evaluations of the network, by DPM-Solver++.
        guidance_scale: 1 follows the data.
        spacing: edge of a voxel, in ``unit``.
        unit: unit of length.
        mesh: glb, stl or ply.
        seed: of the noise.
        device: cpu, cuda, or auto.
    """
    from suffuse.bench.runner import resolve_device

    from .io import write_volume
    from .mesh import MESH_SUFFIXES, to_mesh, write_mesh
    from .pipeline import MicrostructurePipeline

    if f".{mesh}" not in MESH_SUFFIXES:
        raise InvalidArgument(f"mesh must be one of {[s[1:] for s in MESH_SUFFIXES]}, got {mesh!r}")
    if n < 1:
        raise InvalidArgument(f"n must be at least 1, got {n}")
    pipeline = MicrostructurePipeline.from_pretrained(checkpoint, device=resolve_device(device))
    requested = [value for value in volume_fraction for _ in range(n)]
    structures = pipeline(
        requested,
        shape=(size,) * 3 if size else None,
        steps=steps,
        guidance_scale=guidance_scale,
        seed=seed,
        spacing=(spacing,) * 3,
        unit=unit,
        progress=True,
    )
    written = []
    for i, (asked, ms) in enumerate(zip(requested, structures, strict=True)):
        stem = Path(out) / f"vf-{asked:.3f}-{i:03d}"
        written.append(write_volume(ms, stem.with_name(stem.name + ".tif")))
        written.append(write_mesh(to_mesh(ms), stem.with_name(f"{stem.name}.{mesh}")))
    return written


@recipe(NAME, sample=sample)
def volume_fraction(
    *,
    dataset: str = "spinodal",
    volumes: int = 512,
    size: int = 24,
    low: float = 0.3,
    high: float = 0.7,
    widths: Sequence[int] = (24, 64),
    blocks: int = 1,
    out: Path = Path("runs/materials3d/volume-fraction"),
    steps: int = 1000,
    batch_size: int = 4,
    lr: float = 3e-3,
    cond_dropout: float = 0.1,
    seed: int = 0,
    device: str = "auto",
    progress: bool = True,
) -> Path:
    """Periodic two-phase structures of a requested volume fraction, learned from simulated spinodal decomposition.

    The network predicts the clean field (``prediction_type="sample"``): it is smooth, and a small network learns that
    much sooner than the noise in every voxel.

    Args:
        dataset: spinodal, or spinodal-coarse.
        volumes: simulations to learn from.
        size: voxels along each edge; a multiple of 2 for each entry of ``widths``.
        low: smallest volume fraction.
        high: largest volume fraction.
        widths: channels of the network at each resolution.
        blocks: residual blocks at each resolution.
        out: folder of the checkpoint and logs.
        steps: optimiser steps.
        batch_size: volumes per step.
        lr: learning rate.
        cond_dropout: share of the volumes that are learned without their volume fraction, for guidance.
        seed: of the simulations, weights, data order and noise.
        device: cpu, cuda, or auto.
        progress: show progress bars.
    """
    import torch

    from suffuse import NetworkDenoiser, schedules, training

    from .data import Augmented, load
    from .nets import PeriodicUNet

    torch.manual_seed(seed)
    backbone = PeriodicUNet(
        1, tuple(widths), blocks, tokens={"volume_fraction": 1}, ranges={"volume_fraction": (low, high)}
    )
    if size % backbone.factor:
        raise InvalidArgument(f"size must be a multiple of {backbone.factor} for widths={tuple(widths)}, got {size}")
    data = load(dataset, volumes, size, (low, high), seed=seed, progress=progress)
    training.fit(
        NetworkDenoiser(backbone, schedules.VPCosine(), "sample", data_std=float(data.fields.std())),
        Augmented(data, seed),
        steps=steps,
        batch_size=batch_size,
        lr=lr,
        objective=training.DenoisingObjective(training.LogNormalKappa(0.5, 1.2), "edm", cond_dropout),
        ema_decay=0.99,
        out=out,
        metadata={
            "recipe": NAME,
            "dataset": dataset,
            "shape": [size] * 3,
            "volume_fraction": [low, high],
            "kappa": data.equation.kappa,
            "time": float(data.time[0]),
        },
        seed=seed,
        accelerator=device,
        progress=progress,
    )
    return Path(out)


RECIPES: tuple[Recipe, ...] = (volume_fraction,)
