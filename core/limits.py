"""What ends a search before its iterations are done."""

import math
import time
from dataclasses import dataclass, field

INTERRUPTED, STOPPED = "interrupted", "stopped by hand"
"""Why a run ended, in words."""


class Stopped(Exception):
    """Ends a run from inside a sampling run, as somebody wants; a solver that has something to keep may finish it."""


def log_of(probability):
    """Return ln P, -inf where P is 0.

    Example:
        >>> log_of(1.0), log_of(0.0)
        (0.0, -inf)
    """
    return math.log(probability) if probability > 0 else -math.inf


@dataclass(frozen=True)
class Limits:
    """What ends a run before its iterations are done; None: nothing.

    Attributes:
        seconds: time budget.
        target: of every picture's best score.
        probability: below which P(z) of every picture falls.
        below: watched reward's name -> below which every picture's score falls.
    """

    seconds: float | None = None
    target: float | None = None
    probability: float | None = None
    below: dict = field(default_factory=dict)

    def __post_init__(self):
        for name in ("seconds", "target", "probability"):
            value = getattr(self, name)
            if value is not None and math.isnan(value):  # every comparison would miss it silently
                raise ValueError(f"{name} is {value}; expected a number")

    def reached(self, best, evaluation):
        """Return why the run ends with this evaluation, or ''; the time is `outlasted`'s."""
        if self.target is not None and bool((best.scores >= self.target).all()):
            return f"every picture reached the target score {self.target}"
        if self.probability is not None and bool((evaluation.log_p < log_of(self.probability)).all()):
            return f"P(z) fell below {self.probability}"
        for name, least in self.below.items():
            if bool((evaluation.watched[name] < least).all()):
                return f"{name} fell below {least}"
        return ""

    def outlasted(self, started, needed):
        """Return why a run that began at `started` must not begin what takes `needed` more seconds, or ''."""
        if self.seconds is None or time.perf_counter() - started + needed <= self.seconds:
            return ""
        return f"the time budget of {self.seconds} s is spent"
