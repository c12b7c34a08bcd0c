"""Checkpoints: a folder with ``config.json`` (what the model is) and ``model.safetensors`` (its weights).

The configuration names classes and their arguments, so a checkpoint rebuilds its model without the script that made
it. Nothing is ever unpickled, and only classes of the packages ``suffuse`` and ``suffuse_*``, or classes the program
has itself marked with ``@serializable``, are built. Weights are checked against the hash in the configuration, and both
files are complete on disk before they replace an older checkpoint.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import inspect
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from .errors import CheckpointError, InvalidArgument
from .schedules import Schedule
from .version import __version__

if TYPE_CHECKING:
    from .denoiser import Denoiser

__all__ = ["load", "read_config", "save", "serializable"]

CONFIG, WEIGHTS = "config.json", "model.safetensors"
FORMAT = 1
PICKLES = (".pt", ".pth", ".pkl", ".pickle", ".bin", ".ckpt")

M = TypeVar("M", bound=type[nn.Module])
_classes: dict[str, type[nn.Module]] = {}


def serializable(cls: M) -> M:
    """Class decorator: instances remember the arguments they were built with, and checkpoints can rebuild them.

    Arguments may be JSON values, schedules, and serializable modules, nested in lists and dictionaries.
    """
    original = cls.__init__
    signature = inspect.signature(original)

    @functools.wraps(original)
    def __init__(self: nn.Module, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        if type(self) is cls:  # not when a subclass calls super().__init__
            bound = signature.bind(self, *args, **kwargs)
            given = {k: v for k, v in bound.arguments.items() if k != next(iter(signature.parameters))}
            for name, parameter in signature.parameters.items():
                if parameter.kind is inspect.Parameter.VAR_KEYWORD:
                    given.update(given.pop(name, {}))
            object.__setattr__(self, "_built_with", given)

    cls.__init__ = __init__  # type: ignore[method-assign]
    _classes[_name(cls)] = cls
    return cls


def _name(cls: type) -> str:
    return f"{cls.__module__}:{cls.__qualname__}"


# --- objects <-> JSON -------------------------------------------------------------------------------------------


def describe(value: Any) -> Any:
    """A JSON-able description of an argument."""
    if isinstance(value, nn.Module):
        if "_built_with" not in vars(value) or _name(type(value)) not in _classes:
            raise InvalidArgument(
                f"{type(value).__name__} cannot be saved: decorate the class with @suffuse.hub.serializable"
            )
        built_with: dict[str, Any] = vars(value)["_built_with"]
        return {"$class": _name(type(value)), **{k: describe(v) for k, v in built_with.items()}}
    if isinstance(value, Schedule):
        return {"$schedule": value.to_config()}
    if isinstance(value, Mapping):
        return {str(k): describe(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [describe(v) for v in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise InvalidArgument(f"an argument of type {type(value).__name__} cannot be written to config.json")


def build(config: Any) -> Any:
    """The object that ``describe`` described."""
    if isinstance(config, dict):
        if "$schedule" in config:
            return Schedule.from_config(config["$schedule"])
        arguments = {k: build(v) for k, v in config.items() if k != "$class"}
        if "$class" not in config:
            return arguments
        cls = _resolve(config["$class"])
        try:
            inspect.signature(cls).bind(**arguments)
        except TypeError as error:
            raise CheckpointError(f"config.json does not fit {config['$class']}: {error}") from error
        return cls(**arguments)
    return [build(v) for v in config] if isinstance(config, list) else config


def _resolve(name: str) -> type[nn.Module]:
    module, _, _ = str(name).partition(":")
    top = module.split(".")[0]
    if name not in _classes and (top == "suffuse" or top.startswith("suffuse_")):
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise CheckpointError(f"config.json needs {name}; install its package ({error})") from error
    if name not in _classes:
        raise CheckpointError(
            f"config.json names the class {name!r}, which is not a serializable class of a suffuse package; "
            f"if it is yours, import it (decorated with @suffuse.hub.serializable) before loading"
        )
    return _classes[name]


# --- folders ----------------------------------------------------------------------------------------------------


def write(model: nn.Module, folder: Path, metadata: Mapping[str, Any]) -> None:
    """Write both files into an existing folder."""
    description = describe(model)
    tensors: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, value in model.state_dict().items():
        cpu = value.detach().cpu().contiguous()
        tensors[name] = cpu.clone() if cpu.data_ptr() in seen else cpu  # safetensors refuses shared storage
        seen.add(cpu.data_ptr())
    data = safetensors.torch.save(tensors, metadata={"format": "pt"})
    config = {
        "format": FORMAT,
        "suffuse_version": __version__,
        "model": description,
        "sha256": hashlib.sha256(data).hexdigest(),
        "metadata": dict(metadata),
    }
    text = json.dumps(config, indent=2) + "\n"
    files = {WEIGHTS: data, CONFIG: text.encode()}
    for name, content in files.items():
        (folder / f".{name}.partial").write_bytes(content)
    for name in files:  # both are complete before either takes its place
        os.replace(folder / f".{name}.partial", folder / name)


def save(denoiser: nn.Module, path: str | Path, metadata: Mapping[str, Any] | None = None) -> Path:
    """Save a model as a checkpoint folder.

    Args:
        denoiser: a serializable module, usually a ``NetworkDenoiser``.
        path: the folder; an existing checkpoint there is replaced only once the new one is complete on disk.
        metadata: JSON-able facts to keep with it (recipe, data, shapes).

    Raises:
        InvalidArgument: when ``path`` is a file, or the model has an argument that cannot be written.
    """
    target = Path(path)
    if target.exists() and not target.is_dir():
        raise InvalidArgument(f"path={str(path)!r} is a file; give the name of a folder")
    target.mkdir(parents=True, exist_ok=True)
    write(denoiser, target, metadata or {})
    return target


def read_config(path: str | Path) -> dict[str, Any]:
    """The configuration of a checkpoint folder, checked for its format but without building anything."""
    folder = Path(path)
    if folder.suffix in PICKLES:
        raise CheckpointError(f"{folder.name} looks like a pickle, which can run code; suffuse reads only safetensors")
    file = folder / CONFIG
    if not file.is_file():
        pickles = [p.name for p in folder.glob("*") if p.suffix in PICKLES] if folder.is_dir() else []
        also = f" (it has {', '.join(pickles)}: pickles are not read)" if pickles else ""
        raise CheckpointError(f"checkpoint={str(path)!r} has no {CONFIG}{also}; give the folder that `save` wrote")
    try:
        config = json.loads(file.read_text())
        number = config["format"]
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise CheckpointError(f"{file} is truncated or not a suffuse configuration ({error}); copy it again") from error
    if number != FORMAT:
        raise CheckpointError(f"{file} has format {number}, this version reads {FORMAT}; update suffuse")
    return config


def load(path: str | Path, device: str | torch.device = "cpu") -> Denoiser:
    """Rebuild the model of a checkpoint folder, in evaluation mode.

    Raises:
        CheckpointError: when a file is missing, truncated, altered, of another format, or does not fit the model.
    """
    config = read_config(path)
    file = Path(path) / WEIGHTS
    if not file.is_file():
        raise CheckpointError(f"checkpoint={str(path)!r} has no {WEIGHTS}; copy the whole folder")
    data = file.read_bytes()
    if hashlib.sha256(data).hexdigest() != config.get("sha256"):
        raise CheckpointError(
            f"{file} does not match the hash in {CONFIG}: it is truncated or was altered; copy it again or retrain"
        )
    try:
        state = safetensors.torch.load(data)
    except safetensors.SafetensorError as error:
        raise CheckpointError(f"{file} is not a safetensors file ({error})") from error
    try:
        model = build(config["model"])
    except KeyError as error:
        raise CheckpointError(f"{CONFIG} of {str(path)!r} lacks the entry {error}; copy it again") from error
    except InvalidArgument as error:
        raise CheckpointError(f"{CONFIG} of {str(path)!r} does not describe a valid model: {error}") from error
    if not isinstance(model, nn.Module):
        raise CheckpointError(f"{CONFIG} of {str(path)!r} does not describe a model")
    check_state(model, state, str(path))
    model.load_state_dict(state)
    return model.to(device).eval()  # type: ignore[return-value]


def check_state(model: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Raise CheckpointError unless names and shapes of the weights are the model's."""
    own = model.state_dict()
    wrong = [f"{k} is missing" for k in own if k not in state]
    wrong += [f"{k} is not in the model" for k in state if k not in own]
    wrong += [
        f"{k} is {tuple(state[k].shape)}, the model has {tuple(own[k].shape)}"
        for k in own
        if k in state and own[k].shape != state[k].shape
    ]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise CheckpointError(f"weights of {source!r} do not fit its configuration: {'; '.join(wrong[:3])}{more}")
