"""The recipe from data to GIF, and what the package declares."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from PIL import Image

from suffuse import hub
from suffuse_rl_planning import benchmarks, recipes


@pytest.fixture(scope="module")
def checkpoint(recorded, tmp_path_factory):
    return recipes.speed_planner(
        dataset="tests/halfcheetah/small-v0", out=tmp_path_factory.mktemp("run") / "planner", steps=3, hidden=16,
        depth=1, batch_size=16, measure=30, device="cpu", progress=False,
    )  # fmt: skip


def test_training_leaves_a_checkpoint_that_names_its_recipe_and_data(checkpoint):
    metadata = hub.read_config(checkpoint)["metadata"]
    assert metadata["recipe"] == "rl_planning/speed-planner" and metadata["dataset"] == "tests/halfcheetah/small-v0"
    assert metadata["planner"]["env_id"] == "HalfCheetah-v5"


def test_sampling_writes_what_was_measured_and_a_film(checkpoint, tmp_path):
    files = recipes.sample(checkpoint, out=tmp_path, speeds=(0.2, 0.5), n=1, control_steps=12, device="cpu")
    assert [f.name for f in files] == ["rollout.json", "rollout.gif"]
    measured = json.loads(files[0].read_text())
    assert measured["unit"] == "m/s" and [t["requested"] for t in measured["tests"]] == [0.2, 0.5]
    with Image.open(files[1]) as film:
        assert film.n_frames == 6 and film.info["duration"] == 100  # every second step of 0.05 s, in real time


def test_the_default_dataset_is_collected_where_it_is_missing(monkeypatch):
    import suffuse_rl_planning.collect as collecting

    data = recipes.load_or_collect(collecting.DATASET_ID, episodes=3, seed=0)
    assert len(data) == 3 and data.name == collecting.DATASET_ID
    monkeypatch.setattr(collecting, "collect", None)  # the second time it is only read
    assert len(recipes.load_or_collect(collecting.DATASET_ID, episodes=99, seed=0)) == 3


def test_declared_names():
    assert [r.name for r in recipes.RECIPES] == ["rl_planning/speed-planner", "rl_planning/aligndiff"]
    names = "speed-planning matching matching-walker2d matching-hopper switching covering robustness latency speed"
    assert [b.name for b in benchmarks.BENCHMARKS] == [f"rl_planning/{name}" for name in names.split()]
    assert all(r.summary for r in recipes.RECIPES)


def test_the_example_of_the_readme_runs(tmp_path, monkeypatch):
    readme = Path(__file__).parents[2] / "packages" / "rl_planning" / "README.md"
    example = re.search(r"```python\n(.*?)```", readme.read_text(), re.DOTALL)
    assert example is not None
    monkeypatch.chdir(tmp_path)
    exec(compile(example.group(1), "README.md", "exec"), {})


def test_aligndiff_from_nothing(tmp_path):
    """Another robot than the default, its own attributes, and nothing given."""
    out = recipes.aligndiff(
        env_id="Hopper-v5", out=tmp_path / "run", episodes=6, pairs=20, measure=20, label_steps=2, steps=2, hidden=16,
        depth=1, batch_size=8, device="cpu", progress=False,
    )  # fmt: skip
    metadata = hub.read_config(out)["metadata"]
    assert metadata["dataset"] == "suffuse/hopper/cpg-v0" and set(metadata["meaning"]) == {"speed", "jump"}
    assert metadata["planner"]["env_options"]["frame_skip"] == 5 and (out / "preferences.hdf5").is_file()
