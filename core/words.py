"""Numbers as people read them: on the page, in the console, on plots."""

import math

LN10 = math.log(10)
MOST_NUMBERS = 4
"""Of larger batches the lowest and the highest number are given."""


def probability(log_p):
    """Write a probability given by its natural logarithm: 0.31, or 1e-23 where it is small.

    Example:
        >>> probability(-0.1), probability(-53.0), probability(None)
        ('0.90', '1e-23', 'unknown')
    """
    if math.isnan(number(log_p)):
        return "0" if log_p == -math.inf else "unknown"
    return f"{math.exp(log_p):.2f}" if log_p > math.log(0.01) else f"1e{log_p / LN10:.0f}"


def written(value, form):
    """Write a number in the format `form`, and what is none in words.

    Example:
        >>> written(0.5, ".3f"), written(None, ".3f")
        ('0.500', 'unknown')
    """
    return "unknown" if math.isnan(number(value)) else format(value, form)


def listed(values):
    """Write the numbers (B,) of a batch, a tensor or a list; None stands for what is unknown.

    Example:
        >>> listed([0.25, 1.5]), listed([0.0, 3.0, 1.0, 2.0, 4.0])
        ('0.25 1.5', '0 .. 4')
    """
    values = [None if value is None else float(value) for value in values]
    if len(values) > MOST_NUMBERS and None not in values:
        return f"{min(values):.3g} .. {max(values):.3g}"
    return " ".join(written(value, ".3g") for value in values)


def counted(number, noun):
    """Write how many there are of something.

    Example:
        >>> counted(1, "iteration"), counted(2, "iteration")
        ('1 iteration', '2 iterations')
    """
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def first_line(error):
    """Return an error's message where one line is asked for: its first.

    Example:
        >>> first_line(RuntimeError("out of memory\\nTried to allocate 2 GiB"))
        'out of memory'
    """
    return (str(error).splitlines() or [""])[0]


def duration(seconds):
    """Write a time.

    Example:
        >>> duration(12.3), duration(200), duration(4800)
        ('12 s', '3 min', '1 h 20 min')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def number(value):
    """Return a number of a history as a float; NaN where there is none, or an infinite one."""
    return math.nan if value is None or not math.isfinite(value) else float(value)
