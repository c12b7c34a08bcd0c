"""The errors a user can act on: each names the argument, says what came in, and says what to do instead."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable
from types import ModuleType


class SuffuseError(ValueError):
    """Base of every error raised on purpose. Its message is one line that a user can act on."""


class InvalidArgument(SuffuseError):
    """An argument has the wrong value, shape or type."""


class CheckpointError(SuffuseError):
    """A checkpoint is missing, truncated, altered, of another format, or does not fit the model."""


class TrainingDiverged(SuffuseError):
    """The loss became NaN or infinite; the message names the step and the last good checkpoint."""


class SamplingDiverged(SuffuseError):
    """A denoiser returned NaN or infinite values while sampling."""


class MissingExtra(SuffuseError, ImportError):
    """An optional dependency is needed and not installed."""


def require(module: str, *, extra: str, package: str = "suffuse") -> ModuleType:
    """Import an optional dependency, or say which extra brings it.

    Args:
        module: dotted module name, for instance ``"sklearn.datasets"``.
        extra: the extra of ``package`` that installs it.
        package: the distribution that declares the extra.

    Raises:
        MissingExtra: with the ``pip install`` line that mends it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name and module.split(".")[0] != error.name.split(".")[0]:
            raise  # the dependency is there and is itself broken: hiding that would send the user the wrong way
        raise MissingExtra(f"{module!r} is not installed; run: pip install '{package}[{extra}]'") from error


def unknown(kind: str, name: object, known: Iterable[str]) -> InvalidArgument:
    """The error for a name that is not in a registry, with the nearest known names first."""
    names = sorted(known)
    near = difflib.get_close_matches(str(name), names, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
    return InvalidArgument(f"unknown {kind} {name!r}; {hint}known: {', '.join(names) or 'none'}")
