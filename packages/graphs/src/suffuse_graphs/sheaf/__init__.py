"""Neural sheaf diffusion: graph, restriction maps, Laplacian, layers, models."""

from .attention import SheafAttentionConv
from .connection import connection_sheaf
from .continuous import ContinuousSheafDiffusion
from .conv import SheafConv
from .graph import SheafGraph, sheaf_graph
from .laplacian import Sheaf, SheafLaplacian
from .maps import SheafLearner
from .model import NeuralSheafDiffusion

__all__ = [
    "ContinuousSheafDiffusion",
    "NeuralSheafDiffusion",
    "Sheaf",
    "SheafAttentionConv",
    "SheafConv",
    "SheafGraph",
    "SheafLaplacian",
    "SheafLearner",
    "connection_sheaf",
    "sheaf_graph",
]
