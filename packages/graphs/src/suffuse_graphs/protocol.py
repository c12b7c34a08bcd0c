"""Ten splits, one model after another, with every score kept on disk: what a row of the tables is made of.

A file per dataset and model holds a JSON line per trained split, with all settings that decide the outcome. A run that
was interrupted goes on where it stopped; a change of settings or seed starts anew beside the old lines.

    scores/texas-orthogonal.jsonl
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch_geometric.data import Data

from suffuse.bench.row import write_text
from suffuse.errors import SuffuseError

from .classify import Result, train_preset
from .presets import Preset


@dataclass(frozen=True)
class Score:
    """One trained split: scores in [0, 1], epochs run, seconds."""

    split: int
    test: float
    val: float
    epochs: int
    seconds: float


@dataclass(frozen=True)
class Scores:
    """The scores of one model on several splits of one dataset."""

    scores: tuple[Score, ...]

    @property
    def test(self) -> torch.Tensor:
        """(splits,) test scores in percent."""
        return torch.tensor([100 * score.test for score in self.scores])

    @property
    def mean(self) -> float:
        return float(self.test.mean())

    @property
    def std(self) -> float:
        """Population standard deviation over splits, as the paper's tables print it."""
        return float(self.test.std(correction=0))

    @property
    def validation(self) -> float:
        """Mean validation score in percent."""
        return 100 * sum(score.val for score in self.scores) / len(self.scores)

    @property
    def seconds(self) -> float:
        return sum(score.seconds for score in self.scores)

    def __str__(self) -> str:
        return f"{self.mean:.2f} ± {self.std:.2f} % over {len(self.scores)} splits"


def paired(a: Scores, b: Scores) -> tuple[float, float]:
    """Mean and standard error of the difference a - b over the splits that both have, in points."""
    other = {score.split: score.test for score in b.scores}
    gaps = torch.tensor([100 * (s.test - other[s.split]) for s in a.scores if s.split in other])
    return float(gaps.mean()), float(gaps.std() / math.sqrt(len(gaps))) if len(gaps) > 1 else math.nan


def train_splits(
    model: str,
    data: Data,
    preset: Preset,
    splits: Sequence[int],
    *,
    seed: int = 0,
    device: str | torch.device = "cpu",
    record: Path | None = None,
    known_only: bool = False,
    tell: Callable[[Score, Result], None] | None = None,
) -> Scores:
    """Train a model on each split, or read the score where it was trained before.

    Args:
        model: name of a classifier.
        data: as `load_nodes` gives it.
        preset: how to build and train it.
        splits: numbers of the splits.
        seed: each split trains with a seed made of this and its number.
        device: where to train.
        record: JSON-lines file of the scores; None keeps nothing.
        known_only: train nothing, only read.
        tell: called with every new score and what was trained.
    """
    settings = preset.settings | {"model_name": model, "seed": seed}
    lines = read_record(record) if record else []
    known = {line["split"]: _score(line) for line in lines if line["settings"] == settings}
    for split in splits:
        if split in known or known_only:
            continue
        fitted = train_preset(model, data, preset, split, seed=seed, device=device)
        known[split] = Score(split, fitted.test, fitted.val, fitted.epochs, fitted.seconds)
        if record:
            lines = [*read_record(record), asdict(known[split]) | {"settings": settings}]
            write_text(record, "".join(json.dumps(line) + "\n" for line in lines))
        if tell:
            tell(known[split], fitted)
    return Scores(tuple(known[split] for split in splits if split in known))


def read_record(path: Path) -> list[dict]:
    """The lines of a record; a missing file holds none."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    try:
        lines = [json.loads(line) for line in text.splitlines()]
        for line in lines:
            _score(line), line["settings"]
    except (ValueError, KeyError, TypeError) as error:
        raise SuffuseError(f"{path} is not a record of scores ({error}); move it away to start anew") from error
    return lines


def _score(line: dict) -> Score:
    return Score(**{name: line[name] for name in ("split", "test", "val", "epochs", "seconds")})
