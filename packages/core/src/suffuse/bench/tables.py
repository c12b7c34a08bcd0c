"""Rows to tables that a person reads: one line per method and setting, one column per metric."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from suffuse.bench.row import Row, Scalar
from suffuse.errors import InvalidArgument

REFERENCES = ("(ceiling)", "(floor)", "(reference)")
"""Endings of the names of methods that bound a measure and are not compared, such as ``real data (ceiling)``."""

ARROWS = {"higher": "↑", "lower": "↓"}


@dataclass(frozen=True)
class Cell:
    """A number as text; ``best`` marks the best of its column."""

    text: str = ""
    spread: str = ""
    published: str = ""
    best: bool = False


@dataclass(frozen=True)
class Line:
    """A method with one setting; ``reference`` if it is not compared with the others."""

    method: str
    reference: bool
    settings: tuple[str, ...]
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Table:
    """All rows of one benchmark on one dataset. ``metrics`` are column titles such as ``accuracy ↑ (%)``."""

    dataset: str
    settings: tuple[str, ...]
    metrics: tuple[str, ...]
    lines: tuple[Line, ...]


def tables(rows: Iterable[Row]) -> list[Table]:
    """One table per dataset, in order of appearance. The rows are of one benchmark."""
    by_dataset: dict[str, list[Row]] = {}
    for row in rows:
        by_dataset.setdefault(row.dataset, []).append(row)
    return [_table(dataset, group) for dataset, group in by_dataset.items()]


def _table(dataset: str, rows: Sequence[Row]) -> Table:
    columns: dict[str, list[Row]] = {}
    lines: dict[tuple[str, str], dict[str, Row]] = {}
    for row in rows:
        title = f"{row.metric} {ARROWS[row.better]}" + (f" ({row.unit})" if row.unit else "")
        columns.setdefault(title, []).append(row)
        lines.setdefault((row.method, json.dumps(row.setting, sort_keys=True)), {})[title] = row
    settings = tuple(dict.fromkeys(key for row in rows for key in row.setting))
    best = {title: _best(group) for title, group in columns.items()}

    def line(method: str, cells: dict[str, Row]) -> Line:
        setting = next(iter(cells.values())).setting
        return Line(
            method,
            method.endswith(REFERENCES),
            tuple(_scalar(setting[key]) if key in setting else "" for key in settings),
            tuple(_cell(cells[title], best[title]) if title in cells else Cell() for title in columns),
        )

    return Table(dataset, settings, tuple(columns), tuple(line(method, cells) for (method, _), cells in lines.items()))


def _best(rows: Sequence[Row]) -> float | None:
    """The best value of a column, references apart; None where nothing is compared."""
    values = [row.value for row in rows if not row.method.endswith(REFERENCES)]
    if len(set(values)) < 2:
        return None
    return max(values) if rows[0].better == "higher" else min(values)


def _cell(row: Row, best: float | None) -> Cell:
    spread = [f"± {number(row.std)}"] if row.std is not None and row.n != 1 else []
    count = [f"(n = {row.n})"] if row.n is not None else []
    published = number(row.published) if row.published is not None else ""
    best_here = row.value == best and not row.method.endswith(REFERENCES)
    return Cell(number(row.value), " ".join(spread + count), published, best_here)


def _scalar(value: Scalar) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "–"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)


def number(value: float) -> str:
    """Four significant digits, whole above a thousand."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def duration(seconds: float) -> str:
    """Seconds as ``9.3 s``, ``4 min 05 s`` or ``2 h 10 min``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def pivot(rows: Iterable[Row], metric: str, across: str) -> list[Table]:
    """One metric against one setting: a line per method, a column per value of the setting, one table per dataset.

    Of a method's rows that differ in other settings, each cell shows the best. Lines are sorted by their mean rank.

    Raises:
        InvalidArgument: if no row has that metric and setting.
    """
    by_dataset: dict[str, list[Row]] = {}
    for row in rows:
        if row.metric == metric and across in row.setting:
            by_dataset.setdefault(row.dataset, []).append(row)
    if not by_dataset:
        raise InvalidArgument(f"no rows with the metric {metric!r} and the setting {across!r}")
    return [_pivot(dataset, group, across) for dataset, group in by_dataset.items()]


def _pivot(dataset: str, rows: Sequence[Row], across: str) -> Table:
    values = sorted({row.setting[across] for row in rows}, key=lambda value: (isinstance(value, str), value))
    sign = -1 if rows[0].better == "higher" else 1
    chosen: dict[str, dict[Scalar, Row]] = {}
    for row in sorted(rows, key=lambda row: -sign * row.value):
        chosen.setdefault(row.method, {})[row.setting[across]] = row
    columns = {value: [cells[value] for cells in chosen.values() if value in cells] for value in values}
    best = {value: _best(column) for value, column in columns.items()}

    def rank(cells: dict[Scalar, Row]) -> float:
        places = [sum(sign * row.value < sign * cells[v].value for row in columns[v]) for v in values if v in cells]
        return sum(places) / len(places)

    lines = [
        Line(
            method,
            method.endswith(REFERENCES),
            (),
            tuple(_cell(cells[value], best[value]) if value in cells else Cell() for value in values),
        )
        for method, cells in sorted(chosen.items(), key=lambda item: rank(item[1]))
    ]
    title = f"{rows[0].metric} {ARROWS[rows[0].better]}"
    return Table(f"{dataset}: {title}", (), tuple(f"{across} {_scalar(value)}" for value in values), tuple(lines))


def markdown_tables(rows: Iterable[Row]) -> str:
    """The tables of one benchmark as Markdown, one per dataset; the best number of a column is bold."""
    return "\n\n".join(map(markdown, tables(rows)))


def markdown(table: Table, most: int | None = None) -> str:
    """One table as Markdown, or its first ``most`` lines."""
    head = ("method", *table.settings, *table.metrics)
    align = ("---",) * (1 + len(table.settings)) + ("--:",) * len(table.metrics)
    body = [(line.method, *line.settings, *map(_markdown_cell, line.cells)) for line in table.lines]
    lines = [
        "| " + " | ".join(text.replace("|", "\\|") for text in line) + " |" for line in (head, align, *body[:most])
    ]
    rest = f"\n\n{len(body) - most} more methods follow." if most is not None and len(body) > most else ""
    return f"Dataset: {table.dataset}\n\n" + "\n".join(lines) + rest


def _markdown_cell(cell: Cell) -> str:
    text = f"**{cell.text}**" if cell.best else cell.text
    published = f"(published {cell.published})" if cell.published else ""
    return " ".join(filter(None, (text, cell.spread, published)))
