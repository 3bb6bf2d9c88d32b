"""The SDE (eta 1, all noises searched) against the ODE (eta 0, x_T alone): which climbs faster (the paper's Figure 3).

    python tests/benchmarks/sde_ode.py --out tests/benchmarks/results/sde_ode.json

Adam on the exact gradient, no regulariser. Both start from the same x_T, and the SDE has injected noises beside it.
First the paper's ring, trained here, with its Figure 2's reward; then the embedded model with brightness and with the
consistency scorer's score of a text that leaves room to climb. Seeds, or points of the ring, run as one batch, its
items being independent: seconds are the batch's, for both arms alike. Run the same command again after an
interruption: finished batches are kept.
"""

import argparse
import statistics
from pathlib import Path

import study
import torch
from comfyui_dno import core, rewards
from comfyui_dno.experiments import ring, ring_models
from hacking_study import noise_of

ETAS = {"SDE": 1.0, "ODE": 0.0}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--points", type=int, default=64, help="on the ring")
    parser.add_argument("--ring-iterations", type=int, default=100)
    parser.add_argument("--prompt", default="cat")
    parser.add_argument("--wanted", default="white cat", help="the text that the consistency scorer is asked for")
    parser.add_argument("--seeds", nargs="+", type=int, default=list(range(8)), help="on the embedded model")
    parser.add_argument("--iterations", type=int, default=25, help="on the embedded model")
    parser.add_argument("--steps", type=int, default=20, help="of the embedded model")
    parser.add_argument("--lr", type=float, default=0.01)
    parser.add_argument("--out", type=Path, required=True, help="JSON file; the curves are drawn beside it")
    options = parser.parse_args()
    torch.set_num_threads(1)
    runs = study.Runs(options.out, {key: value for key, value in vars(options).items() if key != "out"})
    climbs = {"ring": on_the_ring(runs, options)} | embedded(runs, options)
    study.plot_climbs(climbs, options.out.with_suffix(".png"))
    runs.finish("sde_ode.py", {name: summary(arms) for name, arms in climbs.items()})


def on_the_ring(runs, options):
    """Return arm -> list of runs, one a point of the ring."""
    denoise = ring_models.train(ring_models.ring)
    maps = {arm: ring.point_map(denoise, options.points, eta) for arm, eta in ETAS.items()}
    settings = options.lr, options.ring_iterations
    return {
        arm: runs_of(runs.once(f"ring, {arm}", climb, sample_map, ring.waves, sample_map.randn(0), *settings))
        for arm, sample_map in maps.items()
    }


def embedded(runs, options):
    """Return reward -> arm -> list of runs, one a seed."""
    prompts = [options.prompt] * len(options.seeds)
    maps = {
        arm: core.load_embedded(prompts, steps=options.steps, eta=eta, keep_graphs=True) for arm, eta in ETAS.items()
    }
    # An iteration with kept graphs costs about two sampling runs.
    study.announce(maps["SDE"], 2 * 2 * 2 * options.iterations)
    wanted = {"brightness": rewards.Brightness(), "consistency": rewards.Consistency(options.wanted)}
    noises = {arm: noise_of(sample_map, options.seeds) for arm, sample_map in maps.items()}
    settings = options.lr, options.iterations
    return {
        name: {
            arm: runs_of(runs.once(f"{name}, {arm}", climb, sample_map, reward, noises[arm], *settings))
            for arm, sample_map in maps.items()
        }
        for name, reward in wanted.items()
    }


def climb(sample_map, reward, noise, lr, iterations):
    """Optimise one batch.

    Returns:
        "scores", one curve an item; the "seconds" that they share; "slopes", the Euclidean norm of the
        reward's gradient by the starting noise: Adam moves every entry by lr, however small its share of that.
    """
    solver = core.GradientAscent(lr=lr)
    history = core.optimize(sample_map, reward, noise, solver, iterations=iterations, floor=0.0).whole().history
    curves = [study.curve(history, item) for item in range(noise.batch)]
    slopes = [round(slope, 5) for slope in history.rows[0]["gradient_norm"]]
    return {"seconds": curves[0]["seconds"], "scores": [curve["score"] for curve in curves], "slopes": slopes}


def runs_of(batch):
    """Return one run an item of what `climb` returned."""
    items = zip(batch["scores"], batch["slopes"], strict=True)
    return [{"score": scores, "seconds": batch["seconds"], "slope": slope} for scores, slope in items]


def summary(arms):
    """Return starts, gains on the way, and how soon the SDE has gained what the ODE gains in all.

    Args:
        arms: "SDE" and "ODE" -> list of runs, one a seed.
    """
    last = len(arms["ODE"][0]["score"]) - 1
    soon = [sooner(*pair) for pair in zip(arms["SDE"], arms["ODE"], strict=True)]
    reached = [iterations for iterations in soon if iterations is not None]
    return {
        "start": {arm: study.mean_sd(run["score"][0] for run in runs) for arm, runs in arms.items()},
        "norm of the gradient at the start": {
            arm: study.mean_sd(run["slope"] for run in runs) for arm, runs in arms.items()
        },
        "gain": {
            f"after {count} iterations": {
                arm: study.mean_sd(max(run["score"][: count + 1]) - run["score"][0] for run in runs)
                for arm, runs in arms.items()
            }
            for count in (last // 5, last // 2, last)
        },
        "seconds an iteration": {arm: round(runs[0]["seconds"][-1] / last, 3) for arm, runs in arms.items()},
        "SDE over ODE": study.paired(arms["SDE"], arms["ODE"]),
        f"the SDE gains what the ODE gains in {last} iterations": {
            "pairs": len(reached), "of": len(soon),
            "median iterations": statistics.median(reached) if reached else None,
        },
    }  # fmt: skip


def sooner(sde, ode):
    """Return the SDE's first iteration that is as far above its start as the ODE's best is above its own, or None."""
    wanted = study.gain(ode)
    return next((i for i, score in enumerate(sde["score"]) if score - sde["score"][0] >= wanted), None)


if __name__ == "__main__":
    main()
