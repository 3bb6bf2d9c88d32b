"""Searches on the embedded model, as the experiments record them."""

import math

from .. import core, rewards
from ..core.models.embedded.vocabulary import ANIMALS
from ..core.words import probability

LN10 = math.log(10)


def prompts_of(colour, seed, count):
    """Return the prompts of a seed, "<colour> <animal>": the animals take turns, so that seeds differ in them too."""
    return [f"{colour} {ANIMALS[(seed * count + index) % len(ANIMALS)]}" for index in range(count)]


def search(sample_map, reward, seed, solver, regularizer, iterations, watch=(), callback=None):
    """Search from true noise of `seed`, watching the consistency too, and return the History.

    No floor holds anything back: experiments look at every noise on the way, not at the best.
    """
    result = core.optimize(
        sample_map, reward, sample_map.randn(seed), solver, regularizer, iterations, floor=0.0,
        watch=(rewards.Consistency(), *watch), callback=callback,
    )  # fmt: skip
    return result.whole().history


def curves(history):
    """Return what a search recorded by name, a curve a picture: reward, log10 P(z) and of x_T, and what was watched."""
    items = range(len(history.rows[0]["score"]))
    found = {"reward": [history.column("score", item) for item in items]}
    for name, key in (("log10_p", "log_p"), ("log10_p_x_T", "log_p_initial")):
        found[name] = [[value / LN10 for value in history.column(key, item)] for item in items]
    return found | {name: [history.column(f"watch/{name}", item) for item in items] for name in history.watched}


def sheet(history, count, item=0):
    """Return `count` pictures of the way, evenly spaced from first to last, by "iteration: reward" and P."""
    last, kept = len(history.rows) - 1, dict(zip(history.picture_rows, history.pictures, strict=True))
    found = {}
    for index in range(count):
        row = round(last * index / max(count - 1, 1))
        p = probability(history.column("log_p", item)[row])
        found[f"{row}: {history.column('score', item)[row]:.2f}\nP {p}"] = kept[row][item]
    return found
