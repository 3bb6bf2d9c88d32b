"""Figure 2: the points of the ring climb a reward of many local maxima."""

import torch

from . import ring, ring_figures
from .drawing import panels
from .experiment import Claim, Experiment
from .ring_models import TRAINING, on_ring, train
from .ring_models import ring as draw_points

POINTS, ITERATIONS = 200, 100
SNAPSHOTS = 0, 10, 50, 100
NEAR = 0.1
"""Of a local maximum; an eighth of the plane is as near to one."""


def run(seed):
    """Train a model of the ring and climb Figure 2's reward."""
    denoise = train(draw_points, seed, TRAINING)
    found = ring.climb(ring.point_map(denoise, POINTS), ring.waves, ITERATIONS, SNAPSHOTS, seed=seed)
    points = {str(iteration): snapshot.images for iteration, snapshot in found.snapshots.items()}
    return {
        "means": found.means,
        "near_maxima": {name: float((distance_to_maximum(x) < NEAR).float().mean()) for name, x in points.items()},
        "on_ring": {name: float(on_ring(x).float().mean()) for name, x in points.items()},
        "points": {name: x.tolist() for name, x in points.items()},
    }


def distance_to_maximum(points):
    """Return each point's distance to the nearest local maximum of the reward, (B,).

    They are where both sines are 1, a grid of step 1/2 through (1/8, 1/8); the slow term moves them by less than 0.01.
    """
    return ((points - 1 / 8 + 1 / 4) % 0.5 - 1 / 4).norm(dim=1)


def draw(results):
    """Draw the first seed's points over the reward."""
    figure, axes = panels(1, len(SNAPSHOTS), 3.2)
    for place, (iteration, points) in zip(axes[0], results[0]["points"].items(), strict=True):
        ring_figures.scene(place, ring.waves, torch.tensor(points))
        place.set_title(f"{iteration} iterations: mean {results[0]['means'][int(iteration)]:.2f}", fontsize=11)
    return figure


def least_rise(result):
    """Return the least rise of the mean reward between the figure's snapshots."""
    means = [result["means"][iteration] for iteration in SNAPSHOTS]
    return min(after - before for before, after in zip(means, means[1:], strict=False))


EXPERIMENT = Experiment(
    name="dno_figure_2",
    title="Figure 2: the points of the ring climb",
    question="Does the optimised distribution shift towards the local maxima of the reward?",
    setting=(
        f"A network trained on points of a ring by the seed; DDIM, 50 steps, eta 1; {POINTS} points, Adam at 0.01,"
        f" {ITERATIONS} iterations, no regulariser, as in the paper."
    ),
    cases=lambda seeds: [{"seed": seed} for seed in range(seeds)],
    run=run,
    claims=(
        Claim(
            "Figure 2: the distribution improves from 0 to 10, 50 and 100 gradient steps.",
            "least rise of the mean reward between these four",
            lambda results: [least_rise(result) for result in results],
        ),
        Claim(
            "Figure 2: the samples shift towards the local maxima of the reward.",
            f"share of points within {NEAR} of a local maximum, after minus before",
            lambda results: [found["near_maxima"]["100"] - found["near_maxima"]["0"] for found in results],
        ),
    ),
    draw=draw,
)
