"""Guidance: functions from denoisers to denoisers."""

from .classifier_free import ClassifierFree

__all__ = ["ClassifierFree"]
