"""What can be trained: voxel diffusion of a volume fraction, and latent diffusion of any attributes."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from suffuse.errors import InvalidArgument, SuffuseError, require, unknown
from suffuse.recipes import Recipe, recipe

if TYPE_CHECKING:
    import trimesh

    from .data import Volumes
    from .microstructure import Microstructure

__all__ = ["PRESETS", "RECIPES", "ldm", "sample", "sample_ldm", "volume_fraction"]

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
    """Draw structures; each is written, as a TIFF stack and as a mesh of phase 1, as soon as it is done.

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
        mesh: glb, stl, ply or 3mf; empty for none.
        seed: of the noise.
        device: cpu, cuda, or auto.
    """
    from suffuse.bench.runner import resolve_device

    from .mesh import to_mesh
    from .pipeline import MicrostructurePipeline

    _check_formats("tif", mesh)
    if n < 1:
        raise InvalidArgument(f"n must be at least 1, got {n}")
    pipeline = MicrostructurePipeline.from_pretrained(checkpoint, device=resolve_device(device))
    requested = [value for value in volume_fraction for _ in range(n)]
    stream = pipeline.stream(
        requested,
        shape=(size,) * 3 if size else None,
        steps=steps,
        guidance_scale=guidance_scale,
        seed=seed,
        spacing=(spacing,) * 3,
        unit=unit,
        progress=True,
    )
    names = (Path(out) / f"vf-{asked:.3f}-{i:03d}" for i, asked in enumerate(requested))
    return _write(zip(names, stream, strict=True), "tif", mesh, to_mesh)


def _check_formats(volume: str, mesh: str) -> None:
    """Refuse files that cannot be written here, before the work."""
    from .io import SUFFIXES, check_format
    from .mesh import MESH_SUFFIXES

    if f".{volume}" not in SUFFIXES:
        raise InvalidArgument(f"format must be one of {[s[1:] for s in SUFFIXES]}, got {volume!r}")
    if mesh and f".{mesh}" not in MESH_SUFFIXES:
        raise InvalidArgument(f"mesh must be one of {[s[1:] for s in MESH_SUFFIXES]}, got {mesh!r}")
    check_format(f"volume.{volume}")
    if mesh == "3mf":
        require("lxml", extra="io", package="suffuse-materials3d")


def _write(
    structures: Iterable[tuple[Path, Microstructure]],
    volume: str,
    mesh: str,
    surface: Callable[[Microstructure], trimesh.Trimesh | trimesh.Scene],
) -> list[Path]:
    """Write each structure before the next is asked for; one that has no surface has no mesh, and a warning."""
    from .io import write_volume
    from .mesh import write_mesh

    written = []
    for stem, ms in structures:
        written.append(write_volume(ms, stem.with_name(f"{stem.name}.{volume}")))
        if mesh:
            try:
                written.append(write_mesh(surface(ms), stem.with_name(f"{stem.name}.{mesh}")))
            except SuffuseError as error:
                warnings.warn(f"{stem.name} has no mesh: {error}", UserWarning, stacklevel=3)
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


# --- conditional latent diffusion -------------------------------------------------------------------------------

#: Sizes of all stages by name: "cpu" takes minutes on one core, "gpu" ten on one GPU; "smoke" shows that it runs.
#: There are ``latent_channels`` for each phase beyond the first.
PRESETS: dict[str, dict[str, Any]] = {
    "smoke": {
        "shape": (16, 16, 8), "trajectories": 12, "snapshots": 2, "latent_channels": 2, "autoencoder_widths": (8, 8),
        "autoencoder_steps": 10, "predictor_steps": 10, "widths": (16,), "blocks": 1, "steps": 10, "batch_size": 4,
        "autoencoder_batch": 4, "forms": 1,
    },
    "quick": {
        "shape": (16, 16, 16), "trajectories": 112, "snapshots": 4, "latent_channels": 4,
        "autoencoder_widths": (24, 48), "autoencoder_steps": 250, "predictor_steps": 400, "widths": (64,),
        "blocks": 2, "steps": 700, "batch_size": 16, "autoencoder_batch": 4, "forms": 4,
    },
    "cpu": {
        "shape": (32, 32, 16), "trajectories": 160, "snapshots": 4, "latent_channels": 4,
        "autoencoder_widths": (32, 64), "autoencoder_steps": 600, "predictor_steps": 1000, "widths": (64,),
        "blocks": 2, "steps": 3600, "batch_size": 16, "autoencoder_batch": 4, "forms": 4,
    },
    "gpu": {
        "shape": (128, 128, 64), "trajectories": 384, "snapshots": 2, "latent_channels": 4,
        "autoencoder_widths": (48, 96), "autoencoder_steps": 800, "predictor_steps": 2000, "widths": (128,),
        "blocks": 2, "steps": 3000, "batch_size": 16, "autoencoder_batch": 4, "forms": 2,
    },
}  # fmt: skip

#: What can be asked of two and of three phases, besides the process parameters.
CONDITIONS: dict[int, tuple[str, ...]] = {2: ("vf_1", "drel_1"), 3: ("vf_0", "vf_2", "drel_0", "drel_1")}


def sample_ldm(
    checkpoint: Path,
    *,
    out: Path = Path("samples"),
    targets: dict[str, float] | None = None,
    n: int = 4,
    shape: Sequence[int] = (),
    steps: int = 15,
    guidance_scale: float = 1.0,
    predictor_guidance: bool = True,
    candidates: int = 1,
    strict: bool = False,
    format: str = "tif",
    mesh: str = "glb",
    seed: int = 0,
    device: str = "auto",
) -> list[Path]:
    """Draw structures of requested attributes; each is written, as volume and as mesh, as soon as it is done.

    Args:
        checkpoint: folder that training wrote.
        out: folder of the files.
        targets: attribute and value, for any of those that were trained: '{"vf_1": 0.45, "drel_1": 0.2}'.
        n: structures.
        shape: voxels; empty is the shape of the training volumes, larger is possible.
        steps: evaluations of the network, by DPM-Solver++.
        guidance_scale: 1 follows the data.
        predictor_guidance: let the feature predictor correct the descriptors that were asked for, on the way.
        candidates: structures that are made and measured for each that is given, the one nearest to the request.
        strict: refuse a request that the data do not have, instead of making the nearest one.
        format: of the volumes, an ending that ``write_volume`` knows.
        mesh: glb, stl, ply or 3mf; empty for none.
        seed: of the noise.
        device: cpu, cuda, or auto.
    """
    from suffuse.bench.runner import resolve_device

    from .mesh import to_scene
    from .pipeline import MicrostructurePipeline

    _check_formats(format, mesh)
    pipeline = MicrostructurePipeline.from_pretrained(checkpoint, device=resolve_device(device))
    stream = pipeline.stream(
        targets, n=n, shape=tuple(shape) or None, steps=steps, guidance_scale=guidance_scale,
        predictor_guidance=predictor_guidance, candidates=candidates, strict=strict, seed=seed, progress=True,
    )  # fmt: skip
    named = ((Path(out) / f"structure-{i:03d}", ms) for i, ms in enumerate(stream))
    return _write(named, format, mesh, lambda ms: to_scene(ms, smooth=0 if ms.field is not None else 10))


@recipe("materials3d/ldm", sample=sample_ldm)
def ldm(
    *,
    dataset: str = "cahn-hilliard",
    preset: str = "cpu",
    attributes: Sequence[str] = (),
    patch: Sequence[int] = (32, 32, 32),
    held_out: float = 0.2,
    boundary: str = "periodic",
    workers: int = 0,
    out: Path = Path("runs/materials3d/ldm"),
    resume: bool = True,
    seed: int = 0,
    device: str = "auto",
    progress: bool = True,
) -> Path:
    """Conditional latent diffusion of two or three phases: simulate or read, measure, and train the three stages.

    What was finished before an interruption is not done again. Data and attributes are looked at before any training.

    Args:
        dataset: a simulated system (cahn-hilliard, flory-huggins, flory-huggins-three, ternary), a folder of HDF5 files
            of volumes, or the file of one large volume, which is cut into patches.
        preset: smoke, quick, cpu or gpu: the sizes of everything.
        attributes: what can be asked for; by default volume fractions, D_rel, and the process parameters there are.
        patch: voxels of a patch of a large volume.
        held_out: share of the simulations (or of the length of a large volume) that is not trained on.
        boundary: of simulations: periodic, or film.
        workers: processes that simulate; 0 is one per core.
        out: folder of the checkpoint, the simulated data and the logs.
        resume: go on with what is in ``out``, a run of the same data and settings; with False start afresh.
        seed: of simulations, split, weights, data order and noise.
        device: cpu, cuda, or auto.
        progress: show progress bars.
    """
    from suffuse.bench.runner import resolve_device

    from .attributes import AttributeScaler
    from .data.simulated import SETTINGS
    from .ldm import MicrostructureLDM, accuracy, encode, train_autoencoder, train_denoiser, train_predictor

    if preset not in PRESETS:
        raise unknown("preset", preset, PRESETS)
    sizes, device, out = PRESETS[preset], resolve_device(device), Path(out)
    if not resume and (out / "data" / SETTINGS).is_file():
        shutil.rmtree(out / "data")
    train, test, facts = _volumes(
        dataset, sizes, tuple(attributes), tuple(patch), held_out, boundary, workers, out, seed, device, progress
    )
    asked, process = tuple(facts["attributes"]), tuple(facts["process"])
    predicted = (*asked, *(p for p in process if p not in asked))
    _check_data(train, sizes, asked)
    AttributeScaler(predicted).fit(train.table(predicted), seed)  # refuses what does not vary, before the work
    scaler = AttributeScaler(asked).fit(train.table(asked), seed)
    common: dict[str, Any] = {"resume": resume, "seed": seed, "device": device, "progress": progress}
    precision = "bf16-mixed" if device.startswith("cuda") else "32-true"
    film = facts.get("boundary") == "film"
    autoencoder = train_autoencoder(
        train, latent_channels=sizes["latent_channels"] * (train.phases - 1), widths=sizes["autoencoder_widths"],
        steps=sizes["autoencoder_steps"], batch_size=sizes["autoencoder_batch"], film=film,
        out=out / "autoencoder", precision=precision, **common,
    ).to(device)  # fmt: skip
    facts["voxel_accuracy"] = accuracy(autoencoder, test)
    z = encode(autoencoder, train, forms=sizes["forms"], progress=progress)
    slab = None
    if len(train.trajectory.unique()) == 1:  # patches of one volume, which overlap
        slab = encode(autoencoder, test, forms=1, progress=progress), test.table(predicted)
    predictor, predicted_scaler = train_predictor(
        z, train.table(predicted), predicted, periodic=train.periodic, trajectory=train.trajectory, held_out=slab,
        steps=sizes["predictor_steps"], batch_size=sizes["batch_size"], out=out / "predictor", **common,
    )  # fmt: skip
    denoiser = train_denoiser(
        z, scaler, train.table(asked), periodic=train.periodic, widths=sizes["widths"], blocks=sizes["blocks"],
        steps=sizes["steps"], batch_size=sizes["batch_size"],
        optional=[p for p in process if p in asked], out=out, precision=precision, **common,
    )  # fmt: skip
    model = MicrostructureLDM(denoiser, autoencoder.cpu(), scaler, predictor, predicted_scaler, train.shape, facts)
    return model.save(out, {"recipe": "materials3d/ldm", "dataset": Path(dataset).name, "preset": preset})


def _check_data(volumes: Volumes, sizes: dict[str, Any], attributes: Sequence[str]) -> None:
    """Refuse what one of the three stages cannot learn from."""
    if volumes.phases < 2:
        raise InvalidArgument("the volumes hold one phase only; there is nothing to learn")
    if not attributes:
        raise InvalidArgument(
            f"attributes has no default for {volumes.phases} phases; name what can be asked for, vf_0 say"
        )
    multiple = 2 ** (len(sizes["autoencoder_widths"]) + len(sizes["widths"]) - 1)  # of both networks
    if any(n % multiple for n in volumes.shape):
        raise InvalidArgument(
            f"volumes (or patches) of {volumes.shape} voxels must be multiples of {multiple}, such as "
            f"{tuple(max(n // multiple, 1) * multiple for n in volumes.shape)}; cut them so"
        )


def _volumes(
    dataset: str,
    sizes: dict[str, Any],
    attributes: tuple[str, ...],
    patch: tuple[int, ...],
    held_out: float,
    boundary: str,
    workers: int,
    out: Path,
    seed: int,
    device: str,
    progress: bool,
) -> tuple[Volumes, Volumes, dict[str, Any]]:
    """(train, held out, facts) of a simulated system, a folder of volumes, or one large volume."""
    from .data import SYSTEMS, cut_tomogram, read_volumes, simulate_dataset
    from .descriptors import DESCRIPTORS
    from .io import read_volume
    from .pipeline import attribute_name

    path = Path(dataset)
    attributes = tuple(attribute_name(name) for name in attributes)
    process: tuple[str, ...] = ()
    if dataset in SYSTEMS:
        system = SYSTEMS[dataset]
        process = system.parameters
        measured = attributes or CONDITIONS[system.phases]
        folder = simulate_dataset(
            out / "data", dataset, trajectories=sizes["trajectories"], shape=sizes["shape"],
            snapshots=sizes["snapshots"], descriptors=[a for a in measured if a not in process], boundary=boundary,
            seed=seed, workers=workers or None, device=device, progress=progress,
        )  # fmt: skip
        train, test = read_volumes(folder).split(held_out, seed)
    elif path.is_dir() or path.suffix in (".h5", ".hdf5"):
        volumes = read_volumes(path)
        measured = attributes or CONDITIONS.get(volumes.phases, ())
        volumes = volumes.measured([a for a in measured if a in DESCRIPTORS])
        known = {name for s in SYSTEMS.values() for name in s.parameters}
        process = tuple(k for k, v in volumes.attributes.items() if k in known and len(v[v.isfinite()].unique()) > 1)
        train, test = volumes.split(held_out, seed)
    elif path.is_file():
        structure = read_volume(path)
        measured = attributes or CONDITIONS.get(int(structure.labels.max()) + 1, ())
        cut = cut_tomogram(structure, patch, held_out=held_out, descriptors=measured)
        train, test = cut.train, cut.held_out
    else:
        raise unknown("dataset", dataset, SYSTEMS)
    asked = attributes or (*measured, *process)
    facts = {
        "attributes": list(asked),
        "process": list(process),
        "spacing": list(train.spacing),
        "unit": train.unit,
        "boundary": boundary if dataset in SYSTEMS else "periodic" if train.periodic[2] else "open",
        "volumes": len(train),
        "held_out": held_out,
        "split_seed": seed,
    }
    return train, test, facts


RECIPES: tuple[Recipe, ...] = (volume_fraction, ldm)
