"""Rewards that nothing is known of but their values: every solver for them at 100, 400 and 1600 evaluations.

    python tests/benchmarks/black_box.py --part surrogate --out tests/benchmarks/results/black_box_surrogate.json
    python tests/benchmarks/black_box.py --part embedded --out tests/benchmarks/results/black_box_embedded.json

Two rewards without a gradient: minus the size as a JPEG file, and a detector, how many of a picture's 64 tiles are
brighter than a threshold, whole numbers that mostly stay where they are. Two maps: the embedded model at 4 steps, and
one that costs next to nothing: a fixed random network of smooth layers that makes pictures of 4096 normal numbers.

An evaluation is a sampled and scored picture, the start's included. All arms have 16 in one call and as many calls K,
1 + 16 K evaluations in all; ZeNO's geometric schedule has one more for its last look at the noise that it has climbed
to, and Hybrid-2, with 5 in an iteration, as many of those as fit. Hybrid-2 alone differentiates the model; what that
costs is in the seconds. A gain is that of the best noise that passes the floor on P.

Seeds 100 and up were used for no decision; `--tuning` takes others, and what was chosen by them stands in `arms`. Runs
go budget by budget, all of one seed before the next. The same command goes on after an interruption, also with more
seeds or rounds: finished runs are kept.
"""

import argparse
import statistics
import time
from pathlib import Path

import study
import torch
from comfyui_dno import core, rewards
from comfyui_dno.experiments.noise_searches import Detector, random_network

IN_ONE_CALL = 16
ROUNDS = {6: 97, 25: 401, 100: 1601}
"""Calls of 16 -> evaluations."""
EMBEDDED = {"prompt": "black dog", "steps": 4, "eta": 0.5, "cfg": 2.0}
BRIGHTER_THAN = {"surrogate": 0.55, "embedded": 0.7}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", choices=list(BRIGHTER_THAN), required=True)
    parser.add_argument("--rounds", nargs="+", type=int, default=list(ROUNDS), help="calls of 16 in each search")
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--rewards", nargs="+", default=["jpeg", "detector"])
    parser.add_argument("--arms", nargs="+", default=list(arms(1, 0)), metavar="NAME", help="e.g. 'Hybrid-2, ou'")
    parser.add_argument("--tuning", action="store_true", help="take the seeds for tuning")
    parser.add_argument("--out", type=Path, required=True, help="JSON file; the gains are drawn beside it")
    options = parser.parse_args()
    torch.set_num_threads(1)
    runs = study.Runs(options.out, {"part": options.part, "tuning": options.tuning, "embedded": EMBEDDED})
    first = 0 if options.tuning else 100
    for rounds in options.rounds:
        for seed in range(first, first + options.seeds):
            for reward in options.rewards:
                for arm in options.arms:
                    runs.once(f"{reward} | {arm} | {rounds} | {seed}", run, options.part, reward, arm, rounds, seed)
    found = summary(runs.done)
    plot(found, options.out.with_suffix(".png"))
    runs.finish("black_box.py", found)


def arms(rounds, seed):
    """Return name -> (solver, iterations), of 1 + 16 `rounds` evaluations."""
    n, by_hybrid = IN_ONE_CALL, IN_ONE_CALL * rounds // 5
    hybrid = core.Hybrid2(q=4, mu=0.1, seed=seed)
    return {
        "ZeNO, constant": (core.ZeNO(n - 1, seed=seed), rounds),  # its centre goes along
        "ZeNO, geometric": (core.ZeNO(n, seed=seed, schedule="geometric"), rounds),
        "Hybrid-2, Adam": (core.GradientAscent(0.01, estimator=hybrid), by_hybrid),
        "Hybrid-2, ou": (core.GradientAscent.ou(hybrid), by_hybrid),
        "TRS": (core.TRS(n, seed=seed), rounds),
        "pCN": (core.Search.pcn(seed=seed), n * rounds),
        "zero-order": (core.Search.zero_order(n, seed=seed), rounds),
        "best of N": (core.Search.best_of_n(n, seed=seed), rounds),
    }


def map_of(part):
    if part == "surrogate":
        return random_network()
    return core.load_embedded(**EMBEDDED, most_rows=IN_ONE_CALL, keep_graphs=True)


def run(part, reward, arm, rounds, seed):
    """Return one search: its start, its best that passes the floor on P, and what is to be known of that."""
    sample_map = map_of(part)
    recorded = study.Recorded(rewards.JPEG() if reward == "jpeg" else Detector(BRIGHTER_THAN[part]))
    solver, iterations = arms(rounds, seed)[arm]
    started = time.perf_counter()
    result = core.optimize(
        sample_map, recorded, sample_map.randn(seed), solver, iterations=iterations,
    ).whole()  # fmt: skip
    seconds = time.perf_counter() - started
    log_p = core.Problem(sample_map, recorded).log_probabilities(result.noise)
    found = {
        "evaluations": len(recorded.seen),
        "start": recorded.seen[0],
        "best": round(result.history.best_row["score"][0], 4),
        "log_p": round(min(log_p).item(), 3),
        "seconds": round(seconds, 1),
    }
    if part == "embedded":
        found["consistency"] = round(rewards.Consistency()(result.images, sample_map.prompts).item(), 3)
    return found


def summary(done):
    """Return reward -> evaluations -> arm -> gain, seconds and least ln P, over the seeds that every arm has run."""
    table = {}
    for name, found in done.items():
        reward, arm, rounds, seed = name.split(" | ")
        table.setdefault(reward, {}).setdefault(int(rounds), {}).setdefault(arm, {})[seed] = found
    return {
        reward: {
            f"{1 + IN_ONE_CALL * rounds} evaluations": of_one_budget(by_arm)
            for rounds, by_arm in sorted(budgets.items())
        }
        for reward, budgets in table.items()
    }


def of_one_budget(by_arm):
    """Return arm -> what was found, on the seeds that all arms share; nothing where those are fewer than two."""
    seeds = sorted(set.intersection(*(set(runs) for runs in by_arm.values())))
    if len(seeds) < 2:
        return {}
    found = {"seeds": len(seeds)}
    for arm, runs in by_arm.items():
        chosen = [runs[seed] for seed in seeds]
        found[arm] = {
            "gain": study.mean_sd(each["best"] - each["start"] for each in chosen),
            "ln P, least": min(each["log_p"] for each in chosen),
            "seconds": round(statistics.mean(each["seconds"] for each in chosen), 1),
        }
        if "consistency" in chosen[0]:
            found[arm]["consistency"] = study.mean_sd(each["consistency"] for each in chosen)
    return found


def plot(found, path):
    """Draw each arm's mean gain by the number of evaluations, a panel a reward."""
    from matplotlib.figure import Figure

    found = {reward: budgets for reward, budgets in found.items() if any(budgets.values())}
    figure = Figure(figsize=(10, 3.8), dpi=100, layout="constrained")
    for axes, (reward, budgets) in zip(figure.subplots(1, len(found), squeeze=False)[0], found.items(), strict=True):
        known = {int(budget.split()[0]): by_arm for budget, by_arm in budgets.items() if by_arm}
        for arm in next(iter(known.values()), {}):
            if arm != "seeds":
                gains = {spent: by_arm[arm]["gain"] for spent, by_arm in known.items() if arm in by_arm}
                means, deviations = zip(*gains.values(), strict=True)
                axes.errorbar(list(gains), means, deviations, label=arm, marker="o", markersize=3, capsize=2)
        axes.set(xscale="log", xlabel="evaluations", ylabel=f"{reward}, gain of the best")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.savefig(path)


if __name__ == "__main__":
    main()
