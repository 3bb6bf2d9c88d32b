"""Figure 7: one preference scorer is climbed, the other is watched, without and with the regulariser."""

from .. import core
from . import preference_scorers
from .drawing import band, panels
from .embedded import curves, prompts_of, search, sheet
from .experiment import Claim, Experiment, by_seed

STEPS, ITERATIONS, LR, GAMMA = 8, 25, 0.03, 0.1
ARMS = {"without": "C3", "with": "C0"}
CLIMBED = "first", "second"


def run(seed, climbed):
    """Climb one scorer of the seed's two, and watch the other."""
    (prompt,) = prompts_of("red", seed, 1)
    sample_map = core.load_embedded(prompt, steps=STEPS, keep_graphs=True)
    scorers = {scorer.name: scorer for scorer in preference_scorers.trained(seed)}
    reward = scorers.pop(climbed)
    (other,) = scorers.values()
    found, pictures = {}, {}
    for arm in ARMS:
        regularizer = core.ProbabilityRegularizer(GAMMA) if arm == "with" else None
        history = search(sample_map, reward, seed, core.GradientAscent(LR), regularizer, ITERATIONS, (other,))
        found[arm] = curves(history)
        found[arm]["other"] = found[arm].pop(other.name)
        pictures |= {f"{arm}, {name}": picture for name, picture in sheet(history, 4).items()}
    return found | {"pictures": pictures}


def gained(curve):
    return curve[-1] - curve[0]


def difference(results, name):
    """Return how far `name` has risen with the regulariser minus without; one a case, one picture each."""
    return [gained(found["with"][name][0]) - gained(found["without"][name][0]) for found in results]


def draw(results):
    """Draw what is climbed, what is watched, and P."""
    names = {"reward": "climbed", "other": "the other scorer", "consistency": "consistency", "log10_p": "log10 P(z)"}
    figure, axes = panels(len(CLIMBED), len(names))
    for row, climbed in zip(axes, CLIMBED, strict=True):
        chosen = [result for result in results if result["case"]["climbed"] == climbed]
        for place, (name, title) in zip(row, names.items(), strict=True):
            for arm, color in ARMS.items():
                band(place, [found[arm][name][0] for found in chosen], f"{arm} the regulariser", color)
            place.set(title=f"{climbed} climbed: {title}", xlabel="iteration")
        row[0].legend(fontsize=8)
    return figure


EXPERIMENT = Experiment(
    name="dno_figure_7",
    title="Figure 7: preference scorers, each watched while the other is climbed",
    question="Does the regulariser keep a second preference score from falling while the first is climbed?",
    setting=(
        f'"red <animal>", embedded model, {STEPS} steps (paper: 50), cfg 3, eta 1, Adam at {LR} (paper: 0.01),'
        f" {ITERATIONS} iterations, gamma {GAMMA:g}; two small preference scorers, trained by the seed on pictures of"
        " the model and spoiled copies (paper: aesthetic score, HPS v2, PickScore); one picture a case."
    ),
    cases=lambda seeds: [{"seed": seed, "climbed": climbed} for seed in range(seeds) for climbed in CLIMBED],
    run=run,
    claims=(
        Claim(
            "Figure 7: the regulariser improves the test metric, the score that is not climbed.",
            "what the other score gained, with the regulariser minus without",
            lambda results: by_seed(results, difference(results, "other")),
        ),
        Claim(
            "Figure 7: with the regulariser the other score does not fall.",
            "what the other score gained with the regulariser",
            lambda results: by_seed(results, [gained(found["with"]["other"][0]) for found in results]),
        ),
        Claim(
            "Figure 7: the regulariser has no significant effect on the speed.",
            "a tenth of the plain search's gain, minus how far its end is from the regularised one's",
            lambda results: by_seed(results, [
                0.1 * gained(found["without"]["reward"][0]) - abs(effect)
                for found, effect in zip(results, difference(results, "reward"), strict=True)
            ]),
        ),
        Claim(
            "Figure 7: the regulariser stabilises P(z).",
            "log10 P(z) at the end, with minus without",
            lambda results: by_seed(results, difference(results, "log10_p")),
        ),
    ),
    draw=draw,
)  # fmt: skip
