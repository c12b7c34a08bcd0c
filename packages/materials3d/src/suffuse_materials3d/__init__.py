"""suffuse_materials3d: ask for a microstructure, get it, measured.

data = suffuse_materials3d.data.simulate_spinodal(256)
pipeline = suffuse_materials3d.MicrostructurePipeline.from_pretrained("runs/materials3d/volume-fraction")
structure = pipeline([0.45], shape=(48, 48, 48), seed=0)[0]
suffuse_materials3d.measure(structure)
suffuse_materials3d.write_mesh(suffuse_materials3d.to_mesh(structure), "structure.glb")
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import baselines as baselines
    from . import data as data
    from . import descriptors as descriptors
    from . import metrics as metrics
    from . import nets as nets
    from . import plots as plots
    from . import simulate as simulate
    from .descriptors import measure as measure
    from .io import read_volume as read_volume
    from .io import write_volume as write_volume
    from .ldm import MicrostructureLDM as MicrostructureLDM
    from .mesh import to_mesh as to_mesh
    from .mesh import to_scene as to_scene
    from .mesh import write_mesh as write_mesh
    from .microstructure import Microstructure as Microstructure
    from .pipeline import MicrostructurePipeline as MicrostructurePipeline
    from .simulate import CahnHilliard as CahnHilliard

_MODULES = ("baselines", "data", "descriptors", "metrics", "nets", "plots", "simulate")
_NAMES = {
    "CahnHilliard": "simulate",
    "Microstructure": "microstructure",
    "MicrostructureLDM": "ldm",
    "MicrostructurePipeline": "pipeline",
    "measure": "descriptors",
    "read_volume": "io",
    "to_mesh": "mesh",
    "to_scene": "mesh",
    "write_mesh": "mesh",
    "write_volume": "io",
}
__all__ = [*_MODULES, *_NAMES]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f".{name}", __name__)
    if name in _NAMES:
        return getattr(importlib.import_module(f".{_NAMES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
