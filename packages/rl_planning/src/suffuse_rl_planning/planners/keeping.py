"""Any planner from its checkpoint folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from suffuse import hub
from suffuse.errors import CheckpointError

from .aligndiff import AlignDiff
from .conditional import DiffusionPlanner
from .decision_diffuser import DecisionDiffuser
from .diffuser import Diffuser

KINDS: dict[str, type[DiffusionPlanner]] = {
    c.KIND: c for c in (AlignDiff, DecisionDiffuser, Diffuser, DiffusionPlanner)
}


def load(path: Path | str, *, device: str = "cpu", **options: Any) -> Any:
    """The planner that a folder holds; ``options`` are those of the planner (``replan``, ``candidates``, …)."""
    kept = hub.read_config(path).get("metadata", {}).get("planner") or {}
    kind = kept.get("kind", DiffusionPlanner.KIND)
    if kind not in KINDS:
        raise CheckpointError(f"checkpoint={str(path)!r} is a planner of kind {kind!r}, which is not known here")
    return KINDS[kind].load(path, device=device, **options)
