"""Reward against calls of the model: Tilt and TrustAscent beside Adam with PRNO, on the embedded model.

    python tests/benchmarks/calls.py --out tests/benchmarks/results/calls.json

A call is one evaluation of the guided pair of networks, forward or backward; graphs are kept, so that no step is run
again. Decodes and rewards are not counted. Every search begins with the start's own evaluation, which is counted, and
ends with a check of what it returns, which is not.

The main figure is the gain over the start of the best noise found by a number of calls whose consistency with the
prompt is within 0.05 of the start's; beside it the gain, whatever the consistency, of the last noise. Each pair of
prompt and seed runs alone. Run the same command again after an interruption: finished runs are kept.
"""

import argparse
from pathlib import Path

import study
import torch
from comfyui_dno import core, rewards

PAIRS = (
    ("red owl", 100), ("blue cat", 101), ("green dog", 102), ("white duck", 103), ("black rabbit", 104),
    ("yellow owl", 105), ("blue duck", 106), ("red rabbit", 107),
)  # fmt: skip
REWARDS = {
    "brightness": rewards.Brightness, "contrast": rewards.Contrast, "consistency": rewards.Consistency,
    "jpeg proxy": rewards.JPEGProxy,
}  # fmt: skip
SOLVERS = {
    "adam .01": lambda: core.GradientAscent(0.01),
    "adam .03": lambda: core.GradientAscent(0.03),
    "trust": core.TrustAscent,
    "tilt .2": lambda: core.Tilt(0.2),
    "tilt .3": lambda: core.Tilt(0.3),
    "tilt .4": lambda: core.Tilt(0.4),
    "tilt .5 decoder": lambda: core.Tilt(0.5, "decoder"),
}
BUDGETS = (40, 60, 100, 160)
KEPT = 0.05


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--calls", type=int, default=max(BUDGETS), help="of each search; Tilt takes one run")
    parser.add_argument("--pairs", type=int, default=len(PAIRS), help="how many of the pairs of prompt and seed")
    parser.add_argument("--out", type=Path, required=True, help="JSON file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    runs = study.Runs(options.out, {"steps": options.steps, "calls": options.calls})
    for pair in PAIRS[: options.pairs]:
        for reward in REWARDS:
            for solver in SOLVERS:
                runs.once(f"{reward} | {solver} | {pair[0]} {pair[1]}", run, *pair, reward, solver, options)
    runs.finish("calls.py", {reward: summary(runs.done, reward) for reward in REWARDS})


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


def run(prompt, seed, reward, solver, options):
    """Return the curves of one search: calls, score, consistency, ln P of z and of x_T."""
    sample_map = core.load_embedded(prompt, steps=options.steps, keep_graphs=True)
    counted = sample_map.denoise = Counted(sample_map.denoise)
    calls, spent = [], 0

    def count(evaluation, best):
        nonlocal spent
        # Without the gradient that follows it, nor the run that Tilt makes of it.
        calls.append(min(spent + options.steps, counted.calls))
        spent = counted.calls
        if spent >= options.calls:
            raise KeyboardInterrupt

    chosen = SOLVERS[solver]()
    regularizer = core.ProbabilityRegularizer() if chosen.regularized else None
    iterations = 1 if isinstance(chosen, core.Tilt) else options.calls
    judge = rewards.Consistency()
    result = core.optimize(
        sample_map, REWARDS[reward](), sample_map.randn(seed), chosen, regularizer, iterations, watch=[judge],
        callback=count,
    )  # fmt: skip
    keys = {"score": "score", "consistency": "watch/consistency", "log_p": "log_p", "log_p_initial": "log_p_initial"}
    return {"calls": calls} | {name: result.history.column(key) for name, key in keys.items()}


def gain(run, calls):
    """Return the gain of the best noise by that many calls that keeps the consistency; None where none was made."""
    rows = [row for row in range(1, len(run["calls"])) if run["calls"][row] <= calls]
    kept = [run["score"][row] for row in rows if run["consistency"][row] >= run["consistency"][0] - KEPT]
    return max([run["score"][0], *kept]) - run["score"][0] if rows else None


def summary(runs, reward):
    """Return, by solver, the gains at each budget and what the last noise is like: means and deviations over pairs."""
    found = {}
    for solver in SOLVERS:
        chosen = [run for name, run in runs.items() if name.startswith(f"{reward} | {solver} |")]
        gains = {calls: [gain(run, calls) for run in chosen] for calls in BUDGETS}
        found[solver] = {
            "gain": {calls: study.mean_sd(values) for calls, values in gains.items() if None not in values},
            "last": {
                "calls": study.mean_sd([run["calls"][-1] for run in chosen]),
                "gain": study.mean_sd([run["score"][-1] - run["score"][0] for run in chosen]),
                "consistency lost": study.mean_sd([run["consistency"][0] - run["consistency"][-1] for run in chosen]),
                "lowest ln P of z": min(run["log_p"][-1] for run in chosen),
                "lowest ln P of x_T": min(run["log_p_initial"][-1] for run in chosen),
            },
        }
    return found


if __name__ == "__main__":
    main()
