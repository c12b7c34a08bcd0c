"""Memory of a long CPU computation: what it frees, it takes again.

A training step on a large graph or volume frees some hundred arrays of tens of megabytes and asks for the same ones at
the next step. The C library of Linux (glibc) hands each of them back to the system at once, and the system gives them
out again page by page, filled with zeros: a tenth to a quarter of such a step.
"""

from __future__ import annotations

import ctypes
import sys

__all__ = ["keep_freed_memory"]

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # of malloc.h


def keep_freed_memory() -> bool:
    """Let this process keep what it frees until it ends. False where the C library has no such setting.

    For processes that run one long computation: the memory of the largest step stays taken.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(_MMAP_MAX, 0) and mallopt(_TRIM_THRESHOLD, 2**31 - 1))
