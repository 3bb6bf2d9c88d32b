"""ZeNO: rewards that cannot be differentiated, against the gradient-based search with estimated gradients."""

from functools import partial

from .. import rewards
from . import noise_searches
from .experiment import Claim, Experiment

ARMS = ("ZeNO", "best of N", "DNO, Hybrid-2")
EVALUATIONS = 201
REWARDS = {"JPEG size": rewards.JPEG(), "detector": noise_searches.Detector(0.7)}


def cases(seeds):
    return [{"reward": reward, "arm": arm, "seed": seed} for seed in range(seeds) for reward in REWARDS for arm in ARMS]


def run(reward, arm, seed):
    sample_map = noise_searches.embedded(steps=2)
    found, result = noise_searches.search(sample_map, REWARDS[reward], arm, EVALUATIONS, seed)
    return found | {"pictures": {arm: noise_searches.small(result.images)}}


def claims():
    for reward in REWARDS:
        yield Claim(
            "Abstract: strong performance on rewards where backpropagation is infeasible.",
            f"{reward}: reward minus that of best-of-N at equal evaluations",
            partial(noise_searches.leads, unit="evaluations", reward=reward),
        )
        yield Claim(
            "Key results: competitive or superior performance compared to gradient-based methods.",
            f"{reward}: reward minus that of DNO with Hybrid-2 at equal seconds",
            partial(noise_searches.leads, unit="processor seconds", second="DNO, Hybrid-2", reward=reward),
        )


EXPERIMENT = Experiment(
    name="zeno_black_box",
    title="ZeNO: rewards without a gradient",
    question="What does a search by values alone find where the reward is a file's size or a count?",
    setting=(
        f"Embedded model, \"black dog\", 2 steps, eta 0.5, cfg 2; {EVALUATIONS} evaluations. Rewards: minus the size as"
        " a JPEG file, and a detector that counts bright tiles. ZeNO with 16 candidates, geometric schedule;"
        " best-of-N; DNO by Hybrid-2 (q 4, mu 0.1, the ou preset), which goes back through the model."
    ),
    cases=cases,
    run=run,
    claims=tuple(claims()),
    draw=partial(noise_searches.draw_panels, by="reward", values=REWARDS, names=ARMS),
)  # fmt: skip
