"""The paper's own code as a peer: github.com/twitter-research/neural-sheaf-diffusion (Apache-2.0), from a checkout.

It imports three compiled packages that have no wheels for recent torch; where one is missing, the function that is
needed of it is replaced by the same computation in plain torch:

    torch_sparse.spmm             gather, multiply, scatter_add (which is what the package does, too)
    torch_scatter.scatter_add     Tensor.scatter_add_
    torch_householder             torch.linalg.householder_product
"""

from __future__ import annotations

import importlib.util
import sys
import types
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

CLASSES = {
    "orthogonal": "DiscreteBundleSheafDiffusion",
    "general": "DiscreteGeneralSheafDiffusion",
    "diagonal": "DiscreteDiagSheafDiffusion",
}


def official(
    checkout: Path,
    maps: str,
    edge_index: Tensor,
    num_nodes: int,
    in_channels: int,
    out_channels: int,
    *,
    stalk_dim: int,
    width: int,
    layers: int,
    device: str = "cpu",
    low_pass: bool = False,
    high_pass: bool = False,
) -> nn.Module:
    """A model of the official code with its defaults, no dropout, and the given shape: x (n, in) -> log-probabilities.

    It is built on the CPU, then moved: on a GPU its set-up would wait for the device at every edge, some 800,000 times
    for 50,000 edges.

    Args:
        checkout: folder of the repository.
        maps: "orthogonal", "general" or "diagonal".
        edge_index: (2, 2E), both directions, no self-loops, on the CPU.
        device: where the model shall be.
        width: channels f per row of the stalk.
    """
    _stand_in("torch_sparse", spmm=_spmm)
    _stand_in("torch_scatter", scatter_add=_scatter_add)
    _stand_in("torch_householder", torch_householder_orgqr=_orgqr)
    if str(checkout) not in sys.path:
        sys.path.insert(0, str(checkout))
    from models import disc_models  # type: ignore[import-not-found]

    args = {
        "d": stalk_dim, "add_lp": low_pass, "add_hp": high_pass, "hidden_channels": width, "layers": layers,
        "device": device, "graph_size": num_nodes, "input_dim": in_channels, "output_dim": out_channels,
        "normalised": True, "deg_normalised": False, "linear": False, "input_dropout": 0.0, "dropout": 0.0,
        "left_weights": True, "right_weights": True, "sparse_learner": False, "use_act": True, "sheaf_act": "tanh",
        "second_linear": False, "orth": "householder", "edge_weights": True, "max_t": 1.0,
    }  # fmt: skip
    model = getattr(disc_models, CLASSES[maps])(edge_index, args).to(device)
    for module in model.modules():  # indices are plain attributes there, which `to` leaves behind
        held = vars(module)
        held.update({name: value.to(device) for name, value in held.items() if isinstance(value, Tensor)})
        if "device" in held:
            module.device = torch.device(device)
    return model


@torch.no_grad()
def copy_weights(theirs: nn.Module, ours: nn.Module) -> None:
    """Give `NeuralSheafDiffusion` the weights of an official model."""
    state, target = theirs.state_dict(), ours.state_dict()
    for name in target:
        if name.startswith("convs."):
            layer, part = name.split(".", 2)[1:]
            source = {
                "epsilon": f"epsilons.{layer}",
                "left.weight": f"lin_left_weights.{layer}.weight",
                "right.weight": f"lin_right_weights.{layer}.weight",
                "learner.lin.weight": f"sheaf_learners.{layer}.linear1.weight",
                "learner.lin_weight.weight": f"weight_learners.{layer}.linear1.weight",
            }[part]
        else:
            source = name.replace("encoder", "lin1").replace("decoder", "lin2")
        target[name].copy_(state[source].view_as(target[name]))


def _stand_in(name: str, **functions: Any) -> None:
    if name not in sys.modules and importlib.util.find_spec(name) is None:
        module = types.ModuleType(name)
        vars(module).update(functions)
        sys.modules[name] = module


def _spmm(index: Tensor, value: Tensor, rows: int, columns: int, x: Tensor) -> Tensor:
    row, col = index
    messages = x.index_select(0, col) * value.unsqueeze(-1)
    return x.new_zeros(rows, x.size(1)).scatter_add_(0, row.unsqueeze(-1).expand_as(messages), messages)


def _scatter_add(src: Tensor, index: Tensor, dim: int, dim_size: int) -> Tensor:
    index = index.view(-1, *[1] * (src.dim() - 1)).expand_as(src)
    return src.new_zeros(dim_size, *src.shape[1:]).scatter_add_(dim, index, src)


def _orgqr(A: Tensor) -> Tensor:
    if A.is_cuda:  # there torch's product goes through the matrices one by one
        Q = torch.eye(A.shape[-1], device=A.device, dtype=A.dtype).expand_as(A)
        for v in A.tril().unbind(-1):
            Q = Q - (2 / v.square().sum(-1))[:, None, None] * (Q @ v[..., None]) * v[:, None]
        return Q
    return torch.linalg.householder_product(A, 2 / A.tril().square().sum(-2))
