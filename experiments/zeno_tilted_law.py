"""ZeNO: does its "sample" mode draw from the reward-tilted law? Two cases where that law is known in closed form."""

import math

import torch

from .. import core
from .drawing import panels
from .experiment import Claim, Experiment

DIMENSION, CHAINS = 16, 32
TEMPERATURE = 0.5
"""lambda, of the law p(z) exp(r(z) / lambda)."""
CANDIDATES, BETA, BURN_IN, KEPT = 64, 0.05, 150, 150
LAWS = {
    "linear": (lambda first: first, 1 / TEMPERATURE, 1.0),
    "quadratic": (lambda first: -2 * first.square() / 2, 0.0, 1 / math.sqrt(1 + 2 / TEMPERATURE)),
}
"""Name -> (reward of the first coordinate, mean and standard deviation of it under the tilted law)."""


def cases(seeds):
    return [{"law": law, "seed": seed} for seed in range(seeds) for law in LAWS]


def run(law, seed):
    """Run a batch of chains; return quantiles of the first coordinate and the distances to the two laws.

    All of z beside the first coordinate stays standard normal under the tilted law, so that is told too.
    """
    reward, mean, deviation = LAWS[law]
    sample_map = core.generator_map(lambda noise: noise, (DIMENSION,), batch=CHAINS)
    seen = []

    def note(evaluation, best):
        if evaluation.iteration >= BURN_IN:
            seen.append(evaluation.noise.initial)

    solver = core.ZeNO(CANDIDATES, beta=BETA, mode="sample", tau=2 * TEMPERATURE, seed=seed)
    core.optimize(
        sample_map, lambda z, prompts: reward(z[:, 0]), sample_map.randn(seed), solver, iterations=BURN_IN + KEPT,
        callback=note, floor=0.0,
    ).whole()  # fmt: skip
    samples = torch.stack(seen).double().flatten(0, 1)
    first, rest = samples[:, 0], samples[:, 1:]
    levels = (torch.arange(200, dtype=torch.float64) + 0.5) / 200
    standard = torch.special.ndtri(levels)
    quantiles, tilted = first.quantile(levels), mean + deviation * standard
    return {
        "levels": levels[::10].tolist(), "quantiles": quantiles[::10].tolist(),
        "mean": first.mean().item(), "deviation": first.std().item(), "others' deviation": rest.std().item(),
        "left": ((quantiles - tilted).abs().mean() / (standard - tilted).abs().mean()).item(),
    }  # fmt: skip


def closed(results, law):
    return [0.15 - result["left"] for result in results if result["case"]["law"] == law]


def claims():
    for law, what in (("linear", "a linear reward: a Gaussian, moved"), ("quadratic", "a quadratic one: narrowed")):
        yield Claim(
            "Abstract: with an Ornstein-Uhlenbeck reference the update targets the reward-tilted law.",
            f"{what}; 0.15 minus what is left of the Wasserstein distance to the tilted law, as a share of what true"
            " noise has",
            lambda results, law=law: closed(results, law),
        )


def draw(results):
    figure, (row,) = panels(1, len(LAWS))
    for axes, (law, (_, mean, deviation)) in zip(row, LAWS.items(), strict=True):
        for result in results:
            if result["case"]["law"] == law:
                standard = torch.special.ndtri(torch.tensor(result["levels"]))
                axes.plot(mean + deviation * standard, result["quantiles"], color="C0", alpha=0.6)
                axes.plot(mean + deviation * standard, standard, color="gray", linestyle=":")
        axes.axline((mean, mean), slope=1, color="black", linewidth=0.8)
        axes.set(xlabel="quantile of the tilted law", ylabel="quantile of the chains (dotted: true noise)", title=law)
        axes.grid(alpha=0.3)
    return figure


EXPERIMENT = Experiment(
    name="zeno_tilted_law",
    title="ZeNO: the law that it samples",
    question='Does "sample" draw noise from p(z) exp(r(z) / lambda)?',
    setting=(
        f"M(z) = z, {DIMENSION} numbers, {CHAINS} chains of {BURN_IN} + {KEPT} iterations, {CANDIDATES} candidates,"
        f" beta {BETA}, lambda {TEMPERATURE}, tau = 2 lambda. Rewards of the first number: z, whose tilted law is"
        " N(1 / lambda, 1), and -z^2, whose is N(0, 1 / (1 + 2 / lambda))."
    ),
    cases=cases,
    run=run,
    claims=tuple(claims()),
    draw=draw,
)
