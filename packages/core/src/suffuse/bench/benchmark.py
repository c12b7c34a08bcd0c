"""What a benchmark is, and how benchmarks are found."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from inspect import cleandoc
from typing import TYPE_CHECKING

from suffuse import errors
from suffuse.registry import check_name, discover, version_of

if TYPE_CHECKING:
    from suffuse.bench.run import Run

GROUP = "suffuse.benchmarks"
PROFILES = ("quick", "full")


@dataclass(frozen=True)
class Benchmark:
    """A published claim and the function that checks it.

    Args:
        name: ``domain/name``.
        function: reports rows, figures and notes to the `Run` it is given. Its docstring is shown in the report.
        paper: authors, year and identifier of the publication.
        claim: one sentence that can turn out wrong.
        peers: methods or libraries that are run beside it.
        extras: distributions with extras that it needs, as in ``pip install``; shown in lists.
    """

    name: str
    function: Callable[[Run], None]
    paper: str
    claim: str
    peers: tuple[str, ...] = ()
    extras: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_name("benchmark", self.name)
        for field in ("paper", "claim"):
            if not getattr(self, field).strip():
                raise errors.InvalidArgument(f"{field}: benchmark {self.name!r} needs a {field}, got an empty string")

    def __call__(self, run: Run) -> None:
        self.function(run)

    @property
    def domain(self) -> str:
        return self.name.partition("/")[0]

    @property
    def slug(self) -> str:
        """The name as a file name."""
        return self.name.replace("/", "-")

    @property
    def description(self) -> str:
        return cleandoc(self.function.__doc__ or "")

    @property
    def version(self) -> str:
        """Version of the package that holds the benchmark."""
        return version_of(self.function.__module__)


def benchmark(
    name: str, *, paper: str, claim: str, peers: Iterable[str] = (), extras: Iterable[str] = ()
) -> Callable[[Callable[[Run], None]], Benchmark]:
    """Make a function of a `Run` a `Benchmark`; the arguments are its fields."""
    return lambda function: Benchmark(name, function, paper, claim, tuple(peers), tuple(extras))


def benchmarks() -> dict[str, Benchmark]:
    """Every benchmark of every installed package, by name."""
    return discover(GROUP, Benchmark)


def select(names: Iterable[str], known: Mapping[str, Benchmark]) -> list[Benchmark]:
    """Benchmarks by name, by domain (``medical``) or by pattern (``*/samplers-*``), each once; all if no name is given.

    Raises:
        InvalidArgument: if a name fits none; the message suggests near names.
    """
    chosen: dict[str, Benchmark] = {}
    for name in names:
        fitting = [b for b in known.values() if name in (b.name, b.domain) or fnmatch.fnmatchcase(b.name, name)]
        if not fitting:
            raise errors.unknown("benchmark", name, known)
        chosen |= {b.name: b for b in fitting}
    return list(chosen.values()) if chosen else list(known.values())
