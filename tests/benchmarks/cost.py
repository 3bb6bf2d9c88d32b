"""What one iteration costs, in plain sampling runs of the same model: python tests/benchmarks/cost.py

Times, interleaved in one process so that a noisy machine slows all alike: one sampling run with decode and without
gradients; one gradient iteration that re-runs each step; one that keeps the graphs; the regulariser alone. Medians.
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import torch
from comfyui_dno import core, rewards
from comfyui_dno.core.regularizer import permuted_log_probabilities

STABLE_DIFFUSION = 835584
"""Numbers in z for Stable Diffusion 1.5 at 512 x 512 with 50 leading DDIM steps."""


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, help="write the figures to this JSON file")
    options = parser.parse_args()
    seconds = measure(options.steps, options.rounds, options.device)
    figures = {
        "steps": options.steps,
        "rounds": options.rounds,
        "device": options.device,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "seconds": {name: round(value, 4) for name, value in seconds.items()},
        "iteration_rerun_per_sampling": round(seconds["iteration, re-run"] / seconds["sampling"], 2),
        "iteration_kept_per_sampling": round(seconds["iteration, kept graphs"] / seconds["sampling"], 2),
        "regulariser_per_sampling": round(seconds["regulariser"] / seconds["sampling"], 3),
    }
    text = json.dumps(figures, indent=1)
    sys.stdout.write(text + "\n")
    if options.out:
        options.out.write_text(text + "\n")


def measure(steps, rounds, device="cpu"):
    """Return the median seconds of each activity over interleaved rounds, after one unmeasured round."""
    sample_map = core.load_embedded("black cat", steps=steps, device=device)
    noise, problem = sample_map.randn(0).to(device), core.Problem(sample_map, rewards.Brightness())
    regularizer = core.ProbabilityRegularizer()
    # Noise a little off the shell: both of the regulariser's terms are active, as they are while it works.
    loud = noise.map(lambda tensor: tensor * 1.05)
    big = torch.randn(STABLE_DIFFUSION, generator=torch.Generator().manual_seed(0)).to(device) * 1.05

    def regularise_big():
        leaf = big.clone().requires_grad_()
        sum(log_p.mean() for log_p in permuted_log_probabilities(leaf)).backward()

    def iteration(keep_graphs):
        sample_map.keep_graphs = keep_graphs
        images, vjp = sample_map.pullback(noise)
        images = images.requires_grad_()
        vjp(torch.autograd.grad(problem.reward(images).sum(), images)[0])

    activities = {
        "sampling": lambda: sample_map.sample(noise),
        "iteration, re-run": lambda: iteration(False),
        "iteration, kept graphs": lambda: iteration(True),
        "regulariser": lambda: regularizer.gradient(sample_map, loud),
        f"regulariser, n = {STABLE_DIFFUSION}": regularise_big,
    }
    seconds = {name: [] for name in activities}
    for _ in range(rounds + 1):
        for name, activity in activities.items():
            start = time.perf_counter()
            activity()
            if device != "cpu":
                torch.cuda.synchronize()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values[1:]) for name, values in seconds.items()}


if __name__ == "__main__":
    main()
