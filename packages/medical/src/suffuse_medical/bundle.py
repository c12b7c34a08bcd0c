r"""MONAI Bundles: a trained model as a folder that MONAI itself can run.

    configs/metadata.json    what it is, which versions it needs, what goes in and out
    configs/inference.json   how to draw from it: ``python -m monai.bundle run --config_file configs/inference.json``
    configs/logging.conf
    docs/README.md           the model card, as a page; docs/model_card.json as data
    docs/data_license.txt, LICENSE
    models/config.json, models/model.safetensors    what ``suffuse.hub.load`` reads: schedule, prediction type, latent
                             scale and weights together, so that none of them can be lost (MONAI's own inferers keep
                             the scale as an attribute, which a checkpoint does not hold)
    models/condition.safetensors                    an example of what to ask for, for a conditional model

``inference.json`` has all entries that MONAI's ``ConfigWorkflow`` expects of an inference bundle; its evaluator is the
small :class:`Runner` here, as MONAI's evaluators need pytorch-ignite. MONAI Bundle specification, docs.monai.io.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import monai
import numpy as np
import safetensors.torch
import torch
from monai.inferers import Inferer
from torch import Tensor, nn
from torch.utils.data import Dataset

import suffuse
from suffuse import Condition, Denoiser
from suffuse.errors import CheckpointError, InvalidArgument, SuffuseError

from .data.geometry import Geometry, plain
from .data.nifti import write_nifti
from .ldm import LatentDiffusion
from .model_card import ModelCard
from .nets import MonaiDenoiser, MonaiNetwork
from .prediction import device_of

__all__ = ["NoiseDataset", "Runner", "SamplerInferer", "export", "import_network", "load", "read_card", "validate"]

#: What a bundle must hold: fields of JSON files, none of them empty but those in MAY_BE_EMPTY, and other files.
REQUIRED: dict[str, tuple[str, ...]] = {
    "configs/metadata.json": (
        "version", "changelog", "monai_version", "pytorch_version", "numpy_version", "required_packages_version",
        "task", "description", "authors", "copyright", "intended_use", "data_source", "data_type", "image_classes",
        "eval_metrics", "network_data_format",
    ),
    "configs/inference.json": (
        "bundle_root", "device", "dataset_dir", "network_def", "dataset", "inferer", "evaluator", "run",
        "schedule", "prediction_type", "latent_scale", "intensity", "spacing", "label_schema",
    ),
    "docs/model_card.json": (),
    "models/config.json": (),
}  # fmt: skip
MAY_BE_EMPTY = ("spacing", "label_schema")
FILES = ("configs/logging.conf", "docs/README.md", "docs/data_license.txt", "LICENSE", "models/model.safetensors")

LOGGING = """[loggers]
keys=root
[handlers]
keys=console
[formatters]
keys=plain
[logger_root]
level=INFO
handlers=console
[handler_console]
class=StreamHandler
level=INFO
formatter=plain
args=(sys.stdout,)
[formatter_plain]
format=%(asctime)s %(levelname)s %(message)s
"""


# --- what a bundle runs -----------------------------------------------------------------------------------------


def load(path: str | Path, device: str | torch.device = "cpu") -> nn.Module:
    """The model of a bundle, or of its folder ``models``, in evaluation mode."""
    folder = Path(path)
    return suffuse.hub.load(folder / "models" if (folder / "models").is_dir() else folder, device)


class NoiseDataset(Dataset[dict[str, Any]]):
    """Starts of the reverse process: item k is the noise of ``seed + k``, with a row of the example condition.

    Args:
        shape: of a sample in the space that is diffused, (C, *spatial).
        n: number of samples.
        seed: of the first.
        condition: file written by :func:`export`, or None.
    """

    def __init__(self, shape: Sequence[int], n: int = 4, seed: int = 0, condition: str | Path | None = None) -> None:
        if n < 1:
            raise InvalidArgument(f"n must be at least 1 sample, got {n}")
        self.shape, self.n, self.seed = tuple(shape), n, seed
        self.condition = None if condition is None else _read_condition(Path(condition))

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < self.n:
            raise IndexError(index)
        generator = torch.Generator().manual_seed(self.seed + index)
        item: dict[str, Any] = {"image": torch.randn(self.shape, generator=generator), "seed": self.seed + index}
        if self.condition is not None:
            item["condition"] = self.condition[index % len(self.condition)]
        return item


class SamplerInferer(Inferer):
    """A MONAI inferer that turns noise into images by any sampler of suffuse.

    Args:
        sampler: a name in ``suffuse.samplers.SAMPLERS``.
        steps: of the sampler.
        guidance_scale: of classifier-free guidance; 1 is none.
    """

    def __init__(self, sampler: str = "dpmpp-2m", steps: int = 20, guidance_scale: float = 1.0) -> None:
        super().__init__()
        self.sampler, self.guidance_scale = suffuse.samplers.by_name(sampler, steps=steps), guidance_scale

    @torch.no_grad()
    def __call__(  # type: ignore[override]
        self,
        inputs: Tensor,
        network: nn.Module,
        condition: Condition | None = None,
        seeds: Sequence[int] | None = None,
        *_: Any,
        **__: Any,
    ) -> Tensor:
        """Images (B, C, *spatial), decoded where the network is a ``LatentDiffusion``.

        Args:
            inputs: standard normal noise, (B, C, *spatial).
            network: a denoiser, or a ``LatentDiffusion``.
            condition: of B rows.
            seeds: of B images. All noise is then theirs, that of the start too, drawn where the network is, so that
                the images are those of ``LatentDiffusion.sample``; of ``inputs`` the shape counts. Without seeds a
                sampler that adds noise draws from torch's global state.
        """
        denoiser: Denoiser = network.denoiser if isinstance(network, LatentDiffusion) else network  # type: ignore[assignment]
        device = device_of(denoiser, torch.device("cpu"))
        if condition is not None:
            condition = condition.to(device)
            if isinstance(network, LatentDiffusion):
                condition = network.latent_condition(condition)
        schedule = denoiser.schedule
        if condition is not None and self.guidance_scale != 1.0:
            denoiser = suffuse.guidance.ClassifierFree(denoiser, self.guidance_scale)
        if seeds is None:
            drawn = self.sampler(denoiser, x=plain(inputs).to(device) * schedule.sigma(1.0), cond=condition)
        else:
            generator = suffuse.random.generators(seeds, device)
            drawn = self.sampler(denoiser, inputs.shape, cond=condition, generator=generator, device=device)
        return network.decode(drawn) if isinstance(network, LatentDiffusion) else drawn


class Runner:
    """Draws every item of the dataset and writes it: NIfTI on a geometry, or ``.npy`` where there is none.

    Args:
        network, dataset, inferer: the bundle's.
        output_dir: folder for the samples.
        spacing: of voxels in mm; None for images that are no volumes.
    """

    def __init__(
        self,
        network: nn.Module,
        dataset: Dataset[dict[str, Any]],
        inferer: SamplerInferer,
        output_dir: str | Path,
        spacing: Sequence[float] | None = None,
    ) -> None:
        self.network, self.dataset, self.inferer = network, dataset, inferer
        self.output_dir, self.spacing = Path(output_dir), spacing

    def run(self) -> list[Path]:
        """The files that were written, one per item."""
        self.output_dir.mkdir(parents=True, exist_ok=True)
        files = []
        for index in range(len(self.dataset)):  # type: ignore[arg-type]
            item = self.dataset[index]
            asked = item.get("condition")
            image = self.inferer(item["image"][None], self.network, asked, [item["seed"]])[0].cpu()
            files.append(self._write(image, self.output_dir / f"sample-{item['seed']}"))
        return files

    def _write(self, image: Tensor, stem: Path) -> Path:
        if image.ndim == 4 and len(image) == 1 and self.spacing is not None:
            affine = np.diag([*self.spacing, 1.0])
            x, y, z = image.shape[1:]
            return write_nifti(stem.with_suffix(".nii.gz"), image, Geometry(affine, (x, y, z)))
        target = stem.with_suffix(".npy")
        np.save(target, image.numpy())
        return target


# --- out and in -------------------------------------------------------------------------------------------------


def export(
    model: nn.Module,
    path: str | Path,
    card: ModelCard,
    *,
    shape: Sequence[int] | None = None,
    spacing: Sequence[float] | None = None,
    condition: Condition | None = None,
    intensity: str = "images in [-1, 1]",
    label_schema: Mapping[int, str] | None = None,
    sampler: str = "dpmpp-2m",
    steps: int = 20,
    guidance_scale: float = 1.0,
    data_license: str | None = None,
) -> Path:
    """Write a model as a MONAI bundle; the folder appears only once it is complete.

    Args:
        model: a denoiser or a ``LatentDiffusion``.
        path: the folder; must not exist yet, or be empty.
        card: complete, see ``ModelCard.check``.
        shape: of what is diffused, (C, *spatial); known for a ``LatentDiffusion``.
        spacing: of voxels in mm, three numbers, for volumes.
        condition: example rows, for a model that needs one.
        intensity: how intensities were scaled, in words.
        label_schema: value -> name, for models with masks.
        sampler, steps, guidance_scale: of ``inference.json``.
        data_license: text; default the card's ``training_data``.

    Raises:
        InvalidArgument: for an incomplete card, a folder that is not empty, or a model that cannot be described, or
            cannot draw this shape with this condition, which is tried in one step.
    """
    card.check()
    target = Path(path)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InvalidArgument(f"path={str(path)!r} is not an empty folder; choose another, or remove it")
    denoiser = model.denoiser if isinstance(model, LatentDiffusion) else model
    if not isinstance(denoiser, Denoiser):
        raise InvalidArgument(f"model must be a denoiser or a LatentDiffusion, got {type(model).__name__}")
    if isinstance(model, LatentDiffusion):
        factor = model.autoencoder.factor
        shape = (model.autoencoder.latent_channels, *(n // factor for n in model.image_shape))
    if shape is None:
        raise InvalidArgument("shape is needed, (C, *spatial) of a sample; only a LatentDiffusion knows it itself")
    if spacing is not None and (len(spacing) != 3 or not min(spacing) > 0):
        raise InvalidArgument(f"spacing must be three positive numbers in mm, got {tuple(spacing)}")
    suffuse.samplers.by_name(sampler, steps=steps)
    target.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        for folder in ("configs", "docs", "models"):
            (work / folder).mkdir()
        suffuse.hub.write(model, work / "models", {"bundle": card.name, "version": card.version})
        dataset: dict[str, Any] = {
            "_target_": "suffuse_medical.bundle.NoiseDataset", "shape": list(shape), "n": "@n", "seed": "@seed",
        }  # fmt: skip
        example = None if condition is None else work / "models" / "condition.safetensors"
        if condition is not None and example is not None:
            _write_condition(condition, example)
            dataset["condition"] = "$@bundle_root + '/models/condition.safetensors'"
        drawn = _draw_once(
            work, NoiseDataset(shape, 1, condition=example), guidance_scale, device_of(denoiser, torch.device("cpu"))
        )
        inference = {
            "bundle_root": ".",
            "device": "$'cuda' if __import__('torch').cuda.is_available() else 'cpu'",
            "dataset_dir": "@bundle_root",
            "output_dir": "$@bundle_root + '/samples'",
            "n": 4,
            "seed": 0,
            "schedule": denoiser.schedule.to_config(),
            "prediction_type": getattr(denoiser, "prediction_type", "sample"),
            "latent_scale": model.latent_scale if isinstance(model, LatentDiffusion) else 1.0,
            "intensity": intensity,
            "spacing": None if spacing is None else list(spacing),
            "label_schema": {str(value): name for value, name in (label_schema or {}).items()},
            "network_def": {
                "_target_": "suffuse_medical.bundle.load",
                "path": "$@bundle_root + '/models'",
                "device": "@device",
            },
            "dataset": dataset,
            "inferer": {
                "_target_": "suffuse_medical.bundle.SamplerInferer",
                "sampler": sampler,
                "steps": steps,
                "guidance_scale": guidance_scale,
            },
            "evaluator": {
                "_target_": "suffuse_medical.bundle.Runner",
                "network": "@network_def",
                "dataset": "@dataset",
                "inferer": "@inferer",
                "output_dir": "@output_dir",
                "spacing": "@spacing",
            },
            "run": ["$@evaluator.run()"],
        }
        texts = {
            "configs/inference.json": json.dumps(inference, indent=2),
            "configs/metadata.json": json.dumps(_metadata(card, shape, drawn, label_schema), indent=2),
            "configs/logging.conf": LOGGING,
            "docs/README.md": card.markdown(),
            "docs/model_card.json": json.dumps(card.to_dict(), indent=2),
            "docs/data_license.txt": (data_license or card.training_data) + "\n",
            "LICENSE": card.license + "\n",
        }
        for name, text in texts.items():
            (work / name).write_text(text, encoding="utf-8")
        validate(work)
        if target.exists():
            target.rmdir()
        os.replace(work, target)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise
    return target


def _draw_once(root: Path, dataset: NoiseDataset, guidance_scale: float, device: torch.device) -> tuple[int, ...]:
    """The shape of what the bundle draws, found by drawing it in one step: better an error now than at the user's."""
    item = dataset[0]
    network = load(root, device)
    try:
        inferer = SamplerInferer("ddim", 1, guidance_scale)
        return tuple(inferer(item["image"][None], network, item.get("condition"), [0]).shape[1:])
    except SuffuseError:
        raise
    except Exception as error:  # torch's, of a network that was given what it cannot take
        given = "no condition" if dataset.condition is None else f"the condition {list(dataset.condition.names)}"
        raise InvalidArgument(
            f"the model cannot draw shape={dataset.shape} with {given} ({error}); give those it was trained with"
        ) from error


def _metadata(
    card: ModelCard, shape: Sequence[int], drawn: Sequence[int], labels: Mapping[int, str] | None
) -> dict[str, Any]:
    def form(channels: int, *spatial: int) -> dict[str, Any]:
        return {"type": "image", "format": "magnitude", "num_channels": channels, "spatial_shape": spatial,
                "dtype": "float32", "value_range": [], "is_patch_data": False}  # fmt: skip

    return {
        "version": card.version,
        "changelog": {card.version: card.changes},
        "monai_version": monai.__version__.split("+")[0],
        "pytorch_version": torch.__version__.split("+")[0],
        "numpy_version": np.__version__,
        "required_packages_version": {"suffuse": suffuse.__version__, "suffuse-medical": _version()},
        "task": "generation by diffusion",
        "description": card.name,
        "authors": card.extra.get("authors", "see docs/README.md"),
        "copyright": card.license,
        "intended_use": card.intended_use,
        "data_source": card.training_data,
        "data_type": card.inputs,
        "image_classes": {str(k): v for k, v in (labels or {}).items()} or "none",
        "eval_metrics": card.to_dict()["metrics"],
        "network_data_format": {"inputs": {"image": form(*shape)}, "outputs": {"pred": form(*drawn)}},
    }


def _version() -> str:
    from . import __version__

    return __version__


def validate(path: str | Path) -> None:
    """Raise CheckpointError naming the file or field that a bundle lacks, or what keeps its model from loading."""
    root = Path(path)
    for name, needed in REQUIRED.items():
        content = _read_json(root, name)
        missing = [key for key in needed if key not in content or (_empty(content[key]) and key not in MAY_BE_EMPTY)]
        if missing:
            raise CheckpointError(f"{name} of bundle {root.name!r} lacks the fields {missing}; export it again")
    for name in FILES:
        if not (root / name).is_file() or not (root / name).stat().st_size:
            raise CheckpointError(f"bundle {root.name!r} has no {name}; export it again, or copy the whole folder")
    try:
        read_card(root).check()
    except InvalidArgument as error:
        raise CheckpointError(f"docs/model_card.json of bundle {root.name!r}: {error}") from error
    load(root)


def _read_json(root: Path, name: str) -> dict[str, Any]:
    file = root / name
    if not file.is_file():
        raise CheckpointError(f"bundle {root.name!r} has no {name}; export it again, or copy the whole folder")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:  # of JSON, or of UTF-8
        raise CheckpointError(f"{name} of bundle {root.name!r} is not JSON ({error}); copy it again") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{name} of bundle {root.name!r} is no JSON object; export it again")
    return content


def _empty(value: Any) -> bool:
    return value in (None, {}, []) or (isinstance(value, str) and not value.strip())


def read_card(path: str | Path) -> ModelCard:
    """The model card of a bundle."""
    return ModelCard.read(Path(path) / "docs" / "model_card.json")


def import_network(path: str | Path, scheduler: Any, network_id: str = "network_def") -> MonaiDenoiser:
    """The diffusion network of somebody else's bundle as a denoiser.

    Nothing in the bundle is run: its configuration is read as data, and weights come from ``models/model.safetensors``
    (or from ``models/model.pt`` by torch's loader of plain tensors).

    Args:
        path: the bundle's folder.
        scheduler: the MONAI scheduler it was trained with; bundles differ in how they write it.
        network_id: the entry of ``configs/inference.json`` that describes the network.

    Raises:
        CheckpointError: when the entry is missing, is an expression, or names a network that is not known here.
    """
    root = Path(path)
    config = _read_json(root, "configs/inference.json")
    entry = config.get(network_id)
    if not isinstance(entry, dict) or "_target_" not in entry:
        raise CheckpointError(f"configs/inference.json has no network {network_id!r}; it has {sorted(config)}")
    kind = str(entry["_target_"]).rsplit(".", 1)[-1]
    arguments = {key: _resolve(value, config) for key, value in entry.items() if not key.startswith("_")}
    if kind not in MonaiNetwork.KINDS:
        raise CheckpointError(f"network {entry['_target_']!r} is none of {MonaiNetwork.KINDS}")
    network = MonaiNetwork(kind, **arguments)
    safe, plain = root / "models" / "model.safetensors", root / "models" / "model.pt"
    if safe.is_file():
        state = safetensors.torch.load_file(safe)
    elif plain.is_file():
        state = torch.load(plain, map_location="cpu", weights_only=True)
    else:
        raise CheckpointError(f"bundle {root.name!r} has neither models/model.safetensors nor models/model.pt")
    suffuse.hub.check_state(network.network, state, str(root))
    network.network.load_state_dict(state)
    return MonaiDenoiser.from_scheduler(network, scheduler).eval()


def _resolve(value: Any, config: Mapping[str, Any]) -> Any:
    """Plain values and references to them; expressions are code, and are refused."""
    if isinstance(value, str) and value.startswith("@"):
        if value[1:] not in config:
            raise CheckpointError(f"configs/inference.json refers to {value!r}, which it does not have")
        return _resolve(config[value[1:]], config)
    if isinstance(value, str) and value.startswith("$"):
        raise CheckpointError(f"configs/inference.json has the expression {value!r}, which is not run; write its value")
    if isinstance(value, list):
        return [_resolve(v, config) for v in value]
    return value


PARTS = ("tokens", "maps", "masks", "nulls")


def _write_condition(condition: Condition, path: Path) -> None:
    parts = {f"{part}.{name}": v for part in PARTS for name, v in getattr(condition, part).items()}
    safetensors.torch.save_file({k: v.detach().cpu().contiguous().clone() for k, v in parts.items()}, path)


def _read_condition(path: Path) -> Condition:
    parts: dict[str, dict[str, Tensor]] = {part: {} for part in PARTS}
    for key, value in safetensors.torch.load_file(path).items():
        part, _, name = key.partition(".")
        parts[part][name] = value
    return Condition(**parts)
