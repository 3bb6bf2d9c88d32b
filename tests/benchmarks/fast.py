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


class Match:
    """-log10 of the mean squared difference from one picture, (1, 3, H, W): 2 is 0.1 off, 3 is 0.03 off."""

    name, differentiable = "match", True

    def __init__(self, picture):
        self.picture = picture

    def __call__(self, images, prompts=None):
        return -(images - self.picture).square().mean(dim=(1, 2, 3)).log10()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rewards", nargs="+", choices=REWARDS, default=REWARDS)
    parser.add_argument("--pairs", type=int, default=len(PAIRS), help="how many of the pairs of prompt and seed")
    parser.add_argument("--out", type=Path, required=True, help="JSON file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    runs = study.Runs(options.out, {"steps": STEPS, "iterations": ITERATIONS})
    for prompt, seed in PAIRS[: options.pairs]:
        for reward in options.rewards:
            runs.once(f"{reward} | paper | {prompt} {seed}", run, prompt, seed, reward)
    runs.finish("fast.py", {reward: summary(runs.done, reward) for reward in options.rewards})


def run(prompt, seed, reward):
    """Return the curves of the paper's search: calls, score, consistency, ln P of z and of x_T, seconds."""
    sample_map = core.load_embedded(prompt, steps=STEPS, keep_graphs=True)
    chosen = reward_of(reward, sample_map, seed)
    counted = sample_map.denoise = Counted(sample_map.denoise)
    calls, seconds, started = [], [], time.process_time()  # one thread: other processes cost it nothing

    def count(evaluation, best):
        backward = 0 if evaluation.gradient_norm is None else STEPS  # which made no evaluated noise yet
        calls.append(counted.calls - backward)
        seconds.append(round(time.process_time() - started, 2))

    result = core.optimize(
        sample_map, chosen, sample_map.randn(seed), core.GradientAscent(0.01), core.ProbabilityRegularizer(),
        ITERATIONS, watch=[rewards.Consistency()], callback=count,
    )  # fmt: skip
    return {"calls": calls, "seconds": seconds} | {name: result.history.column(key) for name, key in KEYS.items()}


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
    """Return what the last noise of each way is like: means and deviations over pairs."""
    found = {}
    for way in ("paper",):
        chosen = [run for name, run in runs.items() if name.startswith(f"{reward} | {way} |")]
        found[way] = {
            "calls": study.mean_sd([run["calls"][-1] for run in chosen]),
            "reward": study.mean_sd([run["score"][-1] for run in chosen]),
            "gain": study.mean_sd([gain(run) for run in chosen]),
            "consistency": study.mean_sd([run["consistency"][-1] for run in chosen]),
            "lowest ln P of z": min(run["log_p"][-1] for run in chosen),
            "lowest ln P of x_T": min(run["log_p_initial"][-1] for run in chosen),
            "seconds": study.mean_sd([run["seconds"][-1] for run in chosen]),
        }
    return found


if __name__ == "__main__":
    main()
