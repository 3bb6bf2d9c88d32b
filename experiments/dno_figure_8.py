"""Figure 8: rewards without a gradient, climbed by ZO-SGD, Hybrid-1 and Hybrid-2."""

import itertools
import time

import numpy as np

from .. import core, rewards
from . import preference_scorers
from .drawing import band, panels
from .embedded import prompts_of, search
from .experiment import Claim, Experiment

STEPS, ITERATIONS = 8, 12
REWARDS = {"jpeg": 0.01, "scorer": 0.01}
"""Learning rates; the paper takes 0.001 for its aesthetic score, by which this one would not move."""
ARMS = {"ZO-SGD": "C3", "Hybrid-1": "C1", "Hybrid-2": "C0"}
TRUE = "scorer, true gradient"
"""The case that climbs the scorer along its own gradient, with which the three estimates of it are compared."""


def estimator(arm, seed):
    """Return one of the paper's three with its q and mu, with directions of the seed's own."""
    if arm == "ZO-SGD":
        return core.ZerothOrder(q=16, mu=0.01, seed=seed)
    return core.Hybrid1(q=8, mu=0.01, seed=seed) if arm == "Hybrid-1" else core.Hybrid2(q=4, mu=0.02, seed=seed)


def run(seed, reward):
    """Climb one reward from the same noise: in the three ways, or along its true gradient."""
    (prompt,) = prompts_of("yellow", seed, 1)
    sample_map = core.load_embedded(prompt, steps=STEPS, keep_graphs=True)
    judge = rewards.JPEG() if reward == "jpeg" else preference_scorers.trained(seed)[0]
    estimators = {"true": core.Exact()} if reward == TRUE else {arm: estimator(arm, seed) for arm in ARMS}
    found = {}
    for arm, each in estimators.items():
        clock, solver = Clock(), core.GradientAscent(REWARDS["scorer" if reward == TRUE else reward], estimator=each)
        history = search(sample_map, judge, seed, solver, None, ITERATIONS, callback=clock)
        best = list(itertools.accumulate(history.column("score"), max))
        # The noise that is evaluated in an iteration has cost what was spent by the end of the one before.
        found[arm] = {"best": best, "seconds": [0.0, *clock.seconds[:-1]]}
    return found


class Clock:
    """A callback that keeps the seconds of one core after every evaluation, less those before the first."""

    def __init__(self):
        self.began, self.seconds = time.process_time(), []

    def __call__(self, evaluation, best):
        self.seconds.append(time.process_time() - self.began)


def gain(curve, seconds=None):
    """Return how far the best so far is above the start: at the end, or after so many seconds."""
    best = curve["best"]
    return (best[-1] if seconds is None else float(np.interp(seconds, curve["seconds"], best))) - best[0]


def ahead(results, reward, first, second, by_second=False):
    """Return the gain of the first minus the second's: at the end, or when the sooner one's seconds are spent."""
    effects = []
    for found in results:
        if found["case"]["reward"] == reward:
            pair = found[first], found[second]
            seconds = min(curve["seconds"][-1] for curve in pair) if by_second else None
            effects.append(gain(pair[0], seconds) - gain(pair[1], seconds))
    return effects


def ahead_by_its_gradient(results, second="Hybrid-2"):
    """Return the gain along the true gradient minus that of an estimate of it, after equal iterations."""
    of_the_scorer, true = (
        {found["case"]["seed"]: found for found in results if found["case"]["reward"] == reward}
        for reward in ("scorer", TRUE)
    )
    return [gain(true[seed]["true"]) - gain(found[second]) for seed, found in of_the_scorer.items() if seed in true]


def draw(results):
    """Draw the gain of the best so far by iteration and by second."""
    figure, axes = panels(len(REWARDS), 2)
    for row, reward in zip(axes, REWARDS, strict=True):
        chosen = [found for found in results if found["case"]["reward"] == reward]
        if not chosen:
            continue
        true = [found["true"]["best"] for found in results if found["case"]["reward"] == TRUE]
        if reward == "scorer" and true:
            band(row[0], [[value - best[0] for value in best] for best in true], "true gradient", "C2")
        for arm, color in ARMS.items():
            gains = [[value - found[arm]["best"][0] for value in found[arm]["best"]] for found in chosen]
            band(row[0], gains, arm, color)
            grid = np.linspace(0, min(found[arm]["seconds"][-1] for found in chosen), 50)
            pairs = zip(chosen, gains, strict=True)
            band(row[1], [np.interp(grid, found[arm]["seconds"], g) for found, g in pairs], arm, color, grid)
        row[0].set(title=f"{reward}: gain of the best so far", xlabel="iteration")
        row[1].set(title=f"{reward}: the same by time", xlabel="seconds of one core")
        row[0].legend()
    return figure


NAMES = {"jpeg": "JPEG compressibility", "scorer": "a preference score"}
RIVALS = ("Hybrid-2", "ZO-SGD"), ("Hybrid-2", "Hybrid-1"), ("Hybrid-1", "ZO-SGD")
SAID = {
    ("Hybrid-2", "ZO-SGD"): "Figure 8: Hybrid-2 climbs {reward} faster than ZO-SGD{unit}.",
    ("Hybrid-2", "Hybrid-1"): "Figure 8: Hybrid-2 climbs {reward} faster than Hybrid-1{unit}.",
    ("Hybrid-1", "ZO-SGD"): "Figure 8: ZO-SGD is the slowest, behind Hybrid-1, on {reward}{unit}.",
}
EXPERIMENT = Experiment(
    name="dno_figure_8",
    title="Figure 8: rewards without a gradient",
    question="Which estimate of the gradient climbs fastest, by iterations and by time?",
    setting=(
        f'"yellow <animal>", embedded model, {STEPS} steps (paper: 50), cfg 3, eta 1, Adam at'
        f" {REWARDS['jpeg']} (paper: 0.01, for its score 0.001), {ITERATIONS} iterations, no regulariser, q 16, 8 and"
        " 4, mu 0.01, 0.01 and 0.02; minus the size as JPEG in kB, and a preference scorer that is asked for scores"
        " alone, or for its gradient too. The best so far is compared for all (paper: for ZO-SGD)."
    ),
    cases=lambda seeds: [{"seed": seed, "reward": reward} for seed in range(seeds) for reward in (*REWARDS, TRUE)],
    run=run,
    claims=(*(
        Claim(
            SAID[pair].format(reward=NAMES[reward], unit=", by time" if by_second else ", by iterations"),
            f"gain of {pair[0]} minus that of {pair[1]}, "
            + ("when the sooner one is done" if by_second else "after equal iterations"),
            lambda results, reward=reward, pair=pair, by_second=by_second: ahead(results, reward, *pair, by_second),
        )
        for reward in REWARDS for pair in RIVALS for by_second in (False, True)
    ), Claim(
        "Section 5.3: along the true gradient equally many steps lead further than along the estimated one.",
        "gain along a preference score's true gradient minus that of Hybrid-2, after equal iterations",
        ahead_by_its_gradient,
    )),
    draw=draw,
)  # fmt: skip
