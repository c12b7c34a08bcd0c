"""Training state without pickles: Lightning's checkpoint as one safetensors file.

The checkpoint is a tree of dictionaries, lists, numbers and tensors. Tensors become entries of the file; the rest
becomes JSON in the file's header, in which a tensor is its entry's name. Anything else is refused at saving time.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from lightning.pytorch.plugins.io import CheckpointIO
from torch import Tensor

from ..errors import CheckpointError, InvalidArgument

__all__ = ["SafetensorsIO", "read_state", "write_state"]


def _encode(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        name = str(len(tensors))
        tensors[name] = value.detach().cpu().contiguous().clone()
        return {"$tensor": name}
    if isinstance(value, dict):
        if all(isinstance(k, str) and not k.startswith("$") for k in value):
            return {k: _encode(v, tensors) for k, v in value.items()}
        return {"$items": [[_encode(k, tensors), _encode(v, tensors)] for k, v in value.items()]}
    if isinstance(value, list):
        return [_encode(v, tensors) for v in value]
    if isinstance(value, tuple | set):
        return {f"${type(value).__name__}": [_encode(v, tensors) for v in value]}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise InvalidArgument(f"training state holds a {type(value).__name__}, which has no safe form on disk")


def _decode(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_decode(v, tensors) for v in value]
    if not isinstance(value, dict):
        return value
    if "$tensor" in value:
        return tensors[value["$tensor"]]
    if "$items" in value:
        return {_decode(k, tensors): _decode(v, tensors) for k, v in value["$items"]}
    for kind in (tuple, set):
        if f"${kind.__name__}" in value:
            return kind(_decode(v, tensors) for v in value[f"${kind.__name__}"])
    return {k: _decode(v, tensors) for k, v in value.items()}


def write_state(state: dict[str, Any], path: str | Path) -> None:
    """Write a tree of tensors and plain values, atomically."""
    tensors: dict[str, Tensor] = {}
    tree = json.dumps(_encode(state, tensors))
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.partial")
    safetensors.torch.save_file(tensors, partial, metadata={"tree": tree})
    os.replace(partial, target)


def read_state(path: str | Path, device: str | torch.device = "cpu") -> dict[str, Any]:
    """Read what ``write_state`` wrote. Raises CheckpointError for a truncated or foreign file."""
    try:
        with safetensors.safe_open(path, framework="pt", device=str(device)) as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return _decode(json.loads(file.metadata()["tree"]), tensors)
    except (safetensors.SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path} is truncated or not a training state ({error}); delete it, or pass resume=False to start afresh"
        ) from error


class SafetensorsIO(CheckpointIO):
    """The Lightning plugin."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        write_state(checkpoint, path)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        return read_state(path, "cpu")

    def remove_checkpoint(self, path: Any) -> None:
        Path(path).unlink(missing_ok=True)
