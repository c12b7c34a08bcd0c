"""suffuse for graphs: sheaf diffusion layers that are PyG citizens, and diffusion models of signals on graphs.

from suffuse_graphs import SheafConv, NeuralSheafDiffusion

conv = SheafConv(channels=60, stalk_dim=3, maps="orthogonal")
x = conv(x, edge_index)                                   # (n, 60) -> (n, 60)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .data.nodes import load_nodes as load_nodes
    from .data.signals import load_signals as load_signals
    from .exact import SheafGaussianDenoiser as SheafGaussianDenoiser
    from .lightning import GraphModule as GraphModule
    from .loader import neighbor_loader as neighbor_loader
    from .nets.signal import GraphSignalNet as GraphSignalNet
    from .sheaf import ContinuousSheafDiffusion as ContinuousSheafDiffusion
    from .sheaf import NeuralSheafDiffusion as NeuralSheafDiffusion
    from .sheaf import Sheaf as Sheaf
    from .sheaf import SheafAttentionConv as SheafAttentionConv
    from .sheaf import SheafConv as SheafConv
    from .sheaf import SheafLaplacian as SheafLaplacian
    from .sheaf import connection_sheaf as connection_sheaf
    from .sheaf import sheaf_graph as sheaf_graph

_NAMES = {
    "ContinuousSheafDiffusion": ".sheaf",
    "NeuralSheafDiffusion": ".sheaf",
    "Sheaf": ".sheaf",
    "SheafAttentionConv": ".sheaf",
    "SheafConv": ".sheaf",
    "SheafLaplacian": ".sheaf",
    "connection_sheaf": ".sheaf",
    "sheaf_graph": ".sheaf",
    "GraphModule": ".lightning",
    "neighbor_loader": ".loader",
    "SheafGaussianDenoiser": ".exact",
    "GraphSignalNet": ".nets.signal",
    "load_nodes": ".data.nodes",
    "load_signals": ".data.signals",
}
__all__ = ["__version__", *_NAMES]


def __getattr__(name: str) -> Any:
    """Load on first use: importing the package, and with it the command line, does not load PyG."""
    if name in _NAMES:
        return getattr(importlib.import_module(_NAMES[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
