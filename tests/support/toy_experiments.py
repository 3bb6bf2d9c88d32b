"""Experiments that cost nothing, for tests of what runs and reports them; other processes can import this module."""

import os
import signal
import time
from dataclasses import replace

import torch
from comfyui_dno.experiments.experiment import Claim, Experiment
from matplotlib.figure import Figure


def cases(seeds):
    return [{"seed": seed, "arm": arm} for seed in range(seeds) for arm in ("low", "high")]


def measure(seed, arm):
    """Give a number that depends on the case alone, a curve, and a picture in the arm's colour."""
    level = (0.1 if arm == "low" else 0.9) + 0.01 * seed
    picture = torch.full((3, 8, 8), int(255 * level), dtype=torch.uint8)
    return {"level": level, "none": float("nan"), "curve": [0.0, level], "pictures": {"the end": picture}}


def fail_once(seed, arm):
    if (seed, arm) == (1, "low"):
        raise ZeroDivisionError("the second seed's flaw")
    return measure(seed, arm)


def slowly(seed, arm):
    time.sleep(20 if seed else 0)
    return measure(seed, arm)


def ended_from_outside(seed, arm):
    os.kill(os.getpid(), signal.SIGKILL)


def gains(results):
    """Return high minus low, one a seed; every seed has both."""
    levels = {(result["case"]["seed"], result["case"]["arm"]): result["level"] for result in results}
    seeds = sorted({seed for seed, _ in levels})
    return [levels[seed, "high"] - levels[seed, "low"] for seed in seeds]


def losses(results):
    return [-gain for gain in gains(results)]


def draw(results):
    figure = Figure()
    figure.subplots().bar(range(len(results)), [result["level"] for result in results])
    return figure


TOY = Experiment(
    "toy", "Toy", "Is high more than low?", "No model.", cases, measure,
    (
        Claim("Figure 0: high is more than low.", "level of high minus that of low", gains),
        Claim("Figure 1: low | more.", "level of low minus that of high", losses),
    ),
    draw,
)  # fmt: skip
FLAWED = replace(TOY, run=fail_once)
SLOW = replace(TOY, run=slowly)
ENDED = replace(TOY, run=ended_from_outside)
