"""Does a term on the picture keep what one on the noise loses? `core.PictureRegularizer` and PRNO, embedded model.

    python tests/benchmarks/picture_regularizer.py --out tests/benchmarks/results/picture_regularizer.json

Each arm climbs brightness, contrast and a random network that means nothing, by Adam at 0.1, which goes too far soon.
What counts is how much consistency with the prompt is lost for the same reward: every search's curve of consistency by
reward is read at common gains, shares (`AT`) of what the search without any term has gained at its end, as far as the
arm gets there. Beside it ln P, calls of the guided pair of networks and seconds of one core.

The gammas were chosen on the pairs of TUNING; HELD_OUT is what counts. The pairs of one set are searched as batches,
whose pictures are independent. Run the same command again after an interruption: finished runs are kept.
"""

import argparse
import itertools
import time
from pathlib import Path

import calls
import numpy as np
import study
import torch
from comfyui_dno import core, rewards

TUNING, HELD_OUT = calls.TUNING[:3], calls.PAIRS[:8]
REWARDS = {"brightness": rewards.Brightness, "contrast": rewards.Contrast, "random head": calls.RandomHead}
TUNED_ON = ("brightness", "random head")
STEPS, ITERATIONS, TOGETHER = 8, 6, 4
AT = (0.25, 0.5, 0.75, 0.9)
"""The common gains, in shares of the gain of the search without any term."""


def on_picture(kind, gamma, beside=None):
    return core.PictureRegularizer(kind, gamma, beside)


TRIED = {
    "none": None,
    "prno .3": core.ProbabilityRegularizer(0.3),
    "prno 1": core.ProbabilityRegularizer(1.0),
    **{f"{kind} {gamma}": on_picture(kind, gamma) for kind in ("belief", "loss", "start") for gamma in (0.1, 0.3, 1.0)},
}
REPORTED = ("none", "prno .3", "belief 0.3", "belief 1.0", "loss 0.3", "start 0.3")
"""Of each kind the largest gamma with which every search for `TUNED_ON` gained half of what it gains without a term.

Belief 1 is beside them because it kept most of what the random network ruins.
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="JSON file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    runs = study.Runs(options.out, {"steps": STEPS, "iterations": ITERATIONS})
    for pairs, judged, arms in ((TUNING, TUNED_ON, TRIED), (HELD_OUT, REWARDS, REPORTED)):
        for group in groups(pairs):
            for reward, arm in itertools.product(judged, arms):
                runs.once(named(group, reward, arm), search, group, reward, TRIED[arm])
    found = {
        "tuning": summary(runs.done, TUNING, TUNED_ON, TRIED),
        "held out": summary(runs.done, HELD_OUT, REWARDS, REPORTED),
    }
    runs.finish("picture_regularizer.py", found)


def groups(pairs):
    """Return the pairs in batches."""
    return [pairs[first : first + TOGETHER] for first in range(0, len(pairs), TOGETHER)]


def named(group, reward, arm):
    return " | ".join([reward, arm, ", ".join(f"{prompt} {seed}" for prompt, seed in group)])


def names_of(pairs, reward, arm):
    """Return the names of an arm's runs."""
    return [named(group, reward, arm) for group in groups(pairs)]


class CountedPair(calls.Counted):
    """The same of what is asked for both denoised of guidance: one call for the pair."""

    def __call__(self, x, sigma):
        self.calls += 1
        both = self.denoise(x, sigma)
        if both[0].requires_grad:
            both[0].register_hook(self._count_backward)
        return both


def search(pairs, reward, regularizer):
    """Return the curves of one search of each pair, lists by pair, and what the batch's took: calls and seconds."""
    sample_map = core.load_embedded([prompt for prompt, _ in pairs], steps=STEPS, keep_graphs=True, **calls.MAPS[STEPS])
    drawn = [core.load_embedded(prompt, steps=STEPS).randn(seed) for prompt, seed in pairs]
    noise = core.Noise(torch.cat([one.initial for one in drawn]), torch.cat([one.injected for one in drawn], dim=1))
    counted = sample_map.denoise = calls.Counted(sample_map.denoise)
    asked = sample_map.unguided = CountedPair(sample_map.unguided)
    watch, rows, spent = rewards.Consistency(), [], []
    started = time.process_time()

    def record(evaluation, best):
        log_p = torch.minimum(evaluation.log_p, evaluation.log_p_initial)
        rows.append([evaluation.scores, evaluation.watched[watch.name], log_p])
        spent.append([counted.calls + asked.calls, time.process_time() - started])

    core.optimize(
        sample_map, REWARDS[reward](), noise, core.GradientAscent(0.1), regularizer, ITERATIONS, watch=[watch],
        floor=0.0, callback=record,
    ).whole()  # fmt: skip
    curves = [[[round(each[item].item(), 4) for each in row] for row in rows] for item in range(len(pairs))]
    return {"curves": curves, "calls": spent[-1][0], "seconds": round(spent[-1][1], 2)}


def curves_of(runs, pairs, reward, arm):
    """Return a (rows, 3) array for each pair: score, consistency and ln P of each evaluation, the start's first."""
    return [np.array(curve) for name in names_of(pairs, reward, arm) for curve in runs[name]["curves"]]


def lost_at(curve, gain):
    """Return the consistency lost where a curve first has gained so much, between its points; None if it never has."""
    gained, lost = curve[:, 0] - curve[0, 0], curve[0, 1] - curve[:, 1]
    above = np.flatnonzero(gained >= gain)
    if not len(above):
        return None
    last = slice(above[0] - 1, above[0] + 1)
    return float(np.interp(gain, gained[last], lost[last]))


def summary(runs, pairs, judged, arms):
    """Return, by reward and arm, what is lost at the common gains, beside the search without a term, and at the end."""
    found = {}
    for reward in judged:
        free = curves_of(runs, pairs, reward, "none")
        found[reward] = {arm: of_arm(free, curves_of(runs, pairs, reward, arm)) for arm in arms}
        for arm, told in found[reward].items():
            work = [runs[name] for name in names_of(pairs, reward, arm)]
            told |= {key: round(float(np.mean([run[key] for run in work])), 1) for key in ("calls", "seconds")}
    return found


def of_arm(free, ours):
    """Return what an arm's curves come to, beside those of the searches without a term of the same pairs."""
    told = {}
    for share in AT:
        gains = [share * (curve[:, 0].max() - curve[0, 0]) for curve in free]
        both = [(lost_at(a, gain), lost_at(b, gain)) for a, b, gain in zip(free, ours, gains, strict=True)]
        both = np.array([each for each in both if each[1] is not None]).reshape(-1, 2)
        told[f"lost at {share}"] = {"reached": len(both)} | (
            {"without": round(both[:, 0].mean(), 3), "lost": round(both[:, 1].mean(), 3),
             "less lost": int((both[:, 1] < both[:, 0] - 1e-3).sum())} if len(both) else {}
        )  # fmt: skip
    last = np.array([[c[-1, 0] - c[0, 0], c[0, 1] - c[-1, 1], c[-1, 2]] for c in ours])
    mean = last.mean(axis=0).round(3).tolist()
    return told | {"last": dict(zip(("gain", "lost", "ln P"), mean, strict=True))}


if __name__ == "__main__":
    main()
