"""Threads for small models.

A network of some ten thousand weights does a few microseconds of work per operation. Waking a second thread for it
costs as much; and where threads spin while they wait (OpenMP's default) on a machine that is shared, many times more.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["one_thread", "wait_passively"]


@contextmanager
def one_thread() -> Iterator[None]:
    """One CPU thread inside the block (also as a decorator)."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def wait_passively() -> None:
    """Let idle threads sleep and not spin; to be called before torch is first imported."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
