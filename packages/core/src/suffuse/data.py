"""Where the datasets of benchmarks and tests that need files are found: the environment variable SUFFUSE_DATA."""

from __future__ import annotations

import os
from pathlib import Path

from .errors import InvalidArgument

__all__ = ["data_root"]


def data_root() -> Path | None:
    """The folder named by SUFFUSE_DATA, or None when it is unset. Nothing in the library requires it.

    Raises:
        InvalidArgument: when the variable is set and names no folder.
    """
    value = os.environ.get("SUFFUSE_DATA", "")
    if not value:
        return None
    root = Path(value).expanduser()
    if not root.is_dir():
        raise InvalidArgument(f"SUFFUSE_DATA={value!r} is not a folder; correct it, or unset it to use bundled data")
    return root
