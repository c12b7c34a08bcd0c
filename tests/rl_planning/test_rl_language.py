"""Words to requests."""

from __future__ import annotations

import numpy as np
import pytest

from suffuse.errors import InvalidArgument
from suffuse_rl_planning.language import Phrasebook, parse

KNOWN = ("speed", "height", "energy")


@pytest.mark.parametrize(
    ("text", "asked"),
    [
        ("fast, crouched, low energy", {"speed": 0.9, "height": 0.1, "energy": 0.1}),
        ("run and very upright", {"speed": 0.9, "height": 1.0}),
        ("not fast", {"speed": 0.1}),
        ("high speed with low energy", {"speed": 0.9, "energy": 0.1}),
        ("a little fast", {"speed": 0.7}),
        ("faster", {"speed": 0.7}),
    ],
)
def test_words_are_strengths(text, asked):
    assert parse(text, KNOWN) == pytest.approx(asked)


def test_comparatives_move_what_was_asked_and_stay_in_range():
    assert parse("slower, higher", KNOWN, {"speed": 0.5, "height": 0.95}) == pytest.approx(
        {"speed": 0.3, "height": 1.0}
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fsat", "unknown word 'fsat'; did you mean .*'fast'"),
        ("fast, slow", "contradicts itself"),
        ("hop", "is about jump, which this planner was not taught"),
        ("very", "asks for nothing"),
        ("", "asks for nothing"),
    ],
)
def test_what_is_not_understood_is_an_error(text, message):
    with pytest.raises(InvalidArgument, match=message):
        parse(text, KNOWN)


def test_a_phrasebook_takes_the_nearest_phrase():
    class Letters:
        """Embeds a text by its letters."""

        def encode(self, texts, normalize_embeddings=True):
            counts = np.array([[t.count(c) for c in "abcdefghijklmnopqrstuvwxyz"] for t in texts], float)
            return counts / np.linalg.norm(counts, axis=1, keepdims=True)

    book = Phrasebook({"please hurry up": {"speed": 0.95}, "keep your head down": {"height": 0.1}}, Letters())
    assert book.parse("hurry") == {"speed": 0.95} and book.parse("head down") == {"height": 0.1}
    with pytest.raises(InvalidArgument, match="phrases is empty"):
        Phrasebook({}, Letters())
