"""The command line: help for people, one line per error, and an exit status for scripts."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import pytest

import suffuse
from suffuse import bench, cli, recipes
from suffuse.bench import Run, benchmark
from suffuse.errors import InvalidArgument, TrainingDiverged, require
from suffuse.recipes import Recipe, recipe


def draw(checkpoint: Path, *, out: Path, n: int = 2, modes: Sequence[int] = (1, 2)) -> list[Path]:
    """Draw toys.

    Args:
        checkpoint: folder of a toy.
        out: folder of the pictures.
        n: how many to draw.
        modes: which ones.
    """
    return [out / f"{checkpoint.name}-{mode}-{i}.png" for mode in modes for i in range(n)]


@recipe("toy/blob", sample=draw)
def blob(
    *,
    out: Path = Path("runs/blob"),
    steps: int = 10,
    lr: float = 0.1,
    kind: Literal["round", "square"] = "round",
    progress: bool = True,
) -> Path:
    """Train a blob.

    It takes no time.

    Args:
        out: folder of the checkpoint.
        steps: optimiser steps.
        lr: learning rate.
        kind: shape of the blob.
        progress: show a bar.
    """
    if steps < 1:
        raise InvalidArgument(f"steps must be at least 1, got {steps}")
    if lr > 1:
        raise TrainingDiverged("the loss is NaN at step 3; use a smaller lr")
    if kind == "square":
        require("no_such_module_anywhere", extra="square")
    out.mkdir(parents=True)
    metadata = {"recipe": "toy/blob", "steps": steps, "lr": lr, "progress": progress}
    (out / "config.json").write_text(json.dumps({"format": 1, "metadata": metadata}))
    return out


mute = Recipe("toy/mute", blob.train)


@benchmark("toy/good", paper="Doe 2020", claim="It works.", extras=("suffuse[x]",))
def good(run: Run) -> None:
    run.row(dataset="data", method="model", metric="seed", value=run.seed, better="lower")


@benchmark("toy/bad", paper="Doe 2020", claim="It works.")
def bad(run: Run) -> None:
    raise RuntimeError("broken on purpose")


@pytest.fixture(autouse=True)
def toys(monkeypatch, tmp_path):
    """The toys are all that is installed, and the working folder is empty."""
    monkeypatch.setattr(recipes, "recipes", lambda: {"toy/blob": blob, "toy/mute": mute})
    monkeypatch.setattr(bench, "benchmarks", lambda: {"toy/good": good, "toy/bad": bad})
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def call(capsys):
    """Run a command: its exit status, what it printed, and what it complained about."""

    def run(command: str) -> tuple[int, str, str]:
        try:
            status = cli.main(command.split())
        except SystemExit as stop:  # --help and --print_config
            status = stop.code
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


@pytest.mark.parametrize("command", ["", "--help", "-h", "help"])
def test_help_lists_the_commands(call, command):
    status, out, err = call(command)
    assert (status, err) == (0, "")
    for name in ("domains", "recipes", "train", "sample", "bench", "results", "--version"):
        assert name in out


def test_version(call):
    assert call("--version") == (0, f"suffuse {suffuse.__version__}\n", "")


def test_help_does_not_wait_for_torch():
    """The light modules import no heavy library, so that help and lists come at once."""
    code = (
        "import sys, suffuse.cli, suffuse.recipes, suffuse.bench, suffuse.benchmarks, suffuse.digits;"
        "sys.exit(', '.join(m for m in ('torch', 'lightning', 'matplotlib', 'sklearn') if m in sys.modules) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("trian", "unknown command 'trian'; did you mean 'train'"),
        ("train", "name a recipe first"),
        ("train --steps 3", "name a recipe first"),
        ("train toy/blub", "unknown recipe 'toy/blub'; did you mean 'toy/blob'"),
        ("train toy/blob --stps 3", "unrecognized arguments: --stps 3; did you mean --steps?"),
        ("train toy/blob --step 3", "did you mean --steps?"),
        ("train toy/blob --steps many", "steps"),
        ("train toy/blob --kind oval", "Expected a Literal['round', 'square']"),
        ("train toy/blob --config none.yaml", "none.yaml"),
        ("train toy/blob --steps 0", "steps must be at least 1, got 0"),
        ("sample", "name a checkpoint folder first"),
        ("bench toy/godo", "unknown benchmark 'toy/godo'; did you mean 'toy/good'"),
        ("bench --profile slow", "Expected a Literal['quick', 'full']"),
        ("bench --device abacus", "device: 'abacus' cannot be used here"),
        ("bench --seeds 1 1", "seeds: expected one or more different"),
        ("domains all", "unrecognized arguments: all"),
        ("recipes all", "unrecognized arguments: all"),
        ("results --chek", "did you mean --check?"),
    ],
)
def test_misuse_is_one_line_and_status_2(call, command, message):
    status, _, err = call(command)
    assert status == 2
    assert message in err
    assert err.startswith("suffuse: error: ")
    assert "Traceback" not in err
    assert "train" in command.split()[:1] or err.count("\n") == 1


# --- train and sample -------------------------------------------------------------------------------------------


def test_train_then_sample(call):
    status, out, _ = call("train toy/blob --steps 3 --out runs/b --progress false")
    assert status == 0
    assert "suffuse sample runs/b --out samples" in out
    metadata = json.loads(Path("runs/b/config.json").read_text())["metadata"]
    assert metadata == {"recipe": "toy/blob", "steps": 3, "lr": 0.1, "progress": False}
    assert call("sample runs/b --out s --n 1")[:2] == (0, "s/b-1-0.png\ns/b-2-0.png\n")
    assert call("sample runs/b --out s --n 1 --modes [7]")[:2] == (0, "s/b-7-0.png\n")
    status, _, err = call("sample runs/b")
    assert (status, "out" in err) == (2, True)


def test_options_of_a_recipe_are_explained(call):
    status, out, _ = call("train toy/blob --help")
    assert status == 0
    for text in ("Train a blob.", "It takes no time.", "optimiser steps. (type: int, default: 10)", "--config FILE"):
        assert text in out
    assert "<class" not in out
    call("train toy/blob")
    status, out, _ = call("sample runs/blob --help")
    assert status == 0
    assert "how many to draw." in out
    assert "--checkpoint" not in out


@pytest.mark.parametrize(
    ("command", "text"), [("train --help", "toy/blob"), ("sample --help", "usage: suffuse sample")]
)
def test_help_without_a_name(call, command, text):
    status, out, _ = call(command)
    assert status == 0
    assert text in out


def test_a_config_file_is_read_checked_and_printed(call):
    Path("c.yaml").write_text("steps: 7\nlr: 0.5\n")
    status, printed, _ = call("train toy/blob --config c.yaml --lr 0.25 --print_config")
    assert status == 0
    assert "steps: 7\nlr: 0.25" in printed
    Path("printed.yaml").write_text(printed)
    assert call("train toy/blob --config printed.yaml")[0] == 0
    metadata = json.loads(Path("runs/blob/config.json").read_text())["metadata"]
    assert (metadata["steps"], metadata["lr"]) == (7, 0.25)
    Path("c.yaml").write_text("stps: 7\n")
    status, _, err = call("train toy/blob --config c.yaml")
    assert status == 2
    assert "stps" in err
    assert "did you mean --steps?" in err
    Path("c.yaml").write_text("steps: [7\n")
    assert call("train toy/blob --config c.yaml")[0] == 2


def test_a_failed_training_is_status_1(call):
    assert call("train toy/blob --lr 5") == (1, "", "suffuse: error: the loss is NaN at step 3; use a smaller lr\n")
    status, _, err = call("train toy/blob --kind square")
    assert status == 1
    assert "pip install 'suffuse[square]'" in err


def test_a_recipe_without_samples(call):
    assert "suffuse sample" not in call("train toy/mute --out mute")[1]
    config = Path("mute/config.json")
    config.write_text(config.read_text().replace("toy/blob", "toy/mute"))
    status, _, err = call("sample mute --out s")
    assert (status, "has nothing to sample" in err) == (2, True)


def test_what_is_no_checkpoint_of_a_recipe(call):
    assert call("sample nowhere --out s")[0] == 1
    Path("config.json").write_text('{"format": 1, "metadata": {}}')
    status, _, err = call("sample . --out s")
    assert (status, "was not made by a recipe" in err) == (2, True)


# --- lists, benchmarks, results ---------------------------------------------------------------------------------


def test_lists(call):
    status, out, _ = call("recipes")
    assert (status, "toy/blob" in out, "Train a blob." in out) == (0, True, True)
    status, out, _ = call("bench --list")
    assert (status, "toy/good" in out, "suffuse[x]" in out) == (0, True, True)
    assert "toy/bad" not in call("bench --list toy/good")[1]
    status, out, _ = call("domains")
    assert (status, "core" in out) == (0, True)
    assert not list(Path().iterdir())


def test_bench_writes_a_report_and_says_whether_all_went_well(call):
    status, out, _ = call("bench toy/good --out r --seed 4 --device cpu")
    assert status == 0
    assert "r/index.html" in out
    assert Path("r/index.html").exists()
    assert json.loads(Path("r/rows.jsonl").read_text())["value"] == 4
    status, out, _ = call("bench --out r --seeds 1 2 --progress false --device cpu")
    assert status == 1
    assert "1 passed, 1 failed" in out
    row = json.loads(Path("r/rows.jsonl").read_text())
    assert (row["value"], row["n"]) == (1.5, 2)


def test_bench_without_benchmarks(call, monkeypatch):
    monkeypatch.setattr(bench, "benchmarks", dict)
    status, _, err = call("bench")
    assert (status, "no installed package has benchmarks" in err) == (2, True)


def test_results_are_kept_and_tables_are_checked(call):
    assert call("results") == (0, "", "")
    call("bench toy/good --device cpu")
    Path("README.md").write_text("<!-- results:begin toy -->\n<!-- results:end toy -->\n")
    status, out, _ = call("results")
    assert (status, "README.md" in out, "toy-good.jsonl" in out) == (0, True, True)
    assert call("results --check") == (0, "", "")
    Path("README.md").write_text("<!-- results:begin toy -->\n<!-- results:end toy -->\n")
    status, out, _ = call("results --check")
    assert (status, "not up to date" in out) == (1, True)
    assert call("results --run nowhere")[0] == 1


def test_an_interrupt_is_no_traceback(call, monkeypatch):
    def interrupt(*_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "train", interrupt)
    assert call("train toy/blob") == (130, "", "suffuse: error: interrupted\n")


def test_a_broken_package_is_a_warning(call, monkeypatch):
    import warnings

    from suffuse.registry import RegistryWarning

    def broken() -> dict[str, Recipe]:
        warnings.warn("x = y is left out", RegistryWarning, stacklevel=2)
        return {"toy/blob": blob}

    monkeypatch.setattr(recipes, "recipes", broken)
    status, out, err = call("recipes")
    assert (status, err) == (0, "suffuse: warning: x = y is left out\n")
    assert "toy/blob" in out


def test_the_installed_command_runs():
    done = subprocess.run(
        [sys.executable, "-m", "suffuse.cli", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"suffuse {suffuse.__version__}\n"
