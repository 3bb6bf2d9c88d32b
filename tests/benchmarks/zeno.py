"""ZeNO against best-of-N, zero-order search and pCN at equal evaluations of the reward.

    python tests/benchmarks/zeno.py --out tests/benchmarks/results/zeno.json

Evaluations are those the reward really made, ZeNO's own centre and the last look at the result included. First the
linear reward <u, z> of n = 3072 true normal numbers, |u| = 1, where theory knows the answers: with N candidates and K
iterations ZeNO climbs 0.90 sqrt(N K) standard deviations, best-of-E finds the expected largest of E normal numbers.
Then the embedded model and the size as a JPEG file, which has no gradient. All settings are the pack's defaults.

Each seed runs alone. Run the same command again after an interruption: finished runs are kept.
"""

import argparse
import math
import statistics
from pathlib import Path

import study
import torch
from comfyui_dno import core, rewards

LINEAR_SHAPE = (1, 3, 32, 32)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--candidates", type=int, default=16)
    parser.add_argument("--linear-evaluations", type=int, default=800)
    parser.add_argument("--linear-seeds", nargs="+", type=int, default=list(range(20)))
    parser.add_argument("--evaluations", type=int, default=341, help="on the embedded model")
    parser.add_argument("--seeds", nargs="+", type=int, default=list(range(8)), help="on the embedded model")
    parser.add_argument("--prompt", default="cat")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--out", type=Path, required=True, help="JSON file; the curves are drawn beside it")
    options = parser.parse_args()
    torch.set_num_threads(1)
    runs = study.Runs(options.out, {key: value for key, value in vars(options).items() if key != "out"})
    most_rows = options.candidates + 1
    embedded = core.load_embedded(options.prompt, steps=options.steps, most_rows=most_rows)
    study.announce(embedded, 5 * len(options.seeds) * options.evaluations)
    linear = run_part(
        runs, "linear", identity_map(), linear_reward(), options.linear_seeds, options.linear_evaluations,
        options.candidates, weights=("linear", "softmax"),
    )  # fmt: skip
    jpeg = run_part(
        runs, "jpeg", embedded, rewards.JPEG(), options.seeds, options.evaluations, options.candidates
    )
    parts = {"linear": summary(linear), "jpeg": summary(jpeg)}
    parts["linear"]["theory"] = theory(options.candidates, rounds_of(options.linear_evaluations, options.candidates))
    plot({"linear": linear, "jpeg": jpeg}, most_rows, options.out.with_suffix(".png"))
    runs.finish("zeno.py", parts)


def identity_map():
    """Return M(z) = z: one step of a denoiser that undoes the start's scaling."""
    return core.SampleMap(lambda x, sigma: x / math.sqrt(2), core.Schedule((1.0, 0.0)), LINEAR_SHAPE, eta=0.0)


def linear_reward():
    """Return the reward <u, images>, |u| = 1: a standard normal number on true noise."""
    direction = torch.randn(math.prod(LINEAR_SHAPE), generator=torch.Generator().manual_seed(1000))
    direction /= direction.norm()
    return lambda images, prompts=None: images.flatten(1) @ direction


def rounds_of(evaluations, candidates):
    """Return K, how many iterations of a centre and N candidates fit beside the last look at the result."""
    return (evaluations - 1) // (candidates + 1)


def arms(candidates, rounds, seed, weights=("linear",)):
    """Return name -> (solver, iterations), all of 1 + K (N + 1) evaluations; ZeNO's centre is one of its N + 1."""
    zeno = {kind: (core.ZeNO(candidates, weights=kind, tau=0.3, seed=seed), rounds) for kind in weights}
    searches = {
        "best of N": (core.Search.best_of_n(rounds * (candidates + 1), seed=seed), 1),
        "zero-order search": (core.Search.zero_order(candidates + 1, seed=seed), rounds),
        "pCN": (core.Search.pcn(seed=seed), rounds * (candidates + 1)),
    }
    return {f"ZeNO, {kind} weights": arm for kind, arm in zeno.items()} | searches


def run_part(runs, part, sample_map, reward, seeds, evaluations, candidates, weights=("linear",)):
    """Return arm -> list of runs, one a seed."""
    rounds, table = rounds_of(evaluations, candidates), {}
    for seed in seeds:
        for arm, (solver, iterations) in arms(candidates, rounds, seed, weights).items():
            name = f"{part}, {arm}, seed {seed}"
            run = runs.once(name, search, sample_map, reward, solver, iterations, seed, candidates + 1)
            table.setdefault(arm, []).append(run)
    return table


def search(sample_map, reward, solver, iterations, seed, every):
    """Return one search: the best so far after 1, 1 + every, 1 + 2 every .. evaluations, and its winner."""
    recorded = study.Recorded(reward)
    result = core.optimize(
        sample_map, recorded, sample_map.randn(seed), solver, iterations=iterations, floor=0.0
    ).whole()
    centres = result.history.column("score")
    winner = result.noise.flat()[0]
    log_p, log_p_initial = core.Problem(sample_map, reward).log_probabilities(result.noise)
    return {
        "evaluations": len(recorded.seen),
        "best": [round(value, 4) for value in study.best_so_far(recorded.seen)[::every]],
        "climbed": round(centres[-1] - centres[0], 4),
        "norm": round(winner.norm().item() / len(winner) ** 0.5, 4),
        "log_p": round(log_p.item(), 3),
        "log_p_x_T": round(log_p_initial.item(), 3),
    }


def summary(table):
    """Return for each arm its best reward and its winner; and ZeNO's paired wins.

    Args:
        table: arm -> list of runs, one a seed.
    """
    best = {arm: [run["best"][-1] for run in runs] for arm, runs in table.items()}
    zeno = best["ZeNO, linear weights"]
    return {
        "evaluations": {arm: sorted({run["evaluations"] for run in runs}) for arm, runs in table.items()},
        "start": study.mean_sd(run["best"][0] for run in table["pCN"]),
        "best": {arm: study.mean_sd(values) for arm, values in best.items()},
        "last centre minus start": {arm: study.mean_sd(run["climbed"] for run in runs) for arm, runs in table.items()},
        "least last centre minus start": {arm: min(run["climbed"] for run in runs) for arm, runs in table.items()},
        "ZeNO, linear weights, over": {
            arm: study.wins([a - b for a, b in zip(zeno, values, strict=True)])
            for arm, values in best.items() if values is not zeno
        },
        "winners' norm and ln P: least, median, most": {
            arm: {key: least_median_most(run[key] for run in runs) for key in ("norm", "log_p", "log_p_x_T")}
            for arm, runs in table.items()
        },
    }  # fmt: skip


def least_median_most(values):
    values = sorted(values)
    return [values[0], round(statistics.median(values), 4), values[-1]]


def theory(candidates, rounds):
    """Return what is expected of the linear reward, in its standard deviations."""
    evaluations = 1 + rounds * (candidates + 1)
    return {
        "ZeNO, linear weights, last centre minus start": round(0.90 * math.sqrt(candidates * rounds), 2),
        "best of N": round(expected_maximum(evaluations - 1), 2),
    }


def expected_maximum(count):
    """Return the mean of the largest of `count` standard normal numbers: 9 minus the integral of Phi(x)^count."""
    x = torch.linspace(-9, 9, 20001, dtype=torch.float64)
    return 9 - torch.trapezoid(torch.special.ndtr(x) ** count, x).item()


def plot(tables, every, path):
    """Draw the best so far by evaluation, one panel a part; the first part has every arm."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.6), dpi=100, layout="constrained")
    colours = {arm: f"C{number}" for number, arm in enumerate(next(iter(tables.values())))}
    for axes, (part, table) in zip(figure.subplots(1, len(tables)), tables.items(), strict=True):
        for arm, runs in table.items():
            curves = [(range(0, every * len(run["best"]), every), run["best"]) for run in runs]
            study.draw_band(axes, curves, arm, colours[arm])
        axes.set(xlabel="evaluations", ylabel=f"{part}, best so far")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.savefig(path)


if __name__ == "__main__":
    main()
