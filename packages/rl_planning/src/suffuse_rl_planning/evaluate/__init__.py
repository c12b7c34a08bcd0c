"""How well a request was met, by judges that are not the model that chose the plan."""

from .covering import Covering, cover
from .matching import Judgement, MeasureMap, MatchingTests, draw_tests, judge, measured_errors, run_tests, start_states
from .switching import SCHEDULES, Switching, switch
from .tracking import Tracking, latency, nearest_controller, repeat, summary, targets, track

__all__ = [
    "SCHEDULES",
    "Covering",
    "Judgement",
    "MeasureMap",
    "Switching",
    "MatchingTests",
    "Tracking",
    "cover",
    "draw_tests",
    "judge",
    "latency",
    "measured_errors",
    "nearest_controller",
    "repeat",
    "run_tests",
    "start_states",
    "summary",
    "switch",
    "targets",
    "track",
]
