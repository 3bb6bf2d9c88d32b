"""What an experiment is, and how its claims are judged.

An experiment asks one question of a paper: it runs independent cases, each in a setting and from a seed of its own, and
every claim of the paper is a function of their results that gives one number a seed, its effect, which is above 0
where the claim holds. Over the seeds the verdict is

    holds           the 95 % interval of the mean effect lies above 0
    does not hold   it lies below 0
    undecided       it contains 0, or there are fewer than two seeds

The interval is Student's, mean +- t sd / sqrt(n) with n - 1 degrees of freedom; it takes the effects for independent
and about normal, as means over pictures are. The effect size is mean / sd.

A new experiment is a module of its own with a module-level function `run` and an `Experiment`, which is named as the
module and listed in `all_experiments`.
"""

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec

HOLDS, FAILS, UNDECIDED = "holds", "does not hold", "undecided"


@dataclass(frozen=True)
class Claim:
    """One claim of a paper.

    Attributes:
        text: what the paper says, in one sentence, with its place: "Figure 5: ..".
        effect: what the number is, with its unit: "reward with the regulariser minus without, at equal iterations".
        values: results -> one effect a seed, above 0 where the claim holds; a seed that cannot tell is left out.
    """

    text: str
    effect: str
    values: Callable[[list[dict]], list[float]]


@dataclass(frozen=True)
class Experiment:
    """One experiment of a paper.

    Attributes:
        name: the command's word, "dno_figure_5".
        title: of its part of the report.
        question: what it asks, one sentence.
        setting: model, sampler, solver and iterations, and where the paper's were larger. What is recorded of one
            setting is never mixed with another's: change the words when you change the numbers.
        cases: number of seeds -> independent cases, each the keyword arguments of `run`, JSON types. More seeds add
            cases and change none.
        run: one case -> what was measured, by names other than "case", "seconds" and "commit", JSON types. Under
            "pictures" it may give small pictures by name, uint8 (3, H, W). A module's function, since other processes
            call it.
        claims: of the paper.
        draw: results, one or more -> a matplotlib Figure. A result is what `run` returned with "case", "seconds" and,
            by name, the paths of its "pictures".
        table: results -> rows of texts, the first of which names the columns: what the paper shows as a table, or None.
        whole_seeds: whether claims and figure compare the cases of a seed, so that they are not shown a seed of which
            one has failed.
        needs: names of the modules that it imports and the pack does not require, each with the package that pip
            installs it by; without them it is left out.
    """

    name: str
    title: str
    question: str
    setting: str
    cases: Callable[[int], list[dict]]
    run: Callable[..., dict]
    claims: tuple[Claim, ...]
    draw: Callable
    table: Callable[[list[dict]], list[list[str]]] | None = None
    whole_seeds: bool = True
    needs: dict[str, str] = field(default_factory=dict)

    @property
    def lacks(self):
        """Why it cannot be run here, a sentence; '' where it can."""
        missing = [package for module, package in self.needs.items() if find_spec(module) is None]
        if not missing:
            return ""
        return f"Left out: it needs {' and '.join(missing)}. To run it: pip install {' '.join(missing)}"


@dataclass(frozen=True)
class Verdict:
    """What the effects of a claim say together.

    Attributes:
        word: HOLDS, FAILS or UNDECIDED.
        effects: one a seed.
        mean: of the effects.
        low, high: the 95 % interval of the mean; of fewer than two effects everything.
        size: mean / standard deviation, infinite where all effects agree.
    """

    word: str
    effects: list
    mean: float
    low: float
    high: float
    size: float


def verdict(effects):
    """Return the Verdict of a claim's effects, one a seed.

    Example:
        >>> verdict([0.9, 1.0, 1.1]).word
        'holds'
        >>> verdict([-1.0, 1.0, 0.5]).word
        'undecided'
    """
    effects = [float(effect) for effect in effects]
    mean = statistics.fmean(effects) if effects else math.nan
    if len(effects) < 2:
        return Verdict(UNDECIDED, effects, mean, -math.inf, math.inf, math.nan)
    deviation = statistics.stdev(effects)
    half = t_quantile(len(effects) - 1) * deviation / math.sqrt(len(effects))
    size = mean / deviation if deviation else math.copysign(math.inf, mean) if mean else 0.0
    low, high = mean - half, mean + half
    word = HOLDS if low > 0 else FAILS if high < 0 else UNDECIDED
    return Verdict(word, effects, mean, low, high, size)


def by_seed(results, effects):
    """Return the mean of the effects of each seed's cases, one a seed, for experiments of several cases a seed.

    Args:
        results: whose "case" holds "seed".
        effects: one a result.
    """
    seeds = {}
    for result, effect in zip(results, effects, strict=True):
        seeds.setdefault(result["case"]["seed"], []).append(effect)
    return [statistics.fmean(values) for values in seeds.values()]


def t_quantile(degrees, within=0.95):
    """Return t such that Student's variable of so many degrees of freedom lies within +- t with that probability.

    Example:
        >>> round(t_quantile(3), 3)
        3.182
    """
    low, high = 0.0, 1.0
    while _within(high, degrees) < within:
        high *= 2
    for _ in range(80):  # halves the error of a number of 64 bits until nothing is left of it
        middle = (low + high) / 2
        low, high = (low, middle) if _within(middle, degrees) > within else (middle, high)
    return high


def _within(t, degrees):
    """Return the probability of +- t, by the finite series that whole degrees have (Abramowitz and Stegun 26.7.3-4)."""
    angle = math.atan(t / math.sqrt(degrees))
    square = math.cos(angle) ** 2
    odd = degrees % 2
    term = total = math.cos(angle) if odd else 1.0
    for k in range(2 + odd, degrees - 1, 2):
        term *= (k - 1) / k * square
        total += term
    if not odd:
        return math.sin(angle) * total
    return 2 / math.pi * (angle + (math.sin(angle) * total if degrees > 1 else 0.0))
