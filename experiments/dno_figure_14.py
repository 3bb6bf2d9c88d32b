"""Figures 14 and 15: the way of P(z) while whiteness is searched, and while a preference score is."""

from .. import core, rewards
from . import preference_scorers
from .drawing import band, panels
from .embedded import curves, prompts_of, search, sheet
from .experiment import Claim, Experiment

STEPS, ITERATIONS, LR = 8, 24, 0.03
REWARDS = {"whiteness": "C3", "scorer": "C0"}


def run(seed):
    """Search one noise for either reward, without the regulariser."""
    (prompt,) = prompts_of("black", seed, 1)
    sample_map = core.load_embedded(prompt, steps=STEPS, keep_graphs=True)
    judges = {"whiteness": rewards.Brightness(), "scorer": preference_scorers.trained(seed)[0]}
    found, pictures = {}, {}
    for name, judge in judges.items():
        history = search(sample_map, judge, seed, core.GradientAscent(LR), None, ITERATIONS)
        found[name] = {key: of_pictures[0] for key, of_pictures in curves(history).items()}
        pictures |= {f"{name} {caption}": picture for caption, picture in sheet(history, 4).items()}
    return found | {"pictures": pictures}


def draw(results):
    """Draw P and consistency by iteration for both rewards."""
    figure, axes = panels(1, 2, 4.5)
    for name, color in REWARDS.items():
        band(axes[0, 0], [found[name]["log10_p"] for found in results], name, color)
        band(axes[0, 1], [found[name]["consistency"] for found in results], name, color)
    axes[0, 0].set(title="log10 P(z), without the regulariser", xlabel="iteration")
    axes[0, 1].set(title="consistency with the prompt", xlabel="iteration")
    axes[0, 0].legend()
    return figure


EXPERIMENT = Experiment(
    name="dno_figure_14",
    title="Figures 14 and 15: the way of P(z)",
    question="Does P(z) fall while whiteness is searched, and much less while a preference score is?",
    setting=(
        f'"black <animal>", embedded model, {STEPS} steps (paper: 50), cfg 3, eta 1, Adam at {LR} (paper: 0.01),'
        f" {ITERATIONS} iterations, no regulariser; brightness, and a preference scorer (paper: aesthetic score)."
    ),
    cases=lambda seeds: [{"seed": seed} for seed in range(seeds)],
    run=run,
    claims=(
        Claim(
            "Figure 14: while whiteness is searched, P(z) falls to about 0 within 20 steps.",
            "-6 minus log10 P(z) after 20 iterations",
            lambda results: [-6 - found["whiteness"]["log10_p"][20] for found in results],
        ),
        Claim(
            "Figure 14: at the same time the picture leaves the prompt.",
            "consistency at the start minus after 20 iterations, minus 0.25",
            lambda results: [
                found["whiteness"]["consistency"][0] - found["whiteness"]["consistency"][20] - 0.25
                for found in results
            ],
        ),
        Claim(
            "Figure 15: searching a preference score decreases P(z) much less.",
            "log10 P(z) at the end, of the scorer's search minus of whiteness'",
            lambda results: [found["scorer"]["log10_p"][-1] - found["whiteness"]["log10_p"][-1] for found in results],
        ),
        Claim(
            "Figure 15: and leaves the prompt less.",
            "consistency at the end, of the scorer's search minus of whiteness'",
            lambda results: [
                found["scorer"]["consistency"][-1] - found["whiteness"]["consistency"][-1] for found in results
            ],
        ),
    ),
    draw=draw,
)  # fmt: skip
