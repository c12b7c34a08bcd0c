"""Words to requests: "fast, crouched, low energy" becomes strengths, by a table of rules that anybody can read.

A word sets a strength, a comparative moves the last one by a step, a degree strengthens what follows, and "not" turns
it around. Words that no rule knows are an error, not a guess. With the extra ``[language]``, ``Phrasebook`` finds the
nearest known phrase by sentence embeddings instead, as in section 4.3 of Dong et al. (2024), arXiv:2310.02054.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from suffuse.errors import InvalidArgument, require, unknown

LOW, HIGH = 0.1, 0.9
STEP = 0.2

#: word -> (attribute, strength).
WORDS: dict[str, tuple[str, float]] = {
    "fast": ("speed", HIGH), "quick": ("speed", HIGH), "run": ("speed", HIGH), "slow": ("speed", 0.6),
    "backwards": ("speed", LOW),
    "tall": ("height", HIGH), "upright": ("height", HIGH), "crouch": ("height", LOW), "crouched": ("height", LOW),
    "low": ("height", LOW),
    "frugal": ("energy", LOW), "gentle": ("energy", LOW), "lazy": ("energy", LOW), "vigorous": ("energy", HIGH),
    "hop": ("jump", HIGH), "flat": ("jump", LOW),
    "long": ("stride", HIGH), "short": ("stride", LOW),
}  # fmt: skip
#: comparative -> (attribute, direction).
STEPS: dict[str, tuple[str, int]] = {
    "faster": ("speed", 1), "slower": ("speed", -1), "taller": ("height", 1), "higher": ("height", 1),
    "lower": ("height", -1), "gentler": ("energy", -1), "harder": ("energy", 1),
}  # fmt: skip
#: "high speed", "low energy": a level and the attribute's own name.
LEVELS = {"high": HIGH, "low": LOW, "medium": 0.5, "middle": 0.5}
DEGREES = {"very": 0.1, "rather": -0.2, "a": 0.0, "little": -0.2, "bit": -0.2, "and": 0.0, "with": 0.0, "but": 0.0}


def parse(text: str, known: Iterable[str], last: Mapping[str, float] | None = None) -> dict[str, float]:
    """Strengths in [0, 1] from words.

    Args:
        text: for instance "fast, crouched, low energy", or "faster".
        known: attributes that can be requested.
        last: what was requested before, which comparatives move; their middle if missing.

    Raises:
        InvalidArgument: for a word that no rule knows, an attribute that cannot be requested, a contradiction
            ("fast, slow"), or no request at all.
    """
    known, last = tuple(known), dict(last or {})
    asked: dict[str, float] = {}
    for part in re.split(r"[,;]| and ", text.lower()):
        words = re.findall(r"[a-z]+", part)
        degree, turned, i = 0.0, False, 0
        while i < len(words):
            word, after = words[i], words[i + 1] if i + 1 < len(words) else ""
            i += 1
            if word == "not":
                turned = True
                continue
            if word in LEVELS and after in known:
                name, strength = after, LEVELS[word]
                i += 1
            elif word in WORDS:
                name, strength = WORDS[word]
            elif word in STEPS:
                name, direction = STEPS[word]
                strength = last.get(name, 0.5) + direction * STEP
            elif word in DEGREES:
                degree += DEGREES[word]
                continue
            else:
                raise unknown("word", word, [*WORDS, *STEPS, *DEGREES, "not"])
            if name not in known:
                raise InvalidArgument(
                    f"{word!r} is about {name}, which this planner was not taught: {', '.join(known)}"
                )
            strength += degree if strength > 0.5 else -degree
            strength = min(max(1 - strength if turned else strength, 0.0), 1.0)
            if name in asked and asked[name] != strength:
                raise InvalidArgument(f"{text!r} contradicts itself: {name} {asked[name]:.2f} and {strength:.2f}")
            asked[name], degree, turned = strength, 0.0, False
    if not asked:
        raise InvalidArgument(f"{text!r} asks for nothing; name at least one of {', '.join(known)}")
    return asked


class Phrasebook:
    """The nearest of known phrases, by the cosine of sentence embeddings (``sentence-transformers``).

    Args:
        phrases: phrase -> strengths.
        model: name or folder of a sentence-transformers model, or an object with ``encode``.
    """

    def __init__(self, phrases: Mapping[str, Mapping[str, float]], model: Any = "all-MiniLM-L6-v2") -> None:
        if not phrases:
            raise InvalidArgument("phrases is empty")
        if isinstance(model, str):
            library = require("sentence_transformers", extra="language", package="suffuse-rl-planning")
            model = library.SentenceTransformer(model)
        self.model, self.phrases = model, dict(phrases)
        self.vectors = model.encode(list(self.phrases), normalize_embeddings=True)

    def parse(self, text: str) -> dict[str, float]:
        """The strengths of the nearest phrase."""
        scores = self.vectors @ self.model.encode([text], normalize_embeddings=True)[0]
        return dict(self.phrases[list(self.phrases)[int(scores.argmax())]])
