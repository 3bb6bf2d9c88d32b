"""A generator that nobody here trained: terrains of adaptive-terrain-diffusion, searched in 1, 2 and 4 steps.

    pip install -e .[terrain]
    python tests/benchmarks/terrain.py --out tests/benchmarks/results/terrain.json

adaptive-terrain-diffusion 0.4.2 (MIT) holds a consistency U-Net of height maps, 128 x 128, as an ONNX file, which
`rewards.OnnxTower` runs and differentiates. A height map is a gray picture, in the network's own scale: 0 to 1 is the
inverse hyperbolic sine of 0 to 22 m. It is sampled as consistency models are, x = denoised + sigma_next * fresh noise.
The network is made for one step: at low sigma it leaves noise in its picture, so that all steps are at `SIGMAS`.

    ramp       minus the mean difference of 8 x 8 tiles from a slope that rises from left to right, percent of the scale
    passable   how many of 256 tiles are nowhere steeper than a threshold: whole numbers, no gradient

An evaluation is a sampled and scored picture, the start's included; all arms have the same number. Those with gradient,
Trust and ReNO, pay two to three calls of the network for one. A gain is that of the best noise that passes the floor on
P. Seeds 100 and up were used for no decision. The same command goes on after an interruption; finished runs are kept.
"""

import argparse
import itertools
import statistics
import time
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import study
import torch
from comfyui_dno import core, rewards
from PIL import Image
from torch.nn import functional as F

FILE = "weights/terrain_consistency_unet_difficulty100.onnx"
SIGMAS = {1: (80.0, 0.0), 2: (80.0, 40.0, 0.0), 4: (80.0, 60.0, 40.0, 20.0, 0.0)}
"""Steps -> noise levels."""
DIFFICULTY = 0.5
IN_ONE_CALL = 4
ROUNDS = 4
"""Calls of 4 candidates in a search: 1 + 16 evaluations."""
STEEP = 0.008
"""Difference of two neighbouring heights."""
SHOWN = 100
"""The seed whose terrains are drawn."""
TILE = 130


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", nargs="+", type=int, default=list(SIGMAS), choices=list(SIGMAS))
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--rewards", nargs="+", default=list(REWARDS), choices=list(REWARDS))
    parser.add_argument("--out", type=Path, required=True, help="JSON file; gains and terrains are drawn beside it")
    options = parser.parse_args()
    torch.set_num_threads(1)
    runs = study.Runs(
        options.out, {"sigmas": {str(steps): list(sigmas) for steps, sigmas in SIGMAS.items()}, "rounds": ROUNDS}
    )
    for steps in options.steps:
        for seed in range(100, 100 + options.seeds):
            for reward in options.rewards:
                for arm in arms(reward):
                    runs.once(f"{reward} | {arm} | {steps} | {seed}", run, reward, arm, steps, seed, options.out)
    found = summary(runs.done)
    plot(runs.done, options.out.with_suffix(".png"))
    runs.finish("terrain.py", found)


def arms(reward):
    """Return the names of the searches for a reward."""
    return (["Trust", "ReNO"] if REWARDS[reward].differentiable else []) + ["ZeNO", "TRS", "best of N"]


def searched(arm, sample_map, reward, seed):
    """Run one search of 1 + IN_ONE_CALL ROUNDS evaluations from a seed's noise."""
    n, noise = IN_ONE_CALL, sample_map.randn(seed)
    if arm == "ReNO":
        return core.reno(sample_map, reward, noise, iterations=n * ROUNDS)
    if arm == "Trust":
        return core.optimize(sample_map, reward, noise, core.TrustAscent(), iterations=n * ROUNDS).whole()
    solver = {
        "ZeNO": core.ZeNO(n - 1, seed=seed),  # its centre goes along
        "TRS": core.TRS(n, regions=2, seed=seed),
        "best of N": core.Search.best_of_n(n, seed=seed),
    }[arm]
    return core.optimize(sample_map, reward, noise, solver, iterations=ROUNDS).whole()


class Ramp:
    """Minus the mean difference of 8 x 8 tiles' heights from a slope of 0.15 to 0.45, in percent of the scale."""

    name, differentiable = "ramp", True

    def __call__(self, images, prompts=None):
        tiles = F.adaptive_avg_pool2d(images[:, 0], 8)
        return -100 * (tiles - torch.linspace(0.15, 0.45, 8)).abs().mean(dim=(1, 2))


class Passable:
    """How many of 16 x 16 tiles are nowhere steeper than `STEEP`."""

    name, differentiable = "passable", False

    def __call__(self, images, prompts=None):
        heights = F.pad(images[:, :1], (0, 1, 0, 1), mode="replicate")
        down, across = heights.diff(dim=2)[..., :-1], heights.diff(dim=3)[:, :, :-1]
        steepest = F.adaptive_max_pool2d(torch.maximum(down.abs(), across.abs()), 16)
        return (steepest < STEEP).flatten(1).sum(dim=1).float()


REWARDS = {"ramp": Ramp(), "passable": Passable()}


def consistency(model, x, sigmas, noise_sampler, callback):
    """Sample as consistency models do: x = denoised + sigma_next * fresh noise."""
    for sigma, sigma_next in zip(sigmas[:-1], sigmas[1:], strict=True):
        denoised = model(x, sigma.expand(len(x)))
        callback({"denoised": denoised})
        x = denoised + sigma_next * noise_sampler(sigma, sigma_next) if sigma_next > 0 else denoised
    return x


@cache
def network():
    folder = find_spec("terrain_diffusion").submodule_search_locations[0]
    return rewards.OnnxTower(Path(folder) / FILE).module


def terrains(steps):
    """Return the map from noise to height maps (1, 3, 128, 128)."""

    def denoise(x, sigma):
        return network()(x, sigma, torch.full_like(sigma, DIFFICULTY))[0]

    schedule = core.Schedule(SIGMAS[steps])
    return core.SamplerMap(
        denoise, schedule, (1, 1, 128, 128), most_rows=IN_ONE_CALL, keep_graphs=steps <= 2,
        start=lambda noise: schedule.sigmas[0] * noise, decode=lambda x: ((x + 1) / 2).expand(-1, 3, -1, -1),
        sampler=consistency, traits=core.try_sampler(consistency, schedule.sigmas),
    )  # fmt: skip


def run(reward, arm, steps, seed, out):
    """Return one search: the score of every evaluation in its order, and what is to be known of the best."""
    sample_map, recorded = terrains(steps), study.Recorded(REWARDS[reward])
    started = time.perf_counter()
    result = searched(arm, sample_map, recorded, seed)
    seconds = time.perf_counter() - started
    if seed == SHOWN:
        draw(sample_map.sample(sample_map.randn(seed)), out, reward, steps, "start")
        draw(result.images, out, reward, steps, arm)
    # Of a noise that Trust accepts the reward is asked twice, the second time for the gradient: a row is an evaluation.
    by_row = arm in ("Trust", "ReNO")
    scores = result.history.column("score") if by_row else recorded.seen
    log_p = core.Problem(sample_map, recorded).log_probabilities(result.noise)
    return {
        "scores": [round(score, 3) for score in scores],
        "best": round(result.history.best_row["score"][0], 3),
        "log_p": round(min(log_p).item(), 3),
        "seconds": round(seconds, 1),
    }


def draw(images, out, reward, steps, name):
    """Put a height map in its place on the sheet: a row for each number of steps and reward, a column for each arm."""
    path = out.with_name(f"{out.stem}_maps.png")
    row = list(itertools.product(SIGMAS, REWARDS)).index((steps, reward))
    column = ["start", *arms("ramp")].index(name)
    drawn = Image.open(path) if path.exists() else Image.new("L", (6 * TILE, len(SIGMAS) * len(REWARDS) * TILE))
    heights = (images[0, 0] * 1.4).clamp(0, 1)  # few are above 0.7
    drawn.paste(Image.fromarray((255 * heights).byte().numpy()), (column * TILE, row * TILE))
    drawn.save(path)


def table_of(done):
    """Return (reward, steps) -> arm -> runs, on the seeds that all arms have run."""
    table = {}
    for name, found in done.items():
        reward, arm, steps, seed = name.split(" | ")
        table.setdefault((reward, int(steps)), {}).setdefault(arm, {})[seed] = found
    shared = {key: set.intersection(*map(set, by_arm.values())) for key, by_arm in table.items()}
    return {
        key: {arm: [found[seed] for seed in sorted(shared[key])] for arm, found in by_arm.items()}
        for key, by_arm in table.items()
        if len(shared[key]) > 1 and set(by_arm) == set(arms(key[0]))
    }


def summary(done):
    """Return, for each reward and number of steps, every arm's gain, least ln P and seconds."""
    found = {}
    for (reward, steps), by_arm in table_of(done).items():
        starts = [run["scores"][0] for run in by_arm["ZeNO"]]
        found[f"{reward}, {steps} steps"] = {"seeds": len(starts), "start": study.mean_sd(starts)} | {
            arm: {
                "gain": study.mean_sd(run["best"] - run["scores"][0] for run in runs),
                "ln P, least": min(run["log_p"] for run in runs),
                "evaluations": max(len(run["scores"]) for run in runs),
                "seconds": round(statistics.mean(run["seconds"] for run in runs), 1),
            }
            for arm, runs in by_arm.items()
        }
    return found


def plot(done, path):
    """Draw each arm's best so far by the number of evaluations, a panel for each reward and number of steps."""
    from matplotlib.figure import Figure

    table = table_of(done)
    figure = Figure(figsize=(4 * len(table), 3.6), dpi=100, layout="constrained")
    panels = figure.subplots(1, len(table), squeeze=False)[0]
    for axes, ((reward, steps), by_arm) in zip(panels, table.items(), strict=True):
        for arm, runs in by_arm.items():
            curves = [(range(len(run["scores"])), study.best_so_far(run["scores"])) for run in runs]
            study.draw_band(axes, curves, arm, f"C{arms('ramp').index(arm)}")
        axes.set(
            xlabel="evaluations after the start",
            ylabel=f"{reward}, best so far",
            title=f"{steps} step{'s' * (steps > 1)}",
        )
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.savefig(path)


if __name__ == "__main__":
    main()
