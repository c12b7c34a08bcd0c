r"""Volumes larger than a network was trained on: windows of the latents for sampling, tiles with a halo for decoding.

**Sampling.** At every step the posterior mean of a large latent is put together from windows,

    D(x) = sum_i w_i D_i(x) / sum_i w_i,

where D_i is the network on the i-th window and w_i falls to zero over an overlap of ``halo`` cells on each side. Means
are blended and not noise, so that a blend of two answers is one. Once the halo is as wide as the network sees, this is
the network on the whole: Bar-Tal et al. (2023), "MultiDiffusion", arXiv:2302.08113, eq. 5.

**Decoding.** A tile is decoded with as many cells around it as the decoder sees, which are then cut off: with norms of
single voxels the result is that of decoding the whole.

Windows and tiles wrap around on periodic axes.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from suffuse import Condition, Denoiser
from suffuse.errors import InvalidArgument
from suffuse.schedules import Scalar

__all__ = ["Windowed", "decode_tiles"]


class Windowed(Denoiser):
    """A denoiser of large boxes (B, C, X, Y, Z) made of the denoiser of small ones.

    Args:
        denoiser: of any box.
        window: cells of a window without its halo, (x, y, z); an axis no longer than window + 2 halo is taken whole.
        halo: cells around a window, over which neighbours are blended.
        periodic: per axis, whether windows wrap around.
        multiple: sizes that the network takes are multiples of this.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        window: Sequence[int] = (16, 16, 16),
        halo: int = 4,
        periodic: Sequence[bool] = (True, True, True),
        multiple: int = 1,
    ) -> None:
        super().__init__()
        if len(window) != 3 or min(window) < 1 or halo < 1:
            raise InvalidArgument(f"need a window of three positive sizes and halo >= 1, got {tuple(window)}, {halo}")
        if any((w + 2 * halo) % multiple for w in window):
            raise InvalidArgument(f"window + 2 halo must be multiples of {multiple}, got {tuple(window)}, halo {halo}")
        self.denoiser, self.schedule = denoiser, denoiser.schedule
        self.window, self.halo = tuple(int(w) for w in window), int(halo)
        self.periodic = tuple(bool(p) for p in periodic)

    def forward(self, x: Tensor, t: Scalar, cond: Condition | None = None) -> Tensor:
        parts = [_spans(n, w, self.halo, p) for n, w, p in zip(x.shape[2:], self.window, self.periodic, strict=True)]
        if all(len(part) == 1 for part in parts):
            return self.denoiser(x, t, cond)
        total = torch.zeros_like(x)
        weight = torch.zeros(x.shape[2:], dtype=x.dtype, device=x.device)
        for spans in itertools.product(*parts):
            (i, wi), (j, wj), (k, wk) = ((a.to(x.device), w.to(x)) for a, w in spans)
            w = wi[:, None, None] * wj[:, None] * wk
            at = (i[:, None, None], j[:, None], k)
            total[:, :, *at] += w * self.denoiser(x[:, :, *at], t, cond)
            weight[at] += w
        return total / weight


def _spans(n: int, window: int, halo: int, periodic: bool) -> list[tuple[Tensor, Tensor]]:
    """(cells, weights) of the windows along an axis of n cells."""
    size = window + 2 * halo
    if n <= size:
        return [(torch.arange(n), torch.ones(n))]
    ramp = torch.sin(torch.pi / 2 * (torch.arange(2 * halo) + 0.5) / (2 * halo)).square()
    weight = torch.ones(size)
    stride = size - 2 * halo
    if periodic:
        weight[: 2 * halo], weight[size - 2 * halo :] = ramp, ramp.flip(0)
        starts = list(range(0, n, stride))
        return [((torch.arange(size) + s) % n, weight) for s in starts]
    starts = [*range(0, n - size, stride), n - size]
    spans = []
    for s in starts:
        w = weight.clone()
        if s > 0:
            w[: 2 * halo] = ramp
        if s < n - size:
            w[size - 2 * halo :] = ramp.flip(0)
        spans.append((torch.arange(size) + s, w))
    return spans


def decode_tiles(
    codec: Any, z: Tensor, tile: int = 16, periodic: Sequence[bool] = (True, True, True)
) -> Iterator[tuple[tuple[slice, slice, slice], Tensor]]:
    """Decode latents tile by tile: (where in the volume, logits (B, K, ...) there).

    Args:
        codec: a ``VolumeAutoencoder`` or what has its ``decode_stage_2_outputs``, ``factor``, ``receptive_field`` and
            ``periodic``.
        z: latents (B, C, x, y, z).
        tile: cells of a tile along an edge, without its halo.
        periodic: per axis, whether the volume wraps; beyond the other ends there is nothing, as in training.
    """
    if tile < 1:
        raise InvalidArgument(f"tile must be at least 1, got {tile}")
    halo, f = codec.receptive_field, codec.factor
    shape = z.shape[2:]
    for corner in itertools.product(*(range(0, n, tile) for n in shape)):
        index, cut, place = [], [], []
        for c, n, p, wraps in zip(corner, shape, periodic, codec.periodic, strict=True):
            end = min(c + tile, n)
            if c == 0 and end == n and p and wraps:  # the network itself wraps here
                low, high = 0, n
            else:
                low, high = (c - halo, end + halo) if p else (max(c - halo, 0), min(end + halo, n))
            index.append(torch.arange(low, high, device=z.device) % n)
            cut.append(slice((c - low) * f, (end - low) * f))
            place.append(slice(c * f, end * f))
        i, j, k = index
        logits = codec.decode_stage_2_outputs(z[:, :, i[:, None, None], j[:, None], k])
        yield tuple(place), logits[:, :, *cut]  # type: ignore[misc]
