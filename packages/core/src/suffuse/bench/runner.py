"""The runner: benchmarks times seeds, into one folder with a report.

    report/
      index.html   report.md     the same content, as one self-contained page and as Markdown
      rows.jsonl                 one JSON line per row
      run.json                   what ran, on which machine, with which outcome
      figures/  files/           pictures and other files, one folder per benchmark
      work/                      per benchmark and seed: scratch space, and the record of what was found

The report is written anew after each benchmark and the record after each seed, so an interrupted run keeps what it had
and can go on from there.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, Literal

from suffuse.bench.benchmark import PROFILES, Benchmark
from suffuse.bench.machine import Machine, describe_machine
from suffuse.bench.row import Row, read_rows, write_rows, write_text
from suffuse.bench.run import Attachment, Run, Skipped
from suffuse.errors import InvalidArgument, MissingExtra, SuffuseError, unknown
from suffuse.registry import version_of
from suffuse.threads import one_thread

Status = Literal["passed", "failed", "skipped"]
Profile = Literal["quick", "full"]


@dataclass
class Result:
    """The outcome of one benchmark."""

    name: str
    paper: str
    claim: str
    peers: tuple[str, ...]
    description: str
    status: Status
    seconds: float = 0.0
    message: str = ""
    """Why it failed (a traceback) or was skipped (a sentence)."""
    rows: list[Row] = field(default_factory=list)
    figures: list[Attachment] = field(default_factory=list)
    artifacts: list[Attachment] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    stages: dict[str, float] = field(default_factory=dict)

    @property
    def domain(self) -> str:
        return self.name.partition("/")[0]

    @property
    def slug(self) -> str:
        return self.name.replace("/", "-")


@dataclass
class Report:
    """The outcome of a run of several benchmarks."""

    folder: Path
    profile: Profile
    seeds: list[int]
    device: str
    machine: Machine
    version: str
    started: str
    planned: int
    seconds: float = 0.0
    results: list[Result] = field(default_factory=list)

    @property
    def rows(self) -> list[Row]:
        return [row for result in self.results for row in result.rows]

    @property
    def ok(self) -> bool:
        """Whether no benchmark failed."""
        return not self.of("failed")

    def of(self, status: Status) -> list[Result]:
        return [result for result in self.results if result.status == status]

    def write(self) -> None:
        """Write all files of the report."""
        from suffuse.bench.report import render_html, render_markdown

        record = asdict(self) | {"folder": None}
        record["results"] = [{**result, "rows": None} for result in record["results"]]
        write_rows(self.folder / "rows.jsonl", self.rows)
        write_text(self.folder / "run.json", json.dumps(record, indent=1, ensure_ascii=False))
        write_text(self.folder / "report.md", render_markdown(self))
        write_text(self.folder / "index.html", render_html(self))

    @classmethod
    def read(cls, folder: Path) -> Report:
        """Read a report that `write` wrote.

        Raises:
            SuffuseError: if the folder holds none.
        """
        try:
            record: dict[str, Any] = json.loads((folder / "run.json").read_text(encoding="utf-8"))
            rows = read_rows(folder / "rows.jsonl")
            results = [Result(**result) for result in record.pop("results")]
            for result in results:
                result.rows = [row for row in rows if row.benchmark == result.name]
                result.peers = tuple(result.peers)
                result.figures = [Attachment(**item) for item in result.figures]  # type: ignore[arg-type]
                result.artifacts = [Attachment(**item) for item in result.artifacts]  # type: ignore[arg-type]
            return cls(**record | {"folder": folder, "results": results})
        except FileNotFoundError as error:
            raise SuffuseError(
                f"{folder} holds no benchmark report; make one with: suffuse bench --out {folder}"
            ) from error
        except (TypeError, KeyError, AttributeError, json.JSONDecodeError) as error:
            raise SuffuseError(f"{folder / 'run.json'} is not a benchmark report: {error}") from error


def run_benchmarks(
    benchmarks: Iterable[Benchmark],
    out: Path | str,
    *,
    profile: Profile = "quick",
    seeds: Sequence[int] = (0,),
    device: str = "auto",
    data: Path | None = None,
    progress: bool = True,
    resume: bool = False,
) -> Report:
    """Run benchmarks and write a report after each.

    Args:
        benchmarks: what to run, in this order.
        out: folder of the report; new, empty, or an earlier report, which is replaced.
        profile: "quick" or "full".
        seeds: each benchmark runs once per seed. With several, a row holds mean, standard deviation and number of
            seeds; pictures and files are those of the first.
        device: "auto" takes a CUDA device if there is one.
        data: folder of real data, or None.
        progress: whether to print what happens.
        resume: go on with the run in ``out``, if there is one: what finished there with these seeds is not run again.

    Returns:
        The report. A benchmark that raises is in it as failed, one that lacks an extra or data as skipped.
    """
    chosen, seeds = list(benchmarks), list(seeds)
    if not seeds or len(set(seeds)) < len(seeds):
        raise InvalidArgument(f"seeds: expected one or more different numbers, got {seeds}")
    if profile not in PROFILES:
        raise unknown("profile", profile, PROFILES)
    device = resolve_device(device)
    os.environ.setdefault("MPLBACKEND", "Agg")  # pictures are saved, never shown
    started = datetime.now(UTC).isoformat(timespec="seconds")
    machine = describe_machine(device)
    report = Report(Path(out), profile, seeds, device, machine, version_of("suffuse"), started, len(chosen))
    if resume and (report.folder / "run.json").is_file():
        _check_same(Report.read(report.folder), report)
    else:
        _fresh(report.folder)
    report.write()
    begin = time.perf_counter()
    for number, benchmark in enumerate(chosen, start=1):
        _say(progress, f"[bold]{benchmark.name}[/bold] ({number} of {len(chosen)}): {benchmark.claim}")
        result = _run(benchmark, report, data, progress)
        report.results.append(result)
        report.seconds = time.perf_counter() - begin
        report.write()
        colour = {"passed": "green", "failed": "red", "skipped": "yellow"}[result.status]
        _say(progress, f"  [{colour}]{result.status}[/{colour}] after {result.seconds:.1f} s, {len(result.rows)} rows")
        if result.message:
            _say(progress, f"  {result.message.strip().splitlines()[-1]}", markup=False)
    return report


def _run(benchmark: Benchmark, report: Report, data: Path | None, progress: bool) -> Result:
    """One benchmark over all seeds."""
    result = Result(
        benchmark.name, benchmark.paper, benchmark.claim, benchmark.peers, benchmark.description, status="passed"
    )
    runs: list[Run] = []
    try:
        for seed in report.seeds:
            scratch = report.folder / "work" / benchmark.slug / f"seed-{seed}"
            shown = scratch / "report" if runs else report.folder  # the report has the pictures of the first seed
            run = Run(benchmark, report.profile, seed, report.device, scratch, data, progress, shown)
            runs.append(run)
            if not run.restore():
                _measure(run)
        result.rows = aggregate([run.rows for run in runs])
    except (Skipped, MissingExtra) as error:
        result.status, result.message = "skipped", str(error)
    except (Exception, SystemExit):
        result.status = "failed"
        result.message = traceback.format_exc().replace(str(Path.home()), "~")
    result.seconds = sum(run.seconds for run in runs)
    for run in runs:
        result.notes += [note for note in run.notes if note not in result.notes]
        for stage, seconds in run.stages.items():
            result.stages[stage] = result.stages.get(stage, 0.0) + seconds
    if runs:
        result.figures, result.artifacts = runs[0].figures, runs[0].artifacts
    return result


def _measure(run: Run) -> None:
    """One benchmark with one seed, from the start; its record is written at the end."""
    for left in (run.out, *(run.report / kind / run.benchmark.slug for kind in ("figures", "files"))):
        shutil.rmtree(left, ignore_errors=True)  # of a run that did not finish
    run.out.mkdir(parents=True)
    begin = time.perf_counter()
    try:
        _seed_everything(run.seed)
        with one_thread() if run.quick and run.device == "cpu" else nullcontext():  # quick models are small
            run.benchmark(run)
    finally:
        run.seconds = time.perf_counter() - begin
    if not run.rows:
        raise SuffuseError(f"benchmark {run.benchmark.name!r} reported no rows")
    run.keep()


def aggregate(runs: Sequence[Sequence[Row]]) -> list[Row]:
    """Rows of several seeds to one row per measurement: mean, standard deviation and count over the seeds.

    The rows of a single seed are kept as they are.
    """
    if len(runs) == 1:
        return list(runs[0])
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in (row for rows in runs for row in rows):
        groups.setdefault(row.key, []).append(row)
    return [
        replace(
            group[0],
            value=fmean(row.value for row in group),
            std=stdev(row.value for row in group) if len(group) > 1 else None,
            n=len(group),
            seconds=fmean(taken) if (taken := [row.seconds for row in group if row.seconds is not None]) else None,
        )
        for group in groups.values()
    ]


def resolve_device(device: str) -> str:
    """ "auto" to the best device here; any other name is checked.

    Raises:
        InvalidArgument: if torch does not know the device, or it is not in this machine.
    """
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InvalidArgument(f"device: {device!r} cannot be used here ({reason}); try 'auto' or 'cpu'") from error
    return device


def _check_same(earlier: Report, now: Report) -> None:
    """Whether an earlier run is the one to go on with.

    Raises:
        InvalidArgument: naming what differs.
    """
    compared: dict[str, Callable[[Report], Any]] = {
        "profile": lambda r: r.profile,
        "version of suffuse": lambda r: r.version,
        "machine": lambda r: r.machine["slug"],
        "first seed, whose pictures it shows": lambda r: r.seeds[0],
    }
    for what, of in compared.items():
        if of(earlier) != of(now):
            raise InvalidArgument(
                f"resume: {now.folder} holds a run with another {what}: {of(earlier)!r}, not {of(now)!r}; choose "
                f"another folder, or leave resume out to replace it"
            )


def _fresh(folder: Path) -> None:
    """Make the report folder, or empty it of an earlier report; a folder with anything else in it is left alone."""
    if folder.exists() and not folder.is_dir():
        raise InvalidArgument(f"out: {folder} is a file; choose a folder")
    if folder.is_dir() and any(folder.iterdir()):
        if not (folder / "run.json").is_file():
            raise InvalidArgument(f"out: {folder} is not empty and holds no earlier report; choose another folder")
        for part in ("figures", "files", "work"):
            shutil.rmtree(folder / part, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)


def _seed_everything(seed: int) -> None:
    """Benchmarks draw from their own generators; libraries they call may draw from the global ones."""
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def _say(progress: bool, text: str, markup: bool = True) -> None:
    if progress:
        from rich.console import Console

        Console(soft_wrap=True, highlight=False).print(text, markup=markup)
