"""How well a request was met, by judges that are not the model that chose the plan."""

from .covering import Covering, cover
from .matching import (
    Judgement,
    MatchingTests,
    MeasureMap,
    best_recorded,
    draw_tests,
    judge,
    measured_errors,
    run_tests,
    start_states,
)
from .study import prepare_study, score_study, simulated_answers
from .switching import SCHEDULES, Switching, switch
from .tracking import Tracking, latency, nearest, nearest_controller, repeat, summary, targets, track

__all__ = [
    "SCHEDULES",
    "Covering",
    "Judgement",
    "MatchingTests",
    "MeasureMap",
    "Switching",
    "Tracking",
    "best_recorded",
    "cover",
    "draw_tests",
    "judge",
    "latency",
    "measured_errors",
    "nearest",
    "nearest_controller",
    "prepare_study",
    "repeat",
    "run_tests",
    "score_study",
    "simulated_answers",
    "start_states",
    "summary",
    "switch",
    "targets",
    "track",
]
