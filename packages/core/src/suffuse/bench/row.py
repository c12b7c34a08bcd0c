"""A row: one measured number with all that is needed to read it. Rows are stored as JSON lines."""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, SupportsFloat

from suffuse.errors import InvalidArgument, SuffuseError

Better = Literal["higher", "lower"]
Scalar = str | int | float | bool | None


@dataclass(frozen=True, kw_only=True)
class Row:
    """One measured number.

    Args:
        benchmark: name of the benchmark, ``domain/name``.
        paper: the publication whose claim it checks.
        dataset: what was measured on.
        method: what was measured.
        setting: what distinguishes rows of one method, such as ``{"nfe": 10}``; values are JSON scalars.
        metric: name of the measure.
        better: "higher" or "lower".
        value: the number; finite.
        std: standard deviation over ``n`` repetitions, or None.
        n: repetitions (seeds, when the runner ran several), or None.
        published: the number that the paper gives for this row, or None.
        unit: of ``value``; empty if it has none.
        seconds: wall-clock time that the method took, or None.
        device: "cpu" or the kind of accelerator.
        profile: "quick" or "full".
        version: of the package that holds the benchmark.

    Raises:
        InvalidArgument: naming the field that is wrong.
    """

    benchmark: str
    paper: str
    dataset: str
    method: str
    setting: Mapping[str, Scalar] = field(default_factory=dict)
    metric: str
    better: Better
    value: float
    std: float | None = None
    n: int | None = None
    published: float | None = None
    unit: str = ""
    seconds: float | None = None
    device: str
    profile: str
    version: str

    def __post_init__(self) -> None:
        for name in ("benchmark", "paper", "dataset", "method", "metric", "device", "profile", "version"):
            text = getattr(self, name)
            if not isinstance(text, str) or not text.strip():
                raise InvalidArgument(f"{name}: a row needs a non-empty string, got {text!r}")
        if not isinstance(self.unit, str):
            raise InvalidArgument(f"unit: expected a string, got {self.unit!r}")
        where = f"of {self.metric!r} for {self.method!r}"
        if self.better not in ("higher", "lower"):
            raise InvalidArgument(f"better: expected 'higher' or 'lower', got {self.better!r} {where}")
        object.__setattr__(self, "value", _finite("value", self.value, where))
        for name in ("std", "published", "seconds"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, _finite(name, getattr(self, name), where))
        for name in ("std", "seconds"):
            number = getattr(self, name)
            if number is not None and number < 0:
                raise InvalidArgument(f"{name}: must not be negative, got {number} {where}")
        if self.n is not None:
            if isinstance(self.n, bool) or int(self.n) != self.n or self.n < 1:
                raise InvalidArgument(f"n: expected a whole number of at least 1, got {self.n!r} {where}")
            object.__setattr__(self, "n", int(self.n))
        object.__setattr__(self, "setting", {key: _scalar(key, v, where) for key, v in dict(self.setting).items()})

    @property
    def key(self) -> tuple[Any, ...]:
        """What makes two rows the same measurement."""
        return (self.benchmark, self.dataset, self.method, json.dumps(self.setting, sort_keys=True), self.metric)


#: Defaults of the fields that a row may lack.
OPTIONAL = {f.name: f.default for f in fields(Row) if f.default is not MISSING}


def _finite(name: str, value: object, where: str) -> float:
    try:
        number = float(value) if isinstance(value, SupportsFloat) else math.nan
    except (TypeError, ValueError):
        number = math.nan
    if isinstance(value, bool) or not math.isfinite(number):
        raise InvalidArgument(f"{name}: expected a finite number, got {value!r} {where}")
    return number


def _scalar(key: str, value: Any, where: str) -> Scalar:
    if hasattr(value, "item"):
        value = value.item()  # a NumPy or torch scalar
    if value is None or isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    raise InvalidArgument(f"setting: {key!r} must be a string, a finite number or a bool, got {value!r} {where}")


def json_value(value: Any, name: str) -> Any:
    """A value as JSON has it: arrays and numbers of NumPy and torch become lists and numbers.

    Raises:
        InvalidArgument: naming ``name``, for anything that JSON has no form for.
    """
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(k): json_value(v, name) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [json_value(v, name) for v in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise InvalidArgument(f"{name} is a {type(value).__name__}, which JSON has no form for; give numbers and text")


def write_text(path: Path, text: str) -> None:
    """Write a file atomically: a reader sees the old text or the new one, never half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Write rows as JSON lines, atomically. Optional fields that are not set are left out."""
    records = [{k: v for k, v in asdict(row).items() if v != OPTIONAL.get(k, MISSING)} for row in rows]
    write_text(path, "".join(json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n" for record in records))


def read_rows(path: Path) -> list[Row]:
    """Read rows that `write_rows` wrote; a missing file holds none.

    Raises:
        SuffuseError: naming the file and line that is not a row.
    """
    rows, names = [], {f.name for f in fields(Row)}
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            record = json.loads(line)
            if unexpected := (record.keys() ^ names) - (OPTIONAL.keys() - record.keys()):
                raise InvalidArgument(f"missing or unexpected fields: {', '.join(sorted(unexpected))}")
            rows.append(Row(**record))
        except (ValueError, TypeError, AttributeError) as error:
            raise SuffuseError(f"{path}:{number} is not a benchmark row: {error}") from error
    return rows
