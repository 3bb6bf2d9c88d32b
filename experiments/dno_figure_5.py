"""Figures 5 and 6: whiteness of black animals and blackness of white ones, without and with the regulariser."""

import statistics

import numpy as np

from .. import core, rewards
from .drawing import band, panels
from .embedded import curves, prompts_of, search
from .experiment import Claim, Experiment, by_seed

STEPS, ITERATIONS, LR, GAMMA, ANIMALS = 8, 30, 0.03, 1.0, 2
LEVELS = 0.5, 0.75, 1.0
"""Shares of the regularised search's gain at which the other one is stopped early."""
COLOURS = {"whiteness": "black", "blackness": "white"}
ARMS = {"without": "C3", "with": "C0"}


def run(seed, reward):
    """Search the same noises without and with the regulariser."""
    prompts = prompts_of(COLOURS[reward], seed, ANIMALS)
    sample_map = core.load_embedded(prompts, steps=STEPS, keep_graphs=True)
    histories = {}
    for arm in ARMS:
        regularizer = core.ProbabilityRegularizer(GAMMA) if arm == "with" else None
        judge = rewards.Brightness(negative=reward == "blackness")
        histories[arm] = search(sample_map, judge, seed, core.GradientAscent(LR), regularizer, ITERATIONS)
    found = {arm: curves(history) for arm, history in histories.items()}
    pictures = [figure_6(histories, found, item, prompt) for item, prompt in enumerate(prompts)]
    return found | {"pictures": {name: picture for of_one in pictures for name, picture in of_one.items()}}


def figure_6(histories, found, item, prompt):
    """Return pictures of one animal: start, the regularised end, the plain search at the same reward and at its end."""
    end = found["with"]["reward"][item][-1]
    passed = (row for row, value in enumerate(found["without"]["reward"][item]) if value >= end)
    places = {"start": ("with", 0), "with": ("with", -1), "equal": ("without", next(passed, -1))}
    pictures = {}
    for name, (arm, row) in (places | {"without": ("without", -1)}).items():
        reward, consistency = found[arm]["reward"][item][row], found[arm]["consistency"][item][row]
        caption = f"{prompt}, {name}\n{reward:.2f}, CS {consistency:.2f}"
        pictures[caption] = histories[arm].pictures[row][item]
    return pictures


def difference(results, name, part=slice(-1, None)):
    """Return `name` with the regulariser minus without, mean over part of the iterations, pictures and rewards."""
    return by_seed(results, [
        statistics.fmean(
            statistics.fmean(a[part]) - statistics.fmean(b[part])
            for a, b in zip(found["with"][name], found["without"][name], strict=True)
        )
        for found in results
    ])  # fmt: skip


def at_reward(curves_of_arm, item, wanted):
    """Return a search's consistency where its reward first passes `wanted`, interpolated; at its end where never."""
    reward, consistency = curves_of_arm["reward"][item], curves_of_arm["consistency"][item]
    after = next((i for i, value in enumerate(reward) if value >= wanted), None)
    if not after:
        return consistency[-1 if after is None else 0]
    share = (wanted - reward[after - 1]) / (reward[after] - reward[after - 1])
    return consistency[after - 1] + share * (consistency[after] - consistency[after - 1])


def at_equal_reward(results, levels):
    """Return the consistency with the regulariser minus without, both stopped where they gained equally, one a seed."""
    effects = []
    for found in results:
        differences = []
        for item in range(len(found["with"]["reward"])):
            ends = [max(found[arm]["reward"][item]) for arm in ARMS]
            start = found["with"]["reward"][item][0]
            for level in levels:
                wanted = min(start + level * (min(ends) - start), *ends)  # rounded, the sum may be above its end
                differences.append(at_reward(found["with"], item, wanted) - at_reward(found["without"], item, wanted))
        effects.append(statistics.fmean(differences))
    return by_seed(results, effects)


def correlation(results):
    """Return how log10 P(z) and the consistency go together on the way without the regulariser, one a seed."""
    found = [result["without"] for result in results]
    together = [np.corrcoef(np.ravel(each["log10_p"]), np.ravel(each["consistency"]))[0, 1] for each in found]
    return by_seed(results, together)


def draw(results):
    """Draw reward, consistency and P by iteration, and the consistency by reward, a row a reward."""
    figure, axes = panels(2, 4)
    titles = {"reward": "reward", "consistency": "consistency with the prompt", "log10_p": "log10 P(z)"}
    for row, reward in zip(axes, COLOURS, strict=True):
        of_reward = [result for result in results if result["case"]["reward"] == reward]
        for arm, color in ARMS.items():
            label = f"{arm} the regulariser"
            for place, name in zip(row, titles, strict=False):
                band(place, [curve for found in of_reward for curve in found[arm][name]], label, color)
            for found in of_reward:
                for scores, consistency in zip(found[arm]["reward"], found[arm]["consistency"], strict=True):
                    row[3].plot(scores, consistency, color=color, alpha=0.6)
        for place, title in zip(row, titles.values(), strict=False):
            place.set(title=f"{reward}: {title}", xlabel="iteration")
        row[3].set(title=f"{reward}: consistency by reward", xlabel="reward")
        row[3].grid(alpha=0.3)
        row[0].legend(fontsize=8)
    return figure


EXPERIMENT = Experiment(
    name="dno_figure_5",
    title="Figures 5 and 6: searches against the prompt, without and with the regulariser",
    question="Does the regulariser keep the animal's colour where the reward asks for the opposite one?",
    setting=(
        f'"black <animal>" for whiteness, "white <animal>" for blackness, {ANIMALS} animals a seed; embedded model,'
        f" {STEPS} steps (paper: 50), cfg 3, eta 1, Adam at {LR} (paper: 0.01), {ITERATIONS} iterations, gamma"
        f" {GAMMA:g}, b 100; consistency by the embedded classifier (paper: CLIP)."
    ),
    cases=lambda seeds: [{"seed": seed, "reward": reward} for seed in range(seeds) for reward in COLOURS],
    run=run,
    claims=(
        Claim(
            "Figure 5: with the regulariser the samples are more consistent with the prompt throughout.",
            "consistency with minus without, at equal iterations, mean over all of them",
            lambda results: difference(results, "consistency", slice(1, None)),
        ),
        Claim(
            "Figure 5: and at the end.",
            "consistency with minus without, after equally many iterations",
            lambda results: difference(results, "consistency"),
        ),
        Claim(
            "Figure 5: the regulariser makes the search slower.",
            "reward without minus with, after equally many iterations",
            lambda results: [-effect for effect in difference(results, "reward")],
        ),
        Claim(
            "Figure 5: P(z) stays higher with the regulariser.",
            "log10 P(z) with minus without, at the end",
            lambda results: difference(results, "log10_p"),
        ),
        Claim(
            "Figure 5: P(z) tells of the consistency.",
            "correlation of log10 P(z) and consistency on the way without the regulariser",
            correlation,
        ),
        Claim(
            "Figure 6: at almost the same reward the samples without the regulariser are less consistent.",
            "consistency with minus without, where both have just reached the lower one's highest reward",
            lambda results: at_equal_reward(results, (1.0,)),
        ),
        Claim(
            "Figure 5: early stopping of the plain search does not replicate the effect.",
            f"consistency with minus without, at equal rewards, mean over {', '.join(f'{part:.0%}' for part in LEVELS)}"
            " of the lower one's gain",
            lambda results: at_equal_reward(results, LEVELS),
        ),
    ),
    draw=draw,
)
