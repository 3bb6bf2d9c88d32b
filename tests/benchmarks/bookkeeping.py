"""What an iteration costs beside the model: python tests/benchmarks/bookkeeping.py

A model that costs next to nothing, at the sizes of real ones. Seconds are those of one core's work, of which other
programs take none; the best of some rounds. The map's own passes, forwards and backwards, are measured beside it and
taken off. How often the host waits for the device is counted on the pretend device of the tests, at a small size.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))
from comfyui_dno import core  # noqa: E402
from second_device import PRETEND, counting  # noqa: E402

SIZES = {"SDXL, 50 steps": (50, (1, 4, 128, 128)), "Flux, 28 steps": (28, (1, 16, 128, 128))}
SEARCHES = {
    "gradient": lambda: {"solver": core.GradientAscent()},
    "gradient and regulariser": lambda: {
        "solver": core.GradientAscent(), "regularizer": core.ProbabilityRegularizer(),
    },
    "ZeNO, 16 candidates": lambda: {"solver": core.ZeNO(16)},
    "best of 16": lambda: {"solver": core.Search.best_of_n(16)},
    "TRS, 16 candidates": lambda: {"solver": core.TRS(16)},
    "LGD, 10 samples": lambda: {"solver": core.LGD()},
    "Tilt": lambda: {"solver": core.Tilt()},
    "Trust": lambda: {"solver": core.TrustAscent()},
}  # fmt: skip
TIMED = ("gradient", "gradient and regulariser", "ZeNO, 16 candidates")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--out", type=Path, help="write the figures to this JSON file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    figures = {
        "torch": torch.__version__,
        "rounds": options.rounds,
        "load": os.getloadavg()[0],
        "numbers": {name: core.Noise.randn(shape).initial.numel() * steps for name, (steps, shape) in SIZES.items()},
        "seconds beside the map": {
            size: {name: seconds(*SIZES[size], SEARCHES[name](), options.rounds) for name in TIMED} for size in SIZES
        },
        "waits of an iteration by steps": {
            name: {steps: waits(steps, search()) for steps in (10, 50)} for name, search in SEARCHES.items()
        },
    }
    text = json.dumps(figures, indent=1)
    sys.stdout.write(text + "\n")
    if options.out:
        options.out.write_text(text + "\n")


def free_map(steps, shape, device="cpu"):
    """A SampleMap whose model is one product."""
    schedule = core.Schedule(tuple(range(steps, -1, -1)))
    return core.SampleMap(lambda x, sigma: 0.3 * x, schedule, shape, decode=lambda x: x[:, :3], device=device)


def mean_pixel(images, prompts):
    return images.mean(dim=(1, 2, 3))


def seconds(steps, shape, search, rounds):
    """Return the least processor time of an iteration, less that of the map's passes forwards and backwards."""
    sample_map, history = free_map(steps, shape), core.History()
    problem, noise = core.Problem(sample_map, mean_pixel, search.get("regularizer")), sample_map.randn(0)
    found = {"iteration": [], "map": []}
    for problem.iteration in range(rounds + 1):
        started = time.process_time()
        noise, evaluation = search["solver"].step(problem, noise)
        history.record(evaluation)
        found["iteration"].append(time.process_time() - started)
        started = time.process_time()
        images, vjp = sample_map.pullback(noise)
        vjp(torch.ones_like(images))
        found["map"].append(time.process_time() - started)
    least = {name: min(times[1:]) for name, times in found.items()}  # the first iteration makes what is kept
    of_map = least["map"] if search["solver"].differentiates else 0  # else candidates, whose passes are not told apart
    return round(least["iteration"] - of_map, 3)


def waits(steps, search):
    """Return how often the third iteration makes the host wait for the device."""
    rows, sample_map = [], free_map(steps, (1, 3, 8, 8), PRETEND)
    with counting() as counts:

        def read(evaluation, best):
            rows.append(sum(counts.synchronisations.values()))

        core.optimize(sample_map, mean_pixel, sample_map.randn(0), iterations=3, callback=read, **search)
    return rows[2] - rows[1]


if __name__ == "__main__":
    main()
