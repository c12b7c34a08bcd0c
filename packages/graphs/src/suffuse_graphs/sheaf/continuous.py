"""Neural sheaf diffusion in continuous time.

    X(0)    = encode(x)
    dX/dt   = act( -Delta_{F(X)} (I (x) W_1) X W_2 ),     t in [0, T]
    logits  = W_out X(T)

The weights are shared over time, and there is no residual gate: integration is the residual. The sheaf is learned
anew at every evaluation, or once, from X(0). The solver is torchdiffeq's (extra `ode`).

Bodnar et al. (2022), arXiv:2202.04579, equation 4; Chen et al. (2018), "Neural ordinary differential equations",
arXiv:1806.07366, for the adjoint.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from suffuse.errors import InvalidArgument, require
from suffuse.hub import serializable

from .connection import connection_sheaf
from .conv import SheafConv, check_features
from .graph import SheafGraph, end_weights, sheaf_graph
from .laplacian import Sheaf, SheafLaplacian
from .model import SheafClassifier


@serializable
class ContinuousSheafDiffusion(SheafClassifier):
    """(n, in_channels) -> logits (n, out_channels) by integrating sheaf diffusion up to `time`.

    Args:
        in_channels: features per node.
        hidden_channels: width, a multiple of the dimension of the stalk.
        time: T > 0.
        out_channels: classes.
        stalk_dim: d.
        maps: as of `NeuralSheafDiffusion`.
        input_dropout: on the raw features.
        dropout: on the encoded features; nothing is dropped while integrating.
        activation: of the encoder and of the flow; None for none.
        second_linear: a second layer in the encoder.
        relearn: learn the sheaf anew at every evaluation; False: once, from X(0).
        method: a solver of torchdiffeq, "dopri5", "rk4", "euler", "implicit_adams", ...
        tol: scale of the tolerances, absolute 1e-7 and relative 1e-9, as in the paper's code; for adaptive solvers.
        step_size: of the fixed-step solvers.
        adjoint: gradients by the adjoint equation, in memory that does not grow with the number of evaluations.
        **conv: further arguments of `SheafConv`.
    """

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        time: float,
        out_channels: int,
        *,
        stalk_dim: int = 3,
        maps: str = "orthogonal",
        input_dropout: float = 0.0,
        dropout: float = 0.0,
        activation: str | None = "elu",
        second_linear: bool = False,
        relearn: bool = True,
        method: str = "dopri5",
        tol: float = 1e3,
        step_size: float | None = None,
        adjoint: bool = False,
        **conv: Any,
    ) -> None:
        self._ode = require("torchdiffeq", extra="ode", package="suffuse-graphs")
        super().__init__(
            in_channels, hidden_channels, out_channels, input_dropout=input_dropout, dropout=dropout,
            activation=activation, second_linear=second_linear,
        )  # fmt: skip
        if time <= 0 or tol <= 0:
            raise InvalidArgument(f"time and tol must be positive, got time={time} and tol={tol}")
        if adjoint and not relearn:
            raise InvalidArgument(
                "adjoint=True needs relearn=True: gradients of a sheaf learned once would not reach its learner"
            )
        self.time, self.relearn, self.method, self.tol = time, relearn, method, tol
        self.step_size, self.adjoint = step_size, adjoint
        self.flow = Flow(
            SheafConv(hidden_channels, stalk_dim, maps, residual=False, activation=activation, **conv), relearn
        )

    def reset_parameters(self) -> None:
        for part in (self.encoder, self.encoder2, self.decoder, self.flow.conv):
            if part is not None:
                part.reset_parameters()

    def forward(
        self, x: Tensor, edge_index: Any, edge_weight: Tensor | None = None, *, sheaf: Sheaf | None = None
    ) -> Tensor:
        """Logits; arguments as of `NeuralSheafDiffusion.forward`."""
        return self.decoder(self.trajectory(x, edge_index, edge_weight, sheaf=sheaf, points=2)[-1])

    def trajectory(
        self,
        x: Tensor,
        edge_index: Any,
        edge_weight: Tensor | None = None,
        *,
        sheaf: Sheaf | None = None,
        points: int = 11,
    ) -> Tensor:
        """(points, n, hidden_channels): X(t) at evenly spaced times from 0 to `time`."""
        graph = sheaf_graph(edge_index, len(x))
        learner = self.flow.conv.learner
        base = connection_sheaf(x, graph, learner.stalk_dim) if learner.maps == "connection" and sheaf is None else None
        self.flow.begin(graph, end_weights(edge_index, edge_weight, graph), base, sheaf)
        x = self.encode(x)
        options = None if self.step_size is None else {"step_size": self.step_size}
        solve = self._ode.odeint_adjoint if self.adjoint and self.training else self._ode.odeint
        return solve(
            self.flow, x, torch.linspace(0, self.time, points, device=x.device, dtype=x.dtype),
            method=self.method, atol=self.tol * 1e-7, rtol=self.tol * 1e-9, options=options,
        )  # fmt: skip

    def sheaf_parameters(self) -> list[nn.Parameter]:
        """The parameters of the maps, which the paper decays separately."""
        return list(self.flow.conv.learner.parameters())


class Flow(nn.Module):
    """t, X -> act(-Delta_{F(X)} (I (x) W_1) X W_2), on the graph that `begin` was given; counts its evaluations."""

    def __init__(self, conv: SheafConv, relearn: bool) -> None:
        super().__init__()
        self.conv, self.relearn, self.nfe = conv, relearn, 0

    def begin(self, graph: SheafGraph, weight: Tensor | None, base: Sheaf | None, sheaf: Sheaf | None) -> None:
        self.graph, self.weight, self.base, self.given, self.nfe = graph, weight, base, sheaf, 0
        self.laplacian: SheafLaplacian | None = None

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        self.nfe += 1
        conv = self.conv
        fixed = self.given is not None or not self.relearn
        if self.laplacian is None or not fixed:
            check_features(x, conv.channels)
            sheaf = self.given if self.given is not None else conv.learner(x, self.graph, self.weight, self.base)
            self.laplacian = SheafLaplacian(sheaf, conv.normalization, conv.chunk)
        X = x.view(len(x), self.laplacian.sheaf.stalk_dim, -1)
        return conv.activation(-conv.diffuse(X, self.laplacian)).reshape(x.shape)
