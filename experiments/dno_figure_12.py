"""Figure 12: why points stop improving, types I, II and III."""

from collections import Counter

import torch

from . import ring, ring_figures
from .drawing import panels
from .experiment import Claim, Experiment
from .ring_models import line, train
from .ring_models import ring as draw_points

POINTS, ITERATIONS, LINE_ITERATIONS = 60, 100, 100
FEW = 0.05
"""A share of points that does not count: noise, and what is still on its way."""


def run(seed):
    """Climb on the ring and on the line, and tell the types of the points apart."""
    denoise = train(draw_points, seed)
    climbed = ring.climb(ring.point_map(denoise, POINTS), ring.waves, ITERATIONS, (ITERATIONS,), seed=seed)
    noise = climbed.snapshots[ITERATIONS].noise
    found = ring.stops(denoise, train(line, seed), noise, LINE_ITERATIONS, POINTS, seed)
    return {name: {"points": stop.points.tolist(), "types": stop.diagnosis.types} for name, stop in found.items()}


def share(found, where, kind):
    """Return the share of the points of one type."""
    types = found[where]["types"]
    return Counter(types)[kind] / len(types)


def draw(results):
    """Draw the first seed's points, coloured by type."""
    rewards = {"ring": ring.waves, "line": ring.height, "end": ring.rightness}
    titles = {"ring": "ring", "line": "line, reward x2", "end": "line, reward x1, exact denoiser"}
    figure, axes = panels(1, len(titles), 3.6, 3.6)
    for place, (where, title) in zip(axes[0], titles.items(), strict=True):
        found = results[0][where]
        ring_figures.types(place, rewards[where], torch.tensor(found["points"]), found["types"], where == "ring")
        place.set_title(title, fontsize=11)
    return figure


EXPERIMENT = Experiment(
    name="dno_figure_12",
    title="Figure 12: why points stop, types I, II and III",
    question="Do optimised points stop for the reasons that the paper names?",
    setting=(
        f"Ring and line: networks trained on points by the seed; DDIM, 50 steps, eta 1, {POINTS} points, Adam at 0.01,"
        f" {ITERATIONS} iterations; ||G2|| exact. The end of the line: the exact denoiser, reward x1,"
        f" {LINE_ITERATIONS} iterations [ours]."
    ),
    cases=lambda seeds: [{"seed": seed} for seed in range(seeds)],
    run=run,
    claims=(
        Claim(
            "Figure 12a: of the ring's points some end at a stationary point of the reward, type I.",
            "share of type I, minus 5 %",
            lambda results: [share(found, "ring", "I") - FEW for found in results],
        ),
        Claim(
            "Figure 12a: others end at the border of the ring where the Jacobian vanishes, type II.",
            "share of type II, minus 5 %",
            lambda results: [share(found, "ring", "II") - FEW for found in results],
        ),
        Claim(
            "Figure 12b: on the line, with the reward x2, all points are of type III.",
            "share of type III, minus 95 %",
            lambda results: [share(found, "line", "III") - (1 - FEW) for found in results],
        ),
        Claim(
            "Appendix B: where the support ends the Jacobian vanishes, type II, here at the end of the line.",
            "share of type II, minus 5 %",
            lambda results: [share(found, "end", "II") - FEW for found in results],
        ),
    ),
    draw=draw,
)  # fmt: skip
