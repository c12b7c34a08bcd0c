r"""What each attribute of a request says beyond the others that are asked for with it.

Attributes go together: D_rel is nearly a function of the volume fraction, and what it adds to that is a small part of
its score. Gradient descent learns from the largest differences of its inputs first, and from that part last. So it is
also given apart, with variance one: for normal scores s of the attributes S that are asked for, with correlations C,

    r_j = (s_j - E[s_j | s_i, i in S without j]) / std[s_j | ...] = (P s)_j / P_jj^(1/2),      P = (C_SS)^-1.

Any subset can be asked for, so it is computed for each row from what the row asks for.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from suffuse import Condition
from suffuse.errors import InvalidArgument

__all__ = ["Beyond"]

#: Correlations are drawn towards none by this share, so that r stays finite where one attribute follows from others.
SHRINKAGE = 0.01


class Beyond(nn.Module):
    """r (B, A) of a condition, and its embedding (B, dim).

    Args:
        names: A token names; the first feature of each token is the score.
        correlation: (A, A), of the scores in the data.
        dim: width of the embedding.
    """

    correlation: Tensor

    def __init__(self, names: Sequence[str], correlation: Sequence[Sequence[float]], dim: int) -> None:
        super().__init__()
        table = torch.as_tensor(correlation, dtype=torch.float32)
        if table.shape != (len(names), len(names)) or not torch.allclose(table.diagonal(), torch.ones(len(names))):
            raise InvalidArgument(
                f"correlation must be {len(names)} x {len(names)} with ones on the diagonal, for tokens {list(names)}"
            )
        self.names = tuple(names)
        self.register_buffer("correlation", (1 - SHRINKAGE) * table + SHRINKAGE * torch.eye(len(names)))
        self.project = nn.Linear(len(names), dim)

    def forward(self, cond: Condition) -> Tensor:
        return self.project(self.scores(cond))

    def scores(self, cond: Condition) -> Tensor:
        """r, zero where an attribute is not asked for."""
        asked = torch.cat([cond.masks[name] for name in self.names], 1)
        s = torch.cat([cond.tokens[name][:, :, 0] for name in self.names], 1).float() * asked
        both = asked[:, :, None] & asked[:, None, :]
        eye = torch.eye(len(self.names), device=s.device)
        precision = torch.linalg.inv_ex(torch.where(both, self.correlation, eye)).inverse  # inv waits for the device
        return (precision @ s[..., None])[..., 0] / precision.diagonal(dim1=1, dim2=2).sqrt()
