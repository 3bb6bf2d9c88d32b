"""What the measurements of a use say: right, refused, or in which way not."""

from dataclasses import dataclass

RIGHT, REFUSED, MISSING, STOCK = "right", "refused", "not in this version", "ComfyUI fails too"
LATE, WRONG, CRASH = "refused late", "wrong", "crash"
GOOD = (RIGHT, REFUSED, MISSING, STOCK)
"""What a user may meet: all else is to be mended."""

ACROSS = 40
"""How much less exact a difference along a random direction is than along the gradient; 34 times was measured."""


@dataclass
class Verdict:
    """What is said of one part of a use.

    Attributes:
        word: one of those above.
        why: the error's message, or which numbers are too large.
    """

    word: str
    why: str = ""

    @property
    def is_good(self):
        return self.word in GOOD


def verdicts(row):
    """Return the verdicts on a use: of plain sampling, of searches by gradient and of searches by candidates.

    Args:
        row: of `measures.measured`.
    """
    if "missing" in row:
        return dict.fromkeys(("start", "gradient", "search"), Verdict(MISSING))
    if row["stock"]["error"]:
        return dict.fromkeys(("start", "gradient", "search"), Verdict(STOCK, row["stock"]["error"]))
    rounding, slope = row["rounding"], row["slope"]
    limits = {
        "start": {"euler": rounding, "replay": rounding},
        "gradient": {"along": slope, "across": ACROSS * slope},
        "climb": {"gain": 0.0, "replay": rounding},
        "search": {"replay": rounding, "singles": rounding},
    }
    found = {part: verdict(row[part], limit) for part, limit in limits.items()}
    if found["gradient"].word == RIGHT:
        found["gradient"] = found["climb"]
    return {part: found[part] for part in ("start", "gradient", "search")}


def verdict(tried, limits):
    """Return the verdict on one attempt.

    Args:
        tried: a `measures.Tried` as a dict.
        limits: what its values must not exceed, by name; of `gain`, which is more the better, what it must exceed.
    """
    if tried["error"]:
        if not tried["own"]:
            return Verdict(CRASH, tried["error"])
        return Verdict(LATE if tried["stages"] else REFUSED, tried["error"].partition(": ")[2])
    values = tried["values"]
    good = {name: values[name] > limit if name == "gain" else values[name] <= limit for name, limit in limits.items()}
    wrong = [f"{name} {values[name]:.1g}" for name, is_good in good.items() if not is_good]
    return Verdict(WRONG, ", ".join(wrong)) if wrong else Verdict(RIGHT)
