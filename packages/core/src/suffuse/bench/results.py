"""Committed results: rows that a run measured, kept per machine, and the tables that are made of them.

    results/<machine>/machine.json              what the machine is
    results/<machine>/<domain>-<name>.jsonl     the rows of a benchmark, one per line

A table in a Markdown file stands between two comments, and is written from the committed rows alone:

    <!-- results:begin core/digits medical -->
    <!-- results:end core/digits medical -->

The names are benchmarks or domains. ``core/samplers-trained:mean-error:nfe`` is one metric of a benchmark (with dashes
for spaces) against one setting, a line per method; ``core/samplers-trained:mean-error:nfe:12`` its twelve best lines;
``rl_planning/matching:area:judge:targets=uniform,segments=mean`` only the rows with these settings.
``core/digits@quick`` are the rows of one profile.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable
from functools import partial
from pathlib import Path

from suffuse.bench.machine import Machine
from suffuse.bench.row import Row, read_rows, write_rows, write_text
from suffuse.bench.runner import Report
from suffuse.bench.tables import markdown, markdown_tables, pivot
from suffuse.errors import SuffuseError

MARKERS = re.compile(r"(<!-- results:begin ([^>]*?) -->\n)(.*?)(<!-- results:end \2 -->)", flags=re.S)
DOCUMENTS = ("*.md", "docs/**/*.md", "packages/*/README.md")


def commit_report(report: Report, root: Path) -> list[Path]:
    """Put the rows of a report under ``root/results`` and a picture per benchmark under ``root/docs/figures``.

    Rows of a benchmark that ran replace the older ones of the same benchmark, profile and machine; failed and skipped
    benchmarks change nothing.

    Returns:
        The files that were written.
    """
    folder = root / "results" / report.machine["slug"]
    written = []
    for result in report.of("passed"):
        path = folder / f"{result.slug}.jsonl"
        kept = [row for row in read_rows(path) if row.profile != report.profile]
        write_rows(path, sorted(kept + result.rows, key=lambda row: row.profile))
        written.append(path)
    if written:
        write_text(folder / "machine.json", json.dumps(report.machine, indent=2, ensure_ascii=False) + "\n")
        written.append(folder / "machine.json")
    return written + _copy_figures(report, root / "docs" / "figures")


def _copy_figures(report: Report, target: Path) -> list[Path]:
    """The first still picture of each benchmark, as ``<domain>-<name>.png``."""
    first: dict[str, Path] = {}
    for result in report.of("passed"):
        for figure in result.figures:
            if figure.path.endswith(".png"):
                first.setdefault(result.slug, report.folder / figure.path)
    target.mkdir(parents=True, exist_ok=True)
    return [Path(shutil.copyfile(source, target / f"{slug}.png")) for slug, source in first.items()]


def render_tables(root: Path, check: bool = False) -> list[Path]:
    """Write the tables of all Markdown files anew; return the files whose text changes.

    Args:
        root: the repository.
        check: only look.

    Raises:
        SuffuseError: for a marker whose names fit no committed row, or a marker that is never closed.
    """
    results = _read_results(root)
    changed = []
    for path in sorted({path for pattern in DOCUMENTS for path in root.glob(pattern)}):
        old = path.read_text(encoding="utf-8")
        new = MARKERS.sub(partial(_filled, results=results, path=path), old)
        if re.search("<!-- results:(begin|end)", MARKERS.sub("", old)):
            raise SuffuseError(f"{path}: a results marker has no partner with the same names")
        if new != old:
            changed.append(path)
            if not check:
                write_text(path, new)
    return changed


def _filled(marker: re.Match[str], results: list[tuple[Machine, list[Row]]], path: Path) -> str:
    """A pair of markers with its tables in between."""
    return f"{marker[1]}\n{_tables(marker[2].split(), results, path)}\n{marker[4]}"


def _read_results(root: Path) -> list[tuple[Machine, list[Row]]]:
    """All committed rows, machine by machine."""
    results = []
    for description in sorted(root.glob("results/*/machine.json")):
        machine: Machine = json.loads(description.read_text(encoding="utf-8"))
        files = sorted(description.parent.glob("*.jsonl"))
        results.append((machine, [row for file in files for row in read_rows(file)]))
    return results


def _tables(names: Iterable[str], results: list[tuple[Machine, list[Row]]], path: Path) -> str:
    parts = []
    for asked in names:
        name, *cut = asked.split(":")
        name, _, only = name.partition("@")
        found = False
        for machine, rows in results:
            groups: dict[tuple[str, str], list[Row]] = {}
            for row in rows:
                if name in (row.benchmark, row.benchmark.partition("/")[0]) and only in ("", row.profile):
                    groups.setdefault((row.benchmark, row.profile), []).append(row)
            for (benchmark, profile), group in groups.items():
                cpu = f"{machine['cores']} cores of {machine['cpu']}"
                hardware = machine["gpu"] if group[0].device.startswith("cuda") else cpu
                parts.append(f"**`{benchmark}`** ({group[0].paper}), {profile} profile on {hardware}")
                if cut:
                    metric, across, *rest = cut
                    most = [part for part in rest if "=" not in part]
                    wanted = [part.split("=") for part in ",".join(rest).split(",") if "=" in part]
                    group = [row for row in group if all(str(row.setting.get(key)) == value for key, value in wanted)]
                    metric = metric if any(row.metric == metric for row in group) else metric.replace("-", " ")
                    full = pivot(group, metric, across)
                    parts += [markdown(table, *map(int, most)) for table in full]
                else:
                    parts.append(markdown_tables(group))
                found = True
        if not found:
            raise SuffuseError(f"{path}: results/ has no rows of {asked!r}; run: suffuse bench {name}, suffuse results")
    return "\n\n".join(parts) + "\n"
