"""Reward against calls of the model: Tilt and TrustAscent beside Adam with PRNO and ReNO, on the embedded model.

    python tests/benchmarks/calls.py --out tests/benchmarks/results/calls.json

A call is one evaluation of the guided pair of networks, forward or backward; graphs are kept, so that no step is run
again. Decodes and rewards are in the seconds alone. Every search begins with the start's own evaluation, which is
counted, and ends with a check of what it returns, which is not.

All searches have the same floors: P of z and of x_T, and a consistency with the prompt within 0.05 of the start's. The
main figure is the gain of the best noise that passes them, by a number of calls; beside it the gain, whatever the
consistency. The pairs of prompt and seed were used for no decision: what is tunable was tuned on `TUNING`. Each pair
runs alone, all of one pair before the next. The same command goes on after an interruption: finished runs are kept.
"""

import argparse
import itertools
import math
import time
from pathlib import Path

import numpy as np
import study
import torch
from comfyui_dno import core, rewards

TUNING = (("black dog", 11), ("white cat", 12), ("red duck", 13), ("yellow rabbit", 14))
PAIRS = (
    ("red owl", 100), ("blue cat", 101), ("green dog", 102), ("white duck", 103), ("black rabbit", 104),
    ("yellow owl", 105), ("blue duck", 106), ("red rabbit", 107), ("white owl", 108), ("green cat", 109),
    ("black duck", 110), ("yellow dog", 111), ("blue rabbit", 112), ("red cat", 113), ("white dog", 114),
    ("green owl", 115),
)  # fmt: skip
MAPS = {
    4: {"eta": 0.5, "cfg": 2.0},
    8: {"eta": 0.5, "cfg": 3.0},
    20: {"eta": 1.0, "cfg": 3.0},
}
"""Steps -> the rest of the sampling."""
BUDGETS = {4: (20, 50, 100, 200), 8: (20, 50, 100, 200), 20: (40, 60, 100, 200, 340)}
"""Steps -> the numbers of calls that are told; the last ends a search. At 20 steps it is 8 updates by a gradient."""
KEPT, LEAST = 0.05, round(math.log(core.P_SUSPICIOUS), 4)
"""The floors: how far the consistency may fall, and the least ln P."""
LEAST_PAIRS = 4
"""Fewer are no result: they are not told."""
REWARDS = ("brightness", "consistency", "colour target", "jpeg proxy", "match", "random head")


def ascent(lr):
    return lambda: (core.GradientAscent(lr), core.ProbabilityRegularizer())


SOLVERS = {
    "adam .01": ascent(0.01),
    "adam .03": ascent(0.03),
    "adam .1": ascent(0.1),
    "reno": lambda: (core.GradientAscent.reno(), core.NormRegularizer()),
    "trust": lambda: (core.TrustAscent(), None),
    "tilted trust": lambda: (core.TrustAscent(tilt=0.3), None),
    "tilt .2": lambda: (core.Tilt(0.2), None),
    "tilt .3": lambda: (core.Tilt(0.3), None),
    "tilt .4": lambda: (core.Tilt(0.4), None),
    "tilt .5 decoder": lambda: (core.Tilt(0.5, "decoder"), None),
}
ON = {"reno": (4, 8)} | {name: (20,) for name in SOLVERS if name.startswith("tilt")}
"""Solver -> the steps that it is tried at; all where it is not here."""


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--solvers", default=",".join(SOLVERS), help="which, parted by commas (default all)")
    parser.add_argument("--rewards", default=",".join(REWARDS), help="likewise")
    parser.add_argument("--steps", default=",".join(map(str, MAPS)), help="likewise, the numbers of steps")
    parser.add_argument("--pairs", default=f"0:{len(PAIRS)}", help="which of the pairs of prompt and seed, FIRST:END")
    parser.add_argument("--tuning", action="store_true", help="on the pairs for tuning")
    parser.add_argument("--calls", type=int, help="end a search by so many calls, in a file of its own")
    parser.add_argument("--out", type=Path, required=True, help="JSON file; the gains are drawn beside it")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.calls:
        for steps, budget in BUDGETS.items():
            BUDGETS[steps] = (*(calls for calls in budget if calls < options.calls), options.calls)
    pairs = TUNING if options.tuning else PAIRS[slice(*map(int, options.pairs.split(":")))]
    maps = {str(steps): {**settings, "calls": BUDGETS[steps][-1]} for steps, settings in MAPS.items()}
    runs = study.Runs(options.out, {"maps": maps, "tuning": options.tuning})
    for pair in pairs:
        for steps in map(int, options.steps.split(",")):
            for reward in options.rewards.split(","):
                for solver in options.solvers.split(","):
                    if steps in ON.get(solver, MAPS):
                        name = f"{steps} steps | {reward} | {solver} | {pair[0]} {pair[1]}"
                        runs.once(name, run, *pair, steps, reward, solver)
    plot(runs.done, options.out.with_suffix(".png"))
    runs.finish("calls.py", summaries(runs.done))


class Counted:
    """A denoise that counts its calls forward, and backward when the gradient comes."""

    def __init__(self, denoise):
        self.denoise, self.calls = denoise, 0

    def __call__(self, x, sigma):
        self.calls += 1
        denoised = self.denoise(x, sigma)
        if denoised.requires_grad:
            denoised.register_hook(self._count_backward)
        return denoised

    def _count_backward(self, gradient):
        self.calls += 1


class Match:
    """Minus a hundred times the mean square difference to a picture."""

    name = "match"

    def __init__(self, picture):
        self.picture = picture

    def __call__(self, images, prompts=None):
        return -100 * (images - self.picture).square().flatten(1).mean(dim=1)


class RandomHead:
    """Ten times the mean answer of a fixed random network of three convolutions."""

    name = "random head"

    def __init__(self):
        generator = torch.Generator().manual_seed(5)
        self.weights = [
            torch.randn(shape, generator=generator) / (shape[1] * 25) ** 0.5
            for shape in ((16, 3, 5, 5), (32, 16, 5, 5), (1, 32, 5, 5))
        ]

    def __call__(self, images, prompts=None):
        x = 2 * images - 1
        for weight in self.weights[:-1]:
            x = torch.conv2d(x, weight, stride=2).relu()
        return 10 * torch.conv2d(x, self.weights[-1], stride=2).flatten(1).mean(dim=1)


def reward_of(name, sample_map, seed):
    """Return a reward by its name; what is matched is another noise's picture of the same prompt."""
    if name == "match":
        return Match(sample_map.sample(sample_map.randn(seed + 500)))
    return {
        "brightness": rewards.Brightness, "consistency": rewards.Consistency, "jpeg proxy": rewards.JPEGProxy,
        "colour target": lambda: rewards.ColorTarget((0.2, 0.5, 0.9)), "random head": RandomHead,
    }[name]()  # fmt: skip


def run(prompt, seed, steps, reward, solver):
    """Return the curves of one search: calls, seconds of one core, score, consistency, ln P of z and of x_T."""
    sample_map = core.load_embedded(prompt, steps=steps, keep_graphs=True, **MAPS[steps])
    judged = reward_of(reward, sample_map, seed)
    chosen, regularizer = SOLVERS[solver]()
    if solver == "reno":
        sample_map.part = "initial"
    counted = sample_map.denoise = Counted(sample_map.denoise)
    calls, seconds, spent, most = [], [], 0, BUDGETS[steps][-1]

    def count(evaluation, best):
        nonlocal spent
        # Without the gradient that follows it, nor the run that Tilt makes of it.
        calls.append(min(spent + steps, counted.calls))
        seconds.append(time.process_time() - started)
        spent = counted.calls
        if spent >= most:
            raise KeyboardInterrupt

    own = reward == "consistency"
    started = time.process_time()
    result = core.optimize(
        sample_map, judged, sample_map.randn(seed), chosen, regularizer,
        iterations=1 if isinstance(chosen, core.Tilt) else most, watch=[] if own else [rewards.Consistency()],
        floors={} if own else {"consistency": core.Drop(KEPT)}, callback=count,
    )  # fmt: skip
    if result.failure:  # an interrupt is the budget's
        raise result.failure
    keys = {"score": "score", "consistency": "score" if own else "watch/consistency"}
    keys |= {"log_p": "log_p", "log_p_initial": "log_p_initial"}
    columns = {name: result.history.column(key) for name, key in keys.items()}
    columns["seconds"] = seconds
    return {"calls": calls} | {name: [round(value, 4) for value in values] for name, values in columns.items()}


def gain(run, calls, kept=True):
    """Return the gain over the start of the best noise by that many calls; `kept`: of those above the floors."""
    first = run["consistency"][0] - KEPT
    return max(
        score - run["score"][0]
        for row, score in enumerate(run["score"])
        if row == 0 or run["calls"][row] <= calls and (
            not kept or run["consistency"][row] >= first
            and min(run["log_p"][row], run["log_p_initial"][row]) >= LEAST
        )
    )  # fmt: skip


def summaries(runs):
    """Return, by steps, reward and solver, the gains at each budget and what the last noise is like, over the pairs."""
    found = {}
    for steps in MAPS:
        for reward in REWARDS:
            for solver in SOLVERS:
                name = f"{steps} steps | {reward} | {solver} |"
                chosen = [run for key, run in runs.items() if key.startswith(name)]
                if len(chosen) >= LEAST_PAIRS:
                    found.setdefault(f"{steps} steps", {}).setdefault(reward, {})[solver] = summary(chosen, steps)
    return found


def summary(runs, steps):
    return {
        "pairs": len(runs),
        "gain": {calls: study.mean_sd(gain(run, calls) for run in runs) for calls in BUDGETS[steps]},
        "gain whatever the consistency": study.mean_sd(gain(run, BUDGETS[steps][-1], kept=False) for run in runs),
        "last": {
            "calls": study.mean_sd(run["calls"][-1] for run in runs),
            "seconds": study.mean_sd(run["seconds"][-1] for run in runs),
            "consistency lost": study.mean_sd(run["consistency"][0] - run["consistency"][-1] for run in runs),
            "lowest ln P of z": min(run["log_p"][-1] for run in runs),
            "lowest ln P of x_T": min(run["log_p_initial"][-1] for run in runs),
        },
    }


def plot(runs, path):
    """Draw the mean gain above the floors, by calls and by seconds of one core, for each number of steps and reward."""
    from matplotlib.figure import Figure

    known = [steps for steps in MAPS if f"{steps} steps" in summaries(runs)]
    figure = Figure(figsize=(3 * len(REWARDS), 5.2 * len(known)), dpi=70, layout="constrained")
    grid, labelled = figure.subplots(2 * len(known), len(REWARDS), squeeze=False), {}
    for row, (steps, unit) in enumerate(itertools.product(known, ("calls", "seconds"))):
        for axes, reward in zip(grid[row], REWARDS, strict=True):
            for number, solver in enumerate(SOLVERS):
                prefix = f"{steps} steps | {reward} | {solver} |"
                curves = [above_floors(run, unit) for name, run in runs.items() if name.startswith(prefix)]
                if len(curves) < LEAST_PAIRS:
                    continue
                if solver.startswith("tilt "):  # one run, and so one find
                    spent, found = (np.mean([each[axis][-1] for each in curves]) for axis in (0, 1))
                    (line,) = axes.plot(spent, found, "o", color=f"C{number}", markersize=5)
                else:
                    spent = np.linspace(0, min(x[-1] for x, _ in curves), 60)
                    # What a search had found by then, and not what lies between two finds.
                    found = [y[np.searchsorted(x, spent, side="right") - 1] for x, y in curves]
                    (line,) = axes.plot(spent, np.mean(found, axis=0), color=f"C{number}")
                labelled[solver] = line, min(len(curves), labelled.get(solver, (line, len(curves)))[1])
            axes.set(xlabel=f"{unit}, {steps} steps", title=reward)
            axes.grid(alpha=0.3)
    lines, names = zip(*((line, f"{name} ({pairs})") for name, (line, pairs) in labelled.items()), strict=True)
    figure.legend(lines, names, loc="outside lower center", ncols=len(names), fontsize=9)
    figure.savefig(path)


def above_floors(run, unit):
    """Return the calls or seconds of a run's evaluations, and the gain of the best above the floors by then."""
    gains = [gain(run, calls) for calls in run["calls"]]
    return np.array([0, *run[unit][1:]], float), np.array([0.0, *gains[1:]])


if __name__ == "__main__":
    main()
