"""Figures 4 and 13a: a reward that asks for what the model never draws, on the ring and on "black <animal>"."""

import torch

from .. import core, rewards
from . import ring, ring_figures
from .drawing import panels, spread
from .embedded import LN10, prompts_of, search, sheet
from .experiment import Claim, Experiment
from .ring_models import distance_to_ring, on_ring, train
from .ring_models import ring as draw_points

POINTS, FAR, POINT_LR, GAMMA = 40, 120, 0.05, 10.0
STEPS, ITERATIONS, LR = 8, 36, 0.03
MARGIN = 0.05
"""A point this near to the ring counts as on it."""


def run(seed, model):
    """Search one model without the regulariser; on the ring with it, too."""
    return on_the_ring(seed) if model == "ring" else on_the_embedded_model(seed)


def on_the_ring(seed):
    found = ring.out_of_distribution(train(draw_points, seed), FAR, POINTS, POINT_LR, GAMMA, seed)
    return {
        "separation": ring.separation(found["before"].log_p, found["without"].log_p),
        **{
            name: {
                "distance": float(distance_to_ring(each.images).median()),
                "on_ring": float(on_ring(each.images, MARGIN).float().mean()),
                "log10_p": float(each.log_p.median()) / LN10,
                "points": each.images.tolist(),
            }
            for name, each in found.items()
        },
    }


def on_the_embedded_model(seed):
    (prompt,) = prompts_of("black", seed, 1)
    sample_map = core.load_embedded(prompt, steps=STEPS, keep_graphs=True)
    reward = rewards.Brightness()
    history = search(sample_map, reward, seed, core.GradientAscent(LR), None, ITERATIONS)
    scorer = rewards.Consistency().scorer
    seen = torch.stack([history.pictures[0][0], history.pictures[-1][0]]) / 255
    colour, animal, _ = scorer.consistency(seen, [prompt, prompt])
    return {
        "black": colour.tolist(), "animal": animal.tolist(), "brightness": history.column("score"),
        "log10_p": [value / LN10 for value in history.column("log_p")], "pictures": sheet(history, 6),
    }  # fmt: skip


def of(model, results):
    return [result for result in results if result["case"]["model"] == model]


def draw(results):
    """Draw the first seed's points, and colour and P of the pictures of all seeds."""
    points, pictures = of("ring", results), of("embedded", results)
    figure, axes = panels(1, 5, 3.2)
    titles = {"before": "true noise", "without": f"{FAR} iterations, no regulariser", "with": "with the regulariser"}
    for place, (name, title) in zip(axes[0], titles.items(), strict=False):
        ring_figures.scene(place, ring.nearness, torch.tensor(points[0][name]["points"]), limit=1.7)
        place.set_title(f"{title}\n{points[0][name]['distance']:.2f} off the ring", fontsize=10)
    spread(axes[0, 3], {"before": [p["black"][0] for p in pictures], "after": [p["black"][1] for p in pictures]})
    axes[0, 3].set_title('P(black) of "black <animal>"', fontsize=10)
    spread(axes[0, 4], {
        "ring": [p["without"]["log10_p"] for p in points], "embedded": [p["log10_p"][-1] for p in pictures],
    })  # fmt: skip
    axes[0, 4].set_title("log10 P(z), no regulariser", fontsize=10)
    return figure


EXPERIMENT = Experiment(
    name="dno_figure_4",
    title="Figures 4 and 13a: out-of-distribution reward hacking",
    question="Does a search without the regulariser leave what the model draws, and does P(z) tell?",
    setting=(
        f"Ring: as in Figure 2, {POINTS} points, reward -|x - 1.4|^2, Adam at {POINT_LR} (paper: 0.01), {FAR}"
        f" iterations (paper: 1000), gamma {GAMMA:g} where regularised. Embedded model: 'black <animal>', {STEPS} steps"
        f" (paper: 50), cfg 3, eta 1, brightness, Adam at {LR} (paper: 0.01), {ITERATIONS} iterations (paper: 50), one"
        " picture a seed."
    ),
    cases=lambda seeds: [{"seed": s, "model": m} for s in range(seeds) for m in ("ring", "embedded")],
    run=run,
    claims=(
        Claim(
            "Figure 4b: without the regulariser all points end out of distribution.",
            f"share of points more than {MARGIN} off the ring, minus 95 %",
            lambda results: [0.05 - found["without"]["on_ring"] for found in of("ring", results)],
        ),
        Claim(
            "Section 3.2: the regulariser keeps them in the distribution.",
            "share of points on the ring with the regulariser minus without",
            lambda results: [
                found["with"]["on_ring"] - found["without"]["on_ring"] for found in of("ring", results)
            ],
        ),
        Claim(
            "Figure 13a: P(z) tells the points of Figure 4a from those of 4b.",
            "area under the ROC curve of P(z), minus 0.9",
            lambda results: [found["separation"] - 0.9 for found in of("ring", results)],
        ),
        Claim(
            'Figure 4d: searched for whiteness, a "black <animal>" is black no longer.',
            "0.5 minus the classifier's P(black) at the end",
            lambda results: [0.5 - found["black"][1] for found in of("embedded", results)],
        ),
        Claim(
            "Section 3: the optimised noise has strayed into a region of low probability.",
            "-6 minus log10 P(z) at the end, on the embedded model",
            lambda results: [-6 - found["log10_p"][-1] for found in of("embedded", results)],
        ),
    ),
    draw=draw,
)  # fmt: skip
