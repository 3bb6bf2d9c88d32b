"""Pictures of several solvers where each has reached the same reward: does one of them win by ruining the animal?

CS on the sheet is the consistency with the prompt.

    python tests/benchmarks/equal_reward.py --out tests/benchmarks/results/equal_reward.jpg

No floors on the consistency: each search ends where its best has gained as much as is asked, or after 400 calls. The
pairs are held out, see calls.py.
"""

import argparse
import json
from pathlib import Path

import calls
import study
import torch
from comfyui_dno import core, rewards
from comfyui_dno.core import plots

WAYS = "adam .01", "adam .03", "adam .1", "reno", "trust"
GAINS = {"brightness": 0.4, "jpeg proxy": 0.4, "random head": 0.6}
STEPS, MOST = 8, 400


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=4, help="how many of the held-out pairs")
    parser.add_argument("--out", type=Path, required=True, help="picture to write; the numbers are written beside it")
    options = parser.parse_args()
    torch.set_num_threads(1)
    pictures, captions, numbers = [], [], {}
    for reward, wanted in GAINS.items():
        for prompt, seed in calls.PAIRS[: options.pairs]:
            start, *found = [run(prompt, seed, reward, way, wanted) for way in (None, *WAYS)]
            pictures += plots.to_pictures(torch.cat([each["picture"] for each in (start, *found)]))
            captions.append(f"{prompt}, {reward}\n{start['score']:.2f}, CS {start['consistency']:.2f}")
            for way, each in zip(WAYS, found, strict=True):
                gained, kept = each["score"] - start["score"], each["consistency"]
                captions.append(f"{way}: +{gained:.2f}\n{each['calls']} calls, CS {kept:.2f}")
                numbers.setdefault(reward, {}).setdefault(way, []).append(
                    {"gain": gained, "consistency lost": start["consistency"] - kept, "calls": each["calls"]}
                )
    sheet = plots.contact_sheet(pictures, captions, size=140, columns=1 + len(WAYS))
    sheet.save(options.out, quality=80)
    summary = {
        reward: {way: told(each, GAINS[reward]) for way, each in ways.items()} for reward, ways in numbers.items()
    }
    options.out.with_suffix(".json").write_text(json.dumps({"gains": GAINS, "found": summary}, indent=1) + "\n")


def run(prompt, seed, reward, way, wanted):
    """Return the picture, score and consistency of a search by `way` that has gained `wanted`; None: of the start."""
    sample_map = core.load_embedded(prompt, steps=STEPS, keep_graphs=True, **calls.MAPS[STEPS])
    judged = calls.reward_of(reward, sample_map, seed)
    solver, regularizer = calls.SOLVERS[way]() if way else (None, None)
    if way == "reno":
        sample_map.part = "initial"
    counted = sample_map.denoise = calls.Counted(sample_map.denoise)
    noise = sample_map.randn(seed)
    first = judged(sample_map.sample(noise)).item()
    counted.calls = 0

    def stop():
        return counted.calls > MOST

    result = core.optimize(
        sample_map, judged, noise, solver, regularizer, iterations=MOST if way else 0, watch=[rewards.Consistency()],
        target=first + wanted, stop=stop,
    ).whole()  # fmt: skip
    row = result.history.best_row
    return {
        "picture": result.images, "score": row["score"][0], "consistency": row["watch/consistency"][0],
        "calls": counted.calls,
    }  # fmt: skip


def told(runs, wanted):
    """Return how many of some runs have gained what was wanted, and of those the calls and the consistency lost."""
    reached = [run for run in runs if run["gain"] >= wanted]
    if len(reached) < 2:
        return {"reached": len(reached), "of": len(runs)}
    values = {key: study.mean_sd(run[key] for run in reached) for key in ("calls", "consistency lost")}
    return {"reached": len(reached), "of": len(runs)} | values


if __name__ == "__main__":
    main()
