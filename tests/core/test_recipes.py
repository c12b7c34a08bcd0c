"""Recipes and the registry: what packages offer is found, and a broken package takes only itself away."""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType

import pytest

from suffuse import registry
from suffuse.errors import InvalidArgument
from suffuse.recipes import GROUP, Recipe, get_recipe, recipe, recipes
from suffuse.registry import RegistryWarning, discover, version_of


@recipe("toy/first")
def first(*, out: Path = Path("runs/first"), steps: int = 3) -> Path:
    """Train the first toy.

    More about it.
    """
    return out / str(steps)


second = Recipe("toy/second", first.train)


@pytest.fixture
def offer(monkeypatch):
    """Let packages offer values: ``offer(name=value)`` makes an entry point per keyword."""

    def install(**values: object) -> None:
        module = ModuleType("offered_by_a_test")
        vars(module).update(values)
        monkeypatch.setitem(sys.modules, module.__name__, module)
        points = [EntryPoint(name, f"{module.__name__}:{name}", GROUP) for name in values]
        monkeypatch.setattr(registry, "entry_points", lambda group: [p for p in points if p.group == group])

    return install


def test_a_recipe_is_the_function_with_a_name_and_a_summary():
    assert first.name == "toy/first"
    assert first.domain == "toy"
    assert first.summary == "Train the first toy."
    assert first(out=Path("x"), steps=2) == Path("x/2")


@pytest.mark.parametrize("name", ["toy", "toy/", "/first", "Toy/first", "toy/first one", "toy/a/b"])
def test_names_work_in_shells_and_links(name):
    with pytest.raises(InvalidArgument, match="domain/name"):
        Recipe(name, first.train)


def test_recipes_of_all_packages_are_found_in_order(offer):
    offer(b=(second,), a=(first,))
    assert list(recipes().values()) == [first, second]
    assert get_recipe("toy/first") is first


def test_unknown_recipe_suggests_near_names(offer):
    offer(a=(first, second))
    with pytest.raises(InvalidArgument, match="unknown recipe 'toy/frist'; did you mean 'toy/first'"):
        get_recipe("toy/frist")


def test_a_broken_package_takes_only_itself_away(offer, monkeypatch):
    offer(good=(first,))
    good = registry.entry_points(group=GROUP)
    bad = EntryPoint("bad", "no_such_module_anywhere:RECIPES", GROUP)
    monkeypatch.setattr(registry, "entry_points", lambda group: [bad, *good])
    with pytest.warns(RegistryWarning, match="bad = no_such_module_anywhere:RECIPES is left out: ModuleNotFound"):
        assert list(recipes()) == ["toy/first"]


def test_things_that_are_no_recipes_are_left_out(offer):
    offer(a=(first, "second"))
    with pytest.warns(RegistryWarning, match="holds a str, not a Recipe"):
        assert list(recipes()) == ["toy/first"]


def test_the_second_of_a_name_is_left_out(offer):
    offer(a=(first,), b=(Recipe("toy/first", first.train),))
    with pytest.warns(RegistryWarning, match="which another package already does"):
        assert recipes()["toy/first"] is first


def test_nothing_is_offered():
    assert discover("no.such.group", Recipe) == {}


def test_versions():
    assert version_of("suffuse.bench.runner") == version_of("suffuse") != "0"
    assert version_of("no_such_package.module") == "0"


def test_core_is_a_domain():
    assert registry.domains()["core"].startswith("suffuse ")
