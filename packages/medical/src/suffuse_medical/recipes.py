"""What can be trained: ``suffuse train medical/tissue-to-t1``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from suffuse.errors import InvalidArgument
from suffuse.recipes import recipe

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from .data.geometry import Geometry


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


def draw_slices(
    checkpoint: Path, *, out: Path, n: int = 8, steps: int = 20, seed: int = 0, device: str = "auto"
) -> list[Path]:
    """Write slices as NIfTI, drawn from a latent diffusion model.

    Args:
        checkpoint: folder written by training.
        out: folder for the files.
        n: number of slices.
        steps: network calls per slice.
        seed: of the first slice; slice k has seed + k.
        device: auto, cpu or cuda.
    """
    import suffuse

    from .data import WORKING_GRID, to_intensity, write_nifti

    model: Any = suffuse.hub.load(checkpoint, device=_torch_device(device))
    images = to_intensity(model.sample(n, steps=steps, seed=seed))
    geometry = WORKING_GRID.slab(0, 1).stored_as("float32")  # a slice of nowhere in particular, at the right spacing
    return [write_nifti(Path(out) / f"slice-{seed + k}.nii.gz", x[..., None], geometry) for k, x in enumerate(images)]


@recipe("medical/latent-diffusion", sample=draw_slices)
def latent_diffusion(
    *,
    dataset: str = "phantoms",
    out: Path = Path("runs/medical-latent-diffusion"),
    kind: str = "kl",
    factor: int = 4,
    patients: int = 48,
    autoencoder_steps: int = 2000,
    steps: int = 3000,
    batch_size: int = 16,
    seed: int = 0,
    device: str = "auto",
    progress: bool = True,
) -> Path:
    """Draw T1-weighted brain slices in the latent space of an autoencoder (LDM).

    Args:
        dataset: "phantoms" or "template".
        out: folder of the checkpoint and the logs.
        kind: of autoencoder, "kl" or "vq".
        factor: how much each edge of the image shrinks, 2, 4 or 8.
        patients: number of pseudo-patients; five in six are trained on.
        autoencoder_steps: optimiser steps of stage 1; the adversary joins half-way.
        steps: optimiser steps of stage 2.
        batch_size: slices per step.
        seed: of all random draws.
        device: auto, cpu or cuda.
        progress: whether to show progress.
    """
    from . import ldm
    from .data import load_slices

    images = load_slices(dataset, patients=patients, seed=seed).train.image
    autoencoder = ldm.fit_autoencoder(
        images, kind, factor=factor, steps=autoencoder_steps, batch_size=batch_size, out=Path(out) / "stage1",
        seed=seed, device=device, progress=progress,
    )  # fmt: skip
    metadata = {"recipe": "medical/latent-diffusion", "dataset": dataset, "patients": patients, "slices": len(images)}
    ldm.fit(
        images, autoencoder, steps=steps, batch_size=batch_size, out=Path(out), metadata=metadata, seed=seed,
        device=device, progress=progress,
    )  # fmt: skip
    return Path(out)


def _draw_in_style(
    checkpoint: Path,
    *,
    out: Path,
    image: Path | None = None,
    n: int = 8,
    steps: int = 20,
    guidance_scale: float = 1.5,
    seed: int = 0,
    device: str = "auto",
) -> list[Path]:
    """Write n slices with their labels, as NIfTI: layouts of new pseudo-patients in the style of a volume.

    Args:
        checkpoint: folder written by training.
        out: folder for the files.
        image: NIfTI volume of a head in MNI space, whose style is taken; without one, that of a pseudo-patient.
        n: number of slices.
        steps: network calls per slice.
        guidance_scale: how strongly the style is followed.
        seed: of the first slice.
        device: auto, cpu or cuda.
    """
    import torch

    import suffuse

    from . import stedm
    from .data import COARSE_GRID, TISSUE_CLASSES, labelled_phantoms, scaled

    model: Any = suffuse.hub.load(checkpoint, device=_torch_device(device))
    if image is None:
        place = scaled(labelled_phantoms(1, [(1800, 55)], ("B",), seed + 1)).images
    else:
        place = _read(image, COARSE_GRID).slices
        place = place[_show_tissue(place, image)]
    new = labelled_phantoms(1 + n // 8, seed=seed + 2)  # a dozen slices each
    labels = new.labels[torch.randperm(len(new.labels), generator=torch.Generator().manual_seed(seed))[:n]]
    encoder = model.backbone.style
    styles = None if encoder is None else stedm.style_sets(place, n, encoder.images, seed)
    layout = stedm.layout_maps(labels, TISSUE_CLASSES)
    images = stedm.synthesise(model, layout, styles, guidance_scale=guidance_scale, steps=steps, seed=seed)
    return _write_pairs(Path(out), images, labels)


def _write_pairs(out: Path, images: Tensor, labels: Tensor) -> list[Path]:
    """Slices (N, 1, H, W) in network units and their labels (N, H, W), at the spacing of pseudo-patients."""
    from .data import COARSE_GRID, to_intensity, write_nifti

    where = COARSE_GRID.slab(0, 1)
    files = []
    for k, (image, label) in enumerate(zip(to_intensity(images), labels, strict=True)):
        files.append(write_nifti(out / f"image-{k}.nii.gz", image[..., None], where.stored_as("float32")))
        files.append(write_nifti(out / f"label-{k}.nii.gz", label[None, ..., None].float(), where.stored_as("uint8")))
    return files


@recipe("medical/style", sample=_draw_in_style)
def style(
    *,
    out: Path = Path("runs/medical-style"),
    patients: int = 24,
    source: str = "mp",
    aggregation: str = "mean",
    style_images: int = 4,
    steps: int = 2000,
    batch_size: int = 16,
    seed: int = 0,
    device: str = "auto",
    progress: bool = True,
) -> Path:
    """Draw tissue maps in the style of other images (STEDM), on pseudo-patients of several protocols.

    Args:
        out: folder of the checkpoint and the logs.
        patients: number of pseudo-patients.
        source: of style images, "mp", "nearby", "augmented", or "none" for the layout-only ablation.
        aggregation: of style images, "mean", "max", "linear" or "set".
        style_images: how many are shown.
        steps: optimiser steps.
        batch_size: slices per step.
        seed: of all random draws.
        device: auto, cpu or cuda.
        progress: whether to show progress.
    """
    from . import stedm
    from .data import PROTOCOLS, TISSUE_CLASSES, labelled_phantoms, scaled

    train = scaled(labelled_phantoms(patients, PROTOCOLS, seed=seed))
    layout = stedm.layout_maps(train.labels, TISSUE_CLASSES)
    stedm.fit(
        train.images, layout, train.patients, source=source, aggregation=aggregation,  # type: ignore[arg-type]
        style_images=style_images, steps=steps, batch_size=batch_size, out=Path(out), seed=seed, device=device,
        metadata={"recipe": "medical/style", "patients": patients}, progress=progress,
    )  # fmt: skip
    return Path(out)


def _draw_pairs(
    checkpoint: Path, *, out: Path, n: int = 8, steps: int = 20, seed: int = 0, device: str = "auto"
) -> list[Path]:
    """Write n slices with their labels, both drawn, as NIfTI.

    Args:
        checkpoint: folder written by training.
        out: folder for the files.
        n: number of slices.
        steps: network calls per slice.
        seed: of the first slice; slice k has seed + k.
        device: auto, cpu or cuda.
    """
    import suffuse

    from . import unicon
    from .data import COARSE_GRID

    model: Any = suffuse.hub.load(checkpoint, device=_torch_device(device))
    images, labels = unicon.draw(model, n, COARSE_GRID.shape[:2], steps=steps, seed=seed)
    return _write_pairs(Path(out), images, labels)


@recipe("medical/joint", sample=_draw_pairs)
def joint(
    *,
    out: Path = Path("runs/medical-joint"),
    patients: int = 24,
    steps: int = 3000,
    batch_size: int = 16,
    seed: int = 0,
    device: str = "auto",
    progress: bool = True,
) -> Path:
    """Draw, segment and paint with one joint model of slices and their labels (UniCon).

    Args:
        out: folder of the checkpoint and the logs.
        patients: number of pseudo-patients.
        steps: optimiser steps.
        batch_size: slices per step.
        seed: of all random draws.
        device: auto, cpu or cuda.
        progress: whether to show progress.
    """
    from . import stedm, unicon
    from .data import TISSUE_CLASSES, labelled_phantoms

    train = labelled_phantoms(patients, seed=seed)
    layout = stedm.layout_maps(train.labels, TISSUE_CLASSES)
    unicon.fit(
        train.images, layout, steps=steps, batch_size=batch_size, out=Path(out),
        metadata={"recipe": "medical/joint", "patients": patients}, seed=seed, device=device, progress=progress,
    )  # fmt: skip
    return Path(out)


# --- tasks on volumes -------------------------------------------------------------------------------------------

GRID, SPACING = (56, 64, 48), 3.0
"""Voxels and their size in mm, of the grid around the middle of a volume that the networks of these tasks see."""


def _healthy(images: Path | None, patients: int, sequence: str, seed: int) -> Tensor:
    """Slices (N, 1, H, W) of volumes in a folder, or of healthy pseudo-patients."""
    import torch

    from .data import Geometry, PhantomCohort, VolumeFolder, mri_percentile, plain, resample, working_grid

    volumes = []
    if images is None:
        cohort = PhantomCohort(patients, sequences=(sequence,), sites=("A", "B"), seed=seed)
        volumes = [mri_percentile(plain(cohort[i]["image"])) for i in range(patients)]
    else:
        folder = VolumeFolder(images)
        for item in (folder[i] for i in range(len(folder))):
            where = Geometry.of(item["image"])
            grid = working_grid(where, GRID, SPACING)
            volumes.append(resample(mri_percentile(plain(item["image"])) + 1, where, grid) - 1)
    slices = torch.cat([volume.permute(3, 0, 1, 2) for volume in volumes])
    return slices[_show_tissue(slices, images)]


class _Input(NamedTuple):
    """A NIfTI volume as the networks see it, and the way back."""

    slices: Tensor  # (N, 1, H, W) in network units, on ``grid``
    grid: Geometry
    geometry: Geometry  # the file's own
    unit: tuple[float, float]  # the percentiles that became -1 and 0.6


def _read(image: Path, grid: Geometry | None = None) -> _Input:
    from .data import mri_percentile, percentiles, read_nifti, resample, working_grid

    volume, geometry = read_nifti(image)
    grid = grid or working_grid(geometry, GRID, SPACING)
    # air is -1: interpolate from zero outside the file
    slices = (resample(mri_percentile(volume) + 1, geometry, grid) - 1).permute(3, 0, 1, 2)
    return _Input(slices, grid, geometry, percentiles(volume))


def _show_tissue(slices: Tensor, images: Path | None) -> Tensor:
    """Which of the slices (N, 1, H, W) are not mostly air, (N,): air teaches nothing."""
    keep = (slices > -0.8).float().mean((1, 2, 3)) > 0.1
    if not keep.any():
        raise InvalidArgument(
            f"no slice of {images or 'the pseudo-patients'} shows tissue where the network looks, around the middle of "
            f"the volume; is its spacing in mm?"
        )
    return keep


def _find(
    checkpoint: Path,
    *,
    out: Path,
    image: Path,
    level: float = 0.4,
    steps: int = 8,
    n: int = 4,
    seed: int = 0,
    device: str = "auto",
) -> list[Path]:
    """Write an anomaly map of a volume, its spread, and the healthy version, as NIfTI on the volume's own grid.

    Values are in network units: the percentiles 1 and 99 of the volume are -1 and 0.6, and the map is their square.

    Args:
        checkpoint: folder written by training.
        out: folder for the files.
        image: NIfTI volume, in any orientation and spacing.
        level: noise that is added, kappa.
        steps: network calls per sample.
        n: number of samples.
        seed: of the first sample.
        device: auto, cpu or cuda.
    """
    import suffuse

    from . import anomaly as task

    denoiser = suffuse.hub.load(checkpoint, device=_torch_device(device))
    given = _read(image)
    found = task.predict(denoiser, given.slices, level=level, steps=steps, n=n, seed=seed, geometry=given.grid)
    return found.on(given.geometry).write(out)


@recipe("medical/anomaly", sample=_find)
def anomaly(
    *,
    images: Path | None = None,
    out: Path = Path("runs/medical-anomaly"),
    noise: str = "simplex",
    patients: int = 96,
    sequence: str = "FLAIR",
    steps: int = 3000,
    batch_size: int = 8,
    lr: float = 3e-3,
    seed: int = 0,
    device: str = "auto",
    progress: bool = True,
) -> Path:
    """Learn what healthy slices look like, to find what does not (AnoDDPM).

    Args:
        images: folder of NIfTI volumes of healthy people; without one, pseudo-patients.
        out: folder of the checkpoint and the logs.
        noise: "simplex", "coarse" or "white".
        patients: number of pseudo-patients.
        sequence: of the pseudo-patients: T1w, PDw, T2w or FLAIR.
        steps: optimiser steps.
        batch_size: slices per step.
        lr: peak learning rate.
        seed: of all random draws.
        device: auto, cpu or cuda.
        progress: whether to show progress.
    """
    from . import anomaly as task

    slices = _healthy(images, patients, sequence, seed)
    task.fit(
        slices, noise=noise, steps=steps, batch_size=batch_size, lr=lr, out=Path(out), seed=seed, device=device,
        metadata={"recipe": "medical/anomaly", "noise": noise, "slices": len(slices)}, progress=progress,
    )  # fmt: skip
    return Path(out)


def _reconstruct(
    checkpoint: Path,
    *,
    out: Path,
    image: Path,
    acceleration: float = 4.0,
    method: str = "dds",
    steps: int | None = None,
    n: int = 4,
    seed: int = 0,
    device: str = "auto",
) -> list[Path]:
    """Leave out k-space lines of a volume, slice by slice, and reconstruct it: zero-filled, mean, spread and samples.

    Files lie on the grid of the volume, in its unit and of its voxel type, but the spread, which is float32. Only the
    brightest hundredth of its voxels can be clipped.

    Args:
        checkpoint: folder written by training.
        out: folder for the files.
        image: NIfTI volume, in any orientation and spacing.
        acceleration: of how many lines one is kept.
        method: "posterior", "dds" or "score-mri".
        steps: of the sampler; default 20, 50 and 100.
        n: number of samples.
        seed: of the first sample, and of the lines.
        device: auto, cpu or cuda.
    """
    import torch

    import suffuse

    from . import reconstruction as task
    from .data import undo_percentile
    from .operators import MaskedFourier, kspace_mask
    from .prediction import Prediction

    denoiser = suffuse.hub.load(checkpoint, device=_torch_device(device))
    given = _read(image)
    generator = torch.Generator().manual_seed(seed)
    operator = MaskedFourier(kspace_mask(GRID[:2], acceleration, 0.32 / acceleration, generator=generator))
    y = operator(given.slices)
    found = task.predict(
        denoiser, operator, y, method=method, steps=steps, n=n, seed=seed,  # type: ignore[arg-type]
        geometry=given.grid,
    )  # fmt: skip
    zero_filled = Prediction(operator.pseudo_inverse(y)[None], given.grid)
    answers = [answer.on(given.geometry) for answer in (found, zero_filled)]
    ours, theirs = (Prediction(undo_percentile(a.samples, *given.unit), a.geometry) for a in answers)
    kind = given.geometry.dtype
    return [*ours.write(out, dtype=kind), theirs.write(Path(out) / "zero-filled", samples=False, dtype=kind)[0]]


@recipe("medical/reconstruction", sample=_reconstruct)
def reconstruction(
    *,
    images: Path | None = None,
    out: Path = Path("runs/medical-reconstruction"),
    patients: int = 96,
    sequence: str = "T1w",
    steps: int = 3000,
    batch_size: int = 8,
    lr: float = 3e-3,
    seed: int = 0,
    device: str = "auto",
    progress: bool = True,
) -> Path:
    """Learn a prior of slices, with which any mask, trajectory or blur can be undone (score-MRI, DDS).

    Args:
        images: folder of NIfTI volumes; without one, pseudo-patients.
        out: folder of the checkpoint and the logs.
        patients: number of pseudo-patients.
        sequence: of the pseudo-patients: T1w, PDw, T2w or FLAIR.
        steps: optimiser steps.
        batch_size: slices per step.
        lr: peak learning rate.
        seed: of all random draws.
        device: auto, cpu or cuda.
        progress: whether to show progress.
    """
    from . import reconstruction as task

    slices = _healthy(images, patients, sequence, seed)
    task.fit(
        slices, steps=steps, batch_size=batch_size, lr=lr, out=Path(out), seed=seed, device=device,
        metadata={"recipe": "medical/reconstruction", "slices": len(slices)}, progress=progress,
    )  # fmt: skip
    return Path(out)


def _segment(
    checkpoint: Path,
    *,
    out: Path,
    image: Path,
    n: int = 5,
    steps: int = 10,
    seed: int = 0,
    dicom: bool = False,
    device: str = "auto",
) -> list[Path]:
    """Segment a volume: labels, and the probability and spread of each class, as NIfTI on the volume's own grid.

    Args:
        checkpoint: folder written by training.
        out: folder for the files.
        image: NIfTI volume, in any orientation and spacing.
        n: members of the ensemble.
        steps: network calls per member.
        seed: of the first member.
        dicom: write a DICOM-SEG object as well; needs the extra dicom.
        device: auto, cpu or cuda.
    """
    import suffuse

    from . import segmentation as task
    from .data import LabelSchema

    schema = LabelSchema(suffuse.hub.read_config(checkpoint)["metadata"]["labels"])
    denoiser = suffuse.hub.load(checkpoint, device=_torch_device(device))
    given = _read(image)
    found = task.predict(denoiser, given.slices, schema, n=n, steps=steps, seed=seed, geometry=given.grid)
    found = found.on(given.geometry)
    files = [found.write_labels(Path(out) / "labels.nii.gz"), *found.write(out, samples=False)]
    if dicom:
        from .data.dicom import write_dicom_seg

        mask = found.labels[:, 0].permute(1, 2, 0)[None]
        files.append(write_dicom_seg(Path(out) / "labels.dcm", mask, given.geometry, schema))
    return files


@recipe("medical/segmentation", sample=_segment)
def segmentation(
    *,
    images: Path | None = None,
    labels: Path | None = None,
    names: str = "background,lesion",
    out: Path = Path("runs/medical-segmentation"),
    patients: int = 96,
    steps: int = 3000,
    batch_size: int = 8,
    lr: float = 3e-3,
    seed: int = 0,
    device: str = "auto",
    progress: bool = True,
) -> Path:
    """Learn to draw masks, several for an image (diffusion ensembles).

    Args:
        images: folder of NIfTI volumes; without one, pseudo-patients with lesions.
        labels: folder of their label maps, 0, 1, 2, ...
        names: of the labels 0, 1, 2, ..., with commas.
        out: folder of the checkpoint and the logs.
        patients: number of pseudo-patients.
        steps: optimiser steps.
        batch_size: slices per step.
        lr: peak learning rate.
        seed: of all random draws.
        device: auto, cpu or cuda.
        progress: whether to show progress.
    """
    import torch

    from . import segmentation as task
    from .data import Geometry, LabelSchema, PhantomCohort, VolumeFolder, mri_percentile, plain, resample, working_grid

    if (images is None) != (labels is None):
        raise InvalidArgument("images and labels belong together; give both folders or none")
    schema = LabelSchema(names.split(","))
    pairs = []
    if images is None:
        cohort = PhantomCohort(
            patients, sequences=("FLAIR",), sites=("A", "B"), seed=seed, lesions=(3, 8), lesion_radius=10.0
        )
        for i in range(patients):
            item = cohort[i]
            pairs.append((mri_percentile(plain(item["image"])), plain(item["lesion"])))
    else:
        folder = VolumeFolder(images, labels)
        for item in (folder[i] for i in range(len(folder))):
            where = Geometry.of(item["image"])
            grid = working_grid(where, GRID, SPACING)
            mask = plain(item["label"])
            schema.index(mask)  # a wrong label is an error before the long work
            image = resample(mri_percentile(plain(item["image"])) + 1, where, grid) - 1
            pairs.append((image, resample(mask, where, grid, "nearest")))
    slices, masks = (torch.cat([pair[k].permute(3, 0, 1, 2) for pair in pairs]) for k in (0, 1))
    keep = _show_tissue(slices, images)
    task.fit(
        slices[keep], masks[keep], schema, steps=steps, batch_size=batch_size, lr=lr, out=Path(out), seed=seed,
        device=device, progress=progress,
        metadata={"recipe": "medical/segmentation", "labels": list(schema.names), "slices": int(keep.sum())},
    )  # fmt: skip
    return Path(out)


def _torch_device(device: str) -> torch.device:
    from .training import torch_device

    return torch_device(device)


RECIPES = (tissue_to_t1, latent_diffusion, style, joint, anomaly, reconstruction, segmentation)
