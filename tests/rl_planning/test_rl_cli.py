"""The command line, from nothing to a film."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from suffuse import hub
from suffuse_rl_planning import recipes
from suffuse_rl_planning.cli import main

DATASET = "tests/cli/cheetah-v0"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, datasets):
    folder = tmp_path_factory.mktemp("cli")
    assert main(["collect", DATASET, "--episodes", "20", "--steps", "50"]) == 0
    assert main(["label", DATASET, str(folder / "pairs.hdf5"), "--pairs", "60", "--length", "20"]) == 0
    arguments = ["train", "--dataset", DATASET, "--preferences", str(folder / "pairs.hdf5"), "--measure", "20"]
    arguments += ["--label_steps", "10", "--steps", "5", "--hidden", "16", "--depth", "1", "--batch_size", "16"]
    assert main([*arguments, "--device", "cpu", "--out", str(folder / "run")]) == 0
    return folder / "run"


def test_training_keeps_all_that_is_needed(checkpoint):
    metadata = hub.read_config(checkpoint)["metadata"]
    assert metadata["recipe"] == "rl_planning/aligndiff" and set(metadata["meaning"]) == {"speed", "height", "energy"}
    assert metadata["planner"]["kind"] == "aligndiff" and (checkpoint / "strengths.safetensors").is_file()
    assert hub.read_config(checkpoint / "attributes")["metadata"]["attributes"]["scale"]["kind"] == "minmax"


def test_evaluation_prints_the_floors_beside(checkpoint, tmp_path, capsys):
    arguments = ["evaluate", str(checkpoint), DATASET, "--out", str(tmp_path), "--tests", "6", "--segment", "16"]
    assert main([*arguments, "--candidates", "2", "--replan", "8", "--device", "cpu"]) == 0
    rows = json.loads((tmp_path / "evaluation.json").read_text())
    assert {row["method"] for row in rows} == {"AlignDiff", "constant (floor)", "random (floor)"}
    assert {row["segments"] for row in rows if "area" in row} == {"first", "mean", "best-of-3"}
    assert "random (floor)" in capsys.readouterr().out


def test_a_film_shows_both_requests(checkpoint, tmp_path):
    files = recipes.render_aligndiff(
        checkpoint, out=tmp_path, words="fast, crouched", then="slower", n=1, control_steps=12, candidates=2,
        replan=6, backend="stick", device="cpu",
    )  # fmt: skip
    phases = json.loads(files[0].read_text())["phases"]
    assert [p["strengths"]["speed"] for p in phases] == pytest.approx([0.9, 0.7])
    assert phases[0]["steps"] == [0, 6] and set(phases[0]["requested"]) == {"speed", "height"}
    with Image.open(files[1]) as film:
        assert film.n_frames == 6 and film.size[1] > 160


def test_errors_are_one_line(checkpoint, tmp_path, capsys):
    assert main(["label", "tests/none-v0", str(tmp_path / "x.hdf5")]) == 2
    assert capsys.readouterr().err.startswith("suffuse-rl: dataset='tests/none-v0' is not among the local")
    assert main(["render", str(checkpoint), "--words", "fsat"]) == 2
    assert "unknown word 'fsat'" in capsys.readouterr().err
