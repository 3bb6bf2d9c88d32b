"""ZeNO: a one-step generator that nobody here trained, of what is no photograph."""

from functools import partial

from . import noise_searches
from .drawing import panels
from .experiment import Claim, Experiment

ARMS = ("ZeNO", "best of N")
EVALUATIONS = 65


def cases(seeds):
    return [{"arm": arm, "seed": seed} for seed in range(seeds) for arm in ARMS]


def run(arm, seed):
    sample_map = noise_searches.terrain()
    found, result = noise_searches.search(sample_map, noise_searches.Passable(), arm, EVALUATIONS, seed)
    return found | {"pictures": {arm: noise_searches.small(1.4 * result.images)}}


def draw(results):
    figure, ((axes,),) = panels(1, 1)
    noise_searches.draw_curves(axes, results, "evaluations", ARMS)
    return figure


EXPERIMENT = Experiment(
    name="zeno_terrain",
    title="ZeNO: a one-step generator of other people",
    question="Does it search the height maps of a consistency model, for a count that has no gradient?",
    setting=(
        "adaptive-terrain-diffusion 0.4.2, its consistency U-Net at sigma 80 in one step, 128 x 128. Reward: how"
        " many of 256 tiles are nowhere steeper than a threshold. ZeNO with 16 candidates, geometric schedule, against"
        f" best-of-N; {EVALUATIONS} evaluations."
    ),
    cases=cases,
    run=run,
    claims=(
        Claim(
            "Abstract: strong performance across diverse generators and reward functions.",
            "passable tiles minus those of best-of-N at equal evaluations",
            partial(noise_searches.leads, unit="evaluations"),
        ),
    ),
    draw=draw,
    needs=noise_searches.TERRAIN,
)
