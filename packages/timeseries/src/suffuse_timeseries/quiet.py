"""Less chatter: what libraries say on import and in training that a user of a recipe can do nothing about."""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from collections.abc import Iterator

__all__ = ["quiet"]

SAID = (
    ".*json.*module for json-handling.*",  # GluonTS, on import without orjson
    ".*(no `val_dataloader`|many workers|treespec|LeafSpec|litlogger|Checkpoint directory).*",  # Lightning
    ".*is deprecated.*",  # pandas frequencies inside GluonTS
)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence Lightning's notices, known warnings and the evaluator's progress bar; errors and our warnings remain."""
    import lightning.pytorch  # noqa: F401  it sets the level of its logger when it is imported

    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        for message in SAID:
            warnings.filterwarnings("ignore", message=message)
        try:
            yield
        finally:
            logger.setLevel(level)


@contextlib.contextmanager
def no_bar() -> Iterator[None]:
    """Hide progress bars that cannot be switched off."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
        yield
