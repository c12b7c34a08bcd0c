"""Text as tokens: an alphabet of characters, and English prose that Python itself carries."""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import InvalidArgument, SuffuseError

__all__ = ["Characters", "Text", "language_reference", "plain", "windows"]


@dataclass(frozen=True)
class Characters:
    """An alphabet: character number i of ``symbols`` is token i.

    Args:
        symbols: the characters, each once.
        hole: the character that stands for the mask, in prompts and in what is not finished.
    """

    symbols: str
    hole: str = "_"

    def __post_init__(self) -> None:
        if not self.symbols or len(set(self.symbols)) < len(self.symbols):
            raise InvalidArgument(f"symbols must be at least one character, and each once, got {self.symbols!r}")
        if len(self.hole) != 1 or self.hole in self.symbols:
            raise InvalidArgument(f"hole must be one character that is not among the symbols, got {self.hole!r}")

    @classmethod
    def of(cls, text: str) -> Characters:
        """The characters of a text, in the order of their code points."""
        symbols = "".join(sorted(set(text)))
        return cls(symbols, next(hole for hole in "_~^␣" if hole not in symbols))

    def __len__(self) -> int:
        """V."""
        return len(self.symbols)

    def encode(self, text: str) -> Tensor:
        """Tokens (len(text),); holes become masks.

        Raises:
            InvalidArgument: naming the characters that are not in the alphabet.
        """
        numbers = {symbol: i for i, symbol in enumerate(self.symbols + self.hole)}
        if strange := sorted(set(text) - set(numbers)):
            raise InvalidArgument(f"text has {strange[:5]}, which are not among the symbols {self.symbols!r}")
        return torch.tensor([numbers[character] for character in text], dtype=torch.int64)

    def decode(self, x: Tensor) -> list[str]:
        """The strings of tokens (B, L)."""
        symbols = self.symbols + self.hole
        return ["".join(symbols[token] for token in row) for row in x.tolist()]


class Text(NamedTuple):
    """Text to learn from, and text that is held out."""

    train: str
    test: str


def plain(text: str) -> str:
    """Lower-case letters a to z, and one space for all that is between them: 27 symbols."""
    return re.sub("[^a-z]+", " ", text.lower()).strip()


def language_reference() -> Text:
    """The reference of the Python language as plain text, about 0.4 million characters; every tenth paragraph held out.

    It is the standard library's ``pydoc_data.topics``, of the Python that runs. Paragraphs that occur twice count once.

    Raises:
        SuffuseError: when this Python comes without it.
    """
    try:
        topics: Mapping[str, Any] = importlib.import_module("pydoc_data.topics").topics
    except ModuleNotFoundError as error:
        raise SuffuseError("this Python has no pydoc_data.topics; give another text") from error
    split = (plain(paragraph) for _, topic in sorted(topics.items()) for paragraph in re.split(r"\n\s*\n", topic))
    paragraphs = [paragraph for paragraph in dict.fromkeys(split) if len(paragraph) > 20]
    return Text(
        " ".join(paragraph for i, paragraph in enumerate(paragraphs) if i % 10 != 9), " ".join(paragraphs[9::10])
    )


def windows(tokens: Tensor, length: int, stride: int | None = None) -> Tensor:
    """Pieces (N, length) of tokens (n,), every ``stride``, by default one after the other; a view without a copy."""
    if len(tokens) < length:
        raise InvalidArgument(f"the text has {len(tokens)} tokens, fewer than the length {length}; give a longer one")
    return tokens.unfold(0, length, stride or length)
