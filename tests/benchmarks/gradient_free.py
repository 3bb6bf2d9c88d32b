"""Rewards without a gradient: ZO-SGD, Hybrid-1 and Hybrid-2 side by side (the paper's Section 5.3 and Figure 8).

    python tests/benchmarks/gradient_free.py --out tests/benchmarks/results/gradient_free.json

Adam, no regulariser, q = 16, 8 and 4, as in the paper; every arm of a seed starts from the same noise. Each seed runs
alone, one arm after another, so that seconds are those of one picture. Curves are the best so far for every arm (the
paper draws it for ZO-SGD only). Run the same command again after an interruption: finished runs are kept.

Two rewards: minus the size as a JPEG file, and the consistency scorer's score of a text that leaves room to climb
(the prompt's own starts at 0.95 of about 0.98). The arm "reference" is what a gradient would do: the exact one of the
consistency score, and for JPEG that of the smooth `rewards.JPEGProxy`. Its noise gradient at the start is also what
the others' are compared with, to say why their order is what it is.
"""

import argparse
from pathlib import Path

import study
import torch
from comfyui_dno import core, rewards

SAMPLINGS = {"reference": 2, "ZO-SGD": 17, "Hybrid-1": 2, "Hybrid-2": 6}
"""What an iteration costs in sampling runs, the backward pass with kept graphs counting as one: for the estimate."""


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompt", default="cat")
    parser.add_argument("--wanted", default="white cat", help="the text that the consistency scorer is asked for")
    parser.add_argument("--seeds", nargs="+", type=int, default=list(range(8)))
    parser.add_argument("--iterations", type=int, default=16)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--lr", type=float, default=0.01)
    parser.add_argument("--out", type=Path, required=True, help="JSON file; the curves are drawn beside it")
    options = parser.parse_args()
    torch.set_num_threads(1)
    runs = study.Runs(options.out, {key: value for key, value in vars(options).items() if key != "out"})
    sample_map = core.load_embedded(options.prompt, steps=options.steps, keep_graphs=True)
    pairs = {"jpeg": (rewards.JPEG(), rewards.JPEGProxy()), "consistency": (rewards.Consistency(options.wanted),) * 2}
    samplings = len(options.seeds) * len(pairs) * (options.iterations + 1) * sum(SAMPLINGS.values())
    study.announce(sample_map, samplings)
    climbs = {name: {arm: [] for arm in SAMPLINGS} for name in pairs}
    starts = {name: [] for name in pairs}
    for seed in options.seeds:
        for name, pair in pairs.items():
            for arm in SAMPLINGS:
                run = runs.once(f"{name}, {arm}, seed {seed}", climb, sample_map, *pair, arm, seed, options)
                climbs[name][arm].append(run)
            start = runs.once(f"{name}, gradients at the start, seed {seed}", compare, sample_map, *pair, seed)
            starts[name].append(start)
    study.plot_climbs(climbs, options.out.with_suffix(".png"))
    runs.finish("gradient_free.py", {name: summary(climbs[name], starts[name]) for name in pairs})


def estimators(seed):
    """Return the paper's three, with directions of the seed's own."""
    return {
        "ZO-SGD": core.ZerothOrder(q=16, seed=seed),
        "Hybrid-1": core.Hybrid1(q=8, seed=seed),
        "Hybrid-2": core.Hybrid2(q=4, seed=seed),
    }


def climb(sample_map, reward, smooth, arm, seed, options):
    """Return the run of one arm from one seed's noise; the curve is the reward's, whatever was optimised."""
    estimator = core.Exact() if arm == "reference" else estimators(seed)[arm]
    history = core.optimize(
        sample_map, smooth if arm == "reference" else reward, sample_map.randn(seed),
        solver=core.GradientAscent(lr=options.lr, estimator=estimator), iterations=options.iterations,
        watch=(reward,), floor=0.0,
    ).whole().history  # fmt: skip
    last = {key: round(history.rows[-1][key][0], 4) for key in ("norm", "log_p", "log_p_initial")}
    return study.curve(history, key=f"watch/{reward.name}") | {"last": last}


def compare(sample_map, reward, smooth, seed):
    """Return how near each estimator's gradient by the starting noise is to the reference's, and what it saw.

    Returns:
        numbers: n, the length of z: a random direction has a cosine of about 1 / sqrt(n).
        for each estimator: "cosine" with the reference; "shift" and "spread", mean and standard deviation of the
            r(perturbed) - r(start) it was given; "slope", the standard deviation that the smooth reward's gradient
            alone would give. A shift, or a spread beyond the slope, tells of the perturbation and not of a direction.
    """
    noise = sample_map.randn(seed)
    reference = core.Exact()(core.Problem(sample_map, smooth), noise)
    images = reference.images.clone().requires_grad_()
    (by_pixel,) = torch.autograd.grad(smooth(images, sample_map.prompts).sum(), images)
    direction = reference.gradient.flat()[0]
    found = {"numbers": len(direction)}
    for arm, estimator in estimators(seed).items():
        recorded = study.Recorded(reward)
        gradient = estimator(core.Problem(sample_map, recorded), noise).gradient.flat()[0]
        differences = torch.tensor(recorded.seen[1:]) - recorded.seen[0]
        slope = by_pixel if arm == "Hybrid-1" else direction
        found[arm] = {
            "cosine": torch.cosine_similarity(gradient, direction, dim=0).item(),
            "shift": differences.mean().item(),
            "spread": differences.std().item(),
            "slope": estimator.mu * slope.norm().item(),
        }
    return found


def summary(climbs, starts):
    """Return gains, costs, paired comparisons and gradients of one reward, mean and standard deviation over seeds.

    Args:
        climbs: arm -> list of runs, one a seed.
        starts: list of what `compare` returned, one a seed.
    """
    gains = {arm: study.mean_sd(study.gain(run) for run in runs) for arm, runs in climbs.items()}
    rivals = [("Hybrid-2", "ZO-SGD"), ("Hybrid-1", "ZO-SGD"), ("Hybrid-2", "Hybrid-1")]
    return {
        "start": study.mean_sd(run["score"][0] for run in climbs["ZO-SGD"]),
        "gain": gains,
        "order": sorted(gains, key=lambda arm: gains[arm][0], reverse=True),
        "seconds an iteration": {
            arm: study.mean_sd(run["seconds"][-1] / (len(run["seconds"]) - 1) for run in runs)
            for arm, runs in climbs.items()
        },
        **{f"{first} over {second}": study.paired(climbs[first], climbs[second]) for first, second in rivals},
        "norm at the end": {
            arm: study.mean_sd(run["last"]["norm"] for run in runs) for arm, runs in climbs.items()
        },
        "numbers in z": starts[0]["numbers"],
        "gradients at the start": {
            arm: {key: study.mean_sd(start[arm][key] for start in starts) for key in starts[0][arm]}
            for arm in starts[0] if arm != "numbers"
        },
    }  # fmt: skip


if __name__ == "__main__":
    main()
