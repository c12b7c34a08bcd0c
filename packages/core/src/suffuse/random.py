"""Randomness that does not depend on the company a sample keeps.

A ``generator`` argument is one ``torch.Generator`` for the whole batch, or a sequence with one per sample; with the
latter, sample i is a function of its own seed, whatever the batch size, order or device count around it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from .errors import InvalidArgument

__all__ = ["Generators", "generators", "rand", "randn", "stratified"]

Generators = torch.Generator | Sequence[torch.Generator] | None


def generators(seeds: Iterable[int], device: torch.device | str = "cpu") -> list[torch.Generator]:
    """One generator per seed."""
    return [torch.Generator(device).manual_seed(seed) for seed in seeds]


def check(generator: Generators, batch: int) -> None:
    """Raise InvalidArgument when a sequence of generators does not match the batch size."""
    if isinstance(generator, Sequence) and len(generator) != batch:
        raise InvalidArgument(f"generator has {len(generator)} entries for a batch of {batch}; give one per sample")


def randn(
    shape: Sequence[int],
    generator: Generators = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Standard normal noise of shape (B, *event); a generator on the CPU serves any device, with the same numbers."""
    return _draw(torch.randn, tuple(shape), generator, device, dtype)


def rand(
    shape: Sequence[int],
    generator: Generators = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Uniform noise in [0, 1) of shape (B, *event), as ``randn``."""
    return _draw(torch.rand, tuple(shape), generator, device, dtype)


def _draw(
    function: Callable[..., Tensor],
    shape: tuple[int, ...],
    generator: Generators,
    device: torch.device | str | None,
    dtype: torch.dtype | None,
) -> Tensor:
    check(generator, shape[0])
    if isinstance(generator, Sequence):
        rows = [function(shape[1:], generator=g, device=g.device, dtype=dtype) for g in generator]
        return torch.stack(rows).to(device)
    where = generator.device if generator is not None else device
    return function(shape, generator=generator, device=where, dtype=dtype).to(device)


def stratified(
    batch: int,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """Uniform in [0, 1), (batch,), with exactly one in each of the strata [i, i + 1) / batch, in random order."""
    jitter = torch.rand(batch, generator=generator, device=device, dtype=dtype)
    strata = torch.randperm(batch, generator=generator, device=device)
    return (strata + jitter) / batch
