"""Theorem 1: the mean reward rises at every step of plain gradient ascent whose step is small."""

import itertools
import statistics

import torch

from .. import core, rewards
from . import ring
from .drawing import panels
from .embedded import prompts_of
from .experiment import Claim, Experiment
from .ring_models import ring as draw_points
from .ring_models import train

POINTS, RING_STEP, RING_ITERATIONS = 400, 1e-4, 20
STEPS, PICTURES, STEP, ITERATIONS = 8, 4, 2.5, 8
MODELS = "ring", "embedded"


def run(seed, model):
    """Take steps z + l g from true noise, g the exact gradient, and return the rewards and gradients of each."""
    if model == "ring":
        sample_map, reward = ring.point_map(train(draw_points, seed), POINTS), ring.waves
        step, iterations = RING_STEP, RING_ITERATIONS
    else:
        sample_map = core.load_embedded(prompts_of("red", seed, PICTURES), steps=STEPS, keep_graphs=True)
        reward, step, iterations = rewards.Brightness(), STEP, ITERATIONS
    solver = core.GradientAscent(step, "sgd", momentum=0)
    rows = []

    def keep(evaluation, best):
        norm = evaluation.gradient_norm
        rows.append((evaluation.scores.mean(), torch.nan if norm is None else norm.square().mean()))

    core.optimize(
        sample_map, reward, sample_map.randn(seed), solver, None, iterations, floor=0.0, callback=keep
    ).whole()
    means, squares = zip(*rows, strict=True)
    return {"step": step, "means": [float(mean) for mean in means], "squares": [float(s) for s in squares[:-1]]}


def rises(found):
    """Return what the mean reward rises by at each step."""
    return [after - before for before, after in itertools.pairwise(found["means"])]


def expected(found):
    """Return what each step would raise the mean reward by if it had no curvature, l E ||g||^2."""
    return [found["step"] * square for square in found["squares"]]


def of(model, results):
    return [found for found in results if found["case"]["model"] == model]


def draw(results):
    """Draw the mean reward by step, with what the first order says of it."""
    figure, axes = panels(1, len(MODELS), 4.5)
    for place, model in zip(axes[0], MODELS, strict=True):
        for index, found in enumerate(of(model, results)):
            place.plot(found["means"], color=f"C{index % 10}", label="mean reward" if index == 0 else None)
            line = list(itertools.accumulate(expected(found), initial=found["means"][0]))
            place.plot(line, ":", color=f"C{index % 10}", label="first order" if index == 0 else None)
        place.set(title=model, xlabel="step")
        place.grid(alpha=0.3)
        place.legend()
    return figure


EXPERIMENT = Experiment(
    name="dno_theorem_1",
    title="Theorem 1: the mean reward rises at every step",
    question="Does every step of plain gradient ascent raise the mean reward, and by about l E ||g||^2?",
    setting=(
        f"No momentum, no regulariser. Ring: {POINTS} points, DDIM, 50 steps, eta 1, Figure 2's reward, l"
        f' {RING_STEP:g}, {RING_ITERATIONS} steps. Embedded model: "red <animal>", {PICTURES} animals, {STEPS}'
        f" denoising steps, cfg 3, eta 1, brightness, l {STEP:g}, {ITERATIONS} steps."
    ),
    cases=lambda seeds: [{"seed": seed, "model": model} for seed in range(seeds) for model in MODELS],
    run=run,
    claims=tuple(
        claim
        for model in MODELS
        for claim in (
            Claim(
                f"Theorem 1: every small step raises the mean reward; {model}.",
                "least rise of the mean reward at a step",
                lambda results, model=model: [min(rises(found)) for found in of(model, results)],
            ),
            Claim(
                f"Theorem 1: by (l - l^2 L / 2) E ||g||^2, at least half of l E ||g||^2 where l <= 1 / L; {model}.",
                "mean rise over l E ||g||^2, minus 0.5",
                lambda results, model=model: [
                    statistics.fmean(rises(found)) / statistics.fmean(expected(found)) - 0.5
                    for found in of(model, results)
                ],
            ),
        )
    ),
    draw=draw,
)
