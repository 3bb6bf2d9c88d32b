"""ZeNO: does the reward go on rising with the number of evaluations?"""

import math
import statistics
from functools import partial
from itertools import pairwise

from .. import rewards
from . import noise_searches
from .drawing import logarithmic, panels
from .experiment import Claim, Experiment
from .noise_searches import best_at, chosen

BUDGETS = {"random network": (97, 401, 1601, 6401), "embedded model, 2 steps": (97, 401)}
"""Generator -> evaluations."""


def cases(seeds):
    # The longest first: the processes then end together. Of best-of-N the longest search holds the shorter ones.
    return [
        {"generator": generator, "arm": arm, "evaluations": evaluations, "seed": seed}
        for generator, budgets in BUDGETS.items()
        for evaluations in reversed(budgets)
        for seed in range(seeds)
        for arm in (("ZeNO", "best of N") if evaluations == budgets[-1] else ("ZeNO",))
    ]


def run(generator, arm, evaluations, seed):
    random = generator == "random network"
    sample_map = noise_searches.random_network() if random else noise_searches.embedded(steps=2)
    found, _ = noise_searches.search(sample_map, rewards.JPEG(), arm, evaluations, seed)
    return found


def gain(result):
    """Return how far the best of a search is above its start."""
    return result["best"][-1] - result["start"]


def least_rises(results, generator):
    """Return, one a seed, the least of what each next budget gains more than the one before."""
    runs = [chosen(results, generator=generator, arm="ZeNO", evaluations=budget) for budget in BUDGETS[generator]]
    seeds = sorted(set.intersection(*(set(by_seed) for by_seed in runs)))
    gains = [[gain(by_seed[seed]) for by_seed in runs] for seed in seeds]
    return [min(b - a for a, b in pairwise(each)) for each in gains]


def leads(results, generator):
    return noise_searches.leads(results, "evaluations", generator=generator, evaluations=BUDGETS[generator][-1])


def claims():
    for generator, budgets in BUDGETS.items():
        yield Claim(
            "Abstract: ZeNO enables effective inference-time scaling.",
            f"{generator}: the least that the gain in reward grows by when the evaluations are multiplied by four,"
            f" {budgets[0]} to {budgets[-1]}",
            partial(least_rises, generator=generator),
        )
        yield Claim(
            "Abstract: ZeNO enables effective inference-time scaling.",
            f"{generator}: reward minus that of best-of-N at {budgets[-1]} evaluations",
            partial(leads, generator=generator),
        )


def draw(results):
    figure, (row,) = panels(1, len(BUDGETS))
    for axes, (generator, budgets) in zip(row, BUDGETS.items(), strict=True):
        longest = chosen(results, generator=generator, arm="best of N").values()
        by_arm = {
            "ZeNO": [
                [gain(each) for each in chosen(results, generator=generator, arm="ZeNO", evaluations=budget).values()]
                for budget in budgets
            ],
            "best of N": [
                [best_at(each, "evaluations", budget) - each["start"] for each in longest] for budget in budgets
            ],
        }
        for arm, gains in by_arm.items():
            means = [statistics.fmean(each) if each else math.nan for each in gains]
            spread = [statistics.stdev(each) if len(each) > 1 else 0 for each in gains]
            axes.errorbar(budgets, means, spread, label=arm, marker="o", capsize=3)
        logarithmic(axes)
        axes.set(xlabel="evaluations", ylabel="gain in reward (JPEG)", title=generator)
        axes.grid(alpha=0.3)
        axes.legend()
    return figure


EXPERIMENT = Experiment(
    name="zeno_scaling",
    title="ZeNO: reward against evaluations",
    question="Does a search that never differentiates go on finding better pictures the more it may look at?",
    setting=(
        "Reward: minus the size as a JPEG file. ZeNO with 16 candidates and the geometric schedule, a search for each"
        " number of evaluations, against best-of-N. Generators: three random smooth layers (4096 numbers to 64 x 64"
        " pixels), 97 to 6401 evaluations; the embedded model, \"black dog\", 2 steps, eta 0.5, cfg 2, 97 and 401."
        " The paper's generators are large few-step models."
    ),
    cases=cases,
    run=run,
    claims=tuple(claims()),
    draw=draw,
)  # fmt: skip
