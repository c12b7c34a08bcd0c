"""What must be known about a model before anybody else runs it: the fields that reviewers and regulators ask for.

The fields follow the FDA's draft guidance on AI-enabled device software (January 2025) and Mitchell et al. (2019),
"Model Cards for Model Reporting", arXiv:1810.03993. ``bundle.export`` refuses a model whose card has a gap.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from suffuse.bench.row import json_value
from suffuse.errors import CheckpointError, InvalidArgument

__all__ = ["NOT_CLINICAL", "ModelCard"]

NOT_CLINICAL = "Not for clinical use."

#: Headings of the Markdown, by field.
HEADINGS = {
    "intended_use": "Intended use",
    "inputs": "Inputs",
    "outputs": "Outputs",
    "training_data": "Training data: origin, licence, consent",
    "counts": "Counts",
    "split": "How the data were split",
    "metrics": "Metrics",
    "subgroups": "Metrics by subgroup or site",
    "failure_modes": "Known failure modes",
    "memorisation": "Memorisation",
    "uncertainty": "What the spread of samples means",
    "determinism": "Determinism",
    "changes": "Changes, and changes that are planned",
    "license": "Licence of the model",
}


#: Fields that map names to values; all others are text.
MAPPINGS = ("counts", "metrics", "subgroups", "extra")


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """Every field is needed; write "none measured" where that is the truth.

    Args:
        name: of the model.
        version: of the model, "1.0.0".
        intended_use: what for, and by whom; :data:`NOT_CLINICAL` is added where it is missing.
        inputs: modality, protocol, spacing in mm, orientation, preprocessing.
        outputs: what comes out, with unit and range.
        training_data: origin, licence, consent basis.
        counts: how many patients, images, sites: name -> number.
        split: by what the data were split.
        metrics: name -> value, with interval where there is one.
        subgroups: subgroup or site -> metrics.
        failure_modes: what is known to go wrong.
        memorisation: the result of ``privacy.memorisation``, in words.
        uncertainty: whether the spread of samples is calibrated, and on what.
        determinism: seeds, versions, hardware that samples depend on.
        changes: the change log, and what is planned.
        license: of weights and outputs.
        extra: anything else, name -> text.
    """

    name: str
    version: str
    intended_use: str
    inputs: str
    outputs: str
    training_data: str
    counts: Mapping[str, int]
    split: str
    metrics: Mapping[str, Any]
    subgroups: Mapping[str, Any]
    failure_modes: str
    memorisation: str
    uncertainty: str
    determinism: str
    changes: str
    license: str
    extra: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        use = self.intended_use
        if isinstance(use, str) and use.strip() and NOT_CLINICAL.lower() not in use.lower():
            object.__setattr__(self, "intended_use", f"{use.strip()} {NOT_CLINICAL}")

    def check(self) -> None:
        """Raise InvalidArgument naming the fields that are empty, or hold what a card cannot."""
        values = self.to_dict()
        required = {name: value for name, value in values.items() if name != "extra"}
        empty = [name for name, v in required.items() if not v or (isinstance(v, str) and not v.strip())]
        if empty:
            raise InvalidArgument(
                f"the model card lacks {empty}; fill them in, with 'none measured' where that is true"
            )
        wrong = [name for name, value in values.items() if not isinstance(value, dict if name in MAPPINGS else str)]
        if wrong:
            raise InvalidArgument(
                f"{wrong} of the model card are of the wrong kind: {', '.join(MAPPINGS)} map names to values, all "
                f"others are text"
            )

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {f.name: json_value(getattr(self, f.name), f"{f.name} of the model card") for f in fields(self)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ModelCard:
        """The inverse of ``to_dict``; raises InvalidArgument for fields that are missing or unknown."""
        if not isinstance(values, Mapping):
            raise InvalidArgument(f"not a model card: expected fields by name, got a {type(values).__name__}")
        known = {f.name for f in fields(cls)}
        missing, stray = sorted(known - set(values) - {"extra"}), sorted(set(values) - known)
        if missing or stray:
            raise InvalidArgument(f"not a model card: it lacks {missing} and has the unknown fields {stray}")
        return cls(**values)

    @classmethod
    def read(cls, path: str | Path) -> ModelCard:
        """From the JSON file that a bundle ships. Raises CheckpointError for one that is missing or is no card."""
        try:
            return cls.from_dict(json.loads(Path(path).read_text(encoding="utf-8")))
        except (OSError, ValueError) as error:  # among which are InvalidArgument and JSON's
            raise CheckpointError(f"{path} cannot be read as a model card ({error}); copy the whole bundle") from error

    def markdown(self) -> str:
        """The card as a page."""
        values = self.to_dict()
        parts = [f"# {self.name} {self.version}"]
        for key, heading in HEADINGS.items():
            value = values[key]
            text = "\n".join(f"- {k}: {v}" for k, v in value.items()) if isinstance(value, Mapping) else str(value)
            parts += [f"## {heading}", text]
        parts += [f"## {key}\n\n{text}" for key, text in self.extra.items()]
        return "\n\n".join(parts) + "\n"
