"""A picture of 50 steps searched for the price of a few: Fast against the paper's settings, on the embedded model.

    python tests/benchmarks/fast.py --out tests/benchmarks/results/fast.json

The paper's: Adam at 0.01 with PRNO on all 50 steps, run to 60 iterations. A call is one evaluation of the guided pair
of networks, forward or backward; graphs are kept by both, so that no step is run again. Decodes and rewards are not
counted as calls, but are in the seconds, which are the processor's. The start's own evaluation is counted; the check of
what is returned is not.

None of the pairs of prompt and seed was used to choose Fast's settings. Each runs alone. Run the same command again
after an interruption: finished runs are kept.
"""

import argparse
import time
from pathlib import Path

import study
import torch
from calls import KEPT, PAIRS, Counted
from comfyui_dno import core, rewards

STEPS, ITERATIONS = 50, 60
REWARDS = ("brightness", "match", "jpeg proxy")
KEYS = {"score": "score", "consistency": "watch/consistency", "log_p": "log_p", "log_p_initial": "log_p_initial"}


WAYS = {
    "paper": lambda: {
        "solver": core.GradientAscent(0.01), "regularizer": core.ProbabilityRegularizer(), "iterations": ITERATIONS,
    },
    "fast": lambda: {"solver": core.Fast(), "iterations": 1},
    "fast with a floor": lambda: {
        "solver": core.Fast(), "iterations": 1, "floors": {"consistency": core.Drop(KEPT)},
    },
    "fast, 60 calls, with a floor": lambda: {
        "solver": core.Fast(60), "iterations": 1, "floors": {"consistency": core.Drop(KEPT)},
    },
    "fast, 500 calls": lambda: {"solver": core.Fast(500), "iterations": 1},
    "fast, 500 calls, with a floor": lambda: {
        "solver": core.Fast(500), "iterations": 1, "floors": {"consistency": core.Drop(KEPT)},
    },
}  # fmt: skip


class Match:
    """-log10 of the mean squared difference from one picture, (1, 3, H, W): 2 is 0.1 off, 3 is 0.03 off."""

    name, differentiable = "match", True

    def __init__(self, picture):
        self.picture = picture

    def __call__(self, images, prompts=None):
        return -(images - self.picture).square().mean(dim=(1, 2, 3)).log10()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--rewards", nargs="+", choices=REWARDS, default=REWARDS)
    parser.add_argument("--pairs", type=int, default=len(PAIRS), help="how many of the pairs of prompt and seed")
    parser.add_argument("--out", type=Path, required=True, help="JSON file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    runs = study.Runs(options.out, {"steps": STEPS, "iterations": ITERATIONS})
    for way in options.ways:
        for prompt, seed in PAIRS[: options.pairs]:
            for reward in options.rewards:
                runs.once(f"{reward} | {way} | {prompt} {seed}", run, prompt, seed, reward, way)
    runs.finish("fast.py", {reward: summary(runs.done, reward) for reward in REWARDS})


def run(prompt, seed, reward, way):
    """Return the curves of one search: calls, score, consistency, ln P of z and of x_T, and its seconds.

    Of Fast the climb's trials too, [calls, score, consistency], with the calls of the lift that would make each.
    """
    sample_map = core.load_embedded(prompt, steps=STEPS, keep_graphs=True)
    chosen = reward_of(reward, sample_map, seed)
    counted = sample_map.denoise = Counted(sample_map.denoise)
    calls, climb, started = [], [], time.process_time()  # one thread: other processes cost it nothing

    def count(evaluation, best):
        backward = 0 if evaluation.gradient_norm is None else STEPS  # which made no evaluated noise yet
        calls.append(counted.calls - backward if calls else STEPS)
        seconds[0] = round(time.process_time() - started, 1)

    def trial(stage, evaluation, best):
        backward = 0 if evaluation.gradient_norm is None else evaluation.noise.injected.shape[0] + 1
        judged = evaluation.watched["consistency"].item()
        climb.append([counted.calls - backward + STEPS, round(evaluation.scores.item(), 4), round(judged, 4)])

    seconds, settings = [0.0], WAYS[way]()
    result = core.optimize(
        sample_map, chosen, sample_map.randn(seed), watch=[rewards.Consistency()], callback=count, preview=trial,
        **settings,
    ).whole()  # fmt: skip
    curves = {name: [round(value, 4) for value in result.history.column(key)] for name, key in KEYS.items()}
    found = {"calls": calls, "seconds": seconds[0], **curves}
    return found | ({"climb": climb, "warnings": result.history.warnings} if climb else {})


def reward_of(name, sample_map, seed):
    """Return the reward; the picture to match is what another seed makes of the same prompt."""
    if name == "match":
        return Match(sample_map.sample(sample_map.randn(1000 + seed)))
    return {"brightness": rewards.Brightness, "jpeg proxy": rewards.JPEGProxy}[name]()


def gain(run):
    """Return how far the best noise that keeps the consistency is above the start."""
    kept = [
        score for score, judged in zip(run["score"], run["consistency"], strict=True)
        if judged >= run["consistency"][0] - KEPT
    ]  # fmt: skip
    return max(kept) - run["score"][0]


def summary(runs, reward):
    """Return what each way found, means and deviations over its pairs, and how it compares with the paper's."""
    found = {}
    for way in WAYS:
        chosen = {name.split(" | ")[2]: run for name, run in runs.items() if name.startswith(f"{reward} | {way} |")}
        if len(chosen) < 2:
            continue
        of_pairs = chosen.values()
        found[way] = {
            "pairs": len(chosen),
            "calls": study.mean_sd([run["calls"][-1] for run in of_pairs]),
            "reward": study.mean_sd([run["score"][-1] for run in of_pairs]),
            "gain": study.mean_sd([run["score"][-1] - run["score"][0] for run in of_pairs]),
            "gain of the best that keeps the consistency": study.mean_sd(map(gain, of_pairs)),
            "consistency lost": study.mean_sd([run["consistency"][0] - run["consistency"][-1] for run in of_pairs]),
            "lowest ln P of z": min(run["log_p"][-1] for run in of_pairs),
            "lowest ln P of x_T": min(run["log_p_initial"][-1] for run in of_pairs),
            "seconds": study.mean_sd([run["seconds"] for run in of_pairs]),
            "calls, and the paper's calls for that reward": {
                pair: [run["calls"][-1], reached(runs[f"{reward} | paper | {pair}"], run["score"][-1])]
                for pair, run in chosen.items() if way != "paper" and f"{reward} | paper | {pair}" in runs
            },
        }  # fmt: skip
    return found


def reached(run, score):
    """Return after how many calls a run first scores that much; None where it never does."""
    return next((calls for calls, found in zip(run["calls"], run["score"], strict=True) if found >= score), None)


if __name__ == "__main__":
    main()
