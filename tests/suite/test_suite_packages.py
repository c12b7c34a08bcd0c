"""What holds for all packages together: who imports whom, what is offered, what a wheel has inside."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from suffuse.bench import Benchmark, benchmarks
from suffuse.recipes import Recipe, recipes

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = sorted(path.parent.name for path in ROOT.glob("packages/*/pyproject.toml"))
IMPORT_NAMES = {name: "suffuse" if name == "core" else f"suffuse_{name}" for name in PACKAGES}
EACH = pytest.mark.parametrize("package", PACKAGES)


def manifest(package: str) -> dict:
    return tomllib.loads((ROOT / "packages" / package / "pyproject.toml").read_text())


def tracked_files() -> list[Path]:
    """Files under version control; all files where there is no repository (a source archive)."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode == 0 and listed.stdout:
        return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]
    hidden = {".venv", ".git", "report", "runs", "__pycache__", ".mypy_cache", ".ruff_cache", ".pytest_cache"}
    return [p for p in ROOT.rglob("*") if p.is_file() and not hidden & set(p.relative_to(ROOT).parts)]


def imported_modules(path: Path) -> set[str]:
    """Top-level names of everything a file imports, wherever in the file."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module)
    return {name.split(".")[0] for name in names}


def test_there_are_six_packages():
    assert PACKAGES == ["core", "graphs", "materials3d", "medical", "rl_planning", "timeseries"]


@EACH
def test_domains_import_core_and_nobody_else(package):
    """Core imports no domain, and a domain imports core and itself."""
    allowed = {"suffuse", IMPORT_NAMES[package]}
    files = list((ROOT / "packages" / package / "src").rglob("*.py"))
    assert files
    for path in files:
        ours = {name for name in imported_modules(path) if name == "suffuse" or name.startswith("suffuse_")}
        assert ours <= allowed, path.relative_to(ROOT)


@EACH
def test_manifests_agree(package):
    """Names, version, licence and typing are the same everywhere; exact pins live in constraints.txt only."""
    project = manifest(package)["project"]
    assert project["name"] == IMPORT_NAMES[package].replace("_", "-")
    assert project["version"] == manifest("core")["project"]["version"]
    assert project["requires-python"] == ">=3.11"
    assert project["license"] == "Apache-2.0"
    assert (ROOT / "packages" / package / "src" / IMPORT_NAMES[package] / "py.typed").is_file()
    extras = project.get("optional-dependencies", {}).values()
    requirements = [*project["dependencies"], *(item for extra in extras for item in extra)]
    assert not [item for item in requirements if "==" in item or "torchvision" in item]


@EACH
def test_packages_offer_recipes_and_benchmarks(package):
    """Entry points load, and what they hold is named after the package."""
    points = manifest(package)["project"]["entry-points"]
    for group, kind, known in (("suffuse.recipes", Recipe, recipes()), ("suffuse.benchmarks", Benchmark, benchmarks())):
        assert list(points[group]) == [package]
        own = [item for item in known.values() if item.domain == package]
        assert own, f"{package} offers no {kind.__name__}"
        assert all(isinstance(item, kind) for item in own)


def test_every_name_is_of_a_package():
    """Names are unique by construction of the registry, which warns (an error in tests) about the second of a name."""
    assert {name.partition("/")[0] for name in [*recipes(), *benchmarks()]} == set(PACKAGES)


@pytest.mark.parametrize("kind", ["recipes", "benchmarks"])
def test_entry_modules_import_quickly(kind):
    """Lists do not wait for the heavy libraries of the domains."""
    heavy = ("monai", "gluonts", "mujoco", "torch_geometric", "skimage", "nilearn", "diffusers", "lightning")
    code = (
        f"import sys; from importlib.metadata import entry_points\n"
        f"for point in entry_points(group='suffuse.{kind}'): point.load()\n"
        f"print(*[m for m in {heavy} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_recipes_are_explained():
    """Each option of each recipe has a word of help, and each recipe a summary."""
    from suffuse import cli

    for name, recipe in recipes().items():
        assert len(recipe.summary) > 10, name
        for function in filter(None, (recipe.train, recipe.sample)):
            parser = cli._function_parser(function, "x", config=False)
            silent = [a.dest for a in parser._actions if not (a.help or "").partition("(type:")[0].strip()]
            assert not silent, f"{name}: no help for {silent}"


def test_no_file_names_a_place_on_a_machine():
    """No absolute paths of a developer's machine in the repository."""
    suspicious = re.compile(r"(?<![\w.~])/(?:work|home|root|Users|mnt|scratch)/\w")
    for path in tracked_files():
        if path.suffix in {".png", ".gif", ".npz", ".gz", ".glb", ".mp4"} or path == Path(__file__):
            continue
        found = suspicious.search(path.read_text(encoding="utf-8", errors="replace"))
        assert not found, f"{path.relative_to(ROOT)}: {found[0] if found else ''}"


def test_committed_rows_are_rows():
    """Committed results can be read, lie in the file of their benchmark, and know their machine."""
    from suffuse.bench import read_rows

    for path in ROOT.glob("results/*/*.jsonl"):
        rows = read_rows(path)
        assert rows
        assert {row.benchmark.replace("/", "-") for row in rows} == {path.stem}
        assert len({(row.key, row.profile) for row in rows}) == len(rows)
        assert (path.parent / "machine.json").is_file()


def test_tables_in_documents_are_those_of_the_committed_rows():
    from suffuse.bench.results import render_tables

    assert render_tables(ROOT, check=True) == []


def test_links_in_documents_lead_somewhere():
    for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("packages/*/README.md")]:
        for target in re.findall(r"\]\((?!https?:|#|mailto:)([^)#\s]+)", path.read_text(encoding="utf-8")):
            assert (path.parent / target).exists(), f"{path.relative_to(ROOT)} links {target}"


def test_test_files_have_unique_names():
    names = [path.name for path in ROOT.glob("tests/*/test_*.py")]
    assert len(names) == len(set(names))


# --- README code and wheels -------------------------------------------------------------------------------------

BLOCK = re.compile(r"^```python\n(.*?)^```", flags=re.S | re.M)
EXAMPLES = [block for path in ROOT.glob("packages/*/README.md") for block in BLOCK.findall(path.read_text("utf-8"))]
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("packages/*/README.md")), *sorted(ROOT.glob("docs/*.md"))]
DOCUMENTS = [path for path in PAGES if path.exists()]


def test_the_readme_shows_the_example_of_every_domain():
    shown = BLOCK.findall((ROOT / "README.md").read_text(encoding="utf-8"))
    for package in PACKAGES:
        if package != "core":
            (example, *_) = BLOCK.findall((ROOT / "packages" / package / "README.md").read_text(encoding="utf-8"))
            assert example in shown, package


@pytest.mark.slow
@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_code_in_documents_runs(path, tmp_path):
    """Each Python block of each page runs on its own, in an empty folder; data sets are made and kept there too."""
    blocks = BLOCK.findall(path.read_text(encoding="utf-8"))
    assert blocks
    if path == ROOT / "README.md":  # it shows the examples of the packages, which run with them
        blocks = [block for block in blocks if block not in EXAMPLES]
    for number, block in enumerate(blocks):
        folder = tmp_path / str(number)
        folder.mkdir()
        done = subprocess.run(
            [sys.executable, "-c", block],
            cwd=folder,
            env={**os.environ, "MINARI_DATASETS_PATH": str(folder), "MPLBACKEND": "Agg"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"block {number}:\n{block}\n{done.stderr[-2000:]}"


@pytest.mark.slow
@EACH
def test_wheels_have_all_inside(package, tmp_path):
    """A wheel holds every file of the source folder, the type marker and the entry points."""
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path]
    built = subprocess.run(
        [*command, ROOT / "packages" / package], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert built.returncode == 0, built.stdout[-2000:] + built.stderr[-2000:]
    (wheel,) = tmp_path.glob("*.whl")
    inside = set(zipfile.ZipFile(wheel).namelist())
    source = ROOT / "packages" / package / "src"
    ours = [path for path in tracked_files() if path.is_relative_to(source)]
    assert ours
    assert {path.relative_to(source).as_posix() for path in ours} <= inside
    points = next(name for name in inside if name.endswith(".dist-info/entry_points.txt"))
    text = zipfile.ZipFile(wheel).read(points).decode()
    assert "[suffuse.recipes]" in text
    assert "[suffuse.benchmarks]" in text
