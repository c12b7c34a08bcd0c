"""What installed packages offer: a package declares an entry point, and its recipes or benchmarks are found.

    [project.entry-points."suffuse.recipes"]
    medical = "suffuse_medical.recipes:RECIPES"        # a tuple of Recipe

Installing a package is all it takes to add it, and a package that cannot be imported takes only itself away.
"""

from __future__ import annotations

import warnings
from importlib.metadata import PackageNotFoundError, entry_points, version
from typing import Protocol, TypeVar

from suffuse.errors import InvalidArgument


class Named(Protocol):
    """Anything with a name of the form ``domain/name``."""

    @property
    def name(self) -> str: ...


T = TypeVar("T", bound=Named)


class RegistryWarning(UserWarning):
    """A package declares recipes or benchmarks that could not be used."""


def discover(group: str, kind: type[T]) -> dict[str, T]:
    """All items of type ``kind`` that installed packages offer under an entry-point group, by name and in name order.

    An entry point that fails to import, or that holds something else than an iterable of ``kind``, is left out with
    a `RegistryWarning`; so is the second item of a name.
    """
    found: dict[str, T] = {}
    for point in sorted(entry_points(group=group), key=lambda point: (point.name, point.value)):
        try:
            items = tuple(point.load())
        except Exception as error:  # whatever a foreign module raises while it is imported
            reason = f"{type(error).__name__}: {error}"
            warnings.warn(f"{group}: {point.name} = {point.value} is left out: {reason}", RegistryWarning, stacklevel=2)
            continue
        for item in items:
            if not isinstance(item, kind):
                reason = f"holds a {type(item).__name__}, not a {kind.__name__}"
            elif found.get(item.name, item) is not item:
                reason = f"offers {item.name!r}, which another package already does"
            else:
                found[item.name] = item
                continue
            warnings.warn(f"{group}: {point.name} = {point.value} {reason}", RegistryWarning, stacklevel=2)
    return dict(sorted(found.items()))


def domains() -> dict[str, str]:
    """Installed packages that offer recipes or benchmarks: entry-point name -> distribution and version.

    For instance ``{"core": "suffuse 0.1.0", "graphs": "suffuse-graphs 0.1.0"}``.
    """
    points = [point for group in ("suffuse.recipes", "suffuse.benchmarks") for point in entry_points(group=group)]
    return {p.name: f"{p.dist.name} {p.dist.version}" for p in sorted(points, key=lambda p: p.name) if p.dist}


def version_of(module: str) -> str:
    """Version of the distribution that holds a module, ``suffuse_medical.x`` being in ``suffuse-medical``; else "0"."""
    try:
        return version(module.split(".")[0].replace("_", "-"))
    except PackageNotFoundError:
        return "0"


def check_name(kind: str, name: str) -> None:
    """Names are ``domain/name`` in lower case with dashes, so that they work in shells, file names and links."""
    domain, _, rest = name.partition("/")
    if not (_is_slug(domain) and _is_slug(rest)):
        raise InvalidArgument(f"name: a {kind} is called 'domain/name' in lower case with dashes, got {name!r}")


def _is_slug(text: str) -> bool:
    return bool(text) and all(c.isascii() and (c.islower() or c.isdigit() or c in "-_") for c in text)


def summary_of(function: object) -> str:
    """First line of a docstring."""
    return (function.__doc__ or "").strip().partition("\n")[0]
