"""One progress bar for all long work of this package."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["bar"]


@contextmanager
def bar(what: str, total: int, show: bool) -> Iterator[Callable[[int], None]]:
    """A progress bar with the time left; yields the function that moves it to a count."""
    from rich.progress import Progress

    with Progress(disable=not show, transient=True) as progress:
        task = progress.add_task(what, total=total)
        yield lambda done: progress.update(task, completed=done)
