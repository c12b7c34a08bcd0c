"""The synthetic experiments of the paper: what diffusion for a time t along a learned sheaf can tell apart.

    dX/dt = -Delta_F X,  X(0) = x,  F learned from x once;   logits = W X(t) + b        explicit Euler, steps of 1/2

1. Two overlapping clouds of features on a connected bipartite graph with equal sides, the side being the class. With
   F_u = F_v on every edge the limit t -> infinity cannot separate the sides, whatever is learned (proposition 9); with
   free maps the transports F_v F_u become negative, and it does (proposition 10).
2. C classes on a graph in which every edge leads to the next class, but for a share of random edges. Rotations of the
   plane can follow the classes around; scalars cannot (propositions 11 and 13).

Bodnar et al. (2022), arXiv:2202.04579, section 5 and appendix.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn
from torch.nn.functional import cross_entropy

from .sheaf import Sheaf, SheafGraph, SheafLaplacian, SheafLearner, sheaf_graph
from .sheaf.theory import bipartite_graph


@dataclass(frozen=True)
class Clouds:
    """Nodes with features x (n, f) and classes y (n,) on a graph; train: (n,) mask of the labelled half."""

    graph: SheafGraph
    x: Tensor
    y: Tensor
    train: Tensor

    @property
    def classes(self) -> int:
        return int(self.y.max()) + 1


def bipartite_clouds(side: int = 100, degree: int = 6, features: int = 2, generator: Generator | None = None) -> Clouds:
    """Two Gaussian clouds of unit width whose centres are one unit apart: the best guess without a graph is right in
    Phi(1/2) = 69 % of the cases."""
    graph, y = bipartite_graph(side, degree, generator)
    return _clouds(graph, y, torch.eye(1, features) * torch.tensor([[-0.5], [0.5]]), generator)


def ring_of_classes(
    classes: int = 4, size: int = 40, degree: int = 6, noise: float = 0.1, generator: Generator | None = None
) -> Clouds:
    """Every edge joins a class to the next one around, or with probability `noise` any two nodes."""
    n = classes * size
    y = torch.arange(n) % classes
    source = torch.arange(n).repeat(degree)
    step = torch.randint(size, (len(source),), generator=generator)
    target = (y[source] + 1) % classes + classes * step
    anyone = torch.randint(n, (len(source),), generator=generator)
    target = torch.where(torch.rand(len(source), generator=generator) < noise, anyone, target)
    angle = 2 * math.pi * torch.arange(classes) / classes
    centres = torch.stack([angle.cos(), angle.sin()], 1)
    return _clouds(sheaf_graph(torch.stack([source, target]), n), y, centres, generator)


def _clouds(graph: SheafGraph, y: Tensor, centres: Tensor, generator: Generator | None) -> Clouds:
    x = centres[y] + torch.randn(len(y), centres.size(1), generator=generator)
    train = torch.zeros(len(y), dtype=torch.bool)
    train[torch.randperm(len(y), generator=generator)[: len(y) // 2]] = True
    return Clouds(graph, x, y, train)


class HeatClassifier(nn.Module):
    """Diffusion for time t along a sheaf learned from the features, and a linear classifier; (n, f) -> logits.

    Args:
        features: f.
        classes: C.
        time: t; 0 is a linear classifier.
        stalk_dim: d; the features are copied into every row of the stalk by a learned map.
        maps: kind of maps of a `SheafLearner`.
        symmetric: F_u = F_v on every edge: both ends get the mean of what was learned for them.
        step: of Euler's method, below 1 for a spectrum in [0, 2).
    """

    def __init__(
        self,
        features: int,
        classes: int,
        time: float,
        *,
        stalk_dim: int = 1,
        maps: str = "diagonal",
        symmetric: bool = False,
        step: float = 0.5,
    ) -> None:
        super().__init__()
        self.steps, self.step, self.stalk_dim, self.symmetric = round(time / step), step, stalk_dim, symmetric
        self.lift = nn.Linear(features, 16)  # what the maps are learned from
        self.learner = SheafLearner(16, stalk_dim, maps, edge_weights=False)
        self.learner.reset_parameters()
        self.spread = nn.Linear(features, stalk_dim * features) if stalk_dim > 1 else nn.Identity()
        self.decoder = nn.Linear(stalk_dim * features, classes)

    def sheaf(self, x: Tensor, graph: SheafGraph) -> Sheaf:
        learned = self.learner(torch.tanh(self.lift(x)), graph)
        if not self.symmetric:
            return learned
        mean = (learned.maps + learned.maps[graph.reverse]) / 2
        return Sheaf(graph, mean, learned.weight)

    def forward(self, x: Tensor, graph: SheafGraph) -> Tensor:
        laplacian = SheafLaplacian(self.sheaf(x, graph), "augmented")
        X = self.spread(x).view(len(x) * self.stalk_dim, -1)
        Delta = laplacian.dense()  # small graphs and long times: the power by squaring costs log t products
        X = torch.linalg.matrix_power(torch.eye(len(X)) - self.step * Delta, self.steps) @ X
        X = X.view(len(x), -1)
        return self.decoder(X / X.square().mean().sqrt().clamp_min(1e-12))  # what decays is not lost to the classifier


@dataclass(frozen=True)
class Fit:
    """Accuracies in [0, 1] on the labelled and the other nodes, and the share of negative transports (d = 1)."""

    train: float
    test: float
    negative: float
    transports: Tensor


def fit(model: HeatClassifier, clouds: Clouds, steps: int = 100, lr: float = 0.02) -> Fit:
    """Train on the labelled half by cross-entropy, full batch."""
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    for _ in range(steps):
        optimizer.zero_grad()
        cross_entropy(model(clouds.x, clouds.graph)[clouds.train], clouds.y[clouds.train]).backward()
        optimizer.step()
    with torch.no_grad():
        right = model(clouds.x, clouds.graph).argmax(1) == clouds.y
        T = model.sheaf(clouds.x, clouds.graph).transports()[: clouds.graph.num_edges]
    train, test = (float(right[part].float().mean()) for part in (clouds.train, ~clouds.train))
    return Fit(train, test, float((T < 0).float().mean()), T)
