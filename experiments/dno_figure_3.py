"""Figure 3: the SDE, all of whose noises are searched, against the ODE, which has x_T alone."""

import statistics

from .. import core
from . import preference_scorers, ring
from .drawing import band, panels
from .embedded import curves, prompts_of, search
from .experiment import Claim, Experiment
from .ring_models import ring as draw_points
from .ring_models import train

POINTS, RING_ITERATIONS = 100, 40
STEPS, ITERATIONS, LR = 8, 20, 0.03
ETAS = {"ODE": 0.0, "SDE": 1.0}
WHERE = "ring, Adam", "ring, plain gradient ascent", "embedded model, Adam"


def run(seed, model):
    """Climb through the ODE and through the SDE."""
    if model == "ring":
        means = ring.ode_and_sde(train(draw_points, seed), RING_ITERATIONS, POINTS, seed)
        return {f"ring, {solver}": of_solver for solver, of_solver in means.items()}
    (prompt,) = prompts_of("black", seed, 1)
    reward, _ = preference_scorers.trained(seed)
    found = {}
    for name, eta in ETAS.items():
        sample_map = core.load_embedded(prompt, steps=STEPS, eta=eta, keep_graphs=True)
        history = search(sample_map, reward, seed, core.GradientAscent(LR), None, ITERATIONS)
        (found[name],) = curves(history)["reward"]
    return {"embedded model, Adam": found}


def lead(results, where):
    """Return how far the SDE's gain is ahead of the ODE's, mean over the iterations, one a seed."""
    return [
        statistics.fmean(risen(found[where]["SDE"])) - statistics.fmean(risen(found[where]["ODE"]))
        for found in results if where in found
    ]  # fmt: skip


def risen(curve):
    """Return a curve less its start: ODE and SDE begin at different pictures."""
    return [value - curve[0] for value in curve]


def draw(results):
    """Draw the gains of both, mean and standard deviation over the seeds."""
    figure, axes = panels(1, len(WHERE))
    for place, where in zip(axes[0], WHERE, strict=True):
        for kind, color in (("ODE", "C1"), ("SDE", "C0")):
            band(place, [risen(found[where][kind]) for found in results if where in found], kind, color)
        place.set(title=where, xlabel="iteration", ylabel="gain in reward")
        place.legend()
    return figure


EXPERIMENT = Experiment(
    name="dno_figure_3",
    title="Figure 3: the SDE against the ODE",
    question="Does a search climb faster through the SDE than through the ODE?",
    setting=(
        f"Ring: {POINTS} points, DDIM, 50 steps, Figure 2's reward, lr 0.01, {RING_ITERATIONS} iterations. Embedded"
        f' model: "black <animal>", {STEPS} steps (paper: 50), cfg 3, a preference scorer, Adam at {LR} (paper: 0.01),'
        f" {ITERATIONS} iterations, no regulariser."
    ),
    cases=lambda seeds: [{"seed": s, "model": m} for s in range(seeds) for m in ("ring", "embedded")],
    run=run,
    claims=tuple(
        Claim(
            text,
            "gain in reward through the SDE minus through the ODE, mean over the iterations",
            lambda results, where=where: lead(results, where),
        )
        for where, text in zip(WHERE, (
            "Figure 3, left: the SDE is optimised faster than the ODE on the ring, by Adam.",
            "Figure 3, left: the same by plain gradient ascent, which the paper does not show.",
            "Figure 3, right: the SDE is optimised faster for a preference score of pictures, by Adam.",
        ), strict=True)
    ),
    draw=draw,
)  # fmt: skip
