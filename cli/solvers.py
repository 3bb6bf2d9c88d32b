"""The solvers by the names that the command line has for them, each with the settings of its paper."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from .. import core

SEARCH = {"iterations": 50, "part": "all"}
ASCENT = SEARCH | {"lr": 0.01, "gamma": 1.0}
NOT_ITS_OWN = ("iterations", "part", "gamma")
"""Settings of the loop, the map and the regulariser; all others are the solver's."""


@dataclass(frozen=True)
class Choice:
    """One solver of the command line.

    Attributes:
        when: when to take it, for the help.
        defaults: every option it takes, with its default.
        make: called with those of them that are its own, by name; returns core's solver.
        exact: whether it needs a reward with a gradient.
    """

    when: str
    defaults: dict
    make: Callable
    exact: bool = False


def _estimating(estimator):
    return lambda lr, candidates: core.GradientAscent(lr, estimator=estimator(candidates))


SOLVERS = {
    "trust": Choice("start here: no learning rate to choose", SEARCH, core.default_solver, exact=True),
    "adam": Choice("the paper's", ASCENT, core.GradientAscent, exact=True),
    "sgd": Choice("steps as long as the gradient", ASCENT, lambda lr: core.GradientAscent(lr, "sgd"), exact=True),
    "reno": Choice(
        "x_T alone, for models of one or few steps", SEARCH | {"part": "initial", "lr": 5.0},
        lambda lr: replace(core.GradientAscent.reno(), lr=lr), exact=True,
    ),
    "hybrid1": Choice(
        "rewards without gradient that bear noise on the pixels", ASCENT | {"candidates": 8}, _estimating(core.Hybrid1)
    ),
    "hybrid2": Choice("other rewards without gradient", ASCENT | {"candidates": 4}, _estimating(core.Hybrid2)),
    "hybrid2-ou": Choice(
        "the same by steps of a given length, quicker", ASCENT | {"lr": None, "candidates": 4},
        lambda lr, candidates: core.GradientAscent.ou(core.Hybrid2(candidates), lr),
    ),
    "zo-sgd": Choice("no backward pass, slowest", ASCENT | {"candidates": 16}, _estimating(core.ZerothOrder)),
    "zeno": Choice(
        "no backward pass, better", SEARCH | {"candidates": 16, "beta": None, "schedule": "constant"}, core.ZeNO
    ),
    "best-of-n": Choice("new noises only", SEARCH | {"candidates": 16}, core.Search.best_of_n),
    "zero-order": Choice("best of nearby noises", SEARCH | {"candidates": 16, "beta": 0.1}, core.Search.zero_order),
    "pcn": Choice("one nearby noise at a time", SEARCH | {"beta": 0.1}, core.Search.pcn),
    "trs": Choice(
        "near the four best, by steps that adapt", SEARCH | {"candidates": 16, "beta": 0.3},
        lambda candidates, beta: core.TRS(candidates, beta=beta),
    ),
    "tilt": Choice(
        "one run that leans towards the reward, the quickest", SEARCH | {"iterations": 1, "strength": 0.3},
        lambda strength: core.Tilt(strength), exact=True,
    ),
    "tilt-decoder": Choice(
        "the same without a gradient of the model", SEARCH | {"iterations": 1, "strength": 0.3},
        lambda strength: core.Tilt(strength, "decoder"), exact=True,
    ),
    "fast": Choice(
        "many steps for the price of a few", SEARCH | {"iterations": 1, "calls": 100}, core.Fast, exact=True
    ),
    "lgd": Choice(
        "one guided run in place of a search", SEARCH | {"iterations": 1, "candidates": 10, "scale": 1.0},
        lambda candidates, scale: core.LGD(candidates, scale), exact=True,
    ),
}  # fmt: skip


def chosen(options):
    """Return the name of the solver: the option's; else "adam" where one of its settings is given, and "trust" else."""
    of_adam = (getattr(options, name, None) for name in ("lr", "gamma"))
    return options.solver or ("trust" if all(value is None for value in of_adam) else "adam")


def solver_settings(options):
    """Return every setting of the chosen solver by name: the option's value, or the solver's default.

    Raises:
        ValueError: an option was given that the solver does not take.
    """
    solver = chosen(options)
    defaults = SOLVERS[solver].defaults
    names = dict.fromkeys(name for choice in SOLVERS.values() for name in choice.defaults)
    given = {name: getattr(options, name) for name in names if getattr(options, name, None) is not None}
    foreign = [f"--{name}" for name in given if name not in defaults]
    if foreign:
        taken = ", ".join(f"--{name}" for name in defaults)
        raise ValueError(f"--solver {solver} takes {taken}; leave out {', '.join(foreign)}")
    return {"solver": solver, **defaults, **given}


def solver_of(settings):
    """Return core's solver and its regulariser, or None, for what `solver_settings` returned."""
    choice = SOLVERS[settings["solver"]]
    solver = choice.make(**{name: settings[name] for name in choice.defaults if name not in NOT_ITS_OWN})
    if settings["solver"] == "reno":
        return solver, core.NormRegularizer()
    return solver, core.ProbabilityRegularizer(settings["gamma"]) if settings.get("gamma") else None


def check_reward(reward, options):
    """Raise ValueError where what was chosen needs a gradient that the chosen reward does not have."""
    solver = chosen(options)
    if getattr(options, "check_gradient", False) and not reward.differentiable:
        raise ValueError(f"--reward {options.reward} has no gradient that --check-gradient could compare; leave it out")
    if SOLVERS[solver].exact and not reward.differentiable:
        without = [name for name, choice in SOLVERS.items() if not choice.exact]
        raise ValueError(
            f"--reward {options.reward} has no gradient and --solver {solver} needs one; take --solver"
            f" {', '.join(without)}, or --reward jpeg-proxy"
        )
