"""Neural sheaf diffusion: graph, restriction maps, Laplacian, layer, model."""

from .conv import SheafConv
from .graph import SheafGraph, sheaf_graph
from .laplacian import Sheaf, SheafLaplacian
from .maps import SheafLearner
from .model import NeuralSheafDiffusion

__all__ = ["NeuralSheafDiffusion", "Sheaf", "SheafConv", "SheafGraph", "SheafLaplacian", "SheafLearner", "sheaf_graph"]
