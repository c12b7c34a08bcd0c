"""The conditional latent diffusion model of microstructures, in three stages.

    1  VolumeAutoencoder   volumes of K phases <-> latents                         train_autoencoder
    2  FeaturePredictor    latents -> descriptors and process parameters           train_predictor
    3  NetworkDenoiser     latents under noise, and any subset of attributes       train_denoiser

Each stage is a module of its own, trained by ``suffuse.training.fit`` and saved by ``suffuse.hub``, and any of them can
be replaced: the denoiser by any ``Denoiser`` of latents, the autoencoder by what encodes and decodes. What is asked for
in training is what was *measured* of the volumes. (In the official code it is what the predictor says of the latents,
which a model can satisfy without the volumes having it.)

Baishnab, Herron, Balu, Sarkar, Krishnamurthy, Ganapathysubramanian (2025), "3D multiphase heterogeneous microstructure
generation using conditional latent diffusion models", Digital Discovery. Rombach et al. (2022), arXiv:2112.10752.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from suffuse import Condition, Denoiser, NetworkDenoiser, hub, schedules, training
from suffuse.bench.row import write_text
from suffuse.errors import CheckpointError, InvalidArgument
from suffuse.training.fit import STATE

from .attributes import AttributeScaler
from .data.volumes import Volumes, symmetries
from .nets import FeaturePredictor, PeriodicUNet, VolumeAutoencoder, VoxelCodec
from .nets.autoencoder import AutoencoderObjective
from .nets.predictor import predictor_loss
from .progress import bar

__all__ = ["Latents", "MicrostructureLDM", "encode", "train_autoencoder", "train_denoiser", "train_predictor"]

PARTS = ("autoencoder", "scaler", "predictor", "predicted")
#: In the folder of a stage: which data it learns from, and the steps after which it is finished.
STAGE = "stage.json"


@dataclass
class MicrostructureLDM:
    """The three stages together, and what they were trained on.

    Args:
        denoiser: of latents (B, C, x, y, z), with a token per attribute of ``scaler``.
        autoencoder: ``VolumeAutoencoder``, ``VoxelCodec``, or another with their methods.
        scaler: the attributes that can be asked for.
        predictor: of latents; None where there is none.
        predicted: the attributes that it predicts.
        shape: voxels of the training volumes.
        facts: spacing, unit, system and other facts of the data.
    """

    denoiser: Denoiser
    autoencoder: Any
    scaler: AttributeScaler
    predictor: FeaturePredictor | None
    predicted: AttributeScaler | None
    shape: tuple[int, int, int]
    facts: dict[str, Any]

    @property
    def names(self) -> tuple[str, ...]:
        """What can be asked for."""
        return self.scaler.names

    def to(self, device: str | torch.device) -> MicrostructureLDM:
        for part in (self.denoiser, self.autoencoder, self.predictor):
            if part is not None:
                part.to(device)
        return self

    def save(self, out: str | Path, metadata: Mapping[str, Any] | None = None) -> Path:
        """A checkpoint folder: the denoiser at the top, the other parts in folders of it."""
        folder = Path(out)
        for name in PARTS:
            if (part := getattr(self, name)) is not None:
                hub.save(part, folder / name)
        return hub.save(self.denoiser, folder, {"shape": list(self.shape), "facts": self.facts, **(metadata or {})})

    @classmethod
    def load(cls, folder: str | Path, device: str = "cpu") -> MicrostructureLDM:
        """Read such a folder.

        Raises:
            CheckpointError: when it is no checkpoint, or of another kind.
        """
        folder = Path(folder)
        facts = hub.read_config(folder)["metadata"]
        if "shape" not in facts or not (folder / "scaler").is_dir():
            raise CheckpointError(
                f"checkpoint={str(folder)!r} is of recipe {facts.get('recipe')!r}, which makes no microstructures"
            )
        parts: dict[str, Any] = {
            name: hub.load(folder / name, device) if (folder / name).is_dir() else None for name in PARTS
        }
        for name in ("scaler", "predicted"):
            if parts[name] is not None:
                parts[name].cpu()
        return cls(hub.load(folder, device), shape=tuple(facts["shape"]), facts=facts.get("facts", {}), **parts)

    def predict(self, z: Tensor) -> list[dict[str, tuple[float, float]]]:
        """For each latent, name -> (mean, standard deviation) of its attributes, in their own unit.

        The deviation is half the distance of the values one standard deviation to both sides.
        """
        if self.predictor is None or self.predicted is None:
            return [{} for _ in range(len(z))]
        with torch.no_grad():
            mean, std = (v.float().cpu() for v in self.predictor(z))
        middle, low, high = (self.predicted.values(s) for s in (mean, mean - std, mean + std))
        half = (high - low) / 2
        return [
            {name: (float(middle[i, a]), float(half[i, a])) for a, name in enumerate(self.predicted.names)}
            for i in range(len(z))
        ]


# --- folders of the stages -------------------------------------------------------------------------------------


def _begin(out: Path | None, resume: bool, steps: int, data: Tensor) -> bool:
    """Whether the stage in a folder is finished; its data are noted there.

    Raises:
        InvalidArgument: when it is one of other data.
    """
    if out is None:
        return False
    file = Path(out) / STAGE
    now = hashlib.sha256(data.contiguous().numpy().data).hexdigest()
    if resume and file.is_file() and file.with_name(STATE).is_file():
        noted = json.loads(file.read_text())
        if noted["data"] != now:
            raise InvalidArgument(
                f"out={str(out)!r} holds a run of other data or attributes; choose another out, or pass resume=False "
                f"to overwrite it"
            )
        return noted["finished"] == steps
    write_text(file, json.dumps({"data": now, "finished": None}) + "\n")
    return False


def _end(out: Path, steps: int) -> None:
    """Note that a stage is finished, so that it is not calibrated and saved again."""
    file = Path(out) / STAGE
    write_text(file, json.dumps({**json.loads(file.read_text()), "finished": steps}) + "\n")


# --- stage 1 ----------------------------------------------------------------------------------------------------


def train_autoencoder(
    volumes: Volumes,
    *,
    latent_channels: int = 4,
    widths: Sequence[int] = (32, 64),
    blocks: int = 1,
    steps: int = 600,
    batch_size: int = 8,
    lr: float = 2e-3,
    film: bool = False,
    objective: AutoencoderObjective | None = None,
    out: Path | None = None,
    resume: bool = True,
    seed: int = 0,
    device: str = "auto",
    progress: bool = True,
    **fit: Any,
) -> VolumeAutoencoder:
    """Train an autoencoder on labels; its latents are scaled to mean zero and variance one.

    Args:
        out: folder of the checkpoint; a run that was finished there is read, one that was stopped is gone on with.
        resume: with False start afresh.

    Raises:
        InvalidArgument: for volumes of one phase, a shape that the factor does not divide, or ``out`` holding a run of
            other volumes or settings.
    """
    if len(volumes) == 0 or len(torch.unique(volumes.labels)) < 2:
        raise InvalidArgument("the volumes hold one phase only, or there are none; there is nothing to learn")
    torch.manual_seed(seed)
    model = VolumeAutoencoder(volumes.phases, latent_channels, tuple(widths), blocks, volumes.periodic)
    if any(n % model.factor for n in volumes.shape):
        raise InvalidArgument(
            f"shape {volumes.shape} must be multiples of {model.factor} voxels for widths={tuple(widths)}"
        )
    finished = _begin(out, resume, steps, volumes.labels)
    model = training.fit(
        model, _Labels(volumes.labels), steps=steps, batch_size=batch_size, lr=lr,
        objective=objective or AutoencoderObjective(film=film), ema_decay=0.99, out=out, resume=resume, seed=seed,
        accelerator=device, progress=progress, **fit,
    )  # fmt: skip
    if finished:
        return model
    where = "cuda" if device in ("auto", "cuda", "gpu") and torch.cuda.is_available() else "cpu"
    with torch.no_grad():
        chosen = torch.randperm(len(volumes), generator=torch.Generator().manual_seed(seed))[:256]
        model.to(where)
        latents = [model.encode(part.to(where))[0].cpu() for part in volumes.labels[chosen].split(16)]
    model.cpu().calibrate(torch.cat(latents))
    if out is not None:
        hub.save(model, out)
        _end(out, steps)
    return model


class _Labels(Dataset[Any]):
    def __init__(self, labels: Tensor) -> None:
        self.labels = labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> Tensor:
        return self.labels[row]


def accuracy(autoencoder: Any, volumes: Volumes, batch_size: int = 16) -> float:
    """Share of the voxels that come back right, in [0, 1]."""
    device = next(autoencoder.parameters()).device
    right = 0.0
    with torch.no_grad():
        for part in volumes.labels.split(batch_size):
            part = part.to(device)
            back = autoencoder.decode_stage_2_outputs(autoencoder.encode_stage_2_inputs(part)).argmax(1)
            right += float((back == part).double().mean((1, 2, 3)).sum())
    return right / len(volumes)


# --- latents ----------------------------------------------------------------------------------------------------


class Latents(Dataset[Any]):
    """Latents to learn from, computed once: each volume in several of its equally likely forms.

    Rows are (latent (C, x, y, z), condition of one row), the latent shifted at random by whole cells along x and y
    where they are periodic, which shifts the volume. Not along z: transport is measured from face to face of z.

    Args:
        z: (N, V, C, x, y, z), N volumes in V forms.
        cond: condition of N rows.
        periodic: per axis.
        seed: of forms and shifts.
        optional: names that are left out together a third of the time, and asked for alone another third.
    """

    def __init__(
        self, z: Tensor, cond: Condition, periodic: Sequence[bool], seed: int = 0, optional: Sequence[str] = ()
    ) -> None:
        self.z, self.cond, self.periodic, self.optional = z, cond, tuple(periodic), tuple(optional)
        self.generator = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return len(self.z)

    def __getitem__(self, row: int) -> tuple[Tensor, Condition]:
        z, cond = self.__getitems__([row])
        return z[0], cond

    def __getitems__(self, rows: list[int]) -> tuple[Tensor, Condition]:
        """A batch at once, as a ``DataLoader`` asks for it."""

        def below(n: int) -> Tensor:
            return torch.randint(n, (len(rows),), generator=self.generator)

        forms = below(self.z.shape[1]).tolist()
        wrapped = [axis for axis in (0, 1) if self.periodic[axis]]
        shifts = torch.stack([below(self.z.shape[3 + axis]) for axis in wrapped], 1).tolist() if wrapped else None
        axes = [axis + 1 for axis in wrapped]
        z = [self.z[row, form] for row, form in zip(rows, forms, strict=True)]
        if shifts is not None:
            z = [one.roll(shift, axes) for one, shift in zip(z, shifts, strict=True)]
        cond = self.cond[torch.tensor(rows)]
        if self.optional:
            choice = below(3)  # 0: without the optional names, 1: with these alone
            masks = {
                name: mask & (choice != (0 if name in self.optional else 1))[:, None]
                for name, mask in cond.masks.items()
            }
            cond = Condition(cond.tokens, masks=masks)
        return torch.stack(z).float(), cond


def encode(
    autoencoder: Any, volumes: Volumes, forms: int = 4, batch_size: int = 16, progress: bool = True, seed: int = 0
) -> Tensor:
    """(N, forms, C, x, y, z) latents of volumes, in the first of their equally likely forms (x and y only)."""
    chosen = symmetries(volumes.periodic, volumes.shape, film=True)[: max(forms, 1)]
    device = next((p.device for p in autoencoder.parameters()), torch.device("cpu"))
    parts: list[Tensor] = []
    with torch.no_grad(), bar("encoding", len(volumes), progress) as move:
        for labels in volumes.labels.split(batch_size):
            variants = []
            for flips, turn in chosen:
                x = labels.flip([axis + 1 for axis in flips])
                x = x.transpose(1, 2) if turn else x
                variants.append(autoencoder.encode_stage_2_inputs(x.to(device)).cpu())
            parts.append(torch.stack(variants, 1))
            move(sum(len(p) for p in parts))
    return torch.cat(parts)


# --- stage 2 ----------------------------------------------------------------------------------------------------


def train_predictor(
    z: Tensor,
    values: Tensor,
    names: Sequence[str],
    *,
    periodic: Sequence[bool] = (True, True, True),
    trajectory: Tensor | None = None,
    held_out: tuple[Tensor, Tensor] | None = None,
    width: int = 48,
    steps: int = 500,
    batch_size: int = 32,
    lr: float = 2e-3,
    out: Path | None = None,
    resume: bool = True,
    seed: int = 0,
    device: str = "auto",
    progress: bool = True,
) -> tuple[FeaturePredictor, AttributeScaler]:
    """Train a predictor of attributes, with an uncertainty that is scaled to fit volumes that it has not seen.

    Args:
        z: latents (N, V, C, x, y, z).
        values: (N, A), NaN where not known.
        names: of the attributes.
        trajectory: (N,), simulations: a fifth of them sets the scale of the uncertainty. Default: each its own.
        held_out: latents (M, V, C, x, y, z) and values (M, A) that set it instead, where all rows are alike, as patches
            of one tomogram are. Without them it is the last fifth of the rows, where there is one simulation only.
        out, resume: as of ``train_autoencoder``.
    """
    scaler = AttributeScaler(names).fit(values, seed)
    scores = scaler.scores(values)
    aside = torch.zeros(len(z), dtype=torch.bool)
    if held_out is None:
        aside = _aside(torch.arange(len(z)) if trajectory is None else trajectory, seed)
        held_out = z[aside], values[aside]
    finished = _begin(out, resume, steps, values)
    torch.manual_seed(seed)
    model = FeaturePredictor(names, z.shape[2], width, periodic)
    cond = Condition(tokens={"scores": scores[~aside][:, None]})
    model = training.fit(
        model, Latents(z[~aside], cond, periodic, seed), steps=steps, batch_size=batch_size, lr=lr,
        objective=predictor_loss, ema_decay=0.99, out=out, resume=resume, seed=seed, accelerator=device,
        progress=progress, weight_decay=1e-2,
    )  # fmt: skip
    if finished:
        return model, scaler
    model.calibrate(held_out[0][:, 0].float(), scaler.scores(held_out[1]))
    if out is not None:
        hub.save(model, out)
        _end(out, steps)
    return model, scaler


def _aside(trajectory: Tensor, seed: int) -> Tensor:
    """(N,) bool: a fifth of the simulations, at least one; of a single one its last rows."""
    known = torch.unique(trajectory)
    if len(known) == 1:
        return torch.arange(len(trajectory)) >= len(trajectory) - max(len(trajectory) // 5, 1)
    order = torch.randperm(len(known), generator=torch.Generator().manual_seed(seed))
    return torch.isin(trajectory, known[order[: max(len(known) // 5, 1)]])


# --- stage 3 ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class BoxMeanObjective(training.DenoisingObjective):
    """The denoising objective with |error|^2 + mean_weight |mean error of the box|^2 for each channel.

    Its minimiser is the posterior mean, too. But a volume fraction hangs on the mean latent alone, one number to
    hundreds of cells, whose share of the plain error is too small to be learned soon.
    """

    mean_weight: float = 10.0

    def square(self, error: Tensor) -> Tensor:
        return error.square() + self.mean_weight * error.mean((2, 3, 4), keepdim=True).square()


def train_denoiser(
    z: Tensor,
    scaler: AttributeScaler,
    values: Tensor,
    *,
    periodic: Sequence[bool] = (True, True, True),
    widths: Sequence[int] = (64,),
    blocks: int = 2,
    patch: int = 1,
    steps: int = 2000,
    batch_size: int = 16,
    lr: float = 2e-3,
    cond_dropout: float = 0.1,
    optional: Sequence[str] = (),
    out: Path | None = None,
    metadata: Mapping[str, Any] | None = None,
    resume: bool = True,
    seed: int = 0,
    device: str = "auto",
    progress: bool = True,
    **fit: Any,
) -> NetworkDenoiser:
    """Train a denoiser of latents with the attributes as tokens, each left out at random, so that any can be asked for.

    What makes it do what it is asked for, in a short training: attributes are also shown by what they say beyond the
    others (``nets.Beyond``), and the mean of the latents counts for more than their number (``BoxMeanObjective``).

    Args:
        z: latents (N, V, C, x, y, z), standardised.
        scaler: of the attributes.
        values: (N, A) measured attributes.
        periodic: per axis.
        widths, blocks, patch: of ``PeriodicUNet``.
        cond_dropout: probability of leaving out each attribute.
        optional: attributes (the process parameters) that are left out together a third of the time, and asked for
            without the others another third.
        out, resume: as of ``train_autoencoder``.
        fit: further arguments of ``suffuse.training.fit``.
    """
    torch.manual_seed(seed)
    backbone = PeriodicUNet(
        z.shape[2], tuple(widths), blocks, scaler.tokens, periodic=periodic, patch=patch,
        correlation=scaler.correlation(values),
    )  # fmt: skip
    if any(n % backbone.factor for n in z.shape[3:]):
        raise InvalidArgument(
            f"latents of {tuple(z.shape[3:])} cells must be multiples of {backbone.factor} for widths={tuple(widths)}"
        )
    std = float(z.float().std())
    if not math.isfinite(std):
        raise InvalidArgument("latents have NaN or infinite values; train the autoencoder again with a lower lr")
    denoiser = NetworkDenoiser(backbone, schedules.VPCosine(), "v_prediction", data_std=std)
    if device != "cpu" and torch.cuda.is_available():
        z = z.cuda()  # a batch of large boxes would take longer to copy than to learn from
    data = Latents(z, scaler.condition(values), periodic, seed, optional)
    objective = BoxMeanObjective(training.LogNormalKappa(0.0, 1.4), "edm", cond_dropout, drop_per_name=True)
    _begin(out, resume, steps, values)
    return training.fit(
        denoiser, data, steps=steps, batch_size=batch_size, lr=lr, objective=objective, ema_decay=0.995, out=out,
        metadata=metadata, resume=resume, seed=seed, accelerator=device, progress=progress, **fit,
    )  # fmt: skip


def voxel_codec(volumes: Volumes) -> VoxelCodec:
    """The codec of diffusion on the voxels themselves."""
    return VoxelCodec(volumes.phases, volumes.periodic)
