"""Fixtures and rules for all tests: what is skipped where data or a GPU are absent, and how real data are used."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

NO_DATA = "needs real data: set SUFFUSE_DATA to the folder that holds it"


def _data_root() -> Path | None:
    value = os.environ.get("SUFFUSE_DATA", "")
    return Path(value).resolve() if value and Path(value).is_dir() else None


def pytest_configure(config: pytest.Config) -> None:
    """A package that cannot be used fails tests. (Named in pyproject.toml, the class would load before coverage.)"""
    config.addinivalue_line("filterwarnings", "error::suffuse.registry.RegistryWarning")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked `data` without data, and tests marked `gpu` without a CUDA device."""
    no_data = _data_root() is None
    for item in items:
        if no_data and item.get_closest_marker("data"):
            item.add_marker(pytest.mark.skip(reason=NO_DATA))
        if item.get_closest_marker("gpu"):
            import torch

            if not torch.cuda.is_available():
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="session")
def suffuse_data() -> Path:
    """The folder of real data; it is not to be written to."""
    root = _data_root()
    if root is None:
        pytest.skip(NO_DATA)
    return root


@pytest.fixture
def data_copy(suffuse_data: Path, tmp_path: Path) -> Callable[[str], Path]:
    """``data_copy("graphs/webkb")`` returns a copy of that folder in a temporary place: loaders write there."""

    def copy(name: str) -> Path:
        source = suffuse_data / name
        if not source.exists():
            pytest.skip(f"SUFFUSE_DATA has no {name}")
        target = tmp_path / "data" / name
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir():
                shutil.copytree(source, target)
            else:
                shutil.copyfile(source, target)
        return target

    return copy


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the repository."""
    return Path(__file__).resolve().parent.parent
