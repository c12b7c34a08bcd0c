"""Which of two clips has more of it? Answers by rule, by people, and in the files of others."""

from .dataset import Preferences
from .session import agreement, consistency, prepare, read_answers
from .synthetic import label, stretches

__all__ = ["Preferences", "agreement", "consistency", "label", "prepare", "read_answers", "stretches"]
