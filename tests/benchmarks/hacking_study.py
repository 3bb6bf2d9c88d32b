"""Reward hacking with and without the probability regulariser, over prompts and seeds (the paper's Section 5.1).

    python tests/benchmarks/hacking_study.py --out tests/benchmarks/results/hacking_study.json

Every pair of prompt and seed is optimised for brightness twice from the same noise. Consistency is watched, not
optimised. Pairs run as one batch: its items are independent.
"""

import argparse
import json
import math
import statistics
import sys
import time
from pathlib import Path

import torch
from comfyui_dno import core, rewards
from comfyui_dno.core import plots

ANIMALS = ("cat", "dog", "rabbit", "elephant", "hedgehog", "duck", "owl", "fish")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", nargs="+", default=[f"black {animal}" for animal in ANIMALS])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--iterations", type=int, default=36)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--lr", type=float, default=0.03)
    parser.add_argument("--gamma", type=float, default=1.0)
    parser.add_argument("--whole", action="store_true", help="regularise z as a whole, not x_T apart")
    parser.add_argument("--out", type=Path, required=True, help="JSON file; a contact sheet is written beside it")
    options = parser.parse_args()
    pairs = [(prompt, seed) for seed in options.seeds for prompt in options.prompts]
    arms = {
        "without": None,
        "with": core.ProbabilityRegularizer(gamma=options.gamma, apart=not options.whole),
    }
    started = time.perf_counter()
    histories = {name: run_arm(options, pairs, regularizer, name) for name, regularizer in arms.items()}
    record = {
        "command": " ".join(["python tests/benchmarks/hacking_study.py", *sys.argv[1:]]),
        "settings": {key: value for key, value in vars(options).items() if key != "out"},
        "seconds": round(time.perf_counter() - started),
        "summary": {name: summary(history) for name, history in histories.items()},
        "consistency of the plain search when it passes the regularised end's reward": equal_reward(**histories),
        "pairs": [
            {"prompt": prompt, "seed": seed} | {name: outcome(history, i) for name, history in histories.items()}
            for i, (prompt, seed) in enumerate(pairs)
        ],
    }
    options.out.write_text(json.dumps(record, indent=1) + "\n")
    sheet(histories, pairs).save(options.out.with_suffix(".jpg"), quality=88)
    sys.stdout.write(json.dumps({key: record[key] for key in record if key != "pairs"}, indent=1) + "\n")


def run_arm(options, pairs, regularizer, name):
    """Optimise every pair in batches of 8 and return one History over all of them."""
    histories = []
    for first in range(0, len(pairs), 8):
        part = pairs[first : first + 8]
        sample_map = core.load_embedded([prompt for prompt, _ in part], steps=options.steps, keep_graphs=True)
        result = core.optimize(
            sample_map, rewards.Brightness(), noise_of(sample_map, [seed for _, seed in part]),
            solver=core.GradientAscent(lr=options.lr), regularizer=regularizer, iterations=options.iterations,
            watch=(rewards.Consistency(),), floor=core.P_SUSPICIOUS if regularizer else 0.0,
            callback=lambda evaluation, best: sys.stderr.write(f"\r{name} {len(histories)}: {evaluation.iteration}  "),
        ).whole()  # fmt: skip
        histories.append(result.history)
    joined = core.History(reward=histories[0].reward, best=sum((history.best for history in histories), []))
    for rows in zip(*(history.rows for history in histories), strict=True):
        joined.rows.append({
            key: sum((row[key] for row in rows), []) if isinstance(value, list) else value
            for key, value in rows[0].items()
        })  # fmt: skip
    joined.pictures = [torch.cat(p) for p in zip(*(history.pictures for history in histories), strict=True)]
    return joined


def noise_of(sample_map, seeds):
    """Return the noise in which item i is what a batch of one draws from its own seed: pairs can be run alone."""
    singles = [core.Noise.randn((1, *sample_map.shape[1:]), sample_map.injected, seed) for seed in seeds]
    return core.Noise(torch.cat([n.initial for n in singles]), torch.cat([n.injected for n in singles], dim=1))


def outcome(history, item):
    first, last, best = history.rows[0], history.rows[-1], history.rows[history.best[item]]
    keys = {"reward": "score", "consistency": "watch/consistency", "log_p": "log_p", "log_p_x_T": "log_p_initial"}
    moments = {"start": first, "end": last, "best": best}
    return {when: {name: round(row[key][item], 4) for name, key in keys.items()} for when, row in moments.items()}


def summary(history):
    """Return mean and standard deviation over the pairs, at the start, the end and each pair's best."""
    outcomes = [outcome(history, item) for item in range(len(history.best))]
    table = {}
    for when in ("start", "end", "best"):
        for name in ("reward", "consistency"):
            values = [entry[when][name] for entry in outcomes]
            table[f"{name} at the {when}"] = [round(statistics.mean(values), 4), round(statistics.stdev(values), 4)]
    drops = [entry["start"]["consistency"] - entry["end"]["consistency"] for entry in outcomes]
    table["consistency lost"] = [round(statistics.mean(drops), 4), round(statistics.stdev(drops), 4)]
    for name in ("log_p", "log_p_x_T"):
        values = sorted(entry["end"][name] / math.log(10) for entry in outcomes)
        least, median, most = values[0], statistics.median(values), values[-1]
        table[f"log10 {name} at the end: least, median, most"] = [round(v, 2) for v in (least, median, most)]
    return table


def equal_reward(**histories):
    """Return mean and deviation of the plain arm's consistency where its reward first reaches the other arm's last."""
    plain, regularised, found = histories["without"], histories["with"], []
    for item in range(len(plain.best)):
        target = regularised.column("score", item)[-1]
        scores, consistency = plain.column("score", item), plain.column("watch/consistency", item)
        after = next(i for i, value in enumerate(scores) if value >= target)
        before = max(after - 1, 0)
        part = (target - scores[before]) / max(scores[after] - scores[before], 1e-9)
        found.append(consistency[before] + part * (consistency[after] - consistency[before]))
    return [round(statistics.mean(found), 4), round(statistics.stdev(found), 4)]


def sheet(histories, pairs):
    """Lay out start, end without and end with the regulariser, one column a pair."""
    starts = plots.to_pictures(histories["without"].pictures[0])
    rows = [starts] + [plots.to_pictures(history.pictures[-1]) for history in histories.values()]
    captions = [f"{prompt}, seed {seed}" for prompt, seed in pairs]
    for name, history in histories.items():
        captions += [f"{name}: CS {value:.2f}" for value in history.rows[-1]["watch/consistency"]]
    return plots.contact_sheet(sum(rows, []), captions, columns=len(pairs), size=112)


if __name__ == "__main__":
    main()
