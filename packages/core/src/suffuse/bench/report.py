"""The report of a run: one self-contained web page, and the same as Markdown."""

from __future__ import annotations

import base64
import mimetypes
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from suffuse.bench.run import Attachment
from suffuse.bench.tables import duration, markdown_tables, tables

if TYPE_CHECKING:
    from suffuse.bench.runner import Report, Result

READING = (
    "A benchmark checks one published claim: a small model is trained, sampled and scored next to simpler methods. "
    "In a table each line is a method and each column a measure; ↑ means that higher is better, ↓ that lower is "
    "better, and the best number of a column is bold. "
    "Lines in italics are references that bound a measure, such as the score of real data. "
    "A number after ± is the standard deviation over n repetitions. "
    "‘Published’ is what the paper reports, often for larger models and more data. "
    "NFE is the number of network evaluations that one sample costs."
)


def render_html(report: Report) -> str:
    """The report as one page that needs no other file, but for the artifacts it links."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("suffuse.bench", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "duration": duration,
        "tables": tables,
        "paragraphs": lambda text: [" ".join(part.split()) for part in text.split("\n\n")],
        "embed": partial(_data_uri, report.folder),
    }
    return environment.get_template("report.html.jinja").render(report=report, title=title(report), reading=READING)


def render_markdown(report: Report) -> str:
    """The report as Markdown, with pictures as links."""
    machine = report.machine
    gpu = f", {machine['gpu']}" if machine["gpu"] else ""
    parts = [
        "# suffuse benchmark report",
        f"{title(report)}. Profile {report.profile}, seeds {', '.join(map(str, report.seeds))}, "
        f"device {report.device}, suffuse {report.version}, {duration(report.seconds)}.",
        f"Machine: {machine['cpu']}, {machine['cores']} cores, {machine['memory_gb']:g} GB{gpu}; {machine['os']}, "
        f"Python {machine['python']}, torch {machine['torch']}.",
        READING,
        *(_section(result) for result in report.results),
    ]
    return "\n\n".join(parts) + "\n"


def title(report: Report) -> str:
    """For instance ``6 benchmarks: 5 passed, 1 failed``."""
    counts = [f"{len(report.of(s))} {s}" for s in ("passed", "failed", "skipped") if report.of(s)]
    if missing := report.planned - len(report.results):
        counts.append(f"{missing} not finished")
    noun = "benchmark" if report.planned == 1 else "benchmarks"
    return f"{report.planned} {noun}: {', '.join(counts) or 'nothing ran'}"


def _section(result: Result) -> str:
    parts = [
        f"## {result.name}: {result.status}",
        f"> {result.claim}",
        f"Paper: {result.paper}. Beside it: {', '.join(result.peers) or 'nothing'}. Time: {duration(result.seconds)}.",
        result.description,
    ]
    if result.message:
        parts.append(
            f"```\n{result.message.strip()}\n```" if result.status == "failed" else f"Skipped: {result.message}"
        )
    if result.rows:
        parts.append(markdown_tables(result.rows))
    if result.notes:
        parts.append("\n".join(f"- {note}" for note in result.notes))
    parts += [_markdown_picture(figure) for figure in result.figures]
    parts += [f"[{Path(item.path).name}]({item.path}) {item.caption}".strip() for item in result.artifacts]
    return "\n\n".join(filter(None, parts))


def _markdown_picture(figure: Attachment) -> str:
    link = f"[{figure.caption or figure.path}]({figure.path})"
    return link if figure.path.endswith(".mp4") else f"!{link}"


def _data_uri(folder: Path, path: str) -> str:
    mime = mimetypes.guess_type(path)[0] or "application/octet-stream"
    return f"data:{mime};base64,{base64.b64encode((folder / path).read_bytes()).decode()}"
