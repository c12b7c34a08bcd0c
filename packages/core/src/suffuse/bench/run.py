"""A run: what a benchmark function is given, and where it reports to."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from suffuse.bench.row import Better, Row, Scalar, write_text
from suffuse.errors import InvalidArgument, SuffuseError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from suffuse.bench.benchmark import Benchmark

PICTURES = (".png", ".jpg", ".jpeg", ".gif", ".svg", ".webp", ".mp4")


class Skipped(SuffuseError):
    """A benchmark cannot run here, for instance because its data are absent. Reported, and no failure."""


@dataclass(frozen=True)
class Attachment:
    """A file of a report, relative to the report's folder."""

    path: str
    caption: str


@dataclass
class Run:
    """One run of one benchmark with one seed.

    Args:
        benchmark: what is run.
        profile: "quick" (minutes on two CPU cores, bundled data) or "full" (a GPU, or hours).
        seed: of all random draws.
        device: "cpu", "cuda", ...; already resolved, never "auto".
        out: scratch folder of this benchmark and seed; empty at the start.
        data: folder of real data (``SUFFUSE_DATA``), or None.
        progress: whether to show progress.
        report: folder of the report; figures and artifacts are copied there.
    """

    benchmark: Benchmark
    profile: Literal["quick", "full"]
    seed: int
    device: str
    out: Path
    data: Path | None
    progress: bool
    report: Path
    rows: list[Row] = field(default_factory=list)
    figures: list[Attachment] = field(default_factory=list)
    artifacts: list[Attachment] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    stages: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    keys: set[tuple[Any, ...]] = field(default_factory=set)
    """Of the rows, so that none is reported twice."""

    @property
    def record(self) -> Path:
        """The file that says what a finished run found, beside its scratch folder."""
        return self.out.with_name(f"{self.out.name}.json")

    def keep(self) -> None:
        """Write the record, for `restore`."""
        found = {name: getattr(self, name) for name in ("notes", "stages", "seconds")}
        found |= {name: [asdict(item) for item in getattr(self, name)] for name in ("rows", "figures", "artifacts")}
        write_text(self.record, json.dumps(found, ensure_ascii=False, allow_nan=False))

    def restore(self) -> bool:
        """Take over what an earlier run wrote with `keep`; False if there is none."""
        if not self.record.is_file():
            return False
        try:
            found = json.loads(self.record.read_text(encoding="utf-8"))
            self.rows = [Row(**row) for row in found["rows"]]
            self.figures, self.artifacts = ([Attachment(**a) for a in found[kind]] for kind in ("figures", "artifacts"))
            self.notes, self.stages, self.seconds = found["notes"], found["stages"], found["seconds"]
        except (ValueError, TypeError, KeyError) as error:
            raise SuffuseError(f"{self.record} is damaged ({error}); delete it, and this seed is run again") from error
        return True

    @property
    def quick(self) -> bool:
        return self.profile == "quick"

    def row(
        self,
        *,
        dataset: str,
        method: str,
        metric: str,
        value: float,
        better: Better,
        setting: Mapping[str, Scalar] | None = None,
        std: float | None = None,
        n: int | None = None,
        published: float | None = None,
        unit: str = "",
        seconds: float | None = None,
    ) -> None:
        """Report one number; `suffuse.bench.Row` says what the fields mean.

        A method that only bounds a measure is named with "(ceiling)", "(floor)" or "(reference)" at the end, as in
        "real data (ceiling)"; tables set it apart, and do not call it the best.

        Raises:
            InvalidArgument: if a field is wrong, the value is not finite, or this measurement was already reported.
        """
        row = Row(
            benchmark=self.benchmark.name,
            paper=self.benchmark.paper,
            dataset=dataset,
            method=method,
            setting=setting or {},
            metric=metric,
            better=better,
            value=value,
            std=std,
            n=n,
            published=published,
            unit=unit,
            seconds=seconds,
            device=self.device,
            profile=self.profile,
            version=self.benchmark.version,
        )
        if row.key in self.keys:
            raise InvalidArgument(
                f"row: {metric!r} of {method!r} on {dataset!r} with {row.setting} was already reported"
            )
        self.keys.add(row.key)
        self.rows.append(row)

    def figure(self, name: str, picture: Figure | Path | str, caption: str = "") -> Path:
        """Add a picture to the report, and return the file.

        Args:
            name: file name without ending: letters, digits, dashes.
            picture: a matplotlib figure (it is saved as PNG and closed), or a PNG, JPEG, GIF, SVG, WebP or MP4 file.
            caption: a sentence that says what is seen.
        """
        source = Path(picture) if isinstance(picture, str | Path) else None
        suffix = source.suffix.lower() if source else ".png"
        if suffix not in PICTURES:
            raise InvalidArgument(
                f"picture: {name!r} must be one of {', '.join(PICTURES)}, got {suffix or 'no ending'!r}"
            )
        target = self._target("figures", name + suffix)
        if source:
            shutil.copyfile(self._existing("picture", source), target)
        else:
            _save(picture, target)
        self.figures.append(Attachment(target.relative_to(self.report).as_posix(), caption))
        return target

    def artifact(self, path: Path | str, caption: str = "") -> Path:
        """Copy a file (GLB, NIfTI, ...) beside the report, which links it; return the copy."""
        source = self._existing("artifact", Path(path))
        target = self._target("files", source.name)
        shutil.copyfile(source, target)
        self.artifacts.append(Attachment(target.relative_to(self.report).as_posix(), caption))
        return target

    def note(self, text: str) -> None:
        """A remark for the report: what did not reproduce, what differs from the paper."""
        self.notes.append(" ".join(text.split()))

    def skip(self, reason: str) -> None:
        """Stop here; the benchmark is reported as skipped, with the reason."""
        raise Skipped(reason)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a part of the benchmark, and say so while it runs."""
        if self.progress:
            from rich import print as show

            show(f"  [dim]{self.benchmark.name}[/dim] {name} ...")
        start = time.perf_counter()
        try:
            yield
        finally:
            self.stages[name] = self.stages.get(name, 0.0) + time.perf_counter() - start

    def _target(self, kind: str, name: str) -> Path:
        if not re.fullmatch(r"[\w-][\w.-]*", name):
            raise InvalidArgument(f"name: {kind} are named with letters, digits, dots and dashes, got {name!r}")
        target = self.report / kind / self.benchmark.slug / name
        if target.exists():
            raise InvalidArgument(
                f"name: {kind} of {self.benchmark.name!r} already hold a {name!r}; choose another name"
            )
        target.parent.mkdir(parents=True, exist_ok=True)
        return target

    @staticmethod
    def _existing(argument: str, path: Path) -> Path:
        if not path.is_file() or path.stat().st_size == 0:
            raise InvalidArgument(f"{argument}: {path} is not a file, or is empty")
        return path


def _save(figure: Any, target: Path) -> None:
    if not hasattr(figure, "savefig"):
        raise InvalidArgument(f"picture: expected a matplotlib figure or a path, got a {type(figure).__name__}")
    figure.savefig(target, dpi=130, bbox_inches="tight", facecolor="white")
    import matplotlib.pyplot as plt

    plt.close(figure)
