"""ZeNO: deterministic generators, where the first noise is all there is to search."""

from functools import partial

from .. import rewards
from . import noise_searches
from .experiment import Claim, Experiment

ARMS = ("ZeNO", "best of N", "DNO, Trust")
EVALUATIONS = 97
GENERATORS = {
    "ODE, 2 steps": partial(noise_searches.embedded, steps=2, eta=0.0),
    "one step": partial(noise_searches.embedded, steps=1, eta=0.0),
    "random network": noise_searches.random_network,
}


def cases(seeds):
    return [
        {"generator": generator, "arm": arm, "seed": seed}
        for seed in range(seeds) for generator in GENERATORS for arm in ARMS
    ]  # fmt: skip


def run(generator, arm, seed):
    found, result = noise_searches.search(GENERATORS[generator](), rewards.Brightness(), arm, EVALUATIONS, seed)
    return found | {"pictures": {arm: noise_searches.small(result.images)}}


def claims():
    for generator in GENERATORS:
        yield Claim(
            "Abstract: multi-step stochastic methods are difficult to extend to deterministic generators; ZeNO is not.",
            f"{generator}: brightness minus that of best-of-N at equal evaluations",
            partial(noise_searches.leads, unit="evaluations", generator=generator),
        )
        yield Claim(
            "Key results: competitive or superior performance compared to gradient-based methods.",
            f"{generator}: brightness minus that of DNO (Trust, exact gradient) at equal seconds",
            partial(noise_searches.leads, unit="processor seconds", second="DNO, Trust", generator=generator),
        )


EXPERIMENT = Experiment(
    name="zeno_deterministic",
    title="ZeNO: deterministic and one-step generators",
    question="Does it need the many noises of a stochastic sampler, or is the first one enough?",
    setting=(
        f"Reward: brightness, which has a gradient; about {EVALUATIONS} evaluations. Generators: the embedded model,"
        " \"black dog\", cfg 2, eta 0, in 2 steps and in 1 (it is not made for one step); three random smooth layers."
        " ZeNO with 16 candidates, geometric schedule; best-of-N; DNO by TrustAscent with the exact gradient."
    ),
    cases=cases,
    run=run,
    claims=tuple(claims()),
    draw=partial(noise_searches.draw_panels, by="generator", values=GENERATORS, names=ARMS),
)  # fmt: skip
