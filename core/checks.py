"""Numbers are checked where they enter: NaN passes every comparison that is written as a refusal."""

import math
from numbers import Integral


def check_finite(**numbers):
    """Raise ValueError for the first of some numbers, by name, that is NaN or infinite.

    Example:
        >>> check_finite(weight=0.01, mu=1)
        >>> check_finite(weight=math.nan)
        Traceback (most recent call last):
        ValueError: weight is nan; expected a finite number
    """
    for name, value in numbers.items():
        if not math.isfinite(value):
            raise ValueError(f"{name} is {value}; expected a finite number")


def check_positive(**numbers):
    """Raise ValueError for the first of some numbers, by name, that is not finite and above 0."""
    for name, value in numbers.items():
        if not value > 0:
            raise ValueError(f"{name} is {value}; expected a number > 0")
    check_finite(**numbers)


def check_whole(least, **numbers):
    """Raise ValueError for the first of some numbers, by name, that is not whole, or below `least`."""
    for name, value in numbers.items():
        if not isinstance(value, Integral):
            raise ValueError(f"{name} is {value}; expected a whole number")
        if value < least:
            raise ValueError(f"{name} is {value}; expected {least} or more")
