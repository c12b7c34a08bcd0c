"""What can be trained: ``suffuse train medical/tissue-to-t1``."""

from __future__ import annotations

from pathlib import Path

from suffuse.errors import InvalidArgument
from suffuse.recipes import recipe


def draw(
    checkpoint: Path,
    *,
    out: Path,
    n: int = 4,
    steps: int = 20,
    seed: int = 0,
    device: str = "auto",
    grey: Path | None = None,
    white: Path | None = None,
    fluid: Path | None = None,
) -> list[Path]:
    """Write T1-weighted volumes as NIfTI: n samples, their mean and their standard deviation.

    Without tissue maps of your own, the slab of the template that was held out from training is drawn.

    Args:
        checkpoint: folder written by training.
        out: folder for the files.
        n: number of samples.
        steps: network calls per sample.
        seed: of the first sample; sample k has seed + k.
        device: auto, cpu or cuda.
        grey: NIfTI of grey-matter fractions in MNI space, in any orientation and spacing.
        white: the same for white matter.
        fluid: the same for cerebrospinal fluid.
    """
    import torch

    import suffuse

    from . import tissue_to_t1
    from .data import HELD_OUT_SLAB, WORKING_GRID, load_template, read_nifti, write_nifti

    denoiser = suffuse.hub.load(checkpoint, device=_torch_device(device))
    given = [path for path in (grey, white, fluid) if path is not None]
    if len(given) == 3:
        maps, geometries = zip(*(read_nifti(path) for path in given), strict=True)
        geometry = geometries[0]
        if not all(geometry.isclose(other) for other in geometries):
            raise InvalidArgument("grey, white and fluid lie on different grids; resample them to one")
        tissue = torch.cat(maps)
        if tissue.min() < -1e-3 or tissue.max() > 1 + 1e-3:
            raise InvalidArgument(f"tissue fractions must lie in [0, 1], got [{tissue.min():.3g}, {tissue.max():.3g}]")
        working = WORKING_GRID
    elif given:
        raise InvalidArgument("grey, white and fluid belong together; give all three or none")
    else:
        heights = [WORKING_GRID.world((0, 0, k))[2] for k in range(WORKING_GRID.shape[2])]
        inside = [k for k, z in enumerate(heights) if HELD_OUT_SLAB[0] <= z <= HELD_OUT_SLAB[1]]
        tissue = load_template().tissue[..., inside[0] : inside[-1] + 1]
        geometry = working = WORKING_GRID.slab(inside[0], inside[-1] + 1)

    images = tissue_to_t1.predict_volume(denoiser, tissue, geometry, working, n=n, steps=steps, seed=seed)
    volumes = {f"sample-{k}": image for k, image in enumerate(images)} | {"mean": images.mean(0)}
    if n > 1:
        volumes["std"] = images.std(0)
    stored = geometry.stored_as("float32")
    return [write_nifti(Path(out) / f"{name}.nii.gz", volume, stored) for name, volume in volumes.items()]


@recipe("medical/tissue-to-t1", sample=draw)
def tissue_to_t1(
    *,
    dataset: str = "phantoms",
    out: Path = Path("runs/medical-tissue-to-t1"),
    patients: int = 96,
    steps: int = 1500,
    batch_size: int = 8,
    lr: float = 3e-3,
    seed: int = 0,
    device: str = "auto",
    progress: bool = True,
) -> Path:
    """Draw T1-weighted brain slices from a tissue map, with a MONAI UNet.

    Args:
        dataset: "phantoms" (pseudo-patients made from the bundled template) or "template" (its real slices, few).
        out: folder of the checkpoint and the logs.
        patients: number of pseudo-patients; five in six are trained on.
        steps: optimiser steps.
        batch_size: slices per step.
        lr: peak learning rate.
        seed: of all random draws.
        device: auto, cpu or cuda.
        progress: whether to show progress.
    """
    from . import tissue_to_t1 as model
    from .data import load_slices

    train = load_slices(dataset, patients=patients, seed=seed).train
    metadata = {"recipe": "medical/tissue-to-t1", "dataset": dataset, "patients": patients, "slices": len(train)}
    model.fit(
        train,
        steps=steps,
        batch_size=batch_size,
        lr=lr,
        out=Path(out),
        metadata=metadata,
        seed=seed,
        device=device,
        progress=progress,
    )
    return Path(out)


def _torch_device(device: str) -> str:
    import torch

    return ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device


RECIPES = (tissue_to_t1,)
