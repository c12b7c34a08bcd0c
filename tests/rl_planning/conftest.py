"""A small recorded dataset and a barely trained planner, made once."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)
os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="session", autouse=True)
def datasets(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Minari keeps its datasets in a temporary folder during the tests."""
    from suffuse_rl_planning.recipes import datasets_in

    with datasets_in(tmp_path_factory.mktemp("minari")) as folder:
        yield folder


@pytest.fixture(scope="session")
def recorded(datasets):
    """Eight episodes of 60 steps, half of them with a switch."""
    from suffuse_rl_planning.collect import collect

    return collect("tests/halfcheetah/small-v0", episodes=8, steps=60, switch=0.5, seed=3)


@pytest.fixture(scope="session")
def episodes(recorded):
    from suffuse_rl_planning.data import Episodes

    return Episodes.from_minari(recorded)


@pytest.fixture(scope="session")
def windows(episodes):
    return episodes.windows(8, names=("speed", "height"), measure=30)


@pytest.fixture(scope="session")
def trained(windows):
    from suffuse_rl_planning import DiffusionPlanner

    return DiffusionPlanner.fit(
        windows, env_id="HalfCheetah-v5", steps=20, hidden=32, depth=2, accelerator="cpu", progress=False
    )


@pytest.fixture
def planner(trained, tmp_path):
    """A copy that a test may change."""
    import copy

    return copy.copy(trained).request()
