"""Recipes: what can be trained and sampled by name, as a pair of typed functions.

    @recipe("medical/tissue-to-t1", sample=draw)
    def tissue_to_t1(*, out: Path = Path("runs/tissue-to-t1"), steps: int = 1500, seed: int = 0) -> Path:
        \"""One summary line.

        Args:
            out: folder of the checkpoint.
            steps: optimiser steps.
            seed: of all random draws.
        \"""

The keyword arguments and their docstrings become the command line: ``suffuse train medical/tissue-to-t1 --steps 100``.
`train` returns the checkpoint folder, whose metadata names the recipe, so that ``suffuse sample FOLDER`` knows how
to write samples in the field's own format.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from suffuse import errors
from suffuse.registry import check_name, discover, summary_of

GROUP = "suffuse.recipes"

Train = Callable[..., Path]
Sample = Callable[..., list[Path]]


@dataclass(frozen=True)
class Recipe:
    """A thing that can be trained. Calling it trains.

    Args:
        name: ``domain/name``.
        train: typed keyword arguments -> checkpoint folder.
        sample: ``(checkpoint, *, out, ...)`` -> the files that were written; None if there is nothing to sample.
        summary: one line for lists.
    """

    name: str
    train: Train
    sample: Sample | None = None
    summary: str = ""

    def __post_init__(self) -> None:
        check_name("recipe", self.name)

    @property
    def domain(self) -> str:
        return self.name.partition("/")[0]

    def __call__(self, *args: Any, **kwargs: Any) -> Path:
        return self.train(*args, **kwargs)


def recipe(name: str, *, sample: Sample | None = None) -> Callable[[Train], Recipe]:
    """Make a training function a `Recipe`; its summary is the first line of the docstring."""
    return lambda train: Recipe(name, train, sample, summary_of(train))


def recipes() -> dict[str, Recipe]:
    """Every recipe of every installed package, by name."""
    return discover(GROUP, Recipe)


def get_recipe(name: str) -> Recipe:
    """The recipe of that name.

    Raises:
        InvalidArgument: if no installed package has it; the message suggests near names.
    """
    known = recipes()
    if name not in known:
        raise errors.unknown("recipe", name, known)
    return known[name]
