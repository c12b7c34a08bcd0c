"""What a robot is asked to do, as condition tokens: one name per behaviour, masked where nothing is asked.

A behaviour v becomes u in [0, 1] on the scale of the training data, and then one token of width 7,

    [u, sin(pi 2^k u), cos(pi 2^k u)],  k = 0, 1, 2,

or, as in AlignDiff, the one of V = 100 bins that u falls in, floor(u V), which a network embeds. Zero is a meaningful
request (stand still), so absence cannot be a value: it is the mask, and any subset of the behaviours can be requested.
Dong et al. (2024), "AlignDiff", arXiv:2310.02054, section 4.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from suffuse import Condition
from suffuse.errors import InvalidArgument, unknown

from .data.normalise import Scale
from .envs import Array, robot


def width(bins: int = 0) -> int:
    """Entries of a token."""
    return bins or 7


def token(u: Tensor, bins: int = 0) -> Tensor:
    """u (n,) in [0, 1] -> (n, 1, 7), or with bins V the one-hot (n, 1, V)."""
    if bins:
        return F.one_hot((u * bins).long().clamp(max=bins - 1), bins)[:, None].to(u.dtype)
    angle = torch.pi * u[:, None] * 2.0 ** torch.arange(3, device=u.device)
    return torch.cat([u[:, None], angle.sin(), angle.cos()], -1)[:, None]


def encode(values: Mapping[str, Tensor], scales: Mapping[str, Scale], bins: int = 0) -> Condition:
    """Behaviours, name -> (n,) in units, NaN where nothing is asked, as a condition with all names of ``scales``."""
    tokens, masks = {}, {}
    for name, scale in scales.items():
        given = values[name].isfinite()
        tokens[name] = token(scale(torch.where(given, values[name], scale.low)), bins) * given[:, None, None]
        masks[name] = given[:, None]
    return Condition(tokens=tokens, masks=masks)


def features(cond: Condition) -> Tensor:
    """All tokens and masks of a condition side by side (n, features_dim), for networks that take one vector."""
    parts = [torch.cat([cond.tokens[name][:, 0], cond.masks[name].float()], -1) for name in cond.names]
    return torch.cat(parts, -1)


def features_dim(scales: Mapping[str, Scale]) -> int:
    """Entries of ``features``."""
    return len(scales) * (width() + 1)


class Commanded:
    """A policy that can be told what to do, at any time, also in the middle of an episode.

    Attributes:
        env_id: the robot.
        scales: behaviour name -> its range in the training data.
        requests: what is asked now.
    """

    def __init__(self, env_id: str, scales: Mapping[str, Scale]) -> None:
        self.env_id, self.scales = env_id, dict(scales)
        self.requests: dict[str, Array] = {}

    def request(self, **requests: float | Array) -> Self:
        """Ask for behaviours in their units; what is not named is left open. Returns self.

        Args:
            requests: name -> one number for all environments, or (n,) with NaN where nothing is asked. A request
                outside the range of the training data is clipped to it, with a warning.
        """
        values: dict[str, Array] = {}
        for name, request in requests.items():
            if name not in self.scales:
                raise unknown("behaviour", name, self.scales)
            values[name] = np.asarray(request, np.float32)
            if values[name].ndim > 1 or np.isinf(values[name]).any():
                raise InvalidArgument(f"{name} must be a finite number or one per environment, got {request!r}")
            low, high = self.scales[name].low, self.scales[name].high
            if ((values[name] < low) | (values[name] > high)).any():
                warnings.warn(f"{name} is clipped to [{low:.2f}, {high:.2f}], the range of the data", stacklevel=2)
        self.requests = values
        return self

    def asked(self, n: int) -> dict[str, Tensor]:
        """The requests of n environments: name -> (n,), NaN where nothing is asked."""
        values = {name: torch.full((n,), torch.nan) for name in self.scales}
        for name, request in self.requests.items():
            if request.shape not in ((), (1,), (n,)):
                raise InvalidArgument(f"{name} was requested for {len(request)} environments, the observation has {n}")
            values[name][:] = torch.from_numpy(np.broadcast_to(request, (n,)).copy())
        return values

    def batch(self, observation: Array) -> tuple[Tensor, bool]:
        """The observation as float32 (n, o), and whether it came without a batch axis."""
        o = torch.as_tensor(np.asarray(observation), dtype=torch.float32)
        size = robot(self.env_id).observation_dim
        if o.ndim not in (1, 2) or o.shape[-1] != size or o.numel() == 0:
            raise InvalidArgument(
                f"observation must be ({size},) or (n, {size}) for {self.env_id}, got {tuple(o.shape)}"
            )
        if not bool(o.isfinite().all()):
            raise InvalidArgument("observation holds NaN or infinity; did the simulation diverge?")
        return (o[None], True) if o.ndim == 1 else (o, False)
